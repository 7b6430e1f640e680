"""What is done to sinks: one small class per operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.hooks import Canvas, Hook, Where, chosen, plain_canvas
from sinklens.interventions.detectors import Detector, PreviousStep
from sinklens.sinks import received_attention


class SinkEdit:
    """Base of the edits: detection, scope and counting. A subclass names a hook point and edits its tensor.

    Works in `denoise(interventions=[...])` and, as plain hooks, in `run_with_hooks(fwd_hooks=edit.fwd_hooks(model))`
    of any TransformerBridge whose attention hooks are live.

    Args:
        detector: Who is edited; the paper's PreviousStep(top_k=1) when None.
        where: Layers, heads, steps, queries and keys.
    """

    hook_point = ""

    def __init__(self, detector: Detector | None = None, where: Where | None = None) -> None:
        self.detector = detector or PreviousStep(top_k=1)
        self.where = where or Where()
        self._steps: int | None = None
        self._counts: dict[str, Tensor] = {}
        self._per_row = torch.zeros(0)

    @property
    def watches_before(self) -> bool:
        """Whether the edit must see the step before its scope."""
        return self.detector.needs_previous

    def reset(self, steps: int | None = None) -> None:
        """A new run of `steps` steps begins."""
        self.detector.reset()
        self._steps, self._counts, self._per_row = steps, {}, torch.zeros(0)

    def counts(self) -> Mapping[str, int]:
        """Edited (row, layer, head, key) in all; (row, layer, head) without a sink; query rows left one key."""
        names = ("keys", "heads_without_sink", "rows_that_kept_one_key")
        return {name: int(self._counts.get(name, 0)) for name in names}

    def keys_per_row(self) -> list[int]:
        """Edited (step, layer, head, key) of each row of the batch; empty if the edit's steps never came."""
        return self._per_row.tolist()

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on the layers in scope; outside the steps in scope they only watch, for the next step."""
        step = canvas.step if canvas is not None else 0
        acts = self.where.at(step, self._steps)
        causal = bool(getattr(model, "is_causal", getattr(model.cfg, "attention_dir", "") == "causal"))
        queries = self.detector.query_set(causal=causal)
        layers = chosen(self.where.layers, int(model.cfg.n_layers), "layer")
        return [
            (f"blocks.{layer}.attn.{self.hook_point}", partial(self._hook, layer, canvas, queries, acts))
            for layer in layers
        ]

    def _hook(
        self, layer: int, canvas: Canvas | None, queries: Any, acts: bool, tensor: Tensor, *, hook: Any
    ) -> Tensor | None:
        seen = canvas or plain_canvas((tensor.shape[0], tensor.shape[-1]), tensor.device)
        pattern = self.pattern(tensor)
        received = received_attention(pattern, seen.where(queries)[:, None].to(tensor.device))
        selected = None
        if acts:
            eligible = seen.where(self.where.keys)[:, None].to(tensor.device).expand(received.shape)
            selected = self.detector.select(layer, received, eligible, seen)
            heads = self.where.head_mask(tensor.shape[1], tensor.device)
            if seen.active is not None:
                heads = heads & seen.active[:, None, None].to(tensor.device)
            selected = selected & heads
            self._count("heads_without_sink", (heads & ~selected.any(-1, keepdim=True)).sum())
        self.detector.observe(layer, received, seen)
        if selected is None:
            return None
        keys = selected.sum((1, 2))
        self._count("keys", keys.sum())
        self._per_row = keys if len(self._per_row) == 0 else self._per_row + keys.to(self._per_row.device)
        touched = selected[:, :, None, :] & seen.where(self.where.queries)[:, None, :, None].to(tensor.device)
        if not self.where.diagonal:
            touched = touched & ~torch.eye(*tensor.shape[-2:], dtype=torch.bool, device=tensor.device)
        return self.apply(tensor, touched)

    def pattern(self, tensor: Tensor) -> Tensor:
        """The attention weights that the hooked tensor stands for."""
        raise NotImplementedError(f"{type(self).__name__} has no pattern")

    def apply(self, tensor: Tensor, touched: Bool[Tensor, "batch head query key"]) -> Tensor:
        """The edited tensor; never in place."""
        raise NotImplementedError(f"{type(self).__name__} has no apply")

    def _count(self, name: str, amount: Tensor) -> None:
        self._counts[name] = self._counts.get(name, torch.zeros((), dtype=torch.long, device=amount.device)) + amount

    def __repr__(self) -> str:
        where = "" if self.where == Where() else f", where={self.where!r}"
        return f"{type(self).__name__}({self.detector!r}{where})"


class MaskSinks(SinkEdit):
    """Set the sinks' scores to minus infinity before the softmax, so that the rest of the row takes their mass.

    Conserves: row sums (1). Equal to removing the sinks after the softmax and giving their mass to the other keys
    in proportion.
    Assumes: a row keeps at least one key; one that would lose all keeps its largest, and this is counted.
    Source: arXiv 2510.15731, section 4.3.
    """

    hook_point = "hook_attn_scores"

    def pattern(self, tensor: Tensor) -> Tensor:
        """Softmax of the scores (rows without any key: zero)."""
        return tensor.float().softmax(-1).nan_to_num(0.0)

    def apply(self, tensor: Tensor, touched: Tensor) -> Tensor:
        """Scores with -inf at the touched entries."""
        masked = tensor.masked_fill(touched, float("-inf"))
        # Other bridges write the lowest number, not -inf, where the model does not look.
        unseen = torch.finfo(tensor.dtype).min / 2
        lost = (masked <= unseen).all(-1) & (tensor > unseen).any(-1)
        self._count("rows_that_kept_one_key", lost.sum())
        largest = torch.zeros_like(touched).scatter(-1, tensor.argmax(-1, keepdim=True), True)
        return torch.where(lost[..., None] & largest, tensor, masked)


class ZeroSinks(SinkEdit):
    """Set the sinks' weights to zero after the softmax; their mass is lost.

    Conserves: the other keys' weights. Row sums drop by exactly the sinks' mass.
    Assumes: nothing.
    Source: the score-path control of arXiv 2605.09313 without its renormalisation.
    """

    hook_point = "hook_pattern"

    def pattern(self, tensor: Tensor) -> Tensor:
        """The pattern itself."""
        return tensor

    def apply(self, tensor: Tensor, touched: Tensor) -> Tensor:
        """The pattern with zeros at the touched entries."""
        return tensor.masked_fill(touched, 0.0)
