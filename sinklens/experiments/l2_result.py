"""What the key-norm protocol found: a line for every trial, share and ranking, and their summary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sinklens.experiments.l2 import L2, Trial, Window
from sinklens.experiments.statistics import (
    difference_and_interval,
    holm,
    mean_and_interval,
    permutation_p,
    rate_and_interval,
)

if TYPE_CHECKING:
    import pandas as pd

WHOLE = "whole cache"
REFERENCES = {"minus_random": "random", "minus_random_first": "random + first"}
ALPHA = 0.05
SEMANTICS = {"cache": "cache", "recomputed": "recomputed", "perplexity": "cache"}
PUBLISHED = {  # arXiv 2406.11430: shares of the cache that could be dropped "without losing accuracy"
    "perplexity": "50 % of the cache dropped (Llama-2-7B and others: language modelling)",
    "needle": "50 % dropped: 99 %",
    "passkey": "90 % dropped: 100 %",
}


@dataclass
class L2Result:
    """What `l2` found.

    Attributes:
        model: Its name.
        protocol: What was asked.
        total: How many trials there are.
        done: How many of them are finished.
        lines: One per trial, share and ranking.
        correlations: One per window, layer, key head and way.
    """

    model: str
    protocol: L2
    total: int
    done: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    correlations: list[dict[str, Any]] = field(default_factory=list)
    _summary: tuple[int, pd.DataFrame] | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether every trial is."""
        return self.done == self.total

    @property
    def unfinished(self) -> str:
        """What must be said of a result that was interrupted; empty if it is whole."""
        return "" if self.finished else f"unfinished: {self.done} of {self.total} trials"

    def add(self, trial: Trial, part: str, values: dict[str, Any]) -> None:
        """A part of a trial that is finished."""
        if part == "correlation":
            for way, table in values.items():
                for layer, row in enumerate(table):
                    for head, value in enumerate(row):
                        at = {"window": _number(trial), "layer": layer, "key_head": head}
                        known = math.nan if value is None else value
                        self.correlations.append({**at, "way": way, "correlation": known})
            return
        about: dict[str, Any] = {"outcome": part, "semantics": SEMANTICS[part]}
        if isinstance(trial, Window):
            about |= {"tokens": self.protocol.window, "depth": math.nan, "trial": trial.index}
        else:
            about |= {"outcome": trial.kind, "tokens": trial.tokens, "depth": trial.depth, "trial": trial.seed}
        for share, found in values.items():
            if share == WHOLE:
                self.lines.append({**about, "share": 1.0, "ranking": WHOLE, "value": found})
            else:
                self.lines += [{**about, "share": float(share), "ranking": n, "value": v} for n, v in found.items()]

    def measured(self) -> list[tuple[str, str]]:
        """Its outcomes, each with its semantics."""
        return list(dict.fromkeys((line["outcome"], line["semantics"]) for line in self.lines))

    def has(self) -> list[str]:
        """What it holds, in words."""
        found = [f"{outcome} ({semantics})" for outcome, semantics in self.measured()]
        return [*found, *(["correlation"] if self.correlations else [])]

    def table(self) -> pd.DataFrame:
        """A line per trial, share and ranking.

        Columns: outcome; semantics ("cache": what is dropped stays dropped; "recomputed": every step anew); tokens of
        the context; depth; trial; share kept; ranking; value (1 or 0 for an answer, nats per token for perplexity).
        """
        import pandas as pd

        columns = ["outcome", "semantics", "tokens", "depth", "trial", "share", "ranking", "value"]
        return pd.DataFrame(self.lines, columns=columns)

    def summary(self) -> pd.DataFrame:
        """Means over trials with 95 % intervals, and paired differences from keeping as many keys at random.

        Columns: outcome, semantics, ranking, share, trials, value (share of right answers; perplexity), low, high,
        minus_random and minus_random_first: differences from keeping as many random keys, and as many with the first
        position among them (of answers; in nats per token for perplexity), each with its interval and p_holm: corrected
        by Holm's method within an outcome and semantics. The whole cache has share 1.
        """
        import pandas as pd

        if self._summary is not None and self._summary[0] == len(self.lines):
            return self._summary[1].copy()  # thousands of resamples; lines are added and never changed
        table: Any = self.table()
        rows: list[dict[str, Any]] = []
        for (outcome, semantics), part in table.groupby(["outcome", "semantics"], sort=False):
            first = len(rows)
            for (ranking, share), cell in part.groupby(["ranking", "share"], sort=False):
                rows.append({"outcome": outcome, "semantics": semantics, "ranking": ranking, "share": share})
                rows[-1] |= _level(outcome, cell["value"].to_numpy())
                for name, reference in REFERENCES.items():
                    others = part[(part.ranking == reference) & (part.share == share) & (ranking != reference)]
                    rows[-1] |= _against(cell, others, name, outcome)
            for name in REFERENCES:
                for row, p in zip(rows[first:], holm([row[f"{name}_p_holm"] for row in rows[first:]]), strict=True):
                    row[f"{name}_p_holm"] = p
        self._summary = (len(self.lines), pd.DataFrame(rows))
        return self._summary[1].copy()

    def wide(self, outcome: str, semantics: str = "cache", column: str = "value") -> pd.DataFrame:
        """One outcome for people: rankings as lines, shares as columns, each with its 95 % interval.

        Args:
            outcome: "perplexity", "passkey" or "needle".
            semantics: "cache" or "recomputed".
            column: "value", or a difference ("minus_random", "minus_random_first"), * where its p_holm is below .05.
        """
        import pandas as pd

        summary: Any = self.summary()
        part = summary[(summary.outcome == outcome) & (summary.semantics == semantics) & summary[column].notna()]
        low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
        stars = [False] * len(part) if column == "value" else part[f"{column}_p_holm"] < ALPHA
        cells = [
            f"{value:.2f} [{least:.2f}, {most:.2f}]" + "*" * bool(star)
            for value, least, most, star in zip(part[column], part[low], part[high], stars, strict=True)
        ]
        shown: Any = pd.DataFrame({"ranking": part.ranking, "share": part.share, "cell": cells})
        table: Any = shown.pivot_table(index="ranking", columns="share", values="cell", aggfunc="first", sort=False)
        shares = sorted(table.columns, reverse=True)
        table = table[shares].fillna("").rename(columns={share: f"{share:.0%}" for share in shares})
        return table.rename_axis(columns=None).reset_index()

    def grid(self, outcome: str, share: float, ranking: str) -> pd.DataFrame:
        """Share of right answers by depth (rows) and length (columns), over the cache that was cut."""
        table: Any = self.table()
        chosen = (table.outcome == outcome) & (table.semantics == "cache") & (table.ranking == ranking)
        return table[chosen & (table.share == share)].pivot_table(index="depth", columns="tokens", values="value")

    def correlation(self) -> pd.DataFrame:
        """Mean over windows of the rank correlation of -norm and what a key received.

        Columns: way, layer, key_head, correlation in [-1, 1]; 1: the smaller the key, the more attention. Ways:
        "received" as the sum over queries; "per query" that can see the key (sums favour early keys); "without the
        first" position; "beyond position": the same, the part of it that the position does not explain.
        """
        import pandas as pd

        table: Any = pd.DataFrame(self.correlations, columns=["window", "layer", "key_head", "way", "correlation"])
        return table.groupby(["way", "layer", "key_head"], sort=False)["correlation"].mean().reset_index()


def _number(trial: Trial) -> int:
    return trial.index if isinstance(trial, Window) else trial.seed


def _level(outcome: str, values: Any) -> dict[str, Any]:
    found = torch.tensor(values, dtype=torch.float64)
    mean, (low, high) = mean_and_interval(found) if outcome == "perplexity" else rate_and_interval(found)
    if outcome == "perplexity":
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return {"trials": len(values), "value": mean, "low": low, "high": high}


def _against(cell: Any, others: Any, name: str, outcome: str) -> dict[str, Any]:
    """The paired difference from random keys; nan where there is none. Its p is not corrected yet."""
    columns = (name, f"{name}_low", f"{name}_high", f"{name}_p_holm")
    pairs = cell.merge(others, on=["tokens", "depth", "trial"], suffixes=("", "_random"))
    if pairs.empty:
        return dict.fromkeys(columns, math.nan)
    differences = torch.tensor((pairs["value"] - pairs["value_random"]).to_numpy(), dtype=torch.float64)
    mean, (low, high) = difference_and_interval(differences, outcome != "perplexity")
    return dict(zip(columns, (mean, low, high, permutation_p(differences)), strict=True))
