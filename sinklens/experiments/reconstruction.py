"""What an autoencoder costs the model it is spliced into: delta LM losses at masked and at unmasked tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from sinklens.autoencoders import Autoencoder
from sinklens.autoencoders.reading import Source, load
from sinklens.decoding.forwards import forward
from sinklens.decoding.prompts import left_padded
from sinklens.errors import PlanError, PromptError
from sinklens.experiments.statistics import mean_and_interval
from sinklens.hooks import Canvas, Hook, Probe
from sinklens.interventions import Splice
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.prompts import Given, read_prompts
from sinklens.progress import hidden
from sinklens.selection.batches import first, maskable
from sinklens.sinks import Positions
from sinklens.values.kinds import Count, Rate, Seed, reads

STREAM = 0xDE17A  # of random numbers, beside each seed


@torch.no_grad()
@reads("texts")
def delta_loss(
    dlm: HookedDLM,
    sae: Source,
    texts: Given,
    *,
    least: Rate = 0.05,
    most: Rate = 0.5,
    queries: Positions = "all",
    draws: Count = 1,
    seed: Seed = 0,
    batch_size: Count = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """How much worse a model predicts with an autoencoder's reconstruction in the place of the activation.

    Of a diffusion model each text is masked at a share t, drawn evenly between `least` and `most`, every token by
    itself; special tokens stay. A line for the "masked" tokens and one for the "unmasked" (without the first of each
    text), which the model sees and predicts all the same. Of a baseline one line, "all": next tokens.

    Source: arXiv 2602.05859 (DLM-Scope), delta LM loss, t in [0.05, 0.5]. Its released code draws one t for a
    batch, and takes Dream's logits as they come, one position off; here each text has its t, and logits stand at the
    token that they predict. For example:

        delta_loss(dlm, sae, texts).set_index("positions").delta

    Args:
        dlm: The model.
        sae: The autoencoder, or its folder.
        texts: As prompts of `denoise`.
        least: The smallest t, above 0.
        most: The largest, below 1.
        queries: Where the reconstruction is spliced in.
        draws: How often each text is masked.
        seed: For the masks, which depend on it and on the text's place in the list alone.
        batch_size: Texts of one forward.
        progress: Show a bar.

    Returns:
        For each kind of position its "tokens"; "loss", "spliced" and their difference "delta" in nats per token, with a
        95 % interval "low" to "high" over texts (bootstrap of the linearised ratio); "weighted_loss",
        "weighted_spliced" and "weighted_delta": each token's loss over t (masked) or 1 - t (unmasked), as published;
        "unexplained", the share of the activations' variance that the reconstruction leaves; "l0", the mean number of
        active features.

    Raises:
        AutoencoderError: an autoencoder that cannot be read, or of another model.
        PlanError: shares that leave nothing masked or nothing unmasked; positions that a baseline
            lacks; a text longer than the model's context; a model that sees block by block.
        PromptError: no text, or one that the model cannot read; texts of which nothing would be scored.
    """
    if dlm.in_blocks is not None:
        raise PlanError(
            f"{dlm.name} sees block by block, and a text that is masked everywhere is none that it reads; its loss is "
            "a sum over blocks, which is not there yet"
        )
    if not least <= most < 1:
        raise PlanError(f"least={least} and most={most} must be shares of masked tokens, 0 < least <= most < 1")
    if dlm.is_causal and queries in ("masked", "response", "last"):
        raise PlanError(
            f"queries={queries!r}: {dlm.name} is autoregressive, and of a whole text no such position predicts a token "
            "that is scored; say queries='all'"
        )
    auto = load(sae)
    auto.check(dlm)
    read = read_prompts(texts)
    rows = [(index, dlm.encode(each)) for index, each in enumerate(read)]
    longest = max((len(row) for _, row in rows), default=0)
    if not rows or longest > dlm.n_ctx:
        what = f"a text has {longest} tokens, more than the context of {dlm.n_ctx}"
        raise PlanError(what) if rows else PromptError("texts is empty")
    parts = [rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]
    todo = [(draw, part) for draw in range(draws) for part in parts]
    found: dict[str, dict[int, Sums]] = {}
    splice = Splice(auto, queries=queries)
    try:
        for draw, part in tqdm(todo, "delta loss", unit="batch", disable=hidden(progress), leave=False):
            seeds = [(seed, index, draw) for index, _ in part]
            canvas, whole, share = _canvas(dlm, [row for _, row in part], seeds, (least, most))
            for kind, measured in _measured(dlm, auto, splice, canvas, whole, share).items():
                known = found.setdefault(kind, {})
                for (index, _), sums in zip(part, measured, strict=True):
                    known[index] = known[index] + sums if index in known else sums
    except BaseException as error:
        error.found = table(found)  # pyright: ignore[reportAttributeAccessIssue] - what was finished goes along
        raise
    done = table(found)
    empty = done.positions[done.tokens == 0].tolist()
    if empty:
        raise PromptError(f"no {empty[0]} token would be scored in these texts; give more or longer ones")
    return done


@dataclass(frozen=True)
class Sums:
    """What one kind of position of one text adds up to.

    Attributes:
        tokens: How many.
        losses: "loss", "spliced", and both weighted, in nats.
        error: Squared norm of what the reconstruction leaves.
        active: Active features.
        total: Sum of the activations.
        power: Their squared norm.
    """

    tokens: int
    losses: Mapping[str, float]
    error: float
    active: int
    total: Tensor
    power: float

    def __add__(self, other: Sums) -> Sums:
        losses = {name: each + other.losses[name] for name, each in self.losses.items()}
        error, active, power = self.error + other.error, self.active + other.active, self.power + other.power
        return Sums(self.tokens + other.tokens, losses, error, active, self.total + other.total, power)


@dataclass(frozen=True)
class Stream(Probe):
    """The activation at a hook point, as it is."""

    point: str
    name = "stream"
    dims = ("key", "d_model")
    unit = "activation"
    definition = "the activation"

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """One hook."""

        def look(stream: Tensor, *, hook: Any) -> None:
            seen["stream"] = stream.detach()

        return [(self.point, look)]

    def values(self, seen: dict[Any, Any]) -> Float[Tensor, "batch key d_model"]:
        """The activation."""
        return seen["stream"]


def _canvas(
    dlm: HookedDLM, rows: Sequence[Sequence[int]], seeds: Sequence[tuple[int, int, int]], between: tuple[float, float]
) -> tuple[Canvas, Int[Tensor, "batch pos"], Float[Tensor, "batch 1"]]:
    """Masked texts, the texts themselves, and the share at which each was masked."""
    whole, valid, starts = left_padded(dlm, rows)
    masked, share = torch.zeros_like(valid), torch.zeros(len(rows), 1)
    if not dlm.is_causal:
        for row, (start, key) in enumerate(zip(starts, seeds, strict=True)):
            rng = np.random.default_rng([STREAM, *key])
            share[row] = rng.uniform(*between)
            drawn = torch.from_numpy(rng.random(len(rows[row]))) < share[row]
            masked[row, start:] = drawn.to(masked.device)
        masked &= maskable(dlm, whole, valid)
    tokens = whole.masked_fill(masked, dlm.ids.mask or 0)
    return Canvas(tokens, valid, masked, valid & ~masked, seeds=(0,) * len(rows)), whole, share


def _measured(
    dlm: HookedDLM, sae: Autoencoder, splice: Splice, canvas: Canvas, whole: Int[Tensor, "batch pos"], share: Tensor
) -> dict[str, list[Sums]]:
    """What each text adds up to, by kind of position."""
    probe, seen = Stream(sae.place.point), {}
    losses = {
        "loss": _losses(dlm, whole, forward(dlm, canvas, probes=[probe], seen=[seen])),
        "spliced": _losses(dlm, whole, forward(dlm, canvas, [splice], [splice.memory()])),
    }
    scored = canvas.valid & ~first(canvas.valid)
    kinds = {"all": (scored, torch.ones_like(share))}
    if not dlm.is_causal:
        kinds = {"masked": (canvas.masked, 1 / share), "unmasked": (scored & ~canvas.masked, 1 / (1 - share))}
    stream = probe.values(seen)
    return {
        kind: [
            _summed(
                sae, {name: each[row] for name, each in losses.items()}, stream[row], where[row], float(weight[row])
            )
            for row in range(len(whole))
        ]
        for kind, (where, weight) in kinds.items()
    }


def _losses(dlm: HookedDLM, whole: Int[Tensor, "batch pos"], logits: Tensor) -> Float[Tensor, "batch pos"]:
    """-log p of the token at every position."""
    logits = dlm.by_position(logits)[:, : whole.shape[1]]
    return -logits.float().log_softmax(-1).gather(-1, whole[..., None])[..., 0]


def _summed(
    sae: Autoencoder, losses: Mapping[str, Tensor], stream: Tensor, where: Bool[Tensor, " pos"], weight: float
) -> Sums:
    sums = {name: float(each[where].double().sum()) for name, each in losses.items()}
    sums |= {f"weighted_{name}": weight * each for name, each in list(sums.items())}
    x = stream[where.to(stream.device)].float()
    f = [sae.encode(each) for each in x.split(sae.rows)]
    error = sum(
        float((each - sae.decode(g, each)).double().square().sum())
        for g, each in zip(f, x.split(sae.rows), strict=True)
    )
    active = sum(int((each > 0).sum()) for each in f)
    return Sums(int(where.sum()), sums, error, active, x.double().sum(0).cpu(), float(x.double().square().sum()))


def table(found: Mapping[str, Mapping[int, Sums]]) -> pd.DataFrame:
    """A line for each kind of position, of all texts together."""
    return pd.DataFrame([{"positions": kind} | _line(list(sums.values())) for kind, sums in found.items()])


def _line(sums: Sequence[Sums]) -> dict[str, float]:
    whole = reduce(add, sums)
    if not whole.tokens:
        return {"tokens": 0}
    mean = {name: each / whole.tokens for name, each in whole.losses.items()}
    delta, weighted = (mean[f"{kind}spliced"] - mean[f"{kind}loss"] for kind in ("", "weighted_"))
    counts = torch.tensor([float(each.tokens) for each in sums])
    changes = torch.tensor([each.losses["spliced"] - each.losses["loss"] for each in sums])
    _, (low, high) = mean_and_interval(delta + (changes - delta * counts) / counts.mean())
    variance = whole.power - float(whole.total.square().sum()) / whole.tokens
    return {
        "tokens": whole.tokens,
        "loss": mean["loss"],
        "spliced": mean["spliced"],
        "delta": delta,
        "low": low,
        "high": high,
        "weighted_loss": mean["weighted_loss"],
        "weighted_spliced": mean["weighted_spliced"],
        "weighted_delta": weighted,
        "unexplained": whole.error / variance if variance > 0 else float("nan"),
        "l0": whole.active / whole.tokens,
    }
