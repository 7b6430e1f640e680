"""Exposure of any edit, against attention of the clean and the edited forward compared query by query."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
import torch
from fuzzing import fuzz
from hypothesis import assume
from hypothesis import strategies as st

from sinklens import HookedDLM, Plan, PreviousStep, SameStep, Where, denoise, denoising_steps
from sinklens.hooks import Canvas, Edit, Hook, Memory, Probe
from sinklens.interventions import (
    BiasSinks,
    ByKeyNorm,
    Fixed,
    InOrder,
    KeepKeys,
    MaskSinks,
    MeanValue,
    NoiseValue,
    NoOp,
    NullKey,
    Pin,
    Redistribute,
    ScaleSinks,
    SideBySide,
    SinkToken,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.interventions.selectors.base import Evidence, Selector
from sinklens.probes import Pattern

PROMPTS = [[0, 20, 21, 22], [0], [0, 24, 25, 26, 27, 28]]
ROUNDING = 1e-13  # in float64, of a weight or a value after a softmax whose scores were all moved


@dataclass(frozen=True, repr=False)
class Everyone(Selector):
    """Every key."""

    def select(self, evidence: Evidence) -> torch.Tensor:
        """All of them."""
        return evidence.eligible


@dataclass(frozen=True, repr=False)
class Last(Selector):
    """The last key of each row: in a causal model only its own query sees it."""

    def select(self, evidence: Evidence) -> torch.Tensor:
        """It."""
        return evidence.canvas.positions("last")[:, None].to(evidence.received.device) & evidence.eligible


@dataclass(frozen=True, repr=False)
class Own(Edit):
    """An edit of one's own at any hook point."""

    point: str
    how: str
    where: Where = field(default_factory=Where)

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks of layer 0."""
        return [(f"blocks.0.{self.point}", self._hook)]

    def _hook(self, tensor: torch.Tensor, *, hook: Any) -> torch.Tensor | None:
        match self.how:
            case "same":
                return tensor * 1.0
            case "itself":
                return tensor
            case "nothing":
                return None
            case "pads":  # left padding: the first position of the rows that are not the longest
                edited = tensor.clone()
                edited[:2, ..., 0, :] += 1.0
                return edited
            case "in place":
                tensor.mul_(1.5)
                return None
            case _:
                return tensor * 1.5


@dataclass(frozen=True)
class Attention(Probe):
    """Weights and mixed values of every layer, as the model used them."""

    name, dims, unit, definition = "attention", (), "", ""

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """Looking only."""

        def look(tensor: torch.Tensor, *, hook: Any) -> None:
            seen[hook.name] = tensor.detach().clone()

        points = ("attn.hook_pattern", "attn.o.hook_in")
        return [(f"blocks.{layer}.{point}", look) for layer in range(model.cfg.n_layers) for point in points]

    def values(self, seen: dict[Any, Any]) -> torch.Tensor:
        """Nothing that is recorded."""
        raise NotImplementedError


@lru_cache
def model(name: str) -> HookedDLM:
    """A bundled twin, in float64: what is more than rounding is then easy to say."""
    return HookedDLM.from_pretrained(name, dtype=torch.float64)


def plan_of(name: str) -> Plan:
    """A few steps."""
    return Plan(new_tokens=3) if model(name).is_causal else Plan(new_tokens=6, steps=3)


@lru_cache
def clean(name: str) -> Any:
    """The unedited run."""
    return denoise(model(name), PROMPTS, plan_of(name), probes=[Pattern()], progress=False)


def steps_of(name: str, edits: list[Edit]) -> Iterator[Any]:
    """Steps on the canvases of the unedited run."""
    options: dict[str, Any] = {"follow": clean(name), "probes": [Attention()], "interventions": edits}
    return denoising_steps(model(name), PROMPTS, plan_of(name), **options)


@lru_cache
def seen_clean(name: str) -> list[dict[str, torch.Tensor]]:
    """What attention was at each step, unedited."""
    return [step.seen[0] for step in steps_of(name, [])]


def queries(point: str, tensor: torch.Tensor) -> torch.Tensor:
    """Query by query, [batch, query, numbers]."""
    by_query = tensor.transpose(1, 2) if point.endswith("hook_pattern") else tensor
    return by_query.flatten(2)


def naive(name: str, edit: Edit) -> tuple[list[list[bool]], list[list[bool]]]:
    """Which rows count as edited at each step, and those of which some real query looks or hears differently.

    In the last layer only queries by which a token is decided: masked positions, or in a baseline the last one.
    """
    counted, differ = [], []
    last = f"blocks.{model(name).cfg.n_layers - 1}."
    for before, step in zip(seen_clean(name), steps_of(name, [edit]), strict=True):
        (memory,) = step.memories
        counted.append([False] * len(PROMPTS) if memory.edited is None else memory.edited.tolist())
        rows = []
        for row in range(len(PROMPTS)):
            canvas = step.canvas
            places = canvas.valid[row].nonzero()[:, 0].tolist()
            decide = places[-1:] if model(name).is_causal else canvas.masked[row].nonzero()[:, 0].tolist()
            largest = 0.0
            for point, tensor in step.seen[0].items():
                asked = decide if point.startswith(last) else places
                ours, theirs = (queries(point, each)[row] for each in (tensor, before[point]))
                largest = max(largest, *(float((ours[i] - theirs[i]).abs().max()) for i in asked))
            rows.append(largest > ROUNDING and bool(step.active[row]))
        differ.append(rows)
    return counted, differ


SAME = SameStep(top_k=1)
NOTHING: dict[str, Edit] = {
    "bias 0": BiasSinks(0.0, SAME),
    "factor 1": ScaleSinks(1.0, SAME),
    "factor 1, renormalised": ScaleSinks(1.0, SAME, renormalise=True),
    "share 0": Redistribute("uniform", SAME, share=0.0),
    "null key without a share": NullKey(-math.inf),
    "null key too faint for a float": NullKey(-1e9),
    "all keys kept": KeepKeys(1.0),
    "bias of every key": BiasSinks(2.0, Everyone()),
    "negative bias of every key": BiasSinks(-8.0, Everyone()),
    "random keys instead of every key": BiasSinks(0.0, Everyone()),
    "factor of every key, renormalised": ScaleSinks(0.5, Everyone(), renormalise=True),
    "spread from every key": Redistribute("uniform", Everyone()),
    "nothing to swap with": Swap(Everyone()),
    "found, and left": NoOp(SAME),
    "control of an identity": control(BiasSinks(0.0, SAME)),
    "identities in order": InOrder(BiasSinks(0.0, SAME), ScaleSinks(1.0, SAME)),
    "one's own, times 1": Own("hook_out", "same"),
    "one's own scores, times 1": Own("attn.hook_attn_scores", "same"),
    "one's own, given back": Own("attn.hook_pattern", "itself"),
    "one's own, shown only": Own("attn.hook_received", "more"),
    "one's own, of pads": Own("attn.hook_pattern", "pads"),
    "one's own, values of pads": Own("hook_in", "nothing"),
}
CAUSAL_NOTHING: dict[str, Edit] = {
    "masked keys that no query sees": MaskSinks(Last(), diagonal=False),
    "values of keys that no query sees": ZeroValue(Last(), diagonal=False),
    "noise of keys that no query sees": NoiseValue(None, Last(), diagonal=False),
    "keys that no query in scope sees": ZeroSinks(Last(), queries="prompt", where=Where(steps=[1, 2])),
}
SOMETHING: dict[str, Edit] = {
    "mask": MaskSinks(SAME),
    "back": MaskSinks(PreviousStep(top_k=1)),
    "bias": BiasSinks(-1.0, SAME),
    "zero": ZeroSinks(SAME),
    "value": ZeroValue(SAME),
    "mean": MeanValue(SAME),
    "null key": NullKey(0.0, queries="last"),
    "token": SinkToken(token=5, where=Where(layers=[1])),
    "factor of every key": ScaleSinks(0.5, Everyone()),
    "value of every key": NoiseValue(0.0, Everyone()),
    "one identity of two": InOrder(BiasSinks(0.0, SAME), MaskSinks(SAME, where=Where(steps=[1]))),
    "one's own": Own("attn.hook_pattern", "more"),
    "one's own, in place": Own("attn.v.hook_out", "in place"),
    "one's own scores": Own("attn.hook_attn_scores", "more"),
    "side by side": SideBySide([BiasSinks(0.0, SAME), None, ZeroSinks(SAME)], 1),
}


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("edit", NOTHING.values(), ids=NOTHING)
def test_an_edit_that_changes_nothing_exposes_nothing(name: str, edit: Edit) -> None:
    counted, differ = naive(name, edit)
    assert counted == differ == [[False] * 3] * len(counted)


@pytest.mark.parametrize("edit", CAUSAL_NOTHING.values(), ids=CAUSAL_NOTHING)
def test_keys_that_no_query_sees_expose_nothing(edit: Edit) -> None:
    counted, differ = naive("tiny-arm", edit)
    assert counted == differ == [[False] * 3] * len(counted)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("edit", SOMETHING.values(), ids=SOMETHING)
def test_an_edit_that_changes_something_exposes_the_rows_that_it_changes(name: str, edit: Edit) -> None:
    counted, differ = naive(name, edit)
    assert counted == differ
    assert any(map(any, counted))


def test_replayed_patterns_of_another_model_expose_where_they_were_recorded() -> None:
    counted, differ = naive("tiny-dlm", Pin(clean("tiny-arm").record, where=Where(steps=[0])))
    assert counted == differ
    assert counted[0] == [True] * 3


@pytest.mark.parametrize("edit", ["own patterns", "factor 1 + 1e-12"])
def test_what_is_nothing_in_float32_exposes_nothing_there(edit: str) -> None:
    """The run's own patterns in the same batch, bit by bit; a dose that rounds to the identity."""
    dlm, plan = HookedDLM.from_pretrained("tiny-dlm"), plan_of("tiny-dlm")
    record = denoise(dlm, PROMPTS, plan, probes=[Pattern()], progress=False).record
    edits = {"own patterns": Pin(record), "factor 1 + 1e-12": ScaleSinks(1 + 1e-12, SAME)}
    for step in denoising_steps(dlm, PROMPTS, plan, probes=[Pattern()], interventions=[edits[edit]]):
        assert step.memories[0].edited.tolist() == [False] * 3


selectors = st.one_of(
    st.builds(SameStep, top_k=st.integers(1, 4)),
    st.builds(PreviousStep, top_k=st.integers(1, 4)),
    st.builds(Fixed, st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)),
    st.builds(ByKeyNorm, st.integers(1, 4)),
    st.just(Everyone()),
    st.just(Last()),
)
base: dict[str, Any] = {
    "where": st.builds(
        Where,
        st.sampled_from([None, (0,), (1,)]),
        st.sampled_from([None, (0,), (1, 3)]),
        st.sampled_from([None, (0,), (1,), (2,)]),
    ),
    "queries": st.sampled_from(["all", "masked", "committed", "prompt", "response", "last"]),
}
common: dict[str, Any] = {**base, "diagonal": st.booleans()}
some = st.sampled_from([0.0, 0.01, 0.5, 1.0])
edits = st.one_of(
    st.builds(MaskSinks, selectors, **common),
    st.builds(BiasSinks, st.sampled_from([-3.0, -0.1, 0.0, 0.1, 3.0]), selectors, **common),
    st.builds(ZeroSinks, selectors, **common),
    st.builds(ScaleSinks, st.sampled_from([0.0, 0.5, 1.0, 2.0]), selectors, renormalise=st.booleans(), **common),
    st.builds(Redistribute, st.sampled_from(["proportional", "uniform", "self", 0]), selectors, share=some, **common),
    st.builds(Swap, selectors, seed=st.integers(0, 3), **common),
    st.builds(ZeroValue, selectors, **common),
    st.builds(NoiseValue, st.sampled_from([None, 0.0, 1.0]), selectors, **common),
    st.builds(NullKey, st.sampled_from([-math.inf, -1.0, 2.0]), **base),
    st.builds(SinkToken, st.just(5), **base),
)


@fuzz(few=100, many=3000, name=st.sampled_from(["tiny-dlm", "tiny-arm"]), edit=edits, random=st.booleans())
def test_exposed_are_exactly_the_rows_of_which_a_query_looks_or_hears_differently(
    name: str, edit: Edit, random: bool
) -> None:
    assume(name == "tiny-dlm" or "masked" not in repr(edit))  # a baseline has no masks: refused
    if random and hasattr(edit, "selector"):
        edit = control(edit)
    counted, differ = naive(name, edit)
    assert counted == differ
