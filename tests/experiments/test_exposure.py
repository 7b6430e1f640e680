"""Exposure: how much of what is scored was decided by an edited forward, and that none of it is an error."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sinklens import (
    AblationResult,
    HookedDLM,
    MaskSinks,
    Plan,
    PreviousStep,
    SameStep,
    SinkRule,
    Where,
    ablate,
    denoise,
    denoising_steps,
)
from sinklens.decoding.prompts import prepare
from sinklens.errors import NeverExposed, PartlyExposed, RecordError
from sinklens.experiments import runner
from sinklens.experiments.ablation import doses
from sinklens.experiments.batch import SEEDS
from sinklens.hooks import Canvas, Edit, Hook, Memory
from sinklens.interventions import (
    BiasSinks,
    InOrder,
    KeepKeys,
    NoOp,
    NullKey,
    Pin,
    Redistribute,
    ScaleSinks,
    SinkToken,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.interventions.selectors.base import Evidence, Selector
from sinklens.probes import Pattern
from sinklens.tasks import Echo, Jsonl


@dataclass(frozen=True, repr=False)
class Last(Selector):
    """The last key of each row."""

    def select(self, evidence: Evidence) -> torch.Tensor:
        """It."""
        return evidence.canvas.positions("last")[:, None].to(evidence.received.device) & evidence.eligible


PROMPTS = [[0, 20, 21, 22], [0, 23], [0, 24, 25, 26, 27, 28]]
BACK = MaskSinks(PreviousStep(top_k=1))
METRICS = ["agreement", "order", "kl", "replayed_agreement", "confidence_committed", "confidence_uncommitted"]


def run(dlm: HookedDLM, task: Any, conditions: dict[str, Edit], plan: Plan, **options: Any) -> AblationResult:
    """`ablate` without a progress bar."""
    return ablate(dlm, task, conditions, plan, progress=False, **{"controls": None, **options})


def shares(result: AblationResult, condition: str, metric: str, kind: str = "sinks") -> list[float | None]:
    """The exposure of each prompt."""
    rows = [row for row in result.scores if (row["condition"], row["kind"]) == (condition, kind)]
    return [row["exposed"] for row in rows if row["metric"] == metric]


def naive(dlm: HookedDLM, prompt: list[int], edit: Edit, plan: Plan, seed: int, **options: Any) -> dict[str, float]:
    """Exposure of one row by hand: whether the count of edited keys grew in a step, and what the step decided."""
    met: dict[str, list[bool]] = {"own": [], "masked": [], "committed": [], "waiting": []}
    before = 0.0
    for step in denoising_steps(dlm, prompt, plan, seed=seed, interventions=[edit], **options):
        (memory,) = step.memories
        now = sum(memory.per_row("keys")) + sum(memory.per_row("rows"))
        grown, before = now > before, now
        commits, open_places = int(step.committed.sum()), int((step.canvas.masked & step.canvas.valid).sum())
        if dlm.is_causal:
            open_places = commits
        met["own"] += [grown] * commits
        met["masked"] += [grown] * open_places
        met["waiting"] += [grown] * (open_places - commits)
    return {name: sum(each) / len(each) if each else math.nan for name, each in met.items()}


EDITS: dict[str, Edit] = {
    "back": BACK,
    "same": MaskSinks(SameStep(top_k=2)),
    "at some steps": MaskSinks(SameStep(top_k=1), where=Where(steps=[1, 3])),
    "in order": InOrder(
        ZeroValue(SameStep(top_k=1), where=Where(layers=0, steps=[2])),
        MaskSinks(SameStep(top_k=1), where=Where(layers=1, steps=[0, 2])),
    ),
    "null key": NullKey(0.0, where=Where(steps=slice(2, None))),
    "token": SinkToken(token=5, where=Where(steps=[0])),
}


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_exposure_equals_a_naive_count_over_the_steps(tiny_model: Callable[..., HookedDLM], family: str) -> None:
    dlm = tiny_model(family)
    plan = Plan(new_tokens=6) if dlm.is_causal else Plan(new_tokens=6, steps=4)
    result = run(dlm, PROMPTS, EDITS, plan, metrics=METRICS, seeds=[2])
    for name, edit in EDITS.items():
        for index, prompt in enumerate(PROMPTS):
            seed = 2 * SEEDS + index
            free = naive(dlm, prompt, edit, plan, seed)
            clean = denoise(dlm, prompt, plan, seed=seed, progress=False)
            replayed = naive(dlm, prompt, edit, plan, seed, follow=clean)
            expected = {"agreement": free["own"], "kl": replayed["masked"], "replayed_agreement": replayed["own"]}
            expected |= {"confidence_committed": replayed["own"], "confidence_uncommitted": replayed["waiting"]}
            for metric, share in expected.items():
                found = shares(result, name, metric)[index]
                assert (math.nan if found is None else found) == pytest.approx(share, nan_ok=True), (name, metric)
    assert {row["exposed"] for row in result.scores if row["kind"] == "unmasked"} == {None}


@pytest.fixture(scope="module")
def arm() -> HookedDLM:
    """The bundled autoregressive twin."""
    return HookedDLM.from_pretrained("tiny-arm")


@pytest.fixture(scope="module")
def dlm() -> HookedDLM:
    """The bundled diffusion twin."""
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.mark.parametrize("n", [2, 3, 8])
def test_an_answer_of_n_tokens_is_exposed_by_all_but_its_first(arm: HookedDLM, tmp_path: Path, n: int) -> None:
    """PreviousStep cannot act at step 0, which decides the first token of a baseline: (n - 1) / n, controls too."""
    lines = [{"prompt": "dolko gake xe", "answer": " ".join(["dolko"] * n)}, {"prompt": "gake", "answer": "gake " * n}]
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    metrics = ["accuracy", "forced_accuracy", "agreement", "kl", "log_likelihood"]
    conditions = {"back": BACK, "same": MaskSinks(SameStep(top_k=1))}
    result = run(arm, Jsonl(path), conditions, Plan(new_tokens=n), metrics=metrics, controls=["random", "noop"])
    for metric in metrics:
        expected = 1.0 if metric == "log_likelihood" else (n - 1) / n  # a likelihood is shown its own canvas before
        for kind in ("sinks", "random"):
            assert shares(result, "back", metric, kind) == pytest.approx([expected] * 2), metric
            assert shares(result, "same", metric, kind) == [1.0, 1.0]
        assert shares(result, "back", metric, "noop") == [None, None]
        effect = result.effect("back", metric, control="random")
        assert (effect.exposed, effect.exposed_control) == pytest.approx((expected, expected))
    summary = result.summary().set_index(["metric", "condition", "kind"])
    assert summary.loc["accuracy", "back", "sinks"]["exposed"] == pytest.approx((n - 1) / n)
    assert math.isnan(summary.loc["accuracy", "unmasked", "unmasked"]["exposed"])
    effects = result.effects("accuracy")
    assert set(effects[effects.condition == "back"]["exposed"].round(6)) == {round((n - 1) / n, 6)}


def test_of_a_likelihood_each_draw_counts(dlm: HookedDLM, tmp_path: Path) -> None:
    """An edit of masked positions is met at every draw; one that finds nothing at none, which is an error."""
    path = tmp_path / "task.jsonl"
    path.write_text('{"prompt": "dolko gake xe", "answer": "dolko gake"}')
    masked = MaskSinks(SameStep(top_k=1), queries="masked")
    result = run(dlm, Jsonl(path), {"masked": masked}, Plan(new_tokens=2), metrics=["log_likelihood"])
    assert shares(result, "masked", "log_likelihood") == [1.0]


def test_only_scored_words_count(dlm: HookedDLM) -> None:
    """Of Echo's texts the words that a rule decides: the share is of those, not of all that was written."""
    task, plan = Echo(4, seed=3, prompt_tokens=8, answer_tokens=6), Plan(new_tokens=6)
    result = run(dlm, task, {"back": BACK}, plan, metrics=["accuracy", "forced_accuracy"])
    for index in range(4):
        start = prepare(dlm, task[index].prompt, plan)
        answer = list(dlm.tokenizer(task[index].answer, add_special_tokens=False)["input_ids"])
        options = {"seed": index, "interventions": [BACK], "progress": False}
        free = denoise(dlm, task[index].prompt, plan, **options)
        forced = denoise(dlm, task[index].prompt, plan, **options, force=[answer])
        for metric, each in (("accuracy", free), ("forced_accuracy", forced)):
            ids = each.tokens[0, -6:].tolist()
            counting = torch.tensor(task.checkable(task[index], ids))
            late = (each.commit_step[0, -6:] > 0)[counting].tolist()
            found = shares(result, "back", metric)[index]
            assert found == (pytest.approx(sum(late) / len(late)) if late else None)
        assert start.steps == 6


# None of it.


@dataclass(frozen=True, repr=False)
class Quiet(Edit):
    """An edit of one's own that changes next to nothing."""

    attaches: bool

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """One, or none."""
        return [("blocks.0.hook_out", lambda tensor, *, hook: tensor * 1.0001)] if self.attaches else []


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("conditions", "plan", "says"),
    [
        ({"top-1": BACK}, Plan(new_tokens=1), "1 step, and it finds no key before step 1.*first='same'.*same/top1"),
        ({"top-1": InOrder(BACK, NoOp())}, Plan(new_tokens=1), "finds no key before step 1"),
        ({"top-1": MaskSinks(PreviousStep(top_k=1), where=Where(steps=[0]))}, Plan(new_tokens=4), "first='same'"),
        ({"fine": MaskSinks(SameStep(top_k=1)), "bad": BACK}, Plan(new_tokens=1), "condition 'bad'"),
    ],
)
@pytest.mark.parametrize("metric", ["agreement", "kl"])
def test_an_edit_that_no_step_can_see_is_refused_before_the_first_forward(
    arm: HookedDLM, conditions: dict[str, Edit], plan: Plan, says: str, metric: str
) -> None:
    with pytest.raises(NeverExposed, match=says):
        run(arm, PROMPTS, conditions, plan, metrics=[metric])


@pytest.mark.usefixtures("no_forward")
def test_one_step_of_a_diffusion_model_too_and_so_do_controls(dlm: HookedDLM) -> None:
    plan = Plan(new_tokens=8, steps=1, block_length=8)
    with pytest.raises(NeverExposed, match="1 step"):
        run(dlm, PROMPTS, {"top-1": BACK}, plan, metrics=["kl"])
    with pytest.raises(NeverExposed, match="1 step"):
        run(dlm, PROMPTS, {"random": control(BACK)}, plan, metrics=["kl"])
    with pytest.raises(NeverExposed, match="1 step"):  # also where every prompt has one gap
        run(dlm, [[0, 20, dlm.ids.mask], [0, dlm.ids.mask]], {"top-1": BACK}, Plan(new_tokens=0), metrics=["kl"])


IDENTITIES: dict[str, Edit] = {
    "BiasSinks(0": BiasSinks(0, SameStep(top_k=1)),
    "ScaleSinks(1.0": ScaleSinks(1.0, SameStep(top_k=1)),
    "renormalise=True": ScaleSinks(1.0, SameStep(top_k=1), renormalise=True),
    "share=0": Redistribute("uniform", SameStep(top_k=1), share=0.0),
    "NullKey(-inf": NullKey(-math.inf),
    "KeepKeys(1.0": KeepKeys(1.0),
    "InOrder(BiasSinks(0": InOrder(BiasSinks(0, SameStep(top_k=1)), NoOp(SameStep(top_k=1))),
}


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("says", IDENTITIES)
def test_only_identities_are_refused_before_the_first_forward(arm: HookedDLM, says: str) -> None:
    with pytest.raises(NeverExposed, match=f"condition 'it': .*{re.escape(says)}.* is the identity.*'unmasked'"):
        run(arm, PROMPTS, {"it": IDENTITIES[says], "noop": NoOp(SameStep(top_k=3))}, Plan(2), metrics=["agreement"])


def test_an_identity_among_doses_is_a_point_of_the_curve_and_is_said(arm: HookedDLM) -> None:
    """It has the numbers of the unedited model, and nothing was exposed to it, nor to its control."""
    conditions = doses("bias", [-2.0, 0.0], lambda bias: BiasSinks(bias, SameStep(top_k=1)))
    options: dict[str, Any] = {"controls": "random", "metrics": ["kl", "agreement"]}
    with pytest.warns(PartlyExposed, match="'bias=0.0'.* is the identity") as caught:
        result = run(arm, PROMPTS, conditions, Plan(new_tokens=3), **options)
    assert len(caught) == 1
    for metric, value in (("kl", 0.0), ("agreement", 1.0)):
        for kind in ("sinks", "random"):
            assert shares(result, "bias=0.0", metric, kind) == [None] * 3
            assert shares(result, "bias=-2.0", metric, kind) != [None] * 3
        points = [row["value"] for row in result.scores if (row["condition"], row["metric"]) == ("bias=0.0", metric)]
        assert points == pytest.approx([value] * 6, abs=1e-9)
    assert result.effect("bias=-2.0", "kl").value > 1e-6
    assert math.isnan(result.summary().set_index("condition").loc["bias=0.0"]["exposed"].max())


def test_an_amount_for_every_key_exposes_nothing(arm: HookedDLM) -> None:
    """The softmax does not see it; that of one key it does."""
    every = SameStep(SinkRule(epsilon=-1e3))
    conditions = {"every": BiasSinks(3.0, every), "one": BiasSinks(3.0, SameStep(top_k=1))}
    with pytest.raises(NeverExposed, match=r"condition 'every' .kl.") as caught:
        run(arm, PROMPTS, conditions, Plan(new_tokens=3), metrics=["kl"])
    result: Any = caught.value.result
    assert shares(result, "every", "kl") == [0.0] * 3
    assert shares(result, "one", "kl") == [1.0] * 3
    assert result.effect("every", "kl").value == pytest.approx(0, abs=1e-7)
    assert min(row["edited_keys"] for row in result.scores if row["condition"] == "every") > 0


def test_one_step_is_enough_for_a_likelihood_and_for_the_same_step(arm: HookedDLM) -> None:
    conditions = {"first": MaskSinks(PreviousStep(top_k=1, first="same")), "same": MaskSinks(SameStep(top_k=1))}
    result = run(arm, PROMPTS, conditions, Plan(new_tokens=1), metrics=["agreement"])
    assert [shares(result, name, "agreement") for name in conditions] == [[1.0] * 3] * 2


def blind(dlm: HookedDLM) -> dict[str, Edit]:
    """Edits that meet nothing: nobody is a sink, nobody asks (a baseline has no masked query), nothing is recorded."""
    plan = Plan(new_tokens=3)
    record = denoise(dlm, PROMPTS, plan, probes=[Pattern(where=Where(steps=[0]))], progress=False).record
    return {
        "no sink": MaskSinks(SameStep(SinkRule(epsilon=99.0))),
        "no query": NullKey(0.0, queries="prompt", where=Where(layers=-1, steps=[1, 2])),  # which decide step 0 alone
        "nothing recorded": Pin(record, where=Where(steps=[1, 2])),
        "no hook": Quiet(attaches=False),
    }


@pytest.mark.parametrize("name", ["no sink", "no query", "nothing recorded", "no hook"])
def test_an_edit_that_met_nothing_is_an_error_with_the_result_on_it(
    arm: HookedDLM, tmp_path: Path, name: str, decodes: list[int]
) -> None:
    options: dict[str, Any] = {"metrics": ["agreement"], "save_to": tmp_path / "scores", "seeds": [0, 1]}
    conditions = {"met": Quiet(attaches=True), name: blind(arm)[name]}
    for _ in range(2):
        with pytest.raises(NeverExposed, match=f"condition '{name}' .agreement. never met what is scored") as caught:
            run(arm, PROMPTS, conditions, Plan(new_tokens=3), **options)
        result: Any = caught.value.result
        assert isinstance(result, AblationResult)
        assert result.finished
        assert shares(result, name, "agreement") == [0.0] * 6
        assert shares(result, "met", "agreement") == [1.0] * 6
        assert {row["value"] for row in result.scores} == {1.0}  # and it is the unedited model
        count, decodes[:] = len(decodes), []
    assert count == 0  # nothing is lost: all of it came from the file


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each run of the loop."""
    calls: list[int] = []
    loop = runner.steps_from

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return loop(*args, **kwargs)

    monkeypatch.setattr(runner, "steps_from", counted)
    return calls


def test_a_row_of_which_no_query_sees_the_key_is_not_edited(tiny_model: Callable[..., HookedDLM]) -> None:
    """In a causal model nobody but itself sees the last key, and diagonal=False spares a key's own query."""
    dlm = tiny_model("Llama")
    edit = MaskSinks(Last(), diagonal=False)
    with pytest.raises(NeverExposed):
        run(dlm, PROMPTS, {"last": edit}, Plan(new_tokens=2), metrics=["agreement"])
    result = run(dlm, PROMPTS, {"last": MaskSinks(Last())}, Plan(new_tokens=2), metrics=["agreement"])
    assert shares(result, "last", "agreement") == [1.0] * 3


def test_a_query_that_sees_one_key_keeps_it(arm: HookedDLM) -> None:
    """Behind a prompt of one token the first forward has one key: to mask it, to add to its score, or to move its
    weight to others changes nothing; to take it, or what it says, does.
    """
    edits = {
        "mask": MaskSinks(SameStep(top_k=1)),
        "bias": BiasSinks(-3.0, SameStep(top_k=1)),
        "spread": Redistribute("uniform", SameStep(top_k=1)),
        "swap": Swap(SameStep(top_k=1)),
        "zero": ZeroSinks(SameStep(top_k=1)),
        "silence": ZeroValue(SameStep(top_k=1)),
    }
    with pytest.raises(NeverExposed) as caught:
        run(arm, [[20]], edits, Plan(new_tokens=1), metrics=["kl"])
    result: Any = caught.value.result
    changed = {name: result.effect(name, "kl").value > 1e-9 for name in edits}
    assert changed == {name: shares(result, name, "kl") == [1.0] for name in edits}
    assert set(changed.values()) == {True, False}
    several = run(arm, [[20]], edits, Plan(new_tokens=4), metrics=["agreement"])
    assert shares(several, "mask", "agreement") == [0.75]


def test_some_of_it_is_one_warning_that_names_the_conditions(arm: HookedDLM) -> None:
    conditions = {"back": BACK, "same": MaskSinks(SameStep(top_k=1))}
    with pytest.warns(PartlyExposed) as caught:
        ablate(arm, PROMPTS, conditions, Plan(new_tokens=4), metrics=["agreement", "kl"], progress=False)
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    for said in ("'back' (agreement) 0.75", "'back' (random, agreement) 0.75", "'back' (kl) 0.75"):
        assert said in text
    assert "same" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(arm, PROMPTS, {"same": conditions["same"]}, Plan(new_tokens=4), metrics=["agreement"])


def test_scores_of_before_are_not_taken_for_those_that_say_their_exposure(arm: HookedDLM, tmp_path: Path) -> None:
    """The form of a score is a part of its key; a result file without exposure is refused."""
    result = run(arm, PROMPTS, {"same": MaskSinks(SameStep(top_k=1))}, Plan(new_tokens=2), metrics=["agreement"])
    old = AblationResult([{key: row[key] for key in row if key != "exposed"} for row in result.scores])
    with pytest.raises(RecordError, match="exposed"):
        AblationResult.open(old.save(tmp_path / "old.json"))
    assert AblationResult.open(result.save(tmp_path / "new.json")).scores == result.scores
