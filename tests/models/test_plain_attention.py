"""Hooks on attention alone: the plain transformers model runs, and shows them what the bridge would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch

from sinklens import HookedDLM
from sinklens.hooks import rowwise
from sinklens.models import attention

FAMILIES = ["LLaDA", "Dream", "Llama", "Qwen3"]
POINTS = [
    "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_received", "v.hook_out", "o.hook_in",
]  # fmt: skip
TOKENS = torch.tensor([[5, 17, 9, 33, 8, 21, 63], [1, 1, 1, 40, 63, 7, 12]])
VALID = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """Random models of a family, one per family."""
    return lru_cache(tiny_model)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way each layer's attention was computed."""
    seen: list[str] = []
    plain, bridged = attention.plain_attention, attention.SinkAttentionBridge.forward

    def by_plain(*args: Any, **kwargs: Any) -> Any:
        seen.append("plain")
        return plain(*args, **kwargs)

    def by_bridge(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("bridge")
        return bridged(self, *args, **kwargs)

    monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS._global_mapping, attention.PLAIN, by_plain)
    monkeypatch.setattr(attention.SinkAttentionBridge, "forward", by_bridge)
    return seen


def by_bridge(dlm: HookedDLM) -> torch.Tensor:
    """The same forward through the bridge."""
    return dlm._aligned(dlm.bridge(TOKENS, return_type="logits", **dlm._arguments(VALID)))


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_point_shows_and_takes_what_it_does_on_the_bridge(
    model: Any, runs: list[str], family: str, point: str
) -> None:
    dlm, kept = model(family), []
    runs.clear()

    def edit(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        kept.append(tensor.clone())
        return tensor * 0.7 if point != "hook_attn_scores" else tensor * 0.7 + 0.1

    with dlm.hooks(fwd_hooks=[(f"blocks.{layer}.attn.{point}", edit) for layer in range(dlm.n_layers)]):
        plain = dlm(TOKENS, VALID)
        assert set(runs) == {"plain"}
        bridged = by_bridge(dlm)
    assert len(kept) == 2 * dlm.n_layers
    for ours, theirs in zip(kept[: dlm.n_layers], kept[dlm.n_layers :], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    real = VALID & (VALID.cumsum(-1) > 1)  # where logits are shifted, a row's first belongs to the padding before it
    torch.testing.assert_close(plain[real], bridged[real], atol=1e-4, rtol=1e-4)
    changed = (plain - dlm(TOKENS, VALID))[real].abs().max()
    assert (changed > 1e-3) == (point != "hook_received")


def test_other_hooks_and_gradients_take_the_bridge(model: Any, runs: list[str]) -> None:
    dlm = model("LLaDA")

    def look(tensor: torch.Tensor, *, hook: Any) -> None:
        pass

    for names, graded, way in (
        (["blocks.0.attn.hook_pattern"], False, "plain"),
        (["blocks.0.attn.hook_pattern"], True, "bridge"),
        (["blocks.0.attn.hook_pattern", "blocks.1.hook_out"], False, "bridge"),
        (["blocks.0.attn.k.hook_out"], False, "bridge"),
        ([], True, "plain"),
    ):
        runs.clear()
        with torch.set_grad_enabled(graded), dlm.hooks(fwd_hooks=[(name, look) for name in names]):
            dlm(TOKENS)
        assert set(runs) == {way}, names
    runs.clear()
    handle = dlm.bridge.blocks[0].mlp.register_forward_hook(lambda *_: None)  # anybody's hook, not TransformerLens's
    with torch.no_grad(), dlm.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", look)]):
        dlm(TOKENS)
    handle.remove()
    assert set(runs) == {"bridge"}


@torch.no_grad()
def test_unhooked_it_is_transformers_sdpa_bit_for_bit(model: Any) -> None:
    for family in FAMILIES:
        dlm = model(family)
        ours = dlm.reference(TOKENS, attention_mask=VALID.long()).logits
        dlm.reference.set_attn_implementation("sdpa")
        theirs = dlm.reference(TOKENS, attention_mask=VALID.long()).logits
        dlm.reference.set_attn_implementation(attention.PLAIN)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_received_by_sets_of_queries(
    model: Any, family: str, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the whole pattern: queries that hold the mask token, those that do not, and each row's last."""
    dlm, kept = model(family), {}
    if rows:
        monkeypatch.setattr(attention.streaming, "rows_at_once", lambda *_: rows)

    def keep(tensor: torch.Tensor, *, hook: Any) -> None:
        kept[hook.name.split(".")[-1]] = tensor.clone()

    mask_id = dlm.ids.mask if dlm.ids.mask is not None else -1
    tokens = TOKENS.masked_fill(TOKENS == 63, max(mask_id, 0))
    names = [f"blocks.1.attn.{name}" for name in attention.RECEIVED]
    with dlm.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", keep)]):
        dlm(tokens, VALID)
    with dlm.hooks(fwd_hooks=[(name, rowwise(keep)) for name in names]):
        dlm(tokens, VALID)
    mask = tokens == mask_id
    last = torch.arange(7).expand(2, 7) == 6
    for name, which in zip(attention.RECEIVED, (VALID, mask & VALID, ~mask & VALID, last), strict=True):
        expected = torch.einsum("bhqk,bq->bhk", kept["hook_pattern"], which.float())
        torch.testing.assert_close(kept[name], expected, atol=1e-5, rtol=0)
    if not dlm.is_causal:
        assert bool(mask.any())
        assert float(kept["hook_received_masked"].sum()) > 0


@torch.no_grad()
def test_sets_that_need_tokens_are_not_shown_without_tokens(model: Any) -> None:
    """Also not those of the forward before."""
    dlm, fired = model("LLaDA"), []

    def note(tensor: torch.Tensor, *, hook: Any) -> None:
        fired.append(hook.name)

    names = [f"blocks.0.attn.{name}" for name in attention.RECEIVED]
    with dlm.hooks(fwd_hooks=[(name, note) for name in names]):
        dlm(TOKENS)
        assert fired == names
        fired.clear()
        dlm.reference(inputs_embeds=dlm.reference.get_input_embeddings()(TOKENS))
    assert fired == names[:1]


@torch.no_grad()
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("way", ["replaced", "in place"])
def test_edited_weights_reach_every_forward(tiny_model: Any, way: str, hooked: bool) -> None:
    """Also one that the plain model would run over the weights that it knows."""
    dlm = tiny_model("LLaDA")
    before, linear = dlm(TOKENS), dlm.bridge.blocks[0].attn.o.original_component
    if way == "replaced":
        linear.weight = torch.nn.Parameter(torch.zeros_like(linear.weight))
    else:
        linear.weight.zero_()
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, *, hook: None)] if hooked else []
    with dlm.hooks(fwd_hooks=hooks):
        after = dlm(TOKENS)
    torch.testing.assert_close(after, dlm.bridge(TOKENS, return_type="logits"), atol=1e-4, rtol=1e-4)
    assert float((after - before).abs().max()) > 1e-2


@torch.no_grad()
def test_long_texts_come_in_blocks_of_the_size_that_is_said(model: Any) -> None:
    """With the real block size, which other tests replace: no block holds more numbers than it may."""
    attn, sizes = model("LLaDA").bridge.blocks[0].attn, []
    q, k, v = (torch.randn(1, 2, 1100, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))

    def note(tensor: torch.Tensor, *, hook: Any) -> None:
        sizes.append(tensor.shape[-2])

    with attn_hook(attn.hook_pattern, rowwise(note)):
        mixed, pattern = attention.streaming.attend(attn.opening[:2], [], q, k, v, None, 0.3, causal=False)
    assert pattern is None
    assert sum(sizes) == 1100
    assert len(sizes) > 1
    assert max(sizes) * 2 * 1100 <= attention.streaming.CPU_BLOCK
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(mixed, fused, atol=1e-5, rtol=0)


@contextmanager
def attn_hook(point: Any, function: Any) -> Iterator[None]:
    """A hook for as long as the block runs."""
    handle = point.add_hook(function)
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)
