"""The canvas: kinds of positions, rows of a batch, and the one outside the loop."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens import Canvas
from sinklens.sinks import Positions

CANVAS = Canvas(
    tokens=torch.tensor([[9, 9, 5, 6, 62, 62], [4, 5, 62, 7, 8, 62]]),
    valid=torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool(),
    masked=torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 1]]).bool(),  # the last one of row 1 is not there yet
    prompt=torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0]]).bool(),
    step=3,
    seeds=(7, 8),
    active=torch.tensor([True, False]),
)
EXPECTED: dict[Any, list[list[int]]] = {
    "all": [[2, 3, 4, 5], [0, 1, 2, 3, 4]],
    "masked": [[4, 5], [2]],
    "committed": [[2, 3], [0, 1, 3, 4]],
    "prompt": [[2, 3], [0, 1, 4]],
    "response": [[4, 5], [2, 3]],
    "last": [[5], [4]],
    "block": [[4, 5], [2, 3]],  # without blocks, the response
}


@pytest.mark.parametrize("which", get_args(Positions))
def test_kinds_of_positions(which: Any) -> None:
    positions = CANVAS.positions(which)
    assert [row.nonzero()[:, 0].tolist() for row in positions] == EXPECTED[which]
    assert positions.dtype == torch.bool


@pytest.mark.parametrize("which", ["unmasked", "auto", "ALL", "", None, 0])
def test_unknown_kinds_are_refused(which: Any) -> None:
    """A rule may say "auto"; no position is of that kind."""
    with pytest.raises(
        ValueError, match=rf"positions={which!r} (is unknown; choose from|must be) 'all'.*'masked'.*'committed'"
    ):
        CANVAS.positions(which)


@st.composite
def canvases(draw: st.DrawFn) -> Canvas:
    """Any canvas, with padding on both sides."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 7))

    def flags() -> torch.Tensor:
        return torch.tensor(
            draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
        )

    seeds = tuple(draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows)))
    tokens = torch.arange(rows * width).view(rows, width)
    return Canvas(tokens, flags(), flags(), flags(), draw(st.integers(0, 5)), seeds, flags()[:, 0])


@given(canvases())
def test_kinds_divide_the_real_positions(canvas: Canvas) -> None:
    for one, other in (("masked", "committed"), ("prompt", "response")):
        a, b = canvas.positions(one), canvas.positions(other)  # pyright: ignore
        assert not (a & b).any()
        assert torch.equal(a | b, canvas.valid)
    assert canvas.positions("last").sum(-1).tolist() == canvas.valid.any(-1).long().tolist()


@given(canvases(), st.integers(0, 4), st.integers(0, 4))
def test_rows_of_a_canvas_are_rows_of_everything(canvas: Canvas, first: int, size: int) -> None:
    part = canvas.of_rows(slice(first, first + size))
    for name in ("tokens", "valid", "masked", "prompt", "active"):
        assert torch.equal(getattr(part, name), getattr(canvas, name)[first : first + size])
    assert part.seeds == canvas.seeds[first : first + size]
    assert part.step == canvas.step


def test_rows_of_a_canvas_in_which_all_are_active() -> None:
    assert Canvas.plain(CANVAS.valid).of_rows(slice(1, 2)).active is None


def test_a_row_without_positions_has_no_last() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert not Canvas(torch.zeros(1, 3, dtype=torch.long), nothing, nothing, nothing).positions("last").any()


def test_the_canvas_outside_the_loop() -> None:
    canvas = Canvas.plain(torch.tensor([[False, True, True, True], [True] * 4]))
    assert torch.equal(canvas.positions("all"), canvas.valid)
    assert torch.equal(canvas.positions("committed"), canvas.valid)
    assert not canvas.positions("masked").any()
    assert canvas.positions("last").tolist() == [[False] * 3 + [True]] * 2
    assert canvas.seeds == (0, 0)
