"""One model: the transformers modules as they are, with the bridge's components put in for the forwards that need them.

A TransformerBridge wraps submodules of a transformers model in components that hold hook points. Left in place, they
slow every forward down, and a copy without them would be a second model that adapters, casts and replaced modules do
not reach. Here the components are taken out when the bridge is built, and put in for one forward, and only those whose
hook points somebody uses. So there is one set of modules and one path: with and without hooks the same modules run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from sinklens.errors import HookNeverFired, ModelError
from sinklens.interrupts import surely
from sinklens.models.calls import surround
from sinklens.models.turn import Held, turn_of

R = TypeVar("R")
_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def wrapped(model: nn.Module) -> str | None:
    """The path of a bridge component inside a transformers model, if somebody has wrapped it; else None."""
    return next((path for path, module in model.named_modules() if isinstance(module, GeneralizedComponent)), None)


class Slot:
    """A place in the transformers model, and the component that belongs there.

    Attributes:
        parent: Path of the module that has the place, name by name.
        leaf: Its name there.
        component: The bridge's component.
        served: Its hook points that fire without it: the attention function serves them. None if there are none.
        always: Whether the component takes part in every forward.
    """

    def __init__(self, parent: str, leaf: str, component: GeneralizedComponent) -> None:
        self.parent, self.leaf, self.component = tuple(parent.split(".")) if parent else (), leaf, component
        self.served = component.__dict__.get("served")
        shown: tuple[HookPoint, ...] = () if self.served is None else self.served.all
        self.always = bool(getattr(component, "always", False))
        points = [point for point in component.children() if isinstance(point, HookPoint)]
        points += component.__dict__.get("fires", ())  # of components without a place of their own
        own = [point for point in points if not any(point is other for other in shown)]
        self._itself = [getattr(component, kind) for kind in _KINDS]
        self.watched = [*self._itself, *(getattr(point, kind) for point in own for kind in _KINDS)]
        self._shown = [getattr(point, kind) for point in shown for kind in ("_forward_hooks", "_backward_hooks")]
        self.quiet = self._quiet_itself = 0

    def settle(self) -> None:
        """Count the hooks that are there now as nobody's: TransformerLens has its own."""
        self.quiet, self._quiet_itself = (sum(map(len, hooks)) for hooks in (self.watched, self._itself))

    @property
    def place(self) -> str:
        """Its path in the transformers model."""
        return ".".join((*self.parent, self.leaf))

    @property
    def wanted(self) -> bool:
        """Whether somebody uses the component's hook points, beyond those that are served."""
        return sum(map(len, self.watched)) != self.quiet

    @property
    def hooked_itself(self) -> bool:
        """Whether somebody has put a hook of torch's own on the component."""
        return sum(map(len, self._itself)) != self._quiet_itself

    @property
    def shown(self) -> bool:
        """Whether somebody uses one of the points that are served without the component."""
        return any(self._shown)


class Wiring:
    """Where the components of a bridge belong, and which of them a forward needs.

    Args:
        bridge: The bridge.
        model: The transformers model, as the bridge has just wrapped it; its components are taken out.
    """

    def __init__(self, bridge: nn.Module, model: nn.Module) -> None:
        for name, child in bridge._modules.items():
            if isinstance(child, nn.ModuleList):  # the bridge took over the model's own list of layers
                bridge._modules[name] = nn.ModuleList(child).train(model.training)
        places = [
            (module, leaf, child)
            for module in model.modules()
            for leaf, child in module._modules.items()
            if isinstance(child, GeneralizedComponent) and not isinstance(module, GeneralizedComponent)
        ]
        for module, leaf, component in places:
            module._modules[leaf] = component.original_component
        paths = {id(module): path for path, module in model.named_modules()}
        self.model = model
        self.slots = [Slot(paths[id(module)], leaf, component) for module, leaf, component in places]
        self._always = [slot for slot in self.slots if slot.always]
        self._serving = [slot for slot in self.slots if slot.served is not None]
        self._watched = [hooks for slot in self.slots for hooks in slot.watched]  # asked at every forward: one list
        self._quiet = 0
        self._turn = turn_of(model)
        surround(model, Held)

    @property
    def lock(self) -> threading.RLock:
        """Held by the thread that runs the transformers model, or hooks it: another thread's forward waits."""
        return self._turn.lock

    def held(self, body: Callable[[], R]) -> R:
        """What `body` gives while no other thread runs the model or hooks it."""
        return self._turn.held(body)

    def settle(self) -> None:
        """Take the hooks that are there now as TransformerLens's own."""
        for slot in self.slots:
            slot.settle()
        self._quiet = sum(slot.quiet for slot in self.slots)

    @property
    def hooked(self) -> bool:
        """Whether anybody hooks anything. If not, a forward is that of the plain transformers model."""
        return any(slot.wanted or slot.shown for slot in self.slots)

    def hooked_components(self) -> list[tuple[str, Any]]:
        """Components that carry module hooks of somebody's own, by the place that they belong to."""
        return [(slot.place, slot.component) for slot in self.slots if slot.hooked_itself]

    def needed(self, everything: bool) -> list[Slot]:
        """The components that the next forward needs."""
        if everything:
            return self.slots
        if sum(map(len, self._watched)) == self._quiet:
            return self._always
        return [slot for slot in self.slots if slot.always or slot.wanted]

    def run(self, body: Callable[[dict[nn.Module, Any]], R], *, everything: bool = False) -> R:
        """What `body` gives with what a forward needs put in; it is taken out again, whatever happens.

        Whatever was done to the model is seen: a component wraps the module that stands in its place now.

        Args:
            body: The forward. It gets the hook points that attention serves, by the module that stands in the place.
            everything: Put all components in.

        Raises:
            HookNeverFired: a component is needed whose place is gone from the model.
            ModelError: inside a forward of another HookedDLM around the same model, whose hooks would fire here, too.
        """
        return self.held(lambda: self._run(body, everything))

    def _run(self, body: Callable[[dict[nn.Module, Any]], R], everything: bool) -> R:
        if self._turn.owner is self:  # a forward inside a forward finds everything in place
            return body(self.serving())
        if self._turn.owner is not None:
            raise ModelError(
                "this model is in the middle of a forward of another HookedDLM around it, whose hooks would fire here, "
                "too; run one after the other, or wrap a copy, copy.deepcopy(dlm)"
            )
        undo: list[tuple[Any, nn.Module, Slot]] = []
        return surely(lambda: self._within(body, everything, undo), lambda: self._take_out(undo))

    def _within(
        self, body: Callable[[dict[nn.Module, Any]], R], everything: bool, undo: list[tuple[Any, nn.Module, Slot]]
    ) -> R:
        serving = self.serving()
        for slot in self.needed(everything):
            try:
                undo.append((*self._place(slot), slot))
            except HookNeverFired:
                if slot.wanted:
                    raise
        self._turn.owner = self
        for parent, module, slot in undo:
            if slot.component.original_component is not module:
                slot.component.set_original_component(module)
            parent._modules[slot.leaf] = slot.component
        return body(serving)

    def _take_out(self, undo: Sequence[tuple[Any, nn.Module, Slot]]) -> None:
        for parent, module, slot in undo:
            parent._modules[slot.leaf] = module
        self._turn.owner = None

    def refresh(self) -> None:
        """Let every component wrap the module that stands in its place now, as far as the places exist."""
        with self._turn.lock:
            for slot in self.slots if self._turn.owner is None else ():
                try:
                    _, module = self._place(slot)
                except HookNeverFired:
                    continue
                if slot.component.original_component is not module:
                    slot.component.set_original_component(module)

    def serving(self, *, everywhere: bool = False) -> dict[nn.Module, Any]:
        """The points that attention serves, by the module that runs, where one of them is hooked, or everywhere."""
        return {self._caller(slot): slot.served for slot in self._serving if everywhere or slot.shown}

    def _caller(self, slot: Slot) -> nn.Module:
        """The module that calls attention: what stands in the place, or a part of it."""
        module: Any = self._place(slot)[1]
        plain: Any = module.original_component if isinstance(module, GeneralizedComponent) else module
        component: Any = slot.component
        return component.caller(plain)

    def _place(self, slot: Slot) -> tuple[nn.Module, nn.Module]:
        """The parent and what stands in the place now."""
        parent: Any = self.model
        for name in slot.parent:
            parent = parent._modules.get(name) if parent is not None else None
            parent = parent.original_component if isinstance(parent, GeneralizedComponent) else parent
        module = None if parent is None else parent._modules.get(slot.leaf)
        if parent is None or module is None:
            where = slot.place
            raise HookNeverFired(
                f"{slot.component.hook_out.name or where} cannot fire: there is no {where} in the model any more; "
                "a module above it was replaced. Wrap the changed model again, HookedDLM.from_transformers(...)"
            )
        return parent, module


def refuse_wrapped(model: nn.Module) -> None:
    """Raise for a model that another bridge has wrapped and still holds.

    Raises:
        ModelError: naming the module.
    """
    path = wrapped(model)
    if path is not None:
        raise ModelError(
            f"this model is wrapped already: {path} is a component of TransformerLens. Two bridges around one model "
            "would each run a part of it; give a freshly loaded model"
        )
