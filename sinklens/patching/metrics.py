"""What a patched forward is asked: metrics by name, or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.errors import PatchError
from sinklens.hooks import Canvas
from sinklens.values.content import Named


class Metric(NamedTuple):
    """A metric that has a name.

    Attributes:
        unit: Its unit.
        definition: What its numbers mean.
        of: Of the logits at one place [batch, vocab], the token of the clean answer and that of the corrupt one.
    """

    unit: str
    definition: str
    of: Callable[[Tensor, int, int], Tensor]


METRICS = {
    "logit_difference": Metric(
        "logits",
        "logit of the clean answer's token minus that of the corrupt answer's, mean over the places that are asked",
        lambda at, clean, corrupt: at[:, clean].double() - at[:, corrupt].double(),
    ),
    "log_probability": Metric(
        "nats",
        "log-probability of the clean answer's token, mean over the places that are asked",
        lambda at, clean, corrupt: at.double().log_softmax(-1)[:, clean],
    ),
    "probability": Metric(
        "1",
        "probability of the clean answer's token, mean over the places that are asked",
        lambda at, clean, corrupt: at.double().softmax(-1)[:, clean],
    ),
}


class Place(NamedTuple):
    """A position of the answer, and the tokens that the clean and the corrupt answer have there."""

    position: int
    clean: int
    corrupt: int


def about(metric: Any) -> tuple[str, str]:
    """Unit and definition of a metric."""
    if isinstance(metric, Named):
        return "", f"{metric.name} (a function)"
    return METRICS[metric].unit, METRICS[metric].definition


def measure(
    metric: Any, logits: Float[Tensor, "batch scored vocab"], places: Sequence[Place], canvas: Canvas
) -> Float[Tensor, " batch"]:
    """A metric of every row, in float64. Probabilities are those over the whole vocabulary, the mask token too.

    Args:
        metric: By name, or a function.
        logits: Row i scores the token at position i.
        places: Where a metric with a name looks.
        canvas: What the forward saw, as many rows; functions get it.

    Raises:
        PatchError: not one finite number for each row.
    """
    if isinstance(metric, Named):
        found = metric(logits, canvas)
        if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise PatchError(
                f"the metric {metric.name!r} gave {shape}; it must give a tensor of shape ({len(logits)},)"
            )
        values = found.detach().double().cpu()
    else:
        of = METRICS[metric].of
        each = [of(logits[:, place.position], place.clean, place.corrupt) for place in places]
        values = torch.stack(each).mean(0).cpu()
    if not bool(values.isfinite().all()):
        name = metric.name if isinstance(metric, Named) else metric
        raise PatchError(f"the metric {name!r} is {values[~values.isfinite()][0].item()} at step {canvas.step}")
    return values
