"""What is patched: the site, what one patch replaces, which way, and what it is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from sinklens.errors import ScopeError
from sinklens.hooks import Selection, chosen
from sinklens.values.content import Value, plain
from sinklens.values.exact import Range

Row = tuple[int | None, int | None]  # a head, or all of them; a position, or all of them


class Site(NamedTuple):
    """A place in every layer.

    Attributes:
        point: The hook point, behind "blocks.{layer}.".
        what: What it carries.
        heads: The dim of its heads; None if it has none.
        inside: Whether what it carries is put together with other tensors inside attention, so that a batch of rows
            must be one when the layer begins.
    """

    point: str
    what: str
    heads: str | None = None
    inside: bool = False


SITES = {
    "residual": Site("hook_in", "the residual stream before the layer; behind the last one: after it"),
    "attention": Site("hook_attn_out", "what attention adds to the residual stream"),
    "mlp": Site("hook_mlp_out", "what the MLP adds to the residual stream"),
    "values": Site("attn.v.hook_out", "values", "kv_head", inside=True),
    "mixed": Site("attn.o.hook_in", "mixed values of each head, before the output projection", "head"),
    "pattern": Site("attn.hook_pattern", "attention weights of a query", "head", inside=True),
}


@dataclass(frozen=True, repr=False)
class Patches(Value):
    """What `patch` puts from one run into the other, and what it asks then.

    Attributes:
        site: What is patched: "residual" (before each layer, and after the last, which is layer `n_layers`),
            "attention" (what it adds), "mlp" (what it adds), "values" (of key heads), "mixed" (mixed values of each
            head), "pattern" (attention weights; a position is a query, whose whole row is replaced).
        by: What one patch replaces: everything at a "position", a "head" at all positions, or "both": one head at one
            position. Sites without heads know "position" alone.
        metric: What is asked of the logits: "logit_difference", "log_probability" or "probability" (`METRICS` says what
            they are), or a function `sinklens.named(name, function)` of logits [batch, pos, vocab] (row i scores the
            token at position i) and the canvas, which gives one number per row [batch].
        outcome: When it is asked: "step", of the patched forward itself, at the answer's positions that are still
            masked in both runs; or "end", of the forwards that decide the answer's positions in the run that goes on
            from the patched step, unpatched. `patch` has more on both.
        direction: "denoising" puts the clean run into the corrupt one; "noising" the corrupt run into the clean one.
        commits: Whose commits both runs follow: each its "own"; or those of the "clean" or the "corrupt" run, so that
            at every step both have masks at the same positions and the same tokens behind the prompt.
        layers: Which layers; all when None. An int, a range, a list or a slice; negative counts from the end.
        positions: Which positions of the canvas, likewise.
        heads: Which heads of the site, likewise.
        steps: Which steps, likewise; all at which something is asked when None.
        least: The least by which the metric must differ between the clean and the corrupt run at a step, in its unit:
            effects are divided by that.

    Raises:
        ContentError: a field of the wrong kind; a function without a name.
        ScopeError: heads of a site that has none, or that are not patched by themselves.
    """

    site: Literal["residual", "attention", "mlp", "values", "mixed", "pattern"] = "residual"
    by: Literal["position", "head", "both"] = "position"
    metric: Literal["logit_difference", "log_probability", "probability"] | Callable[..., Any] = "logit_difference"
    outcome: Literal["step", "end"] = "step"
    direction: Literal["denoising", "noising"] = "denoising"
    commits: Literal["own", "clean", "corrupt"] = "own"
    layers: Selection = None
    positions: Selection = None
    heads: Selection = None
    steps: Selection = None
    least: Annotated[float, Range(0, above=True)] = 1e-3

    def __post_init__(self) -> None:
        plain(self.metric)  # a function must have a name
        if self.by != "position" and SITES[self.site].heads is None:
            with_heads = [name for name, site in SITES.items() if site.heads]
            raise ScopeError(
                f"by={self.by!r}: the site {self.site!r} has no heads; those that have are {', '.join(with_heads)}"
            )
        for name, needs in (("heads", "position"), ("positions", "head")):
            if getattr(self, name) is not None and self.by == needs:
                raise ScopeError(f"{name}={getattr(self, name)!r} with by={self.by!r}: all {name} are patched at once")
        if self.outcome == "end" and self.commits != "own":
            raise ScopeError(
                f"outcome='end' with commits={self.commits!r}: where commits are given, a patch changes nothing behind "
                "its own step; say commits='own'"
            )

    def __hash__(self) -> int:  # slices have no hash before Python 3.12
        return hash(self.digest)

    def at_layers(self, dlm: Any) -> list[int]:
        """The layers of a model that are patched; of the residual stream one more than it has.

        Raises:
            ScopeError: a layer that does not exist.
        """
        return chosen(self.layers, dlm.n_layers + (self.site == "residual"), "layer")

    def at_heads(self, dlm: Any) -> list[int]:
        """The heads that are patched by themselves; none if all are patched at once.

        Raises:
            ScopeError: a head that does not exist.
        """
        if self.by == "position":
            return []
        keys = int(getattr(dlm.cfg, "n_key_value_heads", None) or dlm.n_heads)
        return chosen(self.heads, keys if SITES[self.site].heads == "kv_head" else dlm.n_heads, "head")

    def at_positions(self, width: int) -> list[int]:
        """The positions that are patched by themselves, of a canvas of `width`; none if all are patched at once.

        Raises:
            ScopeError: a position that does not exist.
        """
        return [] if self.by == "head" else chosen(self.positions, width, "position")

    def rows(self, dlm: Any, width: int, seen: int) -> list[Row]:
        """The patches of one layer, at those positions of a canvas of `width` that the model has `seen` by then."""
        heads: list[int | None] = [*self.at_heads(dlm)] or [None]
        places: list[int | None] = [None] if self.by == "head" else [p for p in self.at_positions(width) if p < seen]
        return [(head, place) for head in heads for place in places]
