"""Runs that are saved, broken off or repeated, and edits that meet."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from parts import Acts, Sees
from torch import Tensor

import sinklens as sl
from sinklens import Canvas, HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Scope, SinkRule, denoise
from sinklens.decoding import run as running
from sinklens.errors import ContentError, PlanError, RecordError, SaveError, ScopeError
from sinklens.hooks import Edit, Hook, Memory, Probe
from sinklens.interventions import ZeroSinks
from sinklens.probes import KeyNorm, ReceivedAttention
from sinklens.values.content import digest

MASK = 62
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7]]
GAPS = [[5, MASK, 9, MASK, MASK, 4, MASK], [33, MASK, MASK, 8, MASK, 2, 11, MASK, 21], [3, MASK, MASK, MASK, 7, MASK]]
Model = Callable[[str], HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model of a family, made before any test forbids forwards."""
    return {name: tiny_model(name) for name in ("LLaDA", "Dream", "Llama")}.__getitem__


def at_step(step: int, error: BaseException, point: str = "unembed.hook_out") -> Acts:
    """An edit that raises at one step, at the end of the forward unless another hook point is given."""

    def act(tensor: Tensor, canvas: Canvas) -> None:
        if canvas.step == step:
            raise error

    return Acts(act, point)


def run(dlm: HookedDLM, prompts: Any, plan: Plan, **options: Any) -> Any:
    return denoise(dlm, prompts, plan, progress=False, **options)


def assert_same(one: xr.Dataset, other: xr.Dataset) -> None:
    """The same variables, coordinates, values and attributes."""
    xr.testing.assert_equal(one, other)
    assert set(one.data_vars) == set(other.data_vars)
    assert dict(one.attrs) == dict(other.attrs)


# Saving.


def test_a_saved_run_is_its_record(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.nc"
    result = run(model("LLaDA"), PROMPTS, Plan(new_tokens=6), probes=[ReceivedAttention()], save_to=path)
    assert_same(sl.open(path), result.record)
    assert json.loads(sl.open(path).attrs["provenance"])["finished"] is True
    assert [each.name for each in path.parent.iterdir()] == ["run.nc"]  # and no half-written file beside it


def test_a_saved_baseline_is_its_record(model: Model, tmp_path: Path) -> None:
    path = str(tmp_path / "run.nc")
    result = run(model("Llama"), PROMPTS, Plan(new_tokens=4), probes=[ReceivedAttention()], save_to=path)
    assert_same(sl.open(path), result.record)


POINTS = [
    "blocks.0.hook_in",  # no layer was measured in the step that fails
    "blocks.1.hook_in",  # one of two
    "unembed.hook_out",  # both
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_what_was_finished_is_saved(
    model: Model, tmp_path: Path, kind: type[BaseException], family: str, point: str
) -> None:
    dlm, plan, path = model(family), Plan(new_tokens=6), tmp_path / "run.nc"
    whole = run(dlm, PROMPTS, plan, probes=[ReceivedAttention()])
    options: dict[str, Any] = {"probes": [ReceivedAttention()], "interventions": [at_step(2, kind("stop"), point)]}
    if kind is KeyboardInterrupt:
        part = run(dlm, PROMPTS, plan, save_to=path, **options)
    else:
        with pytest.raises(RuntimeError, match=r"^stop") as caught:
            run(dlm, PROMPTS, plan, save_to=path, **options)
        part = caught.value.run  # type: ignore[attr-defined]
    assert not part.finished
    saved = sl.open(path)
    assert_same(saved, part.record)
    assert json.loads(saved.attrs["provenance"])["finished"] is False
    assert saved.sizes["step"] == 2
    early = slice(0, 2)
    np.testing.assert_array_equal(
        saved["received"], whole.record["received"].isel(step=early, key=slice(0, saved.sizes["key"]))
    )
    np.testing.assert_array_equal(saved["canvas"], whole.record["canvas"].isel(step=early))
    commits = whole.record["commit_step"].to_numpy()
    np.testing.assert_array_equal(saved["commit_step"], np.where(commits < 2, commits, -1))
    assert not dlm.hooked


def test_a_run_under_way_is_saved_step_by_step(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill would leave: read the file from within the run."""
    monkeypatch.setattr(running, "SAVE_EVERY", 0)
    path, found = tmp_path / "run.nc", []

    def look(tensor: Tensor, canvas: Canvas) -> None:
        found.append(sl.open(path).sizes["step"] if path.exists() else 0)
        if found[-1]:
            assert json.loads(sl.open(path).attrs["provenance"])["finished"] is False

    whole = run(model("LLaDA"), PROMPTS, Plan(new_tokens=5), probes=[KeyNorm()], interventions=[Acts(look)])
    assert found == [0] * 5  # nothing is written unasked
    found.clear()
    kept = run(
        model("LLaDA"), PROMPTS, Plan(new_tokens=5), probes=[KeyNorm()], interventions=[Acts(look)], save_to=path
    )
    assert found == [0, 1, 2, 3, 4]
    assert torch.equal(kept.tokens, whole.tokens)
    assert_same(sl.open(path), kept.record)
    np.testing.assert_array_equal(kept.record["key_norm"], whole.record["key_norm"])


def test_saving_waits_its_time(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three fast steps are saved once, at the end; a clock that jumps a minute makes it save in between."""
    written: list[int] = []
    save = running.save
    monkeypatch.setattr(
        running, "save", lambda record, path: written.append(record.sizes["step"]) or save(record, path)
    )
    run(model("LLaDA"), PROMPTS, Plan(new_tokens=3), save_to=tmp_path / "a.nc")
    assert written == [3]
    written.clear()
    times = iter([0.0, 10.0, 61.0, 61.5, 100.0])  # start; after step 1; after step 2; saved then; after step 3
    monkeypatch.setattr(running.time, "monotonic", lambda: next(times, 100.0))
    run(model("LLaDA"), PROMPTS, Plan(new_tokens=3), save_to=tmp_path / "b.nc")
    assert written == [2, 3]


@pytest.mark.parametrize("target", ["file/run.nc", "file", ""])
def test_a_target_that_cannot_be_written_is_found_before_the_first_forward(
    model: Model, tmp_path: Path, target: str
) -> None:
    def never(tensor: Tensor, canvas: Canvas) -> None:
        raise AssertionError("a forward was run")

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match=re.escape(repr(str(tmp_path / target)))):
        run(model("LLaDA"), PROMPTS, Plan(new_tokens=2), interventions=[Acts(never)], save_to=tmp_path / target)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_save_that_fails_under_way_does_not_cost_the_run(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the error of the file carries the steps before, as every other error does."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for every, steps in ((0.0, 1), (60.0, 4)):
        monkeypatch.setattr(running, "SAVE_EVERY", every)
        with pytest.raises(SaveError, match=r"run.nc' cannot be written: No space left on device") as caught:
            run(model("LLaDA"), PROMPTS, Plan(new_tokens=4), save_to=tmp_path / "run.nc")
        kept = caught.value.run  # type: ignore[attr-defined]
        assert kept.record.sizes["step"] == steps
        assert kept.finished == (steps == 4)
        assert f"{kept!r} is in this error's attribute `run`" in caught.value.__notes__
    assert list(tmp_path.iterdir()) == []


# What a run is made of.


@dataclass(frozen=True, repr=False)
class Remembers(Edit):
    """Adds what key 0 received at the step before to its scores: it needs a memory of its own in every run."""

    amount: float = 1.0
    where: Scope = Scope()

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        assert canvas is not None

        def hook_function(scores: Tensor, *, hook: Any) -> Tensor:
            before = memory.notes.get("received", 0.0)
            memory.notes["received"] = scores.softmax(-1)[..., :1].sum(-2, keepdim=True)
            memory.count("steps", torch.ones(len(scores)))
            return torch.cat([scores[..., :1] + self.amount * before, scores[..., 1:]], -1)

        return [("blocks.0.attn.hook_attn_scores", hook_function)]


@dataclass(frozen=True, repr=False)
class Column(Probe):
    """Received attention of layer 0, over steps: it must find only its own run's in `seen`."""

    name = "column"
    dims = ("head", "key")
    unit = "attention"
    definition = "column sum"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        assert not seen

        def hook_function(pattern: Tensor, *, hook: Any) -> None:
            seen["sum"] = pattern.sum(-2)

        return [("blocks.0.attn.hook_pattern", hook_function)]

    def values(self, seen: dict[Any, Any]) -> Tensor:
        return seen["sum"]


def taken(steps: Any, probe: Probe) -> Any:
    """One step of a loop in the open: what it committed and what the probe saw."""
    step = next(steps, None)
    return None if step is None else (step.tokens, probe.values(step.seen[0]), step.memories[0].per_row("steps"))


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_one_edit_and_one_probe_serve_two_runs_at_once(model: Model, family: str) -> None:
    """Steps of two runs of other prompts, taken in turns, are those of each run alone."""
    edit, probe, plan = Remembers(2.0), Column(), Plan(new_tokens=5, temperature=0.5)
    options: dict[str, Any] = {"probes": [probe], "interventions": [edit]}

    def begin(index: int) -> Any:
        return sl.denoising_steps(model(family), PROMPTS[index], plan, seed=index, **options)

    alone = [[taken(steps, probe) for _ in range(5)] for steps in (begin(0), begin(1))]
    turns = [begin(0), begin(1)]
    together: list[list[Any]] = [[], []]
    for _ in range(5):
        for own, steps in zip(together, turns, strict=True):
            own.append(taken(steps, probe))
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a[0], b[0])
            torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)
            assert a[2] == b[2]
    assert alone[0][-1][2] == [5]
    bare, edited = (run(model(family), PROMPTS[0], plan, probes=[probe], interventions=edits) for edits in ([], [edit]))
    difference = np.abs(bare.record["column"] - edited.record["column"]).max(["prompt", "head", "key"])
    assert difference[0] == 0
    assert (difference[1:] > 1e-4).all()  # so what the edit remembers matters


def test_one_edit_serves_a_run_within_a_run(model: Model) -> None:
    edit, plan = Remembers(2.0), Plan(new_tokens=4)
    expected = [run(model("LLaDA"), prompt, plan, interventions=[edit]) for prompt in PROMPTS]
    inner = []
    for step in sl.denoising_steps(model("LLaDA"), PROMPTS[0], plan, interventions=[edit]):
        inner.append(run(model("LLaDA"), PROMPTS[1], plan, interventions=[edit]).tokens)
        last = step.tokens
    assert torch.equal(last, expected[0].tokens)
    assert all(torch.equal(tokens, expected[1].tokens) for tokens in inner)
    assert vars(edit) == {"amount": 2.0, "where": Scope()}


def test_memories_of_a_run_are_in_the_order_of_its_edits(model: Model) -> None:
    edits = [Acts(where=Scope(heads=0), title="a"), Acts(where=Scope(heads=1, steps=[0, 2]), title="b")]
    result = run(model("LLaDA"), PROMPTS, Plan(new_tokens=4), interventions=edits)
    assert [memory.counts() for memory in result.memories] == [{"acts": 12}, {"acts": 6}]
    assert result.memories[1].per_row("acts") == [2, 2, 2]
    assert result.fired == {repr(edits[0]): 4, repr(edits[1]): 2}
    again = run(model("LLaDA"), PROMPTS, Plan(new_tokens=4), interventions=edits)
    assert [memory.counts() for memory in again.memories] == [{"acts": 12}, {"acts": 6}]


def test_parts_that_read_alike_are_counted_apart(model: Model) -> None:
    """They differ in what their reprs do not show."""
    result = run(model("LLaDA"), PROMPTS[0], Plan(new_tokens=3), interventions=[Alike(0), Alike(1)])
    assert result.fired == {"Alike (1)": 3, "Alike (2)": 3}


@dataclass(frozen=True, repr=False)
class Alike(Edit):
    """An edit whose repr says nothing."""

    head: int
    where: Scope = Scope()

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", Scope(heads=self.head))

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return [("blocks.0.attn.hook_pattern", lambda pattern, *, hook: None)]

    def __repr__(self) -> str:
        return "Alike"


def test_a_record_keeps_content_and_the_same_to_read(model: Model) -> None:
    edit, probe = Remembers(1.0000001, where=Scope(layers=0)), Column()
    made = json.loads(
        run(model("LLaDA"), PROMPTS, Plan(new_tokens=3), interventions=[edit], probes=[probe]).record.provenance
    )
    assert [digest(content) for content in made["interventions"]] == [edit.digest]
    assert [digest(content) for content in made["probes"]] == [probe.digest]
    assert Plan.from_dict(made["plan"]) == Plan(new_tokens=3).resolved(model("LLaDA"))
    assert type(edit).from_dict(made["interventions"][0]) == edit
    assert made["read_as"]["interventions"] == [repr(edit)]
    assert made["read_as"]["probes"] == ["Column()"]
    assert made["edit_counts"] == [{"steps": 9}]


@pytest.mark.usefixtures("model", "no_forward")
def test_names_of_probes_are_checked_before_any_forward(model: Model) -> None:
    for probes, message in (
        ([Sees(), Sees(point="embed.hook_out")], "two probes would both be recorded as part"),
        ([Sees(name="masked")], "every record has masked already; give the probe another name"),
        ([Sees(name="key")], "every record has key already"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model("LLaDA"), PROMPTS, Plan(new_tokens=3), probes=probes)


class Nameless(Acts):
    """An edit with an attribute that is no field."""

    identity = None

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "coefficient", 4.0)


@pytest.mark.usefixtures("model", "no_forward")
def test_what_a_record_could_not_name_is_refused_before_any_forward(model: Model) -> None:
    with pytest.raises(ContentError, match=r"Nameless holds .*coefficient, which is no field"):
        run(model("LLaDA"), PROMPTS, Plan(new_tokens=3), interventions=[Nameless()])


@pytest.mark.usefixtures("no_forward")
def test_prompts_are_tokenised_and_the_plan_resolved_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for owner, name in ((HookedDLM, "encode"), (Plan, "resolved")):
        original = getattr(owner, name)

        def counted(self: Any, *args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            calls.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    with pytest.raises(AssertionError, match="a forward was run"):
        run(model("Llama"), PROMPTS, Plan(new_tokens=3))
    assert sorted(calls) == ["encode"] * 3 + ["resolved"]


# Following.

FOLLOWED = [
    ("LLaDA", PROMPTS, Plan(new_tokens=8)),
    ("LLaDA", PROMPTS, Plan(new_tokens=8, block_length=4, steps=4, temperature=1.0)),
    ("LLaDA", PROMPTS, Plan(new_tokens=6, steps=2, remasking="random", temperature=1.0)),
    ("LLaDA", PROMPTS, Plan(new_tokens=6, threshold=0.8)),
    ("LLaDA", GAPS, Plan(new_tokens=0, steps=2, temperature=1.0)),
    ("Dream", PROMPTS, Plan(new_tokens=8, steps=4, temperature=1.0)),
    ("Dream", PROMPTS, Plan(new_tokens=8, steps=5, remasking="origin", temperature=1.0)),
    ("Dream", PROMPTS, Plan(new_tokens=8, steps=4, remasking="entropy", alg_temp=0.5)),
    ("Dream", GAPS, Plan(new_tokens=0, temperature=1.0)),
    ("Llama", PROMPTS, Plan(new_tokens=6)),
    ("Llama", PROMPTS, Plan(new_tokens=6, temperature=1.0)),
    ("Llama", GAPS, Plan(new_tokens=0, temperature=1.0)),
]
NAMES = [f"{family}-{plan.new_tokens}-{index}" for index, (family, _, plan) in enumerate(FOLLOWED)]


@pytest.mark.parametrize(
    ("family", "prompts", "plan", "detector"),
    [*((*each, SameStep) for each in FOLLOWED), *((*FOLLOWED[at], PreviousStep) for at in (1, 7, 10))],
    ids=[*NAMES, *(f"previous-{NAMES[at]}" for at in (1, 7, 10))],
)
def test_an_edited_run_follows_another(model: Model, family: str, prompts: Any, plan: Plan, detector: Any) -> None:
    dlm = model(family)
    first = run(dlm, prompts, plan, seed=3)
    assert first.record.sizes["step"] > 1
    edit = MaskSinks(detector(top_k=1))
    again = run(dlm, prompts, plan, seed=11, interventions=[edit], follow=first, probes=[ReceivedAttention()])
    assert torch.equal(again.tokens, first.tokens)
    assert torch.equal(again.commit_step, first.commit_step)
    for name in ("token", "commit_step", "canvas", "masked"):
        np.testing.assert_array_equal(again.record[name], first.record[name])
    assert again.finished
    assert again.memories[0].counts()["keys"] > 0
    committed = first.commit_step >= 0
    assert (again.predicted[~committed] == -1).all()
    assert (again.predicted[committed] >= 0).all()
    assert (again.predicted[committed] != again.tokens[committed]).any()  # the edit changed what it would say
    assert json.loads(again.record.attrs["provenance"])["forced"] is True


@pytest.mark.parametrize(("family", "prompts", "plan"), FOLLOWED, ids=NAMES)
def test_following_without_edits_is_the_run_itself(model: Model, family: str, prompts: Any, plan: Plan) -> None:
    dlm, probe = model(family), ReceivedAttention()
    first = run(dlm, prompts, plan, seed=3, probes=[probe])
    again = run(dlm, prompts, plan, seed=3, probes=[probe], follow=first)
    assert torch.equal(again.tokens, first.tokens)
    np.testing.assert_array_equal(again.record["received"], first.record["received"])
    committed = first.commit_step >= 0
    if plan.temperature == 0:
        assert torch.equal(again.predicted[committed], first.tokens[committed])
    torch.testing.assert_close(again.confidence, first.confidence, equal_nan=True)


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_predicted_is_what_the_edited_model_says_at_the_followed_canvas(model: Model, family: str) -> None:
    """Each canvas of the first run by hand: one forward with the edit's hooks, the likeliest token that is no mask."""
    dlm, prompt = model(family), PROMPTS[1]
    first = run(dlm, prompt, Plan(new_tokens=6, temperature=1.0), seed=3)
    edit = MaskSinks(SameStep(top_k=1), where=Scope(layers=[0]))
    again = run(dlm, prompt, Plan(new_tokens=6), interventions=[edit], follow=first)
    for at in range(len(prompt), len(prompt) + 6):
        step = int(first.commit_step[0, at])
        canvas = first.record["canvas"].to_numpy()[0, step]
        tokens = torch.from_numpy(canvas[canvas >= 0]).long()[None]
        by_hand = MaskSinks(SameStep(top_k=1), where=Scope(layers=[0]))
        with torch.no_grad():
            logits = dlm.run_with_hooks(tokens, fwd_hooks=by_hand.fwd_hooks(dlm))
        scores = dlm.by_position(logits)[0, at].clone()
        if not dlm.is_causal:
            scores[MASK] = -torch.inf
        assert int(again.predicted[0, at]) == int(scores.argmax())


def test_following_a_baseline_that_ended_early(model: Model) -> None:
    """A row that met EOS stays as it was; the others go on."""
    dlm, plan = model("Llama"), Plan(new_tokens=12, temperature=1.5)
    runs = (run(dlm, PROMPTS, plan, seed=seed) for seed in range(60))
    first = next(each for each in runs if len(set(each.commit_step.amax(-1).tolist())) > 1)
    again = run(dlm, PROMPTS, plan, interventions=[MaskSinks(SameStep(top_k=1))], follow=first)
    assert torch.equal(again.tokens, first.tokens)
    assert torch.equal(again.commit_step, first.commit_step)
    assert again.completions == first.completions
    np.testing.assert_array_equal(again.record["canvas"], first.record["canvas"])


def test_following_a_run_that_was_broken_off_repeats_its_steps(model: Model) -> None:
    dlm, plan = model("LLaDA"), Plan(new_tokens=6)
    first = run(dlm, PROMPTS, plan, interventions=[at_step(3, KeyboardInterrupt())])
    again = run(dlm, PROMPTS, plan, interventions=[MaskSinks(SameStep(top_k=1))], follow=first)
    assert torch.equal(again.tokens, first.tokens)
    assert again.record.sizes["step"] == 3


def test_a_followed_run_can_be_followed(model: Model) -> None:
    dlm, plan = model("LLaDA"), Plan(new_tokens=6, temperature=1.0)
    first = run(dlm, PROMPTS, plan)
    second = run(dlm, PROMPTS, plan, interventions=[MaskSinks(SameStep(top_k=1))], follow=first)
    third = run(dlm, PROMPTS, plan, interventions=[MaskSinks(SameStep(top_k=1))], follow=second)
    assert torch.equal(third.tokens, first.tokens)
    assert torch.equal(third.commit_step, first.commit_step)


@pytest.fixture
def short(model: Model) -> Any:
    """A run of one prompt, made before any test forbids forwards."""
    return run(model("LLaDA"), PROMPTS[0], Plan(new_tokens=4))


@pytest.mark.usefixtures("short", "no_forward")
@pytest.mark.parametrize(
    ("prompts", "plan", "more"),
    [
        (PROMPTS[0], Plan(new_tokens=6), {}),
        (PROMPTS[1], Plan(new_tokens=4), {}),
        ([PROMPTS[0]] * 2, Plan(new_tokens=4), {}),
        (PROMPTS[0], Plan(new_tokens=4), {"force": [[5, 6, 7, 8]]}),
    ],
    ids=["longer", "another prompt", "more rows", "force"],
)
def test_what_cannot_be_followed_is_refused(
    model: Model, short: Any, prompts: Any, plan: Plan, more: dict[str, Any]
) -> None:
    with pytest.raises(PlanError, match="follow"):
        run(model("LLaDA"), prompts, plan, follow=short, **more)


def test_a_run_of_other_prompts_of_the_same_shape_is_refused(model: Model) -> None:
    """Its gaps are elsewhere, and given tokens must never be overwritten."""
    dlm, plan = model("LLaDA"), Plan(new_tokens=0)
    other = run(dlm, [5, MASK, 9, 7, MASK, 4], plan)
    with pytest.raises(PlanError, match="follow"):
        run(dlm, [5, 6, MASK, 7, MASK, 4], plan, follow=other)


def test_a_followed_run_does_not_replay(model: Model) -> None:
    dlm, plan = model("LLaDA"), Plan(new_tokens=4)
    first = run(dlm, PROMPTS[0], plan)
    with pytest.raises(RecordError, match="teacher-forced"):
        sl.replay(run(dlm, PROMPTS[0], plan, follow=first).record, dlm, progress=False)


# Edits that meet.

SCOPES = [
    (Scope(), Scope(), True),
    (Scope(heads=0), Scope(heads=1), False),
    (Scope(heads=[0, 1]), Scope(heads=[1, 2]), True),
    (Scope(heads=3), Scope(heads=-1), True),
    (Scope(heads=slice(0, 2)), Scope(heads=slice(2, None)), False),
    (Scope(layers=0), Scope(layers=1), False),
    (Scope(layers=1), Scope(layers=[-1]), True),
    (Scope(layers=0, heads=1), Scope(layers=1, heads=1), False),
    (Scope(layers=0), Scope(heads=2), True),
    (Scope(steps=slice(0, 2)), Scope(steps=slice(2, None)), False),
    (Scope(steps=slice(0, 3)), Scope(steps=slice(2, None)), True),
    (Scope(steps=[0, 3]), Scope(steps=[1, 2]), False),
    (Scope(steps=-1), Scope(steps=3), True),
    (Scope(steps=-1), Scope(steps=slice(0, -1)), False),
    (Scope(steps=0), Scope(), True),
]


@pytest.mark.usefixtures("model", "no_forward")
@pytest.mark.parametrize(("one", "other"), [(one, other) for one, other, meet in SCOPES if meet], ids=repr)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_edits_that_meet_are_refused_before_any_forward(model: Model, family: str, one: Scope, other: Scope) -> None:
    for a, b in ((one, other), (other, one)):
        edits: list[Any] = [MaskSinks(SameStep(top_k=1), where=a), ZeroSinks(SameStep(top_k=1), where=b)]
        with pytest.raises(ScopeError, match=r"MaskSinks\(.*ZeroSinks\(.*same heads at the same steps.*InOrder"):
            run(model(family), PROMPTS, Plan(new_tokens=4), interventions=edits)
        with pytest.raises(ScopeError, match="same heads"):
            run(model(family), PROMPTS, Plan(new_tokens=4), interventions=[Acts(where=a), *edits[1:]])


@pytest.mark.usefixtures("model", "no_forward")
def test_edits_of_other_queries_meet_where_their_heads_do(model: Model) -> None:
    """Which queries are masked changes as tokens are committed, and a head has one pattern."""
    edits = [MaskSinks(SameStep(top_k=1), queries="masked"), ZeroSinks(SameStep(top_k=1), queries="committed")]
    with pytest.raises(ScopeError, match="same heads"):
        run(model("LLaDA"), PROMPTS, Plan(new_tokens=4), interventions=edits)


@pytest.mark.usefixtures("model", "no_forward")
def test_the_first_and_the_third_edit_may_meet(model: Model) -> None:
    scopes = [Scope(heads=0), Scope(heads=1), Scope(heads=[0, 2])]
    with pytest.raises(ScopeError, match="same heads"):
        run(model("LLaDA"), PROMPTS, Plan(new_tokens=4), interventions=[Acts(where=scope) for scope in scopes])


@pytest.mark.parametrize(("one", "other"), [(one, other) for one, other, meet in SCOPES if not meet], ids=repr)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_edits_that_do_not_meet_are_run(model: Model, family: str, one: Scope, other: Scope) -> None:
    edits = [MaskSinks(SameStep(top_k=1), where=one), ZeroSinks(SameStep(top_k=1), where=other)]
    result = run(model(family), PROMPTS, Plan(new_tokens=4, suppress_eos="logits"), interventions=edits)
    assert result.finished
    assert all(memory.counts()["keys"] > 0 for memory in result.memories)


@pytest.mark.parametrize(("steps", "meet"), [(([0], [1]), False), (([0, 2], [2]), True), ((slice(3, None), [9]), True)])
def test_steps_of_a_plan_without_a_known_end(model: Model, steps: Any, meet: bool) -> None:
    edits = [ZeroSinks(SameStep(top_k=1), where=Scope(steps=each)) for each in steps]
    plan = Plan(new_tokens=4, threshold=0.9)
    if not meet:
        assert run(model("LLaDA"), PROMPTS, plan, interventions=edits).finished
        return
    with pytest.raises(ScopeError, match="same heads"):
        run(model("LLaDA"), PROMPTS, plan, interventions=edits)


# The rule's own sets, in an edit.


@pytest.mark.parametrize("rule", [SinkRule(None, top_k=1, queries="prompt"), SinkRule(None, top_k=1, keys="masked")])
def test_an_edit_uses_its_rules_own_queries_and_keys(model: Model, rule: SinkRule) -> None:
    """The keys that an edit removes are the sinks that a SinkMask of the same rule found, by the pattern after."""
    dlm = model("LLaDA")
    plain = run(dlm, PROMPTS[1], Plan(new_tokens=4), probes=[sl.probes.SinkMask(rule), sl.probes.Pattern()])
    edit = ZeroSinks(SameStep(rule), where=Scope(layers=[0], steps=[0]))
    edited = run(dlm, PROMPTS[1], Plan(new_tokens=4), probes=[sl.probes.Pattern()], interventions=[edit])
    before, after = (each.record["pattern"].to_numpy()[0, 0, 0] for each in (plain, edited))
    removed = (before > 0).any(1) & (after == 0).all(1)  # [head, key]
    np.testing.assert_array_equal(removed, plain.record["sink"].to_numpy()[0, 0, 0] == 1)
