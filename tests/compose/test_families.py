"""What the page shows of five models holds for every family: the stream is the sum of its parts, or that is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.errors import ModelError, SinklensError, Unsupported
from sinklens.models.families import FAMILIES

NAMES = [family.name for family in FAMILIES]
TOKENS = torch.tensor([[5, 17, 61, 9, 30, 2, 44]])


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """A random model of a family, made once."""
    return lru_cache(tiny_model)


def right_or_refused(number: Callable[[], Tensor], truth: Tensor) -> None:
    """Fails on a third state."""
    with suppress(SinklensError):
        torch.testing.assert_close(number(), truth, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_parts_sum_to_the_stream(model: Any, family: str) -> None:
    dlm = model(family)
    kept: list[Tensor] = []
    last = dlm.blocks[-1].original_component
    handle = last.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
    logits = dlm(TOKENS)
    handle.remove()
    cache, final = dlm.run_with_cache(TOKENS)[1], kept[0]
    right_or_refused(lambda: cache.decompose_resid().sum(0), final)
    right_or_refused(lambda: cache.get_full_resid_decomposition(expand_neurons=False).sum(0), final)
    right_or_refused(lambda: cache.get_full_resid_decomposition().sum(0), final)
    right_or_refused(lambda: cache.stack_neuron_results(2, incl_remainder=True).sum(0), final)
    constant = torch.zeros(2)  # of a token, whatever the stream: biases of the unembedding and of the final norm
    if dlm.adapter.plain:
        norm, head = dlm.ln_final.original_component, dlm.original_model.get_output_embeddings()
        shift = getattr(norm, "bias", None)
        constant = constant if shift is None else head.weight[[7, 9]] @ shift
        constant = constant if getattr(head, "bias", None) is None else constant + head.bias[[7, 9]]
    gap = logits[..., 7] - logits[..., 9] - constant[0] + constant[1]
    right_or_refused(lambda: cache.logit_attrs(cache.decompose_resid(), 7, 9).sum(0), gap)
    right_or_refused(lambda: cache.logit_lens(positions=None).values[-1], logits)
    if dlm.adapter.plain:  # an encoder's is refused
        truth = dlm.ln_final.original_component(final)
        right_or_refused(lambda: cache.accumulated_resid(apply_ln=True)[-1], truth)
    else:
        with pytest.raises(Unsupported):
            cache.accumulated_resid(apply_ln=True)


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_weights_go_out_and_in_again(tiny_model: Any, family: str) -> None:
    """Before, what the bridge named was what stood outside the layers, and loading it was no error."""
    dlm = tiny_model(family)
    before, weights = dlm(TOKENS), {name: each.clone() for name, each in dlm.state_dict().items()}
    assert sum(each.numel() for each in weights.values()) >= dlm.n_params_total
    for parameter in dlm.parameters():
        parameter.mul_(0.5)
    assert not torch.allclose(dlm(TOKENS), before, atol=1e-2)
    dlm.load_state_dict(weights)
    torch.testing.assert_close(dlm(TOKENS), before, atol=1e-6, rtol=0)
    if "MoE" in family or family == "RND1":  # experts, which the bridge has no names for
        lost = next(name for name in weights if "experts" in name)
        with pytest.raises(ModelError, match="are missing"):
            dlm.load_state_dict({name: each for name, each in weights.items() if name != lost})
