"""Hooks by query: what they say of themselves, and that wrapping keeps it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sinklens.hooks import ByQuery, block_of, by_query, watching


def double(tensor: Tensor, *, hook: Any) -> Tensor:
    return 2 * tensor


def test_a_hook_by_query_is_the_hook() -> None:
    """Nothing is hung on the function itself: somebody else may use it, too."""
    before = dict(vars(double))
    hook = by_query(double, preview=double, rounds=2)
    assert isinstance(hook, ByQuery)
    assert hook(torch.ones(2), hook=None).tolist() == [2, 2]  # pyright: ignore
    assert (hook.preview, hook.rounds) == (double, 2)
    assert vars(double) == before


def test_wrapping_keeps_preview_and_rounds() -> None:
    calls = []

    def wrap(function: Any) -> Any:
        def wrapped(tensor: Tensor, *, hook: Any) -> Any:
            calls.append(hook)
            return function(tensor, hook=hook)

        return wrapped

    inner = by_query(double, preview=double, rounds=3)
    outer = inner.around(wrap)
    assert outer(torch.ones(1), hook="h").tolist() == [2]  # pyright: ignore
    assert calls == ["h"]
    assert (outer.preview, outer.rounds) == (double, 3)
    assert inner(torch.ones(1), hook="h").tolist() == [2]  # pyright: ignore
    assert calls == ["h"]


def test_a_watching_hook_previews_nothing() -> None:
    hook = watching(double)
    assert hook.rounds == 0
    assert hook.preview is not None
    assert hook.preview(torch.ones(1), hook=None) is None


def test_the_block_of_a_hook_is_what_its_point_says_or_all() -> None:
    tensor = torch.zeros(1, 1, 5, 9)
    assert block_of(SimpleNamespace(ctx={"queries": slice(2, 7)}), tensor) == slice(2, 7)
    assert block_of(SimpleNamespace(ctx={}), tensor) == slice(0, 5)
    assert block_of(SimpleNamespace(), tensor) == slice(0, 5)
