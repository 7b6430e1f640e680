"""As many tokens as a gate keeps, drawn by chance; and random tokens that are the same for all heads of a layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import HookedDLM, Plan, Scope, denoise
from sinklens.errors import ContentError
from sinklens.hooks import Canvas
from sinklens.interventions import ChanceSelection, KeepKeys, LearnedSelection, control
from sinklens.probes import Pattern
from sinklens.selection import Gate, Shape

ROWS, KEYS, PAD = 3, 12, 2


@pytest.fixture(scope="module")
def dlm(tiny_model: Any) -> HookedDLM:
    """Three layers, bidirectional, grouped-query heads."""
    return tiny_model("LLaDA", layers=3)


@pytest.fixture(scope="module")
def gate(dlm: HookedDLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained gate that selects from layer 1 on."""
    folder = tmp_path_factory.mktemp("gates") / "one"
    Gate.fresh(Shape(), dlm, seed=4).save(folder)
    return str(folder)


def canvas_of(step: int = 0) -> Canvas:
    """Random tokens; the last row has two pads on the left."""
    tokens = torch.randint(3, 60, (ROWS, KEYS), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(ROWS, KEYS, dtype=torch.bool)
    valid[-1, :PAD] = False
    return Canvas(tokens, valid, ~valid, valid.clone(), step=step, seeds=(5, 6, 7))


def looked_at(dlm: HookedDLM, edit: Any, canvas: Canvas) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Which keys anybody looks at, by layer [batch, head, key], and the residual stream at each layer's input."""
    patterns: dict[int, Tensor] = {}
    inputs: dict[int, Tensor] = {}

    def keep(store: dict[int, Tensor], layer: int) -> Any:
        return lambda tensor, hook: store.__setitem__(layer, tensor.detach().clone())

    hooks = list(edit.fwd_hooks(dlm, canvas))
    for layer in range(3):
        hooks += [(f"blocks.{layer}.attn.hook_pattern", keep(patterns, layer))]
        hooks += [(f"blocks.{layer}.hook_in", keep(inputs, layer))]
    dlm.run_with_hooks(canvas.tokens, attention_mask=canvas.valid, fwd_hooks=hooks)
    real = canvas.valid[:, None, :, None]
    return {layer: ((pattern > 0) & real).any(2) for layer, pattern in patterns.items()}, inputs


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_as_many_are_kept_as_the_gate_would_keep_and_others(dlm: HookedDLM, gate: str, rate: float) -> None:
    canvas, learned, read = canvas_of(), LearnedSelection(gate, rate=rate), Gate.load(gate)
    kept, inputs = looked_at(dlm, ChanceSelection(learned, seed=1), canvas)
    assert torch.equal(kept[0], canvas.valid[:, None].expand(kept[0].shape))
    others = 0
    for layer in (1, 2):
        wanted = read.keeps(inputs[layer], layer, rate, canvas.valid)
        assert torch.equal(kept[layer].sum(-1), wanted.sum(-1)[:, None].expand(ROWS, kept[layer].shape[1]))
        assert torch.equal(kept[layer], kept[layer][:, :1].expand(kept[layer].shape))  # all heads alike
        assert not bool((kept[layer][:, 0] & ~canvas.valid).any())
        others += int((kept[layer][:, 0] & ~wanted).sum())
    assert others


def test_draws_differ_by_seed_step_row_and_layer(dlm: HookedDLM, gate: str) -> None:
    learned = LearnedSelection(gate, rate=0.6)
    first, again, other = (looked_at(dlm, ChanceSelection(learned, seed=seed), canvas_of())[0][1] for seed in (1, 1, 2))
    later = looked_at(dlm, ChanceSelection(learned, seed=1), canvas_of(step=1))[0][1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)


def test_it_is_the_control_of_a_learned_selection(gate: str) -> None:
    where = Scope(layers=[2])
    learned = LearnedSelection(gate, rate=0.4, where=where, queries="committed")
    chance = control(learned, "random", 3)
    assert chance == ChanceSelection(learned, seed=3, where=where, queries="committed")
    assert chance.digest != control(learned, "random", 4).digest
    assert ChanceSelection.from_dict(chance.to_dict()) == chance
    with pytest.raises(ValueError, match="'random' only"):
        control(learned, "bottom")
    with pytest.raises(ContentError, match="of="):
        ChanceSelection(KeepKeys(0.5))  # pyright: ignore[reportArgumentType]


def test_at_a_rate_of_1_nothing_is_drawn(dlm: HookedDLM, gate: str) -> None:
    chance = ChanceSelection(LearnedSelection(gate, rate=1.0))
    assert not chance.changes
    clean, edited = (
        denoise(dlm, [[3, 4, 5], [7, 8]], Plan(new_tokens=3), probes=[Pattern()], interventions=edits, progress=False)
        for edits in ([], [chance])
    )
    assert clean.record["pattern"].equals(edited.record["pattern"])


def test_random_tokens_are_the_same_in_all_heads(dlm: HookedDLM) -> None:
    for rate in (0.25, 0.5):
        kept, _ = looked_at(dlm, KeepKeys(rate, "random_tokens", seed=2), canvas_of())
        apart, _ = looked_at(dlm, KeepKeys(rate, "random", seed=2), canvas_of())
        for layer, mine in kept.items():
            assert torch.equal(mine, mine[:, :1].expand(mine.shape))
            assert mine.sum(-1)[:, 0].tolist() == [math.ceil(rate * size) for size in (KEYS, KEYS, KEYS - PAD)]
            assert not torch.equal(apart[layer], apart[layer][:, :1].expand(apart[layer].shape))
        assert not torch.equal(kept[0], kept[1])
