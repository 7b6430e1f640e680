"""What `benchmarks/real_models.py` compares is the same thing, done two ways; no speed is tested here."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

import sinklens as sl

HERE = Path(__file__).parent.parent / "benchmarks"
KS = (1, 3)


@pytest.fixture(scope="module")
def real_models() -> Iterator[Any]:
    """The benchmark as a module."""
    sys.path.insert(0, str(HERE))
    try:
        spec: Any = importlib.util.spec_from_file_location("real_models", HERE / "real_models.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def arm() -> sl.HookedDLM:
    """The bundled autoregressive twin."""
    return sl.HookedDLM.from_pretrained("tiny-arm")


@pytest.fixture(scope="module")
def stock(arm: sl.HookedDLM) -> Any:
    """Its transformers model by itself."""
    model: Any = copy.deepcopy(arm).original_model
    model.set_attn_implementation("eager")
    return model


def test_all_ways_to_write_a_text_write_the_same(real_models: Any, arm: sl.HookedDLM, stock: Any) -> None:
    tokens = torch.tensor([arm.encode(sl.tasks.Echo(1, seed=1)[0].prompt)])
    stock.generation_config.eos_token_id = list(arm.ids.eos)
    texts = {name: job() for name, job in real_models.decoding(arm, stock, tokens, 6).items()}
    real_models.agree(texts, tokens.shape[1] + 6)
    other = {**texts, "received": texts["received"].roll(1)}
    with pytest.raises(real_models.Disagreement, match="received wrote"):
        real_models.agree(other, tokens.shape[1] + 6)
    with pytest.raises(real_models.Disagreement):  # a text that ended early
        real_models.agree(texts, tokens.shape[1] + 7)


@torch.no_grad()
def test_by_hand_and_together_score_every_prompt_alike(real_models: Any, arm: sl.HookedDLM, stock: Any) -> None:
    bridge = build_bridge_from_module(stock, "LlamaForCausalLM", hf_config=stock.config)
    task = sl.tasks.Echo(5, seed=1)
    hand, ours = real_models.by_hand(bridge, arm, task, 16, KS), real_models.together(arm, task, 16, KS)
    real_models.same_accuracies(hand, ours)
    assert hand.keys() == ours.keys() == real_models.conditions(KS).keys()
    assert all(len(each) == 5 for each in (*hand.values(), *ours.values()))
    assert hand["top-1"] != hand["unmasked"]  # else nothing would be compared
    changed = {**hand, "top-3": [1 - each for each in hand["top-3"]]}
    with pytest.raises(real_models.Disagreement, match="top-3"):
        real_models.same_accuracies(changed, ours)
