"""The cache of a HookedDLM: TransformerLens's, which refuses what has no right answer for the model it is of."""

from __future__ import annotations

from typing import Any

from transformer_lens import ActivationCache

from sinklens.errors import Unsupported
from sinklens.models.adapters import HEADED

INSTEAD = (
    "cache['attn_out', layer] and cache['mlp_out', layer] are what they add, cache['resid_post', layer] the stream"
)


class Cache(ActivationCache):
    """Activations by name, as ever; sums and norms of the residual stream where the model has them.

    Raises:
        Unsupported: parts that do not sum to the stream (BERT normalises after it has added); the final norm of an
            encoder, whose head reads the stream; neurons of a mixture of experts.
    """

    @classmethod
    def of(cls, cache: ActivationCache) -> Cache:
        """The same activations."""
        return cls(cache.cache_dict, cache.model, cache.has_batch_dim)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> Cache:
        """As ever, and a cache of this kind."""
        return self.of(super().apply_slice_to_batch_dim(batch_slice))

    def apply_ln_to_stack(self, residual_stack: Any, layer: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `apply_ln_to_stack`."""
        self._sums("apply_ln")
        if layer in (None, -1, self.model.cfg.n_layers):
            self._headed("apply_ln")
        return super().apply_ln_to_stack(residual_stack, layer, *args, **kwargs)

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `decompose_resid`."""
        self._sums("decompose_resid")
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `get_full_resid_decomposition`."""
        self._sums("get_full_resid_decomposition")
        return super().get_full_resid_decomposition(*args, **kwargs)

    def stack_head_results(
        self, layer: int = -1, return_labels: bool = False, incl_remainder: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """TransformerLens's `stack_head_results`."""
        if incl_remainder:
            self._sums("incl_remainder")
        return super().stack_head_results(layer, return_labels, incl_remainder, *args, **kwargs)

    def get_neuron_results(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `get_neuron_results`."""
        if not hasattr(self.model.blocks[layer].mlp, "W_out"):
            raise Unsupported(
                f"layer {layer} is a mixture of experts, which has no one matrix of neurons; cache['mlp_out', layer] "
                "is what they add together, and expand_neurons=False leaves it whole"
            )
        return super().get_neuron_results(layer, *args, **kwargs)

    def stack_neuron_results(self, layer: int, *args: Any, incl_remainder: bool = False, **kwargs: Any) -> Any:
        """TransformerLens's `stack_neuron_results`; `incl_remainder` by name."""
        if incl_remainder:
            self._sums("incl_remainder")
        return super().stack_neuron_results(layer, *args, incl_remainder=incl_remainder, **kwargs)

    def logit_lens(self, **kwargs: Any) -> Any:
        """TransformerLens's `logit_lens`."""
        self._headed("logit_lens")
        return super().logit_lens(**kwargs)

    def _sums(self, what: str) -> None:
        adapter: Any = self.model.adapter  # pyright: ignore[reportAttributeAccessIssue] - it is a bridge
        if adapter.no_sum:
            raise Unsupported(f"{what}: {adapter.no_sum}; {INSTEAD}")

    def _headed(self, what: str) -> None:
        adapter: Any = self.model.adapter  # pyright: ignore[reportAttributeAccessIssue]
        if not adapter.plain:
            raise Unsupported(f"{what}: {HEADED}")
