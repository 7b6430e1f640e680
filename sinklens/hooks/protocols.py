"""What hooks need to know and share: the Canvas, the scope (Where), the protocols, attaching, firing counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.errors import HookNeverFired, ScopeError
from sinklens.sinks import Positions

Selection = int | slice | Sequence[int] | None
Hook = tuple[str, Callable[..., Tensor | None]]


@dataclass(frozen=True)
class Canvas:
    """The sequence as one forward pass sees it: prompt and response positions of a batch of rows.

    Attributes:
        tokens: Token ids [batch, pos]; masked positions hold the mask token.
        valid: Real positions. Left padding, and what an autoregressive model has not generated yet, is False.
        masked: Positions still to be committed.
        prompt: Positions that were given.
        step: Index of the denoising step.
        seeds: One seed per row, for edits and controls that draw random numbers.
        active: Rows that are still being decoded [batch]; all when None. A row that is done stays in the batch, but
            is neither recorded nor edited.
    """

    tokens: Int[Tensor, "batch pos"]
    valid: Bool[Tensor, "batch pos"]
    masked: Bool[Tensor, "batch pos"]
    prompt: Bool[Tensor, "batch pos"]
    step: int = 0
    seeds: tuple[int, ...] = ()
    active: Bool[Tensor, " batch"] | None = None

    def where(self, which: Positions) -> Bool[Tensor, "batch pos"]:
        """Positions of one kind, always valid ones.

        "masked" are to be committed, "committed" hold a token (prompt or committed), "response" is what was not
        given, "last" is the last valid position of each row.
        """
        if which == "last":
            position = torch.arange(self.valid.shape[-1], device=self.valid.device)
            last = torch.where(self.valid, position, -1).amax(-1, keepdim=True)
            return self.valid & (position == last)
        chosen = {
            "all": self.valid,
            "masked": self.masked,
            "committed": ~self.masked,
            "prompt": self.prompt,
            "response": ~self.prompt,
        }[which]
        return chosen & self.valid


def plain_canvas(shape: tuple[int, int], device: torch.device) -> Canvas:
    """A canvas for hooks that run outside the loop: every position real and committed."""
    on = torch.ones(shape, dtype=torch.bool, device=device)
    return Canvas(torch.zeros(shape, dtype=torch.long, device=device), on, ~on, on, seeds=(0,) * shape[0])


def chosen(selection: Selection, size: int, what: str) -> list[int]:
    """The indices that a selection names out of `size`; negative ones count from the end.

    Raises:
        ScopeError: an index that does not exist, or nothing selected.
    """
    if selection is None:
        return list(range(size))
    if isinstance(selection, slice):
        picked = list(range(size))[selection]
    else:
        asked = [selection] if isinstance(selection, int) else list(selection)
        wrong = [index for index in asked if not -size <= index < size]
        if wrong:
            raise ScopeError(f"{what} {wrong[0]} does not exist; there are {size}: 0 to {size - 1}")
        picked = sorted({index % size for index in asked})
    if not picked:
        raise ScopeError(f"{what}s={selection!r} selects none of the {size} {what}s, so nothing would ever happen")
    return picked


@dataclass(frozen=True)
class Where:
    """The scope of a probe or an edit.

    Attributes:
        layers: Which layers; all when None. An int, a range, a list or a slice; negative counts from the end.
        heads: Which query heads, likewise.
        steps: Which denoising steps, likewise.
        queries: Which queries are touched: "all", "masked", "committed", "prompt", "response" or "last".
        keys: Which keys are eligible, likewise.
        diagonal: Whether a key's own query is touched, too; False spares it.
    """

    layers: Selection = None
    heads: Selection = None
    steps: Selection = None
    queries: Positions = "all"
    keys: Positions = "all"
    diagonal: bool = True

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            if getattr(self, name) not in get_args(Positions):
                raise ScopeError(
                    f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(get_args(Positions))}"
                )

    def at(self, step: int, steps: int | None = None) -> bool:
        """Whether a step is in scope. `steps` resolves negative indices and open ends."""
        if self.steps is None:
            return True
        if isinstance(self.steps, slice):
            return step in range(*self.steps.indices(steps if steps is not None else 1 << 30))
        asked = [self.steps] if isinstance(self.steps, int) else self.steps
        return any(step == (index if index >= 0 or steps is None else steps + index) for index in asked)

    def head_mask(self, heads: int, device: torch.device) -> Bool[Tensor, "1 head 1"]:
        """True at the heads in scope."""
        mask = torch.zeros(heads, dtype=torch.bool, device=device)
        mask[chosen(self.heads, heads, "head")] = True
        return mask.view(1, -1, 1)

    def validate(self, n_layers: int, n_heads: int, steps: int | None = None, fewest: int | None = None) -> None:
        """Raise for a scope that names what is not there or can never hold.

        Args:
            n_layers: Of the model.
            n_heads: Of the model.
            steps: The most steps that a row of the run takes; None if not known.
            fewest: The fewest; None if all take as many.
        """
        chosen(self.layers, n_layers, "layer")
        chosen(self.heads, n_heads, "head")
        if isinstance(self.steps, slice):
            named = [end for end in (self.steps.start, self.steps.stop) if end is not None]
        else:
            named = [] if self.steps is None else [self.steps] if isinstance(self.steps, int) else list(self.steps)
        if steps is None and any(index < 0 for index in named):
            raise ScopeError(f"steps={self.steps!r} counts from the end, and this run's number of steps is not known")
        if fewest is not None and fewest != steps and any(index < 0 for index in named):
            raise ScopeError(
                f"steps={self.steps!r} counts from the end; the prompts of this run take {fewest} to {steps} steps: "
                "in another batch it would mean another step. Count from the start, or run prompts that take as many"
            )
        if steps is not None and not any(self.at(step, steps) for step in range(steps)):
            raise ScopeError(f"steps={self.steps!r} holds at none of the {steps} steps, so nothing would ever happen")

    def __repr__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Where({', '.join(changed)})"


def overlap(one: Where, other: Where, model: Any, steps: int | None) -> bool:
    """Whether two scopes share a (layer, head, step) of a model; `steps` None: a run of unknown length."""
    for name, size in (("layers", int(model.cfg.n_layers)), ("heads", int(model.cfg.n_heads))):
        picked = [set(chosen(getattr(where, name), size, name)) for where in (one, other)]
        if not picked[0] & picked[1]:
            return False
    often = steps if steps is not None else 4096  # with an open end, far enough
    return any(one.at(step, steps) and other.at(step, steps) for step in range(often))


@runtime_checkable
class Hookable(Protocol):
    """Anything that gives ordinary TransformerLens hooks for one forward."""

    @property
    def where(self) -> Where:
        """The scope."""
        ...

    def fwd_hooks(self, model: Any, canvas: Canvas | None = None) -> list[Hook]:
        """Hooks `(name, fn)` with `fn(tensor, *, hook)`, for `run_with_hooks(fwd_hooks=...)` of any bridge."""
        ...


@runtime_checkable
class Probe(Hookable, Protocol):
    """A measurement: reduces inside its hooks and hands the reduction over after the forward.

    A probe whose dims are not simply 0, 1, 2, ... (only some layers, say) also has a method `coords()` that gives
    `{dim: indices}`.
    """

    @property
    def name(self) -> str:
        """The record variable."""
        ...

    @property
    def dims(self) -> tuple[str, ...]:
        """Its dims after prompt and step."""
        ...

    @property
    def unit(self) -> str:
        """Its unit."""
        ...

    @property
    def definition(self) -> str:
        """What its numbers mean."""
        ...

    def values(self) -> Float[Tensor, "batch ..."]:
        """What the last forward measured, batch first, then `dims`."""
        ...


@runtime_checkable
class Intervention(Hookable, Protocol):
    """An edit of the model's computation.

    Its hooks are attached at the steps of its `where`. One that must also see the step before sets the attribute
    `watches_before = True` and gives hooks that only look there. One that must know what the unedited model does at
    the same canvas has an attribute `clean`, a list of Hookables: they are attached to a forward without edits, before.
    """

    def reset(self, steps: int | None = None) -> None:
        """Forget everything seen: a new run of `steps` steps begins."""
        ...

    def counts(self) -> Mapping[str, float]:
        """What the edit did in this run, in numbers."""
        ...


def rowwise(
    function: Any, able: bool = True, *, look: Callable[..., Tensor | None] | None = None, sweeps: int = 0
) -> Any:
    """Say of a hook on scores or pattern that it treats every query by itself, so that it may get them in blocks.

    One that must see all queries before it treats the first (which keys receive most?) looks first: before any hook
    is called, `look` is shown every block, as often as all hooks together ask for.

    Args:
        function: The hook.
        able: False takes it back.
        look: `look(tensor, hook=hook)` returns what the hook will make of a block, as far as it knows by then, and does
            nothing else; None for "nothing". Without it the hook cannot stand beside one that looks first, which
            then gets whole patterns.
        sweeps: How often the hook must be shown everything; after so many it knows what it will do.
    """
    function.rowwise, function.look, function.sweeps = able, look, sweeps
    return function


def nothing(tensor: Tensor, *, hook: Any) -> None:
    """The `look` of a hook that only measures."""


def rows_of(hook: Any, tensor: Tensor) -> slice:
    """Which queries a tensor of scores or weights [..., query, key] holds: a block of them, or all."""
    return getattr(hook, "ctx", {}).get("rows", slice(0, tensor.shape[-2]))


def leaves(part: Any) -> list[Any]:
    """The edits that a composed edit is made of (its attribute `edits`), or the part itself."""
    return [leaf for each in part.edits for leaf in leaves(each)] if hasattr(part, "edits") else [part]


def wanted(part: Hookable, step: int, steps: int | None) -> bool:
    """Whether a part is attached at this step: in its scope, or one step before it if it `watches_before`."""
    return part.where.at(step, steps) or (getattr(part, "watches_before", False) and part.where.at(step + 1, steps))


@contextmanager
def attached(model: Any, parts: Sequence[Hookable], canvas: Canvas, fired: dict[str, int]) -> Iterator[None]:
    """Attach the hooks of all parts, in order (edits before probes), for one forward.

    Args:
        model: A HookedDLM or any TransformerBridge.
        parts: Interventions first, then probes, so that probes see what the model used.
        canvas: What the forward sees.
        fired: Firing counts by the part's repr, added to.

    Raises:
        HookNeverFired: a hook was attached and the forward did not call it.
    """
    handles, silent = [], set()
    # All hooks first: a part may run the model to make its own, and must not meet another's.
    wanted_hooks = [(repr(part), part.fwd_hooks(model, canvas)) for part in parts]
    points = _points(model, {name for _, hooks in wanted_hooks for name, _ in hooks})
    try:
        for label, hooks in wanted_hooks:
            fired.setdefault(label, 0)
            for name, function in hooks:
                if name not in points:
                    raise HookNeverFired(f"{label} wants hook point {name!r}, which this model does not have")
                silent.add((label, name))
                handles.append((points[name], points[name].add_hook(_counting(function, label, name, fired, silent))))
        yield
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
    for label, name in silent:
        raise HookNeverFired(f"{label} was attached to {name} and the forward never called it")


def _counting(function: Callable, label: str, name: str, fired: dict[str, int], silent: set) -> Callable:
    def hook_function(tensor: Tensor, *, hook: Any) -> Tensor | None:
        fired[label] += getattr(hook, "ctx", {}).get("rows", slice(0, 0)).start == 0  # blocks of a forward count once
        silent.discard((label, name))
        return function(tensor, hook=hook)

    hook_function.__dict__.update(getattr(function, "__dict__", {}))  # what `rowwise` said of it
    return hook_function


def _points(model: Any, names: set[str]) -> Mapping[str, Any]:
    """Hook points by name. A bridge collects them anew whenever it is asked, so a HookedDLM's are kept."""
    kept = getattr(model, "__dict__", {})
    if not names <= kept.get("_points", {}).keys():
        if not hasattr(model, "bridge"):
            return model.hook_dict
        kept["_points"] = dict(model.hook_dict)
    return kept["_points"] if names else {}


def is_causal(model: Any) -> bool:
    """What a HookedDLM knows, or the module that a bridge wraps (a config's default may lie), else the config."""
    known = getattr(model, "is_causal", None)
    if known is None and hasattr(model, "blocks"):
        known = getattr(getattr(model.blocks[0].attn, "original_component", None), "is_causal", None)
    return bool(known) if known is not None else getattr(model.cfg, "attention_dir", "causal") == "causal"


def rotated(model: Any, which: Literal["q", "k"]) -> str:
    """The hook point of the queries or keys that attention multiplies: after RoPE, or as projected without RoPE."""
    point = f"attn.hook_rot_{which}"
    return point if f"blocks.0.{point}" in model.hook_dict else f"attn.{which}.hook_out"
