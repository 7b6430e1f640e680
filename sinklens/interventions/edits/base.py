"""What the edits share: scope, counting, and finding the keys to act on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Edit, Hook, Memory, Scope, by_query, chosen
from sinklens.interventions.brief import Brief
from sinklens.interventions.edits.layer import Acting, At, Reading
from sinklens.interventions.selectors.attention import PreviousStep
from sinklens.interventions.selectors.base import Selector
from sinklens.sinks import Positions

PREVIOUS_TOP1 = PreviousStep(top_k=1)  # the protocol of arXiv 2510.15731, section 4.3
EVERYWHERE = Scope()


@dataclass(frozen=True, repr=False)
class AttentionEdit(Brief, Edit):
    """Base of the edits of attention: which layers, heads and steps, and which queries.

    Works in `denoise(interventions=[...])` and, as plain hooks, in `run_with_hooks(fwd_hooks=edit.fwd_hooks(model))`
    of any TransformerBridge whose attention hooks are live.

    Args:
        where: Layers, heads and steps.
        queries: Which queries are touched: "all", "masked", "committed", "prompt", "response" or "last".

    Raises:
        ContentError: a `where` that is no Scope, or an unknown set of queries.
    """

    _: KW_ONLY
    where: Scope = EVERYWHERE
    queries: Positions = "all"
    counted: ClassVar[tuple[str, ...]] = ()

    def memory(self, steps: int | None = None, start: Canvas | None = None) -> Memory:
        """A new memory, whose counts are 0 for what the class counts (`counted`)."""
        return Memory(steps, start, names=self.counted)

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks on the layers in scope; none at a step that is out of scope.

        Raises:
            ScopeError: steps in scope, and a forward outside the denoising loop, which has none.
        """
        if canvas is None and self.where.steps is not None:
            raise ScopeError(
                f"{self!r} names steps, and a forward outside the denoising loop has none; leave them out, or use "
                "denoise, or fwd_hooks(model, canvas)"
            )
        if canvas is not None and not self.acts(canvas.step, memory):
            return []
        return self.acting(model, canvas, memory)

    @abstractmethod
    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The hooks at a step in scope."""

    def layers(self, model: Any) -> list[int]:
        """The layers in scope."""
        return chosen(self.where.layers, int(model.cfg.n_layers), "layer")

    def heads(self, canvas: Canvas, heads: int, device: torch.device) -> Bool[Tensor, "batch head"]:
        """Heads in scope, of rows that are still being decoded."""
        mask = self.where.head_mask(heads, device)[..., 0].expand(len(canvas.tokens), -1)
        return mask if canvas.active is None else mask & canvas.active[:, None].to(device)


class ActsOnKeys:
    """What has a selector.

    Attributes:
        selector: Who is edited.
    """

    selector: Selector


@dataclass(frozen=True, repr=False)
class SinkEdit(AttentionEdit, ActsOnKeys):
    """An edit of the keys that a selector finds. A subclass names a hook point and edits its tensor.

    One of your own is a frozen dataclass with a field `selector` (`selector: Selector = PreviousStep(top_k=1)`) and
    the method `apply`.

    Counts, over steps, layers and heads: "keys" edited, of the "candidates" that the selector could have chosen;
    "mass", the attention that the touched entries held before (each query has 1); "heads_without_sink", where the
    selector found nothing; "heads_with_fewer" than top_k; "rows_that_kept_one_key", where the edit would have left a
    query without any key.

    Args:
        where: As in AttentionEdit.
        queries: As in AttentionEdit.
        diagonal: Whether a key's own query is touched, too; False spares it.

    Raises:
        ContentError: as in AttentionEdit.
        ValueError: a selector that is none.
    """

    _: KW_ONLY
    diagonal: bool = True
    hook_point: ClassVar[str] = "hook_pattern"
    counted: ClassVar[tuple[str, ...]] = (
        "keys",
        "candidates",
        "mass",
        "heads_without_sink",
        "heads_with_fewer",
        "rows_that_kept_one_key",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        selector = getattr(self, "selector", None)
        if not isinstance(selector, Selector):
            raise ValueError(
                f"selector={selector!r} of {type(self).__name__} must be a selector, for example SameStep(top_k=1): a "
                "field `selector` of the class; the scope is where="
            )

    @property
    def looks_back(self) -> bool:
        """Whether the selector must be shown the step before."""
        return self.selector.looks_back

    @property
    def earliest(self) -> int:
        """The first step at which the selector can find a key."""
        return self.selector.earliest

    def check(self, model: Any, canvas: Canvas) -> None:
        """Raise for a selector that cannot work here."""
        self.selector.check(model, canvas)

    def acting(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """The selector's hooks and the edit's, in each layer.

        Raises:
            ScopeError: an open-loop selector without the clean forward, or one that was not shown the step before.
        """
        everyone = None if canvas is None else bool(canvas.queries(self.queries).all())
        hooks: list[Hook] = []
        for layer in self.layers(model):
            if self.selector.loop == "open" and ("clean", layer) not in memory.notes:
                raise ScopeError(f"{self!r} needs a clean forward at the same canvas first; use it in denoise")
            acting = Acting(self, model, layer, canvas, memory, everyone)
            hooks += self.selector.hooks(model, layer, canvas, memory)
            hooks += self.in_layer(acting)
        return hooks

    def of_new(self, model: Any) -> bool:
        """Whether the edit's only hooks are on scores or weights, and its selector reads no other attention."""
        points = ("hook_attn_scores", "hook_pattern")
        alone = type(self).in_layer is SinkEdit.in_layer and self.hook_point in points
        return alone and self.selector.of_new(model)

    def in_layer(self, acting: Acting) -> list[Hook]:
        """The edit's hooks in one layer; a subclass may need more than one."""

        def act(tensor: Tensor, *, hook: Any) -> Tensor | None:
            return self.apply(tensor, acting.at(tensor, hook))

        def preview(tensor: Tensor, *, hook: Any) -> Tensor | None:
            here = acting.preview(tensor, hook)
            return None if here is None else self.apply(tensor, here)

        name = f"blocks.{acting.layer}.attn.{self.hook_point}"
        return [(name, by_query(act, preview=preview, rounds=acting.rounds))]

    def watch(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks that only show the selector what it will need in the next forward."""
        if not self.looks_back:
            return []
        readings = [Reading(self, model, layer, canvas, memory) for layer in self.layers(model)]
        return [reading.watch(self.hook_point, clean=False) for reading in readings]

    def clean(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """Hooks that show an open-loop selector a forward without edits."""
        if self.selector.loop != "open":
            return []
        readings = [Reading(self, model, layer, canvas, memory) for layer in self.layers(model)]
        return [reading.watch("hook_pattern", clean=True) for reading in readings]

    def clean_at_step(self, model: Any, canvas: Canvas, memory: Memory) -> list[Hook]:
        """As in Edit; also one step before the scope if the selector looks back, where other edits may be at work."""
        soon = self.looks_back and self.acts(canvas.step + 1, memory)
        return self.clean(model, canvas, memory) if soon or self.acts(canvas.step, memory) else []

    def pattern(self, tensor: Tensor) -> Float[Tensor, "batch head query key"]:
        """The attention weights that the hooked tensor stands for."""
        return tensor

    @abstractmethod
    def apply(self, tensor: Tensor, at: At) -> Tensor | None:
        """The edited tensor; never in place. None leaves it."""
