"""How large a record will be, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sinklens.decoding.plan import Plan
from sinklens.hooks import Probe, chosen
from sinklens.values.kinds import Count, Index, reads


@dataclass(frozen=True)
class Estimate:
    """What `estimate` returns.

    Attributes:
        steps: Denoising steps of the run; with a threshold or unknown gaps the most there can be.
        by_probe: Bytes of what each probe measures, by the name of its variable.
        shapes: Sizes behind them, by variable and dim: prompt, step (in scope), then the probe's dims.
    """

    steps: int
    by_probe: Mapping[str, int]
    shapes: Mapping[str, Mapping[str, int]]

    @property
    def total_bytes(self) -> int:
        """Bytes of all probes together."""
        return sum(self.by_probe.values())

    def __str__(self) -> str:
        lines = [f"{readable(self.total_bytes)} for {len(self.by_probe)} probes over {self.steps} steps"]
        width = max(map(len, self.by_probe), default=0)
        for name, size in self.by_probe.items():
            shape = " x ".join(f"{count} {dim}" for dim, count in self.shapes[name].items())
            lines.append(f"  {name:<{width}}  {readable(size):>9}  {shape}")
        return "\n".join(lines)


def readable(size: int) -> str:
    """Bytes in a fitting unit, 1 KB = 1000 bytes."""
    value, units = float(size), ["B", "KB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


@reads()
def estimate(dlm: Any, plan: Plan, probes: Sequence[Probe], prompts: Count = 1, prompt_tokens: Index = 32) -> Estimate:
    """How many bytes the probes' measurements of a run take, as float32 and uncompressed.

    Counts the layers, heads and steps in each probe's scope. The record in memory also fills the steps outside a scope,
    and layers and heads that only another probe measured, with nan; in the file these compress to almost nothing.

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> print(sl.estimate(dlm, sl.Plan(new_tokens=32), [sl.probes.ReceivedAttention()], prompt_tokens=16))
        49.2 KB for 1 probes over 32 steps
          received    49.2 KB  1 prompt x 32 step x 2 layer x 4 head x 48 key

    Args:
        dlm: The model.
        plan: As for `denoise`.
        probes: As for `denoise`.
        prompts: Number of prompts.
        prompt_tokens: Tokens of the longest prompt.

    Raises:
        PlanError: a plan that cannot be carried out.
        ScopeError: a probe's scope selects nothing.
        ValueError: two probes of one name, which a record cannot hold; a dim of unknown size.
    """
    plan = plan.resolved(dlm)
    steps = plan.new_tokens or prompt_tokens
    if plan.threshold is None and plan.steps is not None:
        steps = plan.steps
    known = steps if plan.threshold is None else None
    by_probe: dict[str, int] = {}
    shapes: dict[str, dict[str, int]] = {}
    for probe in probes:
        probe.where.validate(int(dlm.cfg.n_layers), int(dlm.cfg.n_heads), known)
        if probe.name in by_probe:
            raise ValueError(f"two probes are named {probe.name!r}, and a record holds one variable of a name")
        sizes = {"prompt": prompts, "step": sum(probe.where.at(step, known) for step in range(steps))}
        sizes |= {dim: _size(dlm, probe, dim, prompt_tokens + plan.new_tokens) for dim in probe.dims}
        by_probe[probe.name], shapes[probe.name] = 4 * prod(sizes.values()), sizes
    return Estimate(steps, by_probe, shapes)


def _size(dlm: Any, probe: Probe, dim: str, positions: int) -> int:
    if dim in ("key", "query"):
        return positions
    if dim == "layer":
        return len(chosen(probe.where.layers, int(dlm.cfg.n_layers), "layer"))
    if dim == "head":
        return len(chosen(probe.where.heads, int(dlm.cfg.n_heads), "head"))
    if dim == "kv_head":
        return int(getattr(dlm.cfg, "n_key_value_heads", None) or dlm.cfg.n_heads)
    coords = probe.coords({})
    if dim not in coords:
        raise ValueError(f"{probe!r} has the dim {dim!r}, whose size neither the model nor its coords({{}}) tell")
    return len(coords[dim])
