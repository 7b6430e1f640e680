"""What an ablation measures of each prompt: names, units, and the kind of run that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.errors import NotFinite

Pass = Literal["generated", "forced", "replayed", "likelihood"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        needs: The run that it is read from. "generated": the model decodes by itself. "forced": the true answer is
            committed whatever the model says. "replayed": the commits of the unedited run are repeated, so that every
            forward sees the same canvas and one step's effect is not mixed with what earlier steps did. "likelihood":
            no decoding.
        unit: Its unit and range.
        meaning: What it says.
        share: Whether it is a share in [0, 1].
        answers: Whether it needs true answers.
    """

    needs: Pass
    unit: str
    meaning: str
    share: bool = False
    answers: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "generated",
        "share, 0 to 1",
        "checkable tokens of the model's own completion that are right",
        share=True,
        answers=True,
    ),
    "agreement": Metric("generated", "share, 0 to 1", "filled tokens equal to those of the unedited run", share=True),
    "order": Metric(
        "generated",
        "rank correlation, -1 to 1",
        "commit steps against those of the unedited run (Spearman); nan where either commits all at once",
    ),
    "forced_accuracy": Metric(
        "forced",
        "share, 0 to 1",
        "checkable tokens that the model would have said, while the truth is committed",
        share=True,
        answers=True,
    ),
    "kl": Metric(
        "replayed",
        "nats, from 0",
        "KL(unedited || edited) of the prediction, mean over masked positions and steps",
    ),
    "replayed_agreement": Metric(
        "replayed",
        "share, 0 to 1",
        "commits of the unedited run for which the edited model says the same token",
        share=True,
    ),
    "confidence_committed": Metric(
        "replayed",
        "probability, 0 to 1",
        "probability of the likeliest token where the unedited run commits at this step",
    ),
    "confidence_uncommitted": Metric(
        "replayed", "probability, 0 to 1", "the same at the masked positions that stay masked"
    ),
    "log_likelihood": Metric(
        "likelihood",
        "nats per token, to 0",
        "log-likelihood of the true answer (`likelihood.log_likelihood`)",
        answers=True,
    ),
}


def known(names: list[str]) -> list[str]:
    """The names, checked.

    Raises:
        ValueError: an unknown metric, one that is named twice, or none.
    """
    wrong = [name for name in names if name not in METRICS]
    if wrong or not names:
        what = f"metric {wrong[0]!r} is unknown" if wrong else "metrics is empty"
        raise ValueError(f"{what}; the metrics are {', '.join(METRICS)}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"metric {twice[0]!r} is named twice")
    return names


def order(mine: Int[Tensor, " pos"], theirs: Int[Tensor, " pos"]) -> float:
    """Spearman correlation of two orders of commits; nan where one of them has only one step."""
    a, b = (_ranks(steps.double()) for steps in (mine, theirs))
    a, b = a - a.mean(), b - b.mean()
    power = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / power if power > 0 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    """Average ranks."""
    return ((values[:, None] > values).sum(-1) + (values[:, None] >= values).sum(-1) - 1) / 2


class Replayed:
    """Sums up the steps of runs that repeat the commits of an unedited one: groups of the same prompts.

    The first group is unedited, the others are compared with it row by row.

    Args:
        groups: Number of groups in the batch.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.exposed: dict[str, Tensor] = {}

    def add(
        self,
        logits: Float[Tensor, "batch pos vocab"],
        masked: Bool[Tensor, "batch pos"],
        committed: Bool[Tensor, "batch pos"],
        same: Bool[Tensor, "batch pos"],
        edited: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """One step.

        Args:
            logits: Predictions, each for its own position.
            masked: Positions whose prediction counts.
            committed: Those that the unedited run commits at this step.
            same: Where the model says the token that is committed.
            edited: Rows in which the forward was edited; none when None.
        """
        edited = torch.zeros_like(masked[:, 0]) if edited is None else edited
        log_p = logits.float().log_softmax(-1).unflatten(0, (self.groups, -1))
        ratio = torch.where(torch.isneginf(log_p[:1]), 0.0, log_p[:1] - log_p)  # 0 log 0 = 0
        kl = (log_p[:1].exp() * ratio).sum(-1).flatten(0, 1)
        top = log_p.amax(-1).exp().flatten(0, 1)
        self._add("kl", kl, masked, edited)
        self._add("replayed_agreement", same.float(), committed, edited)
        self._add("confidence_committed", top, masked & committed, edited)
        self._add("confidence_uncommitted", top, masked & ~committed, edited)

    def _add(self, name: str, values: Tensor, counting: Tensor, edited: Tensor) -> None:
        total, number = values.where(counting, 0.0).double().sum(-1).cpu(), counting.sum(-1).cpu()
        met = number * edited.cpu()
        self.exposed[name] = self.exposed.get(name, torch.zeros_like(number)) + met
        self.sums[name] = self.sums.get(name, torch.zeros_like(total)) + total
        self.counts[name] = self.counts.get(name, torch.zeros_like(number)) + number

    def result(self) -> dict[str, list[tuple[float, int, float | None]]]:
        """Mean, number of places and the share of them in edited forwards of each metric, for every row.

        Raises:
            NotFinite: predictions that are no numbers.
        """
        broken = [name for name, sums in self.sums.items() if bool(sums.isnan().any())]
        if broken:
            raise NotFinite(f"the model's predictions hold nan, so {broken[0]} is no number; an edit may make one")
        return {
            name: [
                (float(total) / int(count), int(count), int(met) / int(count)) if count else (float("nan"), 0, None)
                for total, count, met in zip(self.sums[name], self.counts[name], self.exposed[name], strict=True)
            ]
            for name in self.sums
        }
