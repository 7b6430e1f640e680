"""Weights of a HookedDLM by TransformerLens's names, as they stand in the model now, and what is read off them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import ModelError, Unsupported
from sinklens.models.adapters import HEADED
from sinklens.models.caches import INSTEAD
from sinklens.models.callers import UNEMBEDDING, called_by
from sinklens.models.families import Family
from sinklens.models.wiring import Wiring


class Weights(TransformerBridge):
    """What of TransformerBridge reads and writes weights; part of HookedDLM."""

    family: Family
    name: str
    wiring: Wiring
    adapter: Any

    def __getattribute__(self, name: str) -> Any:
        """As ever; weights (W_Q, b_O, QK, OV, ...) are read off the modules that stand in the model now."""
        if name[:2] in ("W_", "b_") or name in ("QK", "OV"):
            wiring = super().__getattribute__("__dict__").get("wiring")
            if wiring is not None:
                wiring.refresh()
        return super().__getattribute__(name)

    def accumulated_bias(self, *args: Any, **kwargs: Any) -> Tensor:
        """TransformerLens's sum of the biases that layers add to the residual stream.

        Raises:
            Unsupported: a model whose stream is no sum of what its parts add.
        """
        if self.adapter.no_sum:
            raise Unsupported(f"accumulated_bias: {self.adapter.no_sum}; {INSTEAD}")
        return super().accumulated_bias(*args, **kwargs)

    def tokens_to_residual_directions(self, *args: Any, **kwargs: Any) -> Tensor:
        """Directions of tokens, which logit attribution reads the scaled residual stream by.

        The unembedding's columns times the weight of the final norm. In compatibility mode that weight is 1, it is in
        the columns; without, TransformerLens leaves it out, and its attributions sum to another number than the logit.

        Raises:
            Unsupported: a family whose residual stream at i - 1 predicts position i: attribution would be of the row
                beside it; an encoder, whose head is no projection.
        """
        if not self.adapter.plain:
            raise Unsupported(HEADED)
        if self.family.shift:
            raise Unsupported(
                f"{self.name} predicts position i from the residual stream at i - 1, and TransformerLens's logit "
                "attribution reads it at i; use dlm.ln_final(stream at i - 1) @ dlm.W_U[:, token]"
            )
        directions, norm = super().tokens_to_residual_directions(*args, **kwargs), getattr(self, "ln_final", None)
        weight = getattr(norm, "weight", None)
        return directions if weight is None else directions * weight.to(directions.device)

    def tl_parameters(self) -> dict[str, Tensor]:
        """Weights by TransformerLens's names, read off the modules that stand in the model now.

        Raises:
            Unsupported: the singular vectors of an encoder, which TransformerLens reads by the unembedding alone.
        """
        if not self.adapter.plain and called_by(UNEMBEDDING):
            raise Unsupported(f"{self.name}: {HEADED}; torch.linalg.svd of dlm.OV, dlm.W_in or dlm.W_out is right")
        self.wiring.refresh()
        return super().tl_parameters()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `state_dict`: every weight, by the bridge's name, or by its own where that has none.

        Inside another module by the names under which torch looks for them there, some of them several times.

        Raises:
            ModelError: inside another module, a weight that no component of the bridge has.
        """
        if args or kwargs.get("destination") is not None or kwargs.get("prefix"):  # inside another module
            return self._within(*args, **kwargs)
        inner = super().state_dict
        found = self.wiring.run(lambda _: inner(*args, **kwargs), everything=True)
        named = {each.data_ptr() for each in found.values()}
        own = self.original_model.state_dict(**kwargs)
        return found | {name: each for name, each in own.items() if each.data_ptr() not in named}

    def _within(self, *args: Any, **kwargs: Any) -> Any:
        """What another module's `state_dict` holds of this one: what `_load_from_state_dict` of torch will ask for."""
        self.wiring.refresh()
        found = nn.Module.state_dict(self, *args, **kwargs)
        named = {each.data_ptr() for each in found.values()}
        lost = [name for name, each in self.original_model.state_dict().items() if each.data_ptr() not in named]
        if lost:
            raise ModelError(
                f"the weight {lost[0]} belongs to no component of the bridge, so that it would be lost inside another "
                "module; save dlm.state_dict() by itself"
            )
        return found

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Torch's, where another module loads: into the modules that stand in the model now."""
        self.wiring.refresh()
        super()._load_from_state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """TransformerLens's `load_state_dict`, of every weight.

        Raises:
            ModelError: `strict`, and a weight is missing that the bridge has no name for; TransformerLens raises
                RuntimeError for the others.
        """
        missing = (self.state_dict().keys() & self.original_model.state_dict().keys()) - state_dict.keys()
        if strict and missing:
            raise ModelError(
                f"{len(missing)} weights are missing, {min(missing)} among them; strict=False goes on without"
            )
        inner = super().load_state_dict
        return self.wiring.run(lambda _: inner(state_dict, strict=strict, assign=assign), everything=True)
