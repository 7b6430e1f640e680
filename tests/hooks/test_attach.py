"""Attaching: hooks are called, counted and taken off again, or it raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import HookedDLM
from sinklens.errors import HookNeverFired
from sinklens.hooks import Hook, autoregressive, by_query, rotated, watching, with_hooks

TOKENS = torch.tensor([[5, 6, 7]])
PATTERNS = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]


@pytest.fixture(scope="module")
def dlm(tiny_model: Any) -> HookedDLM:
    return tiny_model("LLaDA")


def looking(*points: str, calls: list[str] | None = None) -> list[Hook]:
    """Hooks that do nothing but say that they were called."""

    def look(tensor: Tensor, *, hook: Any) -> None:
        if calls is not None:
            calls.append(hook.name)

    return [(point, look) for point in points]


def test_hooks_are_called_and_counted_by_part(dlm: HookedDLM) -> None:
    calls: list[str] = []
    parts = [("one", looking("embed.hook_out", calls=calls)), ("other", looking(*PATTERNS, calls=calls))]
    fired: dict[str, int] = {}
    for times in (1, 2):
        with_hooks(dlm, parts, fired, lambda: dlm(TOKENS))
        assert fired == {"one": times, "other": 2 * times}
    assert sorted(calls) == sorted(["embed.hook_out", *PATTERNS] * 2)
    assert not dlm.hooked


def test_a_part_without_hooks_is_counted_as_silent(dlm: HookedDLM) -> None:
    fired = {"before": 3}
    with_hooks(dlm, [("nothing", [])], fired, lambda: dlm(TOKENS))
    assert fired == {"before": 3, "nothing": 0}


def test_hooks_run_in_the_order_of_the_parts(dlm: HookedDLM) -> None:
    """So that probes, which come last, see what the model used."""
    seen: list[Tensor] = []

    def edit(tensor: Tensor, *, hook: Any) -> Tensor:
        return torch.eye(tensor.shape[-1]).expand_as(tensor)

    def probe(tensor: Tensor, *, hook: Any) -> None:
        seen.append(tensor)

    with_hooks(dlm, [("edit", [(PATTERNS[0], edit)]), ("probe", [(PATTERNS[0], probe)])], {}, lambda: dlm(TOKENS))
    assert torch.equal(seen[0][0, 0], torch.eye(3))


def test_a_forward_in_blocks_counts_once(dlm: HookedDLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks a hook by query got."""
    from sinklens.models import blocks

    for name in ("BLOCK", "BLOCK_ELEMENTS", "SIZE"):
        if hasattr(blocks, name):
            monkeypatch.setattr(blocks, name, 1)
    calls: list[Any] = []

    def look(tensor: Tensor, *, hook: Any) -> None:
        calls.append(hook.ctx.get("queries"))

    fired: dict[str, int] = {}
    for hook in (watching(look), by_query(look)):
        with_hooks(dlm, [("part", [(PATTERNS[0], hook)])], fired, lambda: dlm(TOKENS))
    assert fired == {"part": 2}
    assert calls


@pytest.mark.parametrize("points", [["blocks.0.attn.hook_result"], ["embed.hook_out", "blocks.1.attn.hook_result"]])
def test_a_hook_that_is_never_called_raises(dlm: HookedDLM, points: list[str]) -> None:
    with pytest.raises(HookNeverFired, match=rf"part was attached to {points[-1]} and the forward never called it"):
        with_hooks(dlm, [("part", looking(*points))], {}, lambda: dlm(TOKENS))
    assert not dlm.hooked


def test_one_silent_part_beside_one_that_fires_raises(dlm: HookedDLM) -> None:
    """Two parts on the same points are told apart, even if they read alike and only one of them is called."""
    parts = [("first", looking(*PATTERNS)), ("second", looking("blocks.0.attn.hook_result"))]
    with pytest.raises(HookNeverFired, match="second was attached to"):
        with_hooks(dlm, parts, {}, lambda: dlm(TOKENS))


def test_a_point_that_is_not_there_raises_and_nothing_stays(dlm: HookedDLM) -> None:
    parts = [("one", looking(*PATTERNS)), ("other", looking("blocks.9.attn.hook_pattern"))]
    with pytest.raises(HookNeverFired, match=r"other wants hook point 'blocks.9.attn.hook_pattern', which this model"):
        with_hooks(dlm, parts, {}, lambda: pytest.fail("the forward was reached"))
    assert not dlm.hooked


def test_an_error_in_the_forward_is_not_hidden(dlm: HookedDLM) -> None:
    """Above all not by the hooks that the broken forward never called."""
    with pytest.raises(ZeroDivisionError):
        with_hooks(dlm, [("part", looking(*PATTERNS))], {}, lambda: 1 // 0)
    assert not dlm.hooked


def test_what_attention_looks_like_in_a_model(tiny_model: Any) -> None:
    assert not autoregressive(tiny_model("LLaDA"))
    assert autoregressive(tiny_model("Llama"))
    for which in ("q", "k"):
        point = rotated(tiny_model("LLaDA"), which)  # pyright: ignore
        assert point == f"attn.hook_rot_{which}"


def test_a_plain_bridge_is_asked_for_its_points() -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=config, model_name="tiny-gpt2")
    assert autoregressive(bridge)
    assert rotated(bridge, "q") == "attn.q.hook_out"
    fired: dict[str, int] = {}
    with_hooks(bridge, [("part", looking("blocks.0.hook_out"))], fired, lambda: bridge(TOKENS, return_type="logits"))
    assert fired == {"part": 1}
