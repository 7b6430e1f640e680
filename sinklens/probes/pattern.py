"""The raw attention pattern, for those who ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Scope, chosen
from sinklens.probes.base import PATTERN, Layer, LayerProbe, derived, only
from sinklens.sinks import Positions
from sinklens.values.kinds import Count


@dataclass(frozen=True, repr=False)
class Pattern(LayerProbe):
    """The attention pattern itself, `A[i, j]`: what query i gives key j. Opt-in, because it is large.

    Unit: attention, in [0, 1]. 0: the query does not look at the key; 1: it looks nowhere else. The weights of a query
    sum to 1. The other probes reduce it inside the hook; ask for it only for few layers, heads, steps and prompts.
    Source: `A_ij` of arXiv 2510.15731, section 4.1.

    Attributes:
        where: Layers, heads and steps to keep. Keys are always all kept.
        queries: Which queries to keep; others are nan, which saves nothing.
        max_bytes: Refuse before the forward when one step's pattern would take more than this.
    """

    where: Scope = Scope()
    queries: Positions = "all"
    max_bytes: Count = 2**30
    own = "pattern"
    dims = ("layer", "head", "query", "key")
    unit = "attention"
    points = (PATTERN,)

    @derived
    def definition(self) -> str:
        """What the recorded numbers mean."""
        return f"attention that the query gives the key ({self.queries} queries)"

    def bytes(self, dlm: Any, positions: int, steps: int = 1, prompts: int = 1) -> int:
        """Bytes that the recorded pattern takes, as float32.

        Args:
            dlm: The model.
            positions: Length of the canvas, prompt included.
            steps: Number of steps recorded.
            prompts: Number of prompts.
        """
        layers, heads = self._kept(dlm)
        return 4 * steps * prompts * layers * heads * positions**2

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """Hooks on `hook_pattern` of the layers in scope.

        Raises:
            ValueError: one step's pattern would exceed `max_bytes`; without a canvas, raised by the first hook.
        """
        if canvas is not None:
            self._refuse(model, *canvas.valid.shape)
        return super().hooks(model, canvas, seen)

    def gather(self, kept: list[Any], pattern: Tensor, layer: Layer, block: slice) -> None:
        """The block, if all of them are not too many."""
        self._refuse(layer.model, pattern.shape[0], pattern.shape[-1])
        super().gather(kept, pattern, layer, block)

    def measure(self, layer: Layer, *tensors: Tensor) -> Tensor:
        """The pattern of the queries in question."""
        pattern = rearrange(tensors[0].float(), "batch head query key -> batch head key query")
        kept = only(pattern, layer.queries(self.queries, pattern))
        return rearrange(kept, "batch head key query -> batch head query key")

    def _kept(self, model: Any) -> tuple[int, int]:
        layers = chosen(self.where.layers, int(model.cfg.n_layers), "layer")
        return len(layers), len(chosen(self.where.heads, int(model.cfg.n_heads), "head"))

    def _refuse(self, model: Any, prompts: int, positions: int) -> None:
        size = self.bytes(model, positions, prompts=prompts)
        if size > self.max_bytes:
            layers, heads = self._kept(model)
            raise ValueError(
                f"the pattern of {layers} layers x {heads} heads x {positions} x {positions} positions x {prompts} "
                f"prompts takes {size:,} bytes per step, more than max_bytes={self.max_bytes:,}; name fewer layers or "
                "heads, Pattern(Scope(layers=[0])), give fewer prompts at once, measure a reduction instead "
                "(ReceivedAttention, AttentionEntropy, MassOn), or raise max_bytes"
            )
