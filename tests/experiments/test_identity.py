"""A score belongs to the content of what made it: nothing else is ever taken for it, in one ablation or from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sinklens import AblationResult, HookedDLM, MaskSinks, Plan, SameStep, ablate, named
from sinklens.errors import ContentError
from sinklens.experiments import runner
from sinklens.hooks import Canvas, Edit, Hook, Memory
from sinklens.interventions import BiasSinks, InOrder, Redistribute, control
from sinklens.tasks import Echo, Example, Jsonl, Prompts, Score, Task

PLAN = Plan(new_tokens=4)
PROMPTS = [[0, 20, 21, 22, 23, 24, 25], [0, 30, 31, 32, 33]]
QUICK: dict[str, Any] = {"controls": None, "metrics": ("kl",), "progress": False}


@pytest.fixture(scope="module")
def dlm() -> HookedDLM:
    """The bundled diffusion twin; a test that changes it loads its own."""
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per decoding."""
    found: list[int] = []

    def counting(dlm: HookedDLM, start: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(len(start.canvas.tokens))
        return original(dlm, start, *args, **kwargs)

    original = runner.steps_from
    monkeypatch.setattr(runner, "steps_from", counting)
    return found


def kl(model: HookedDLM, conditions: dict[str, Any], task: Any = None, **options: Any) -> dict[str, list[float]]:
    """The KLs of each condition, prompt by prompt."""
    result = ablate(model, PROMPTS if task is None else task, conditions, PLAN, **(QUICK | options))
    return {name: of(result, name) for name in conditions}


def of(result: AblationResult, condition: str) -> list[float]:
    """Values of one condition."""
    return [score["value"] for score in result.scores if score["condition"] == condition]


# One ablation, several edits of one kind.


@dataclass(frozen=True)
class Shrink(Edit):
    """A user's edit with a coefficient: what attention of layer 0 writes, times it."""

    by: float = 1.0

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """On the output of attention."""
        return [("blocks.0.hook_attn_out", lambda tensor, *, hook: tensor * self.by)]


class Loose(Edit):
    """The same without saying what it holds."""

    def __init__(self, by: float) -> None:
        self.by = by

    hooks = Shrink.hooks


def enclosed(by: float) -> Edit:
    """The same, the coefficient enclosed."""

    class Enclosed(Edit):
        def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
            return [("blocks.0.hook_attn_out", lambda tensor, *, hook: tensor * by)]

    return Enclosed()


def together_as_alone(model: HookedDLM, conditions: dict[str, Edit]) -> list[float]:
    """Mean KLs of conditions of one ablation, each of which must be what it is alone."""
    together = kl(model, conditions)
    for name, edit in conditions.items():
        assert together[name] == pytest.approx(kl(model, {name: edit})[name], rel=1e-4, abs=1e-6)
    return [sum(values) / len(values) for values in together.values()]


@pytest.mark.parametrize("make", [Shrink, enclosed])
def test_one_class_with_three_coefficients_is_three_edits(dlm: HookedDLM, make: Callable[[float], Edit]) -> None:
    # 1.0 itself would change nothing, and a condition that changes nothing is NeverExposed.
    none, one, four = together_as_alone(dlm, {f"by {by:g}": make(by) for by in (0.0, 0.999, 4.0)})
    assert one == pytest.approx(0, abs=1e-6)
    assert none > 0.01
    assert four > 0.01
    assert abs(none - four) > 0.01


@pytest.mark.usefixtures("no_forward")
def test_a_class_that_does_not_say_what_it_holds_is_refused(dlm: HookedDLM) -> None:
    with pytest.raises(ContentError, match=r"condition 'four': Loose holds by, which is no field"):
        kl(dlm, {"one": Shrink(1.0), "four": Loose(4.0)})
    with pytest.raises(ContentError, match=r"condition 'both': Loose holds by"):
        kl(dlm, {"both": InOrder(Shrink(1.0), Loose(4.0))})
    with pytest.raises(ContentError, match=r"condition 'a' \(mine\): Loose holds by"):
        kl(dlm, {"a": MaskSinks()}, controls={"mine": lambda edit: Loose(4.0)})


def test_a_class_that_names_itself_is_what_it_says(dlm: HookedDLM) -> None:
    class Known(Loose):
        @property
        def identity(self) -> str:
            return f"attention of layer 0 times {self.by!r}"

    none, one, four = together_as_alone(dlm, {f"by {by:g}": Known(by) for by in (0.0, 0.999, 4.0)})
    assert one < 1e-6 < none != four


def evenly(pattern: torch.Tensor, at: Any) -> torch.Tensor:
    """To all keys alike."""
    return torch.full_like(pattern, 1 / pattern.shape[-1])


def to_the_last(pattern: torch.Tensor, at: Any) -> torch.Tensor:
    """To the last key."""
    return torch.nn.functional.one_hot(torch.tensor(pattern.shape[-1] - 1), pattern.shape[-1]).expand_as(pattern) * 1.0


def test_two_functions_with_names_are_two_edits(dlm: HookedDLM) -> None:
    functions = {"evenly": evenly, "to the last": to_the_last}
    edits = {name: Redistribute(named(name, given), SameStep(top_k=2)) for name, given in functions.items()}
    one, other = together_as_alone(dlm, edits)
    assert abs(one - other) > 1e-4


@pytest.mark.usefixtures("no_forward")
def test_a_function_without_a_name_is_refused_and_two_of_one_name_are_one(dlm: HookedDLM) -> None:
    with pytest.raises(ContentError, match=r"condition 'b': .*is a function.*give it a name: sinklens\.named"):
        kl(dlm, {"a": Redistribute(named("evenly", evenly)), "b": Redistribute(to_the_last)})
    with pytest.raises(ValueError, match="conditions 'a' and 'b' are one and the same edit"):
        kl(dlm, {"a": Redistribute(named("it", evenly)), "b": Redistribute(named("it", to_the_last))})


def test_numbers_that_print_alike_are_two_edits(dlm: HookedDLM, tmp_path: Path, decodes: list[int]) -> None:
    edits = {"a": BiasSinks(-1.000001, SameStep(top_k=2)), "b": BiasSinks(-1.0000001, SameStep(top_k=2))}
    together_as_alone(dlm, edits)
    kl(dlm, {"a": edits["a"]}, save_to=tmp_path / "scores")
    decodes.clear()
    kl(dlm, {"b": edits["b"]}, save_to=tmp_path / "scores")
    assert decodes
    decodes.clear()
    kl(dlm, {"b": BiasSinks(-1.0000001, SameStep(top_k=2))}, save_to=tmp_path / "scores")
    assert decodes == []


# A file, and what changed since.


def permuted_heads(dlm: HookedDLM) -> None:
    """Two heads' queries in each other's place: no sum of weights changes."""
    with torch.no_grad():
        weight = dict(dlm.original_model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
        size = weight.shape[0] // dlm.n_heads
        weight[: 2 * size] = weight[: 2 * size].roll(size, 0)


def negated_unembedding(dlm: HookedDLM) -> None:
    """A weight that only the last layer has."""
    with torch.no_grad():
        dict(dlm.original_model.named_parameters())["lm_head.weight"].neg_()


def permanent_hook(dlm: HookedDLM) -> None:
    """A hook that stays."""
    function = named("half of the attention of layer 0", lambda tensor, *, hook: tensor * 0.5)
    dlm.hook_dict["blocks.0.hook_attn_out"].add_hook(function, is_permanent=True)


def module_hook(dlm: HookedDLM) -> None:
    """A hook of torch's own."""
    layer = dlm.original_model.get_submodule("model.layers.0.mlp")
    layer.register_forward_hook(named("no second half of the layer", lambda module, args, output: output * 0))


CHANGES = [permuted_heads, negated_unembedding, permanent_hook, module_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_scores_of_the_model_before_are_not_those_of_the_model_after(
    tmp_path: Path, change: Callable[[HookedDLM], None]
) -> None:
    dlm, edit, store = HookedDLM.from_pretrained("tiny-dlm"), {"a": MaskSinks(SameStep(top_k=2))}, tmp_path / "scores"
    before = kl(dlm, edit, save_to=store)
    change(dlm)
    after = kl(dlm, edit, save_to=store)
    assert after == kl(dlm, edit)
    assert after != before
    assert kl(HookedDLM.from_pretrained("tiny-dlm"), edit, save_to=store) == before


@pytest.mark.usefixtures("no_forward")
def test_a_model_with_a_hook_that_nobody_can_describe_is_refused(dlm: HookedDLM) -> None:
    dlm.hook_dict["blocks.0.hook_attn_out"].add_hook(lambda tensor, *, hook: tensor * 0.5)
    try:
        with pytest.raises(ContentError, match="give it a name"):
            kl(dlm, {"a": MaskSinks()})
    finally:
        dlm.reset_hooks()


def test_another_coefficient_is_never_served_another_ones_score(
    dlm: HookedDLM, tmp_path: Path, decodes: list[int]
) -> None:
    store = tmp_path / "scores"
    for make in (Shrink, enclosed):
        values = [kl(dlm, {"it": make(by)}, save_to=store)["it"] for by in (0.0, 0.999, 4.0)]
        assert values == [kl(dlm, {"it": make(by)})["it"] for by in (0.0, 0.999, 4.0)]
        decodes.clear()
        assert [kl(dlm, {"it": make(by)}, save_to=store)["it"] for by in (0.0, 0.999, 4.0)] == values
        assert decodes == []


def test_a_method_that_was_changed_is_another_edit(dlm: HookedDLM, tmp_path: Path) -> None:
    def make(by: float) -> Edit:
        names: dict[str, Any] = {"Edit": Edit, "__name__": __name__}
        exec(
            "class Own(Edit):\n    def hooks(self, model, canvas, memory):\n"
            f"        return [('blocks.0.hook_attn_out', lambda tensor, *, hook: tensor * {by})]",
            names,
        )
        return names["Own"]()

    store = tmp_path / "scores"
    one, two = (kl(dlm, {"it": make(by)}, save_to=store)["it"] for by in (0.0, 4.0))
    assert one != two
    assert two == kl(dlm, {"it": make(4.0)})["it"]


def test_another_plan_is_another_score(dlm: HookedDLM, tmp_path: Path, decodes: list[int]) -> None:
    """Also where the difference prints alike."""
    options = {**QUICK, "save_to": tmp_path / "scores"}
    for number, temperature in enumerate((0.5, 0.5000000001, 0.5), start=1):
        plan = Plan(new_tokens=4, temperature=temperature)
        ablate(dlm, PROMPTS, {"a": MaskSinks()}, plan, **options)
        assert len(decodes) == 2 * min(number, 2)  # the unedited run, and the one that repeats it


# Tasks.


def jsonl(path: Path, *answers: str) -> Path:
    """A task file."""
    path.write_text("".join(f'{{"prompt": "dolko xe", "answer": "{answer}"}}\n' for answer in answers))
    return path


def test_what_a_task_compares_belongs_to_the_score(dlm: HookedDLM, tmp_path: Path, decodes: list[int]) -> None:
    path = jsonl(tmp_path / "task.jsonl", "dolko", "dolko")
    options = {**QUICK, "metrics": ("accuracy",), "save_to": tmp_path / "scores"}
    plan = Plan(new_tokens=1)
    values = [ablate(dlm, Jsonl(path, extract=each), {}, plan, **options).scores for each in (None, "x", "^d", "l")]
    assert len(decodes) == 4
    alone = {**options, "save_to": None}
    for found, extract in zip(values, (None, "x", "^d", "l"), strict=True):
        assert found == ablate(dlm, Jsonl(path, extract=extract), {}, plan, **alone).scores
    decodes.clear()
    ablate(dlm, Jsonl(path, extract="^d"), {}, plan, **options)
    assert decodes == []


def test_more_examples_do_not_make_the_first_ones_worthless(dlm: HookedDLM, tmp_path: Path, decodes: list[int]) -> None:
    path = jsonl(tmp_path / "task.jsonl", "dolko", "dolko xe", "gake")
    options = {**QUICK, "metrics": ("accuracy",), "save_to": tmp_path / "scores"}
    for limit in (2, 3):
        ablate(dlm, Jsonl(path, limit=limit), {}, Plan(new_tokens=1), **options)
    assert decodes == [2, 1]
    decodes.clear()
    kl(dlm, {"a": MaskSinks()}, PROMPTS[:1], save_to=tmp_path / "scores")
    kl(dlm, {"a": MaskSinks()}, Prompts(PROMPTS, name="both"), save_to=tmp_path / "scores")
    assert decodes == [1, 2, 1, 2]  # each once unedited, and once beside the edit


class Holding(Task):
    """A task that does not say what it holds."""

    name = "holding"

    def __init__(self, right: str) -> None:
        self.right = right

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Example:
        return Echo(2, seed=1)[index]

    def score(self, example: Example, completion: str) -> Score:
        """Whether a word is in it."""
        return Score(int(self.right in completion), 1)

    def checkable(self, example: Example, answer: Any) -> list[bool]:
        """All."""
        return [True] * len(answer)


@pytest.mark.usefixtures("no_forward")
def test_a_task_without_content_is_refused(dlm: HookedDLM) -> None:
    with pytest.raises(ContentError, match="the task 'holding': Holding holds right, which is no field"):
        kl(dlm, {"a": MaskSinks()}, Holding("a"))


@pytest.mark.usefixtures("no_forward")
def test_what_scores_and_is_no_task_is_refused(dlm: HookedDLM) -> None:
    class Likeness:
        name = "it"
        score = checkable = __len__ = __getitem__ = lambda self, *_: 1

    with pytest.raises(ValueError, match=r"can score, but is no task; give its class the base sinklens\.tasks\.Task"):
        kl(dlm, {"a": MaskSinks()}, Likeness())


def test_a_task_that_names_itself_is_what_it_says(dlm: HookedDLM, tmp_path: Path) -> None:
    class Known(Holding):
        @property
        def identity(self) -> str:
            return f"whether {self.right!r} is in it"

    options = {**QUICK, "metrics": ("accuracy",)}
    letters = ("a", "q")
    stored = [ablate(dlm, Known(x), {}, PLAN, **options, save_to=tmp_path / "scores").scores for x in letters]
    assert [[score["value"] for score in each] for each in stored] == [[1, 1], [0, 0]]


# What may be shared.


def test_equal_content_is_one_score_however_it_was_made(dlm: HookedDLM, tmp_path: Path, decodes: list[int]) -> None:
    edit = MaskSinks(SameStep(top_k=2))
    first = kl(dlm, {"a": edit}, save_to=tmp_path / "scores", controls="random")
    decodes.clear()
    made = Edit.from_dict(edit.to_dict())
    again = kl(dlm, {"b": made}, save_to=tmp_path / "scores", controls={"random": control})
    assert decodes == []
    assert again["b"] == first["a"]


def test_the_model_is_hashed_once_per_ablation(dlm: HookedDLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], HookedDLM.fingerprint
    monkeypatch.setattr(HookedDLM, "fingerprint", lambda self: calls.append(1) or original(self))
    kl(dlm, {"a": MaskSinks(), "b": Shrink(0.0)}, controls=None, seeds=[0, 1], batch_size=2)
    assert len(calls) == 1
