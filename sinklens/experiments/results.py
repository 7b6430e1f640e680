"""What an ablation found: scores, paired effects with intervals and p-values, tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinklens import files
from sinklens.errors import RecordError
from sinklens.experiments import statistics
from sinklens.experiments.effect import Effect
from sinklens.experiments.exposure import exposed
from sinklens.experiments.outcomes import METRICS
from sinklens.values.kinds import reads
from sinklens.values.notebook import Shown, Told

if TYPE_CHECKING:
    import pandas as pd

UNMASKED = "unmasked"
HEADER = {"sinklens": "ablation", "schema": 1}  # how a file begins
SAID = ("model", "prompt", "seed", "condition", "kind", "metric", "value", "exposed")  # by every score of a file


@dataclass(frozen=True, repr=False)
class AblationResult(Shown):
    """What `ablate` returns.

    Attributes:
        scores: One dict per prompt, seed, condition, kind and metric: model, task, prompt (index), name (the
            example's), seed, condition, kind (unmasked; sinks: the condition's own edit, whatever it acts on; or a
            control's name), metric, value (nan where nothing could be scored), places (how many tokens it is the mean
            of), exposed (the share of them, 0 to 1, that were decided by a forward that an edit changed in this row;
            None where nothing was scored, or was to be edited), edited_keys (over steps, layers and heads), edited_mass
            (attention that these held, each query having 1; both None of an edit that acts on no keys, such as Steer),
            kept (the share of the keys that could have been edited, over all steps, layers and heads in scope, that
            were left as they are; None where nothing is counted).
        finished: False after an interrupt.
        provenance: What made the scores, the content of every edit included.
    """

    scores: list[dict[str, Any]]
    finished: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def unfinished(self) -> str:
        """What is to be said wherever an interrupted ablation is shown; empty if it is finished."""
        if self.finished:
            return ""
        parts = [len(self.provenance.get(name, ())) for name in ("seeds", "conditions", "metrics")]
        asked = math.prod(parts) * self.provenance.get("prompts", 0)
        of = f" of {asked}" if asked else ""
        return f"unfinished: it was interrupted after {len(self.scores)}{of} scores, and the prompts left are missing"

    def __repr__(self) -> str:
        state = f"; {self.unfinished}" if self.unfinished else ""
        return f"AblationResult({len(self.scores)} scores of {', '.join(self._known()['condition'])}{state})"

    def told(self) -> Told:
        """What a notebook shows: the means of every condition (`summary` has their intervals)."""
        said = {name: self.provenance.get(name) for name in ("model", "task")}
        known = {name: ", ".join(each) for name, each in self._known().items()}
        rows = [*((n, v) for n, v in said.items() if v), *known.items(), ("scores", f"{len(self.scores)}")]
        means: dict[tuple[str, ...], list[float]] = {}
        for score in self.scores:
            side = means.setdefault(tuple(str(score[name]) for name in ("metric", "condition", "kind")), [])
            side += [] if math.isnan(score["value"]) else [score["value"]]
        lines = [(*side, _mean(found) if found else math.nan, f"{len(found)}") for side, found in means.items()]
        heads = ("metric", "condition", "kind", "mean", "scored")
        about = self.unfinished or "summary() has intervals, effects() the tests."
        return Told(about, rows, [(heads, lines, len(lines))])

    def to_dataframe(self) -> pd.DataFrame:
        """All scores, one per line."""
        import pandas as pd

        return pd.DataFrame(self.scores)

    def save(self, path: str | Path) -> Path:
        """Write scores and provenance as JSON with a checksum, whole or not at all.

        Raises:
            SaveError: the file cannot be written, or is there and no such result.
        """
        content = asdict(self)
        text = json.dumps(HEADER | {"sha256": _sha256(json.dumps(content)), "result": content})
        return files.write_text(path, text, files.RESULT)

    @classmethod
    def open(cls, path: str | Path) -> AblationResult:
        """Read what `save` wrote.

        Raises:
            RecordError: no such file, one that is no ablation, or one that was changed since.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            header, content = {name: stored[name] for name in HEADER}, stored["result"]
            if header != HEADER:
                raise TypeError(f"it says {header}, and this sinklens knows {HEADER}")
            if stored["sha256"] != _sha256(json.dumps(content)):
                raise TypeError("its checksum is another: it is damaged, or was changed")
            lacking = [name for name in SAID if any(name not in score for score in content["scores"])]
            if lacking:
                raise TypeError(f"its scores lack {', '.join(lacking)}; run it again")
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{str(path)!r} is no ablation that AblationResult.save wrote: {error!r}") from error

    def _known(self) -> dict[str, list[str]]:
        names = ("condition", "kind", "metric")
        return {name: list(dict.fromkeys(str(score[name]) for score in self.scores)) for name in names}

    def controls(self, condition: str) -> list[str]:
        """Names of the controls that a condition was run with."""
        kinds = dict.fromkeys(score["kind"] for score in self.scores if score["condition"] == condition)
        return [kind for kind in kinds if kind not in (UNMASKED, "sinks")]

    def paired(self, metric: str, *sides: tuple[str, str]) -> Tensor:
        """Values of several sides (condition, kind) for the same prompts [side, prompt], each the mean over seeds.

        Prompts that a side lacks, or could not score, are left out on all sides.

        Raises:
            ValueError: a side that was not run.
        """
        tables: list[dict[tuple[Any, Any], float]] = []
        for condition, kind in sides:
            table = {
                (score["prompt"], score["seed"]): score["value"]
                for score in self.scores
                if (score["condition"], score["kind"], score["metric"]) == (condition, kind, metric)
            }
            if not table:
                raise ValueError(f"there are no scores for {(condition, kind, metric)}; there are {self._known()}")
            tables.append(table)
        pairs = sorted(set.intersection(*(set(table) for table in tables)))
        pairs = [pair for pair in pairs if not any(math.isnan(table[pair]) for table in tables)]
        prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
        means = [
            [_mean([table[pair] for pair in pairs if pair[0] == prompt]) for prompt in prompts] for table in tables
        ]
        return torch.tensor(means, dtype=torch.float64).reshape(len(sides), len(prompts))

    @reads()
    def effect(
        self, condition: str, metric: str | None = None, *, control: str | None = None, margin: float | None = None
    ) -> Effect:
        """Effect of a condition against unmasked and against its control.

        Args:
            condition: Name of the condition.
            metric: Which metric; the first that was measured when None.
            control: Which control; the first that was run when None.
            margin: The largest difference that would not matter, for the equivalence test.

        Raises:
            ValueError: a condition, metric or control that was not run; nothing that could be scored.
        """
        metric = metric or next(iter(self._known()["metric"]), "")
        control = control or next(iter(self.controls(condition)), None)
        values = self.paired(metric, (UNMASKED, UNMASKED), (condition, "sinks"))
        if not values.shape[1]:
            raise ValueError(f"no prompt could be scored for {condition!r}, metric {metric!r}")
        change, share = values[1] - values[0], metric in METRICS and METRICS[metric].share
        mean, interval = statistics.difference_and_interval(change, share)
        shares = exposed(self.scores)
        more: dict[str, Any] = {"exposed": shares.get((condition, "sinks", metric))}
        if control:
            beside = self.paired(metric, (UNMASKED, UNMASKED), (condition, "sinks"), (condition, control))
            if not beside.shape[1]:
                raise ValueError(f"no prompt could be scored for {condition!r} and {control!r}, metric {metric!r}")
            beyond = beside[1] - beside[2]
            more["pairs_control"] = beside.shape[1]
            more["exposed_control"] = shares.get((condition, control, metric))
            more["to_control"], more["to_control_interval"] = statistics.difference_and_interval(beyond, share)
            more["to_control_p"] = statistics.permutation_p(beyond)
            more["equivalent_to_control"] = None if margin is None else statistics.equivalent(beyond, margin, share)
        if margin is not None:
            more |= {"margin": margin, "equivalent": statistics.equivalent(change, margin, share)}
        return Effect(
            condition=condition,
            metric=metric,
            control=control,
            pairs=values.shape[1],
            unmasked=float(values[0].mean()),
            value=float(values[1].mean()),
            to_unmasked=mean,
            to_unmasked_interval=interval,
            to_unmasked_p=statistics.permutation_p(change),
            **more,
        )

    @reads()
    def effects(self, metric: str | None = None, *, margin: float | None = None) -> pd.DataFrame:
        """Every condition against unmasked and against each of its controls, as a table.

        Columns: those of Effect (intervals as low and high), and the p-values after Holm's correction over all lines of
        the table (each set of tests by itself: to_unmasked_p_holm, to_control_p_holm).

        Args:
            metric: Which metric; the first that was measured when None.
            margin: For the equivalence tests.
        """
        import pandas as pd

        conditions = [name for name in self._known()["condition"] if name != UNMASKED]
        if not conditions:
            raise ValueError("there are no conditions, only the unmasked run")
        lines: list[dict[str, Any]] = []
        for condition in conditions:
            for control in self.controls(condition) or [None]:
                line = asdict(self._effect_or_nothing(condition, metric, control, margin))
                for name in ("to_unmasked", "to_control"):
                    low, high = line.pop(f"{name}_interval") or (float("nan"),) * 2
                    line |= {f"{name}_low": low, f"{name}_high": high}
                lines.append(line)
        frame: Any = pd.DataFrame(lines)
        tests = {line["condition"]: line["to_unmasked_p"] for line in lines}  # one each, however many controls
        corrected = dict(zip(tests, statistics.holm(list(tests.values())), strict=True))
        frame["to_unmasked_p_holm"] = frame["condition"].map(corrected)
        frame["to_control_p_holm"] = statistics.holm([float("nan") if p is None else p for p in frame["to_control_p"]])
        return frame

    def _effect_or_nothing(
        self, condition: str, metric: str | None, control: str | None, margin: float | None
    ) -> Effect:
        """The effect; numbers that are none where no prompt could be scored."""
        nan = float("nan")
        metric = metric or next(iter(self._known()["metric"]), "")
        if self.paired(metric, (UNMASKED, UNMASKED), (condition, "sinks")).shape[1] == 0:
            return Effect(condition, metric, control, 0, nan, nan, nan, (nan, nan), nan)
        if control and not self.paired(metric, (condition, "sinks"), (condition, control)).shape[1]:
            return replace(self._alone(condition, metric, margin), control=control, pairs_control=0)
        return self.effect(condition, metric, control=control, margin=margin)

    def _alone(self, condition: str, metric: str, margin: float | None) -> Effect:
        """Against unmasked only."""
        scores = [score for score in self.scores if score["kind"] in (UNMASKED, "sinks")]
        return AblationResult(scores).effect(condition, metric, margin=margin)

    def summary(self) -> pd.DataFrame:
        """Mean of each metric per condition and kind, with a 95 % interval over prompts (each the mean over seeds).

        Percentile bootstrap; exact for shares where every prompt scores the same (`statistics.rate_and_interval`).
        Columns: model, metric, condition, kind, value, low, high, scored (prompts), places (tokens), exposed,
        edited_keys and edited_mass (means over prompts and seeds; nan of an edit that acts on no keys).
        """
        import pandas as pd

        out = []
        counts = ("exposed", "edited_keys", "edited_mass")
        frame = self.to_dataframe().astype(dict.fromkeys(counts, float))
        keys = ["model", "metric", "condition", "kind"]
        grouped: Any = frame.groupby(keys, sort=False)
        for names, group in grouped:
            means = group.groupby("prompt")["value"].mean().dropna()
            values = torch.tensor(means.to_numpy(dtype=float))
            share = METRICS[names[1]].share if names[1] in METRICS else False
            mean, (low, high) = float("nan"), (float("nan"),) * 2
            if len(values):
                mean, (low, high) = (
                    statistics.rate_and_interval(values) if share else statistics.mean_and_interval(values)
                )
            edited = [float(group[name].mean()) for name in counts]
            out.append((*names, mean, low, high, len(values), int(group["places"].sum()), *edited))
        columns = [*keys, "value", "low", "high", "scored", "places", *counts]
        return pd.DataFrame(out, columns=columns)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
