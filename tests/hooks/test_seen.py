"""What a hook can know of the forward that it is in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sinklens import Canvas
from sinklens.hooks import canvas_of, sight_of
from sinklens.sinks import Sight

VALID = torch.tensor([[False, True, True], [True, True, True]])
TENSOR = torch.zeros(2, 1, 3, 3)
SILENT = SimpleNamespace()


def model(causal: bool) -> Any:
    """What a bridge says of its direction."""
    return SimpleNamespace(is_causal=causal)


def test_what_attention_says_goes_first() -> None:
    known = Sight.of(3, "causal", window=2)
    hook = SimpleNamespace(ctx={"sight": known})
    assert sight_of(model(False), hook, TENSOR, Canvas.plain(VALID)) is known


@pytest.mark.parametrize("causal", [False, True])
def test_else_the_direction_and_the_real_positions(causal: bool) -> None:
    sight = sight_of(model(causal), SILENT, TENSOR, Canvas.plain(VALID))
    seen = sight.rows(slice(0, 3)).expand(2, 3, 3)
    expected = VALID[:, None, :] & (torch.ones(3, 3).tril().bool() if causal else torch.ones(3, 3).bool())
    assert torch.equal(seen, expected)
    everyone = sight_of(model(causal), SILENT, TENSOR, None)
    assert everyone.valid.all()
    assert (everyone.keys, everyone.count) == (3, 3)


def test_the_canvas_is_the_loops_or_one_of_committed_positions() -> None:
    canvas = Canvas.plain(VALID)
    assert canvas_of(canvas, Sight(VALID), 2) is canvas
    outside = canvas_of(None, Sight(VALID), 2)
    assert torch.equal(outside.positions("committed"), VALID)
    assert not outside.positions("masked").any()
    assert canvas_of(None, Sight.of(3), 2).valid.shape == (2, 3)
