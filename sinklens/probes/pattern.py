"""The raw attention pattern, for those who ask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinklens.hooks import Canvas, Hook, Where, chosen
from sinklens.probes.base import LayerProbe, only, seen


class Pattern(LayerProbe):
    """The attention pattern itself, `A[i, j]`: what query i gives key j. Opt-in, because it is large.

    Unit: attention, in [0, 1]. 0: the query does not look at the key; 1: it looks nowhere else. Rows (fixed query)
    sum to 1. The other probes reduce it inside the hook; ask for it only for few layers, steps and prompts.
    Source: `A_ij` of arXiv 2510.15731, section 4.1.

    Args:
        where: Layers, steps and queries to keep; other queries are nan, which saves nothing. Heads and keys are
            always all kept.
        max_bytes: Refuse before the forward when one step's pattern would take more than this.
    """

    name = "pattern"
    dims = ("layer", "head", "query", "key")
    unit = "attention"
    points = ("attn.hook_pattern",)

    def __init__(self, where: Where | None = None, max_bytes: int = 2**30) -> None:
        super().__init__(where)
        self.max_bytes = max_bytes

    @property
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"attention that the query gives the key ({self.where.queries} queries)"

    def bytes(self, dlm: Any, positions: int, steps: int = 1, prompts: int = 1) -> int:
        """Bytes that the recorded pattern takes, as float32.

        Args:
            dlm: The model.
            positions: Length of the canvas, prompt included.
            steps: Number of steps recorded.
            prompts: Number of prompts.
        """
        layers = len(chosen(self.where.layers, int(dlm.cfg.n_layers), "layer"))
        return 4 * steps * prompts * layers * int(dlm.cfg.n_heads) * positions**2

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on `hook_pattern` of the layers in scope.

        Raises:
            ValueError: one step's pattern would exceed `max_bytes`; without a canvas, raised by the first hook.
        """
        if canvas is not None:
            self._refuse(model, *canvas.valid.shape)
        return super().fwd_hooks(model, canvas)

    def _refuse(self, model: Any, prompts: int, positions: int) -> None:
        size = self.bytes(model, positions, prompts=prompts)
        if size > self.max_bytes:
            layers = len(chosen(self.where.layers, int(model.cfg.n_layers), "layer"))
            raise ValueError(
                f"the pattern of {layers} layers x {model.cfg.n_heads} heads x {positions} x {positions} positions x "
                f"{prompts} prompts takes {size:,} bytes per step, more than max_bytes={self.max_bytes:,}; name "
                "fewer layers, Pattern(Where(layers=[0])), give fewer prompts at once, measure a reduction instead "
                "(ReceivedAttention, AttentionEntropy, MassOn), or raise max_bytes"
            )

    def _measure(self, model: Any, layer: int, canvas: Canvas | None, *tensors: Tensor) -> Tensor:
        (pattern,) = tensors
        if canvas is None:
            self._refuse(model, pattern.shape[0], pattern.shape[-1])
        queries = seen(canvas, len(pattern), pattern.shape[-1], pattern.device).where(self.where.queries)
        return only(pattern.float().transpose(2, 3), queries).transpose(2, 3)

    def _arguments(self) -> list[str]:
        return [] if self.max_bytes == 2**30 else [f"max_bytes={self.max_bytes}"]
