"""A HookedDLM inside another torch module: its weights are saved and loaded with that one's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sinklens import HookedDLM
from sinklens.errors import ModelError

TOKENS = torch.tensor([[5, 17, 9, 33, 8, 21, 50]])


class Outer(nn.Module):
    """A model with something of its own beside."""

    def __init__(self, dlm: HookedDLM) -> None:
        super().__init__()
        self.dlm, self.beside = dlm, nn.Linear(3, 2)


@pytest.mark.parametrize("name", ["LLaDA", "Dream", "GPT-2", "BERT", "ESM-2", "ModernBERT", "LLaDA-MoE"])
@pytest.mark.parametrize("assign", [False, True])
def test_what_another_module_saves_it_loads(tiny_model: Any, name: str, assign: bool) -> None:
    first, second = Outer(tiny_model(name)), Outer(tiny_model(name, seed=1))
    assert not torch.equal(first.dlm(TOKENS), second.dlm(TOKENS))
    found = second.load_state_dict({key: each.clone() for key, each in first.state_dict().items()}, assign=assign)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(second.beside.weight, first.beside.weight)
    assert second.dlm.fingerprint() == first.dlm.fingerprint()
    assert torch.equal(second.dlm(TOKENS), first.dlm(TOKENS))
    point = "blocks.0.hook_out"
    caches = [each.dlm.run_with_cache(TOKENS)[1][point] for each in (first, second)]  # what hooks see, too
    assert torch.equal(*caches)


def test_into_a_module_that_was_replaced_since(tiny_model: Any) -> None:
    first, second = Outer(tiny_model("Llama")), Outer(tiny_model("Llama", seed=1))
    layer: Any = second.dlm.original_model.model.layers[0].mlp
    old, layer.up_proj = layer.up_proj, nn.Linear(layer.up_proj.in_features, layer.up_proj.out_features, bias=False)
    kept = old.weight.clone()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.dlm(TOKENS), first.dlm(TOKENS))
    assert torch.equal(old.weight, kept)


def test_a_weight_that_would_be_lost_is_named(tiny_model: Any) -> None:
    outer = Outer(tiny_model("Llama"))
    outer.dlm.original_model.extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"the weight extra\.weight belongs to no component"):
        outer.state_dict()
    assert "extra.weight" in outer.dlm.state_dict()
