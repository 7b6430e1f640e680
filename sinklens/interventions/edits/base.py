"""What the edits share: scope, counting, and finding the keys to act on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Hook, Hookable, Where, chosen, is_causal
from sinklens.interventions.edits.layer import Acting, At, Watcher
from sinklens.interventions.selectors.attention import Detector, PreviousStep


class Edit:
    """Base of all edits: scope and counts.

    Works in `denoise(interventions=[...])` and, as plain hooks, in `run_with_hooks(fwd_hooks=edit.fwd_hooks(model))`
    of any TransformerBridge whose attention hooks are live.

    Args:
        where: Layers, heads, steps, queries and keys.
    """

    watches_before = False
    stage = 0  # where edits meet (InOrder): 0 first, 1 an added key, 2 values

    def __init__(self, where: Where | None = None) -> None:
        self.where = where or Where()
        self._steps: int | None = None
        self._counts: dict[str, Tensor] = {}
        self.quiet = False  # nothing is counted: the edit only says what it will do

    @property
    def clean(self) -> Sequence[Hookable]:
        """What must watch a forward without edits, at every step, before the edited one."""
        return ()

    def own(self) -> Self:
        """A copy with a memory and counts of its own."""
        other = copy.copy(self)
        other.reset(self._steps)
        return other

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise, before the first forward, if this edit cannot act on this canvas of this model."""

    def reset(self, steps: int | None = None) -> None:
        """A new run of `steps` steps begins."""
        self._steps, self._counts = steps, {}

    def counts(self) -> Mapping[str, float]:
        """What the edit did in this run, by name, summed over the batch (the class says which names it counts)."""
        return {name: amount.sum().item() for name, amount in self._counts.items()}

    def per_row(self, name: str) -> list[float]:
        """One of the counts for each row of the batch; empty if the edit's steps never came."""
        return self._counts[name].tolist() if name in self._counts else []

    def count(self, name: str, amount: Tensor) -> None:
        """Add an amount per row [batch]."""
        if self.quiet:
            return
        before = self._counts.get(name)
        self._counts[name] = amount if before is None else before.to(amount.device) + amount

    def quietly(self, hook: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        """A hook that counts nothing: the `look` of one that knows its own mind."""

        def look(tensor: Tensor, *, hook: Any) -> Tensor | None:
            self.quiet = True
            try:
                return function(tensor, hook=hook)
            finally:
                self.quiet = False

        function = hook
        return look

    def layers(self, model: Any) -> list[int]:
        """The layers in scope."""
        return chosen(self.where.layers, int(model.cfg.n_layers), "layer")

    def acts(self, canvas: Canvas | None) -> bool:
        """Whether this step is in scope."""
        return self.where.at(canvas.step if canvas is not None else 0, self._steps)

    def heads(self, canvas: Canvas, heads: int, device: torch.device) -> Bool[Tensor, "batch head"]:
        """Heads in scope, of rows that are still being decoded."""
        mask = self.where.head_mask(heads, device)[..., 0].expand(len(canvas.tokens), -1)
        return mask if canvas.active is None else mask & canvas.active[:, None].to(device)

    def rows(self, canvas: Canvas, heads: int, device: torch.device) -> Bool[Tensor, "batch head query 1"]:
        """Rows of the pattern in scope: these heads, these queries."""
        queries = canvas.where(self.where.queries)[:, None, :, None].to(device)
        return self.heads(canvas, heads, device)[..., None, None] & queries

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on the layers in scope."""
        raise NotImplementedError(f"{type(self).__name__} has no fwd_hooks")

    def arguments(self) -> list[str]:
        """What was asked for, as text: it must tell this edit from every other."""
        return []

    def __repr__(self) -> str:
        where = [] if self.where == Where() else [f"where={self.where!r}"]
        return f"{type(self).__name__}({', '.join([*self.arguments(), *where])})"


class SinkEdit(Edit):
    """An edit of the keys that a detector finds. A subclass names a hook point and edits its tensor.

    Counts, over steps, layers and heads: "keys" edited; "mass", the attention that the touched entries held before
    (each query has 1); "heads_without_sink", where the detector found nothing; "heads_with_fewer" than top_k;
    "rows_that_kept_one_key", where the edit would have left a query without any key.

    Args:
        detector: Who is edited; the paper's PreviousStep(top_k=1) when None.
        where: Layers, heads, steps, queries and keys.
    """

    hook_point = "hook_pattern"

    def __init__(self, detector: Detector | None = None, where: Where | None = None) -> None:
        super().__init__(where)
        self.detector = (detector or PreviousStep(top_k=1)).claim()

    @property
    def watches_before(self) -> bool:
        """Whether the edit must see the step before its scope."""
        return self.detector.needs_previous

    @property
    def clean(self) -> Sequence[Hookable]:
        """What must watch a forward without edits: the detector, if it is open-loop."""
        return [Watcher(self)] if self.detector.loop == "open" else []

    def own(self) -> Self:
        """A copy with a memory and counts of its own."""
        other = copy.copy(self)
        other.detector = self.detector.own()
        other.reset(self._steps)
        return other

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a detector that cannot work here."""
        self.detector.check(model, canvas)

    def reset(self, steps: int | None = None) -> None:
        """A new run of `steps` steps begins."""
        super().reset(steps)
        self.detector.reset()

    def counts(self) -> Mapping[str, float]:
        """The class's counts, 0 where nothing happened."""
        names = ("keys", "heads_without_sink", "heads_with_fewer", "rows_that_kept_one_key")
        return {**dict.fromkeys(names, 0), "mass": 0.0, **super().counts()}

    def keys_per_row(self) -> list[int]:
        """Edited (step, layer, head, key) of each row of the batch; empty if the edit's steps never came."""
        return [int(number) for number in self.per_row("keys")]

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks on the layers in scope; outside the steps in scope they only watch, for the next step.

        Raises:
            ScopeError: an open-loop detector outside the denoising loop.
        """
        if canvas is None and self.clean:
            raise ScopeError(f"{self!r} needs a clean forward at the same canvas; use it in denoise")
        causal = is_causal(model)
        queries = self.detector.query_set(causal=causal)
        everyone = canvas is None or bool(canvas.where(self.where.queries).all())
        hooks: list[Hook] = []
        for layer in self.layers(model):
            hooks += self.detector.hooks(model, layer, canvas)
            acting = Acting(self, layer, canvas, queries, causal=causal, everyone=everyone)
            hooks += self.around(layer, acting.hooked(f"blocks.{layer}.attn.{self.hook_point}"))
        return hooks

    def around(self, layer: int, hook: Hook) -> list[Hook]:
        """The layer's hooks; a subclass may need more than one."""
        return [hook]

    def count_found(self, selected: Tensor, found: tuple[Tensor, Tensor]) -> None:
        """Count the selected keys; `found`: the heads in scope, and those where fewer were found than asked for."""
        heads, short = found
        self.count("heads_without_sink", (heads & ~selected.any(-1)).sum(-1))
        self.count("heads_with_fewer", (heads & short & selected.any(-1)).sum(-1))
        self.count("keys", selected.sum((1, 2)))

    def pattern(self, tensor: Tensor) -> Float[Tensor, "batch head query key"]:
        """The attention weights that the hooked tensor stands for."""
        return tensor

    def apply(self, tensor: Tensor, at: At) -> Tensor | None:
        """The edited tensor; never in place. None leaves it."""
        raise NotImplementedError(f"{type(self).__name__} has no apply")

    def arguments(self) -> list[str]:
        """The detector."""
        return [repr(self.detector)]
