"""Which keys are sinks, step by step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinklens.hooks import Canvas, Where, is_causal
from sinklens.probes.base import LayerProbe, only, seen
from sinklens.sinks import SinkRule, received_attention, seeing


class SinkMask(LayerProbe):
    """1 where a key is a sink by a rule, 0 where it is none; the rule runs inside the hook.

    The same as `metrics.sinks` on a record of `ReceivedAttention`, without keeping the attention. Unit: yes/no (1/0);
    the mean over keys is the share of sinks. Source: arXiv 2510.15731, equation 3; see `SinkRule`.

    Args:
        rule: When a key is a sink; its `queries` and `keys` say whose attention counts and who can be one.
        where: Layers and steps to look at.
    """

    name = "sink"
    dims = ("layer", "head", "key")
    unit = "1/0"
    points = ("attn.hook_pattern",)

    def __init__(self, rule: SinkRule | None = None, where: Where | None = None) -> None:
        super().__init__(where)
        self.rule = rule or SinkRule()

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"1 where the key is a sink: {self.rule.words()}"

    def _reduce(self, pattern: Tensor, canvas: Canvas, rows: slice) -> Tensor:
        return received_attention(pattern, canvas.where(self.rule.queries)[:, None, rows].to(pattern.device))

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (received,) = tensors
        full = seen(canvas, len(received), received.shape[-1], received.device)
        queries, keys = (
            full.where(which)[:, None].to(received.device) for which in (self.rule.queries, self.rule.keys)
        )
        visible = None
        if is_causal(model):
            visible = seeing(queries).expand(received.shape)
        return only(self.rule(received, keys, visible=visible).float(), full.valid)

    def _arguments(self) -> list[str]:
        return [] if self.rule == SinkRule() else [repr(self.rule)]
