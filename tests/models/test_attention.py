"""The attention bridge is exact on both paths, in every family, with grouped queries and padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinklens import HookedDLM
from sinklens.models import attention
from sinklens.models.families import FAMILIES

NAMES = [family.name for family in FAMILIES]
# float32 on activations of size 1 to 10 and rows of at most 12 keys; two kernels differ by rounding only.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LAYERS = 2

Model = Callable[[str, int], HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model of a family with 4 query heads and so many key heads, made once."""
    return lru_cache(lambda family, kv_heads=2: tiny_model(family, layers=LAYERS, kv_heads=kv_heads))


def inputs(batch: int, length: int, pads: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens, and a mask with so much left padding in each row."""
    tokens = torch.randint(2, 62, (batch, length), generator=torch.Generator().manual_seed(seed))
    start = torch.tensor([min(pads[row % len(pads)], length - 1) for row in range(batch)])
    return tokens, torch.arange(length) >= start[:, None]


@torch.no_grad()
def watched(
    dlm: HookedDLM, tokens: Tensor, mask: Tensor, edits: dict[str, Callable[[Tensor], Tensor]], points: tuple[str, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the attention tensors of every layer; `edits` act on the points that they name, in every layer."""
    seen: dict[str, Tensor] = {}

    def look(tensor: Tensor, *, hook: Any) -> Tensor | None:
        point = hook.name.split(".attn.")[1]
        tensor = edits[point](tensor) if point in edits else tensor
        seen[hook.name] = tensor
        return tensor

    names = [f"blocks.{layer}.attn.{point}" for layer in range(dlm.n_layers) for point in {*points, *edits}]
    with dlm.hooks(fwd_hooks=[(name, look) for name in names]):
        logits = dlm(tokens, attention_mask=mask)
    assert set(seen) == set(names)
    return logits, seen


QKVZ = ("hook_rot_q", "hook_rot_k", "v.hook_out", "o.hook_in")


def naive(
    dlm: HookedDLM, seen: dict[str, Tensor], layer: int, mask: Tensor, hidden: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pattern [batch, head, query, key] and mixed values [batch, query, head, d], loop by loop, in float64."""
    q, k, v = (seen[f"blocks.{layer}.attn.{point}"].double() for point in QKVZ[:3])
    batch, length, heads, size = q.shape
    causal, scaling = (
        dlm.is_causal,
        1.0 if dlm.family.name in ("ESM-2", "DPLM") else size**-0.5,
    )  # ESM's queries are scaled
    per_key_head = heads // k.shape[2]
    block = dlm.in_blocks.length if dlm.in_blocks else length  # of positions, counted from each row's first real one
    number = [[(int(row[: j + 1].sum()) - 1) // block for j in range(length)] for row in mask]
    near = 3 if dlm.family.name == "ModernBERT" and layer % 3 else length
    pattern, mixed = torch.zeros(batch, heads, length, length).double(), torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                keys = [j for j in range(length) if mask[b, j] and (j <= i or not causal) and j != hidden]
                keys = [j for j in keys if abs(i - j) <= near and number[b][j] <= number[b][i]]
                if not keys:
                    continue
                scores = torch.stack([q[b, i, h] @ k[b, j, h // per_key_head] * scaling for j in keys])
                pattern[b, h, i, keys] = scores.softmax(-1)
                mixed[b, i, h] = pattern[b, h, i, keys] @ v[b, keys, h // per_key_head]
    return pattern, mixed


shapes = st.tuples(st.integers(1, 3), st.integers(1, 10), st.lists(st.integers(0, 9), min_size=1, max_size=3))
families_and_heads = st.tuples(st.sampled_from(NAMES), st.sampled_from([1, 2, 4]))


@given(which=families_and_heads, shape=shapes)
def test_both_paths_agree_at_real_positions(model: Model, which: tuple[str, int], shape: tuple[int, int, list]) -> None:
    dlm = model(*which)
    tokens, mask = inputs(shape[0], shape[1], tuple(shape[2]))
    fused, on_fused = watched(dlm, tokens, mask, {}, ("o.hook_in",))
    by_pattern, on_pattern = watched(dlm, tokens, mask, {}, ("o.hook_in", "hook_pattern"))
    torch.testing.assert_close(by_pattern[mask], fused[mask], atol=5e-5, rtol=1e-5)  # logits, of size 20, two layers
    for layer in range(LAYERS):
        name = f"blocks.{layer}.attn.o.hook_in"
        # Experts (of LLaDA2 times 2.5) enlarge what rounding leaves in the layer before: 1.5e-5; in float64 4e-15.
        close = CLOSE if which[0] != "LLaDA2" else {"atol": 4e-5, "rtol": 1e-5}
        torch.testing.assert_close(on_pattern[name][mask], on_fused[name][mask], **close)


@pytest.mark.parametrize("path", ["fused", "pattern"])
@given(which=families_and_heads, shape=shapes)
def test_each_path_equals_a_naive_loop(
    model: Model, path: str, which: tuple[str, int], shape: tuple[int, int, list]
) -> None:
    dlm = model(*which)
    tokens, mask = inputs(shape[0], shape[1], tuple(shape[2]), seed=1)
    points = (*QKVZ, "hook_pattern") if path == "pattern" else QKVZ
    _, seen = watched(dlm, tokens, mask, {}, points)
    for layer in range(LAYERS):
        pattern, mixed = naive(dlm, seen, layer, mask)
        torch.testing.assert_close(seen[f"blocks.{layer}.attn.o.hook_in"][mask], mixed.float()[mask], **CLOSE)
        if path == "pattern":
            ours = seen[f"blocks.{layer}.attn.hook_pattern"].transpose(1, 2)[mask]
            torch.testing.assert_close(ours, pattern.float().transpose(1, 2)[mask], **CLOSE)


@pytest.mark.parametrize("pads", [(0,), (0, 3)])
@pytest.mark.parametrize("family", NAMES)
def test_a_hidden_key_is_as_if_it_were_not_there(model: Model, family: str, pads: tuple[int, ...]) -> None:
    """One column of the scores at -inf, against the naive loop without that key."""
    dlm, hidden = model(family, 2), 5

    def hide(scores: Tensor) -> Tensor:
        return scores.index_fill(-1, torch.tensor([hidden]), float("-inf"))

    tokens, mask = inputs(2, 8, pads)
    logits, seen = watched(dlm, tokens, mask, {"hook_attn_scores": hide}, (*QKVZ, "hook_pattern"))
    plain, _ = watched(dlm, tokens, mask, {}, QKVZ)
    assert not torch.allclose(logits[mask], plain[mask])
    for layer in range(LAYERS):
        pattern, mixed = naive(dlm, seen, layer, mask, hidden)
        torch.testing.assert_close(seen[f"blocks.{layer}.attn.o.hook_in"][mask], mixed.float()[mask], **CLOSE)
        ours = seen[f"blocks.{layer}.attn.hook_pattern"].transpose(1, 2)[mask]
        torch.testing.assert_close(ours, pattern.float().transpose(1, 2)[mask], **CLOSE)


@pytest.mark.parametrize("family", NAMES)
def test_an_edited_pattern_is_what_mixes_the_values(model: Model, family: str) -> None:
    """With the pattern replaced by the identity, each query takes exactly its own value."""
    tokens, mask = inputs(2, 6, (0, 2))
    edits = {"hook_pattern": lambda pattern: torch.eye(6).expand_as(pattern).clone()}
    _, seen = watched(model(family, 2), tokens, mask, edits, QKVZ)
    for layer in range(LAYERS):
        values, mixed = (seen[f"blocks.{layer}.attn.{point}"] for point in ("v.hook_out", "o.hook_in"))
        values = values.repeat_interleave(mixed.shape[2] // values.shape[2], 2)
        torch.testing.assert_close(mixed, values, **CLOSE)


@pytest.mark.parametrize("point", ["hook_attn_scores", "hook_pattern"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("family", NAMES)
def test_edits_on_every_layer_reach_the_logits(model: Model, family: str, layer: int, point: str) -> None:
    dlm = model(family, 2)
    tokens, _ = inputs(1, 6, (0,))

    def later_keys(tensor: Tensor, *, hook: Any) -> Tensor:
        edited = tensor.clone()
        edited[..., -2:, 2 if dlm.windows[layer] else 1] = (
            -1e9 if point == "hook_attn_scores" else 0.0
        )  # Dream's last logits are of query -2
        return edited

    with torch.no_grad():
        plain = dlm(tokens)
        edited = dlm.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.{point}", later_keys)])
    assert (edited - plain)[:, -1].abs().max() > 1e-2


@pytest.mark.parametrize("family", NAMES)
def test_patterns_sum_to_one_and_spare_padding(model: Model, family: str) -> None:
    tokens, mask = inputs(3, 7, (0, 2, 6))
    _, seen = watched(model(family, 2), tokens, mask, {}, ("hook_pattern",))
    for pattern in seen.values():
        assert pattern.shape == (3, 4, 7, 7)
        assert not pattern.isnan().any()
        rows = pattern.sum(-1).transpose(1, 2)[mask]
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-6, rtol=0)
        assert (pattern.sum((1, 2))[~mask] == 0).all()


@pytest.mark.parametrize("family", NAMES)
def test_only_baselines_are_causal(model: Model, family: str) -> None:
    dlm = model(family, 2)
    tokens, mask = inputs(2, 6, (0, 2))
    for valid in (mask, torch.ones_like(mask)):
        _, seen = watched(dlm, tokens, valid, {}, ("hook_pattern",))
        for pattern in seen.values():
            above = pattern.triu(1)
            assert (above == 0).all() == dlm.is_causal
    assert dlm.is_causal == (family in ("Llama", "Qwen2", "Qwen3", "Qwen3-MoE", "GPT-2"))


def test_scores_are_minus_infinity_where_the_model_does_not_look(model: Model) -> None:
    tokens, mask = inputs(2, 6, (0, 2))
    for family in ("LLaDA", "Llama"):
        _, seen = watched(model(family, 2), tokens, mask, {}, ("hook_attn_scores",))
        allowed = mask[:, None, :].expand(2, 6, 6)
        allowed = allowed.tril() if family == "Llama" else allowed
        for scores in seen.values():
            assert torch.equal(~torch.isneginf(scores), allowed[:, None].expand_as(scores))


def test_the_pattern_is_formed_only_when_somebody_looks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm, formed = model("LLaDA", 2), []
    original = attention.blocks.attend
    monkeypatch.setattr(attention.blocks, "attend", lambda *a, **more: formed.append(a) or original(*a, **more))
    tokens, mask = inputs(1, 6, (0,))
    watched(dlm, tokens, mask, {}, QKVZ)
    assert not formed
    for point in ("hook_pattern", "hook_attn_scores"):
        formed.clear()
        dlm.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.attn.{point}", lambda tensor, *, hook: None)])
        assert len(formed) == 1  # of that layer alone


def test_gradients_are_the_same_on_both_paths(model: Model) -> None:
    dlm = model("LLaDA", 2)
    weight = dlm.original_model.model.layers[0].self_attn.q_proj.weight
    tokens, _ = inputs(1, 6, (0,))
    gradients = []
    for point in ("hook_out", "hook_pattern"):
        logits = dlm.run_with_hooks(tokens, fwd_hooks=[(f"blocks.0.attn.{point}", lambda tensor, *, hook: None)])
        gradients += torch.autograd.grad(logits.square().mean(), weight)
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5 * float(gradients[0].abs().max()), rtol=1e-4)
