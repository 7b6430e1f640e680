"""Experts: checkpoints store each by itself and transformers computes them stacked; a router whose edits count."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import MoERouterBridge

from sinklens.errors import CheckpointError, Unsupported

Shape = tuple[int, ...]
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def stacked(shapes: Mapping[str, Shape], name: str) -> dict[str, Shape]:
    """Shapes of a checkpoint's weights as transformers will have them: the experts of a layer in two tensors.

    Args:
        shapes: By the names in the files.
        name: Of the checkpoint, for errors.

    Raises:
        CheckpointError: experts of different sizes, or numbers between 0 and the last that are not there.
    """
    rest = {key: shape for key, shape in shapes.items() if not _EXPERT.fullmatch(key)}
    layers: dict[str, dict[str, dict[int, Shape]]] = defaultdict(lambda: defaultdict(dict))
    for key, shape in shapes.items():
        if found := _EXPERT.fullmatch(key):
            layers[found[1]][found[3]][int(found[2])] = shape
    for prefix, parts in layers.items():
        count = 1 + max(number for part in parts.values() for number in part)
        for part in ("gate", "up", "down"):
            missing = [number for number in range(count) if number not in parts[part]]
            if missing:
                raise CheckpointError(f"{name!r} lacks the weight {prefix}.{missing[0]}.{part}_proj.weight")
            if len(set(parts[part].values())) > 1 or len(parts[part][0]) != 2:
                raise CheckpointError(f"{name!r} has experts of different sizes, {prefix}.*.{part}_proj.weight")
        gate, up, down = (parts[part][0] for part in ("gate", "up", "down"))
        rest |= {f"{prefix}.gate_up_proj": (count, gate[0] + up[0], gate[1]), f"{prefix}.down_proj": (count, *down)}
    return rest


class _Shown(HookPoint):
    """A hook point whose tensor the model has used already: an edit of it would change nothing, so it is an error."""

    def __call__(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The tensor.

        Raises:
            Unsupported: a hook has changed it.
        """
        before = tensor.clone() if self._forward_hooks else tensor
        shown = super().__call__(tensor, *args, **kwargs)
        if shown is not before and not bool(((shown == before) | before.isnan()).all()):
            raise Unsupported(
                f"{self.name}: a router's logits are shown after the experts were chosen, so an edit of them changes "
                f"nothing; edit {str(self.name).replace('hook_out', 'hook_expert_weights')}"
            )
        return shown


class OpenRouter(MoERouterBridge):
    """The router of a layer of experts.

    `hook_out` shows its logits [tokens, expert]; `hook_expert_weights` carries the weights of the chosen experts, 0 for
    the others, [tokens, expert], and an edit of them chooses anew; `hook_expert_indices` carries which were chosen.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_out = _Shown()
