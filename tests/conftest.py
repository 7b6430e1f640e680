"""Shared fixtures: the recorded checkpoints, and tiny random stock models of every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import shapes
import torch
import transformers

# The shape and dtype of every tensor that a signature states is checked at run time, here and only here.
shapes.install()

from sinklens import HookedDLM
from sinklens.models.families import FAMILIES
from sinklens.models.special_ids import SpecialIds

torch.set_num_threads(1)
hypothesis.settings.register_profile("sinklens", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("sinklens")

FIDELITY = Path(__file__).parent / "data" / "fidelity"
IDS = SpecialIds(mask=62, eos=1, bos=0, pad=1)
DECODER = {family.name: family.layout for family in FAMILIES}
CLASS = {family.layout: family.stock for family in FAMILIES}

TinyStock = Callable[..., transformers.PreTrainedModel]
TinyModel = Callable[..., HookedDLM]


def pytest_configure(config: pytest.Config) -> None:
    """The paper's protocol edits nothing at step 0, and says so; tests of that warning ask for it."""
    config.addinivalue_line("filterwarnings", "ignore::sinklens.errors.PartlyExposed")


@pytest.fixture(autouse=True)
def fresh_shapes() -> None:
    """Each test has the first calls of every function checked."""
    shapes.calls.clear()


@pytest.fixture(scope="session")
def fidelity() -> Path:
    """The folder of recorded official outputs."""
    return FIDELITY


def _stock(decoder: str, *, layers: int = 2, heads: int = 4, kv_heads: int = 2, seed: int = 0, **config: object):
    if decoder == "Esm":
        config = {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": IDS.mask, **config}
    if decoder == "ModernBert":  # two layers of three see three positions to each side
        config = {"local_attention": 6, "cls_token_id": 0, "sep_token_id": 1, **config}
    made: Any = CLASS[decoder]
    kind: Any = made.config_class
    wanted = {
        "vocab_size": 64,
        "hidden_size": 8 * heads,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
        **config,
    }
    own = {field.name for field in dataclasses.fields(kind)} | (
        {"head_dim"} if made.__name__.endswith("ForCausalLM") else set()
    )
    known = {name: value for name, value in wanted.items() if kind.attribute_map.get(name, name) in own}
    model = made(kind(**known)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # large enough weights that attention is far from uniform and every layer matters
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if norm else 0.4 * noise)
    return model


@pytest.fixture(scope="session")
def tiny_stock() -> TinyStock:
    """Make a random stock model ("Llama", "Qwen2", "Bert", ...) with weights large enough to matter."""
    return _stock


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Make a random HookedDLM of a family, grouped-query attention included; config arguments pass through."""

    def make(family: str, **config: object) -> HookedDLM:
        return HookedDLM.from_transformers(_stock(DECODER[family], **config), None, family, ids=IDS)

    return make


@pytest.fixture(scope="module")
def official(fidelity: Path) -> Callable[..., HookedDLM]:
    """Load the recorded checkpoint of one folder (llada, dream, ...), once per module; options of `from_pretrained`."""
    loaded: dict[str, HookedDLM] = {}

    def load(folder: str, **options: Any) -> HookedDLM:
        if folder not in loaded:
            loaded[folder] = HookedDLM.from_pretrained(str(fidelity / folder / "checkpoint"), **options)
        return loaded[folder]

    return load


@pytest.fixture
def no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any forward of any model fails the test: what is asserted happens before anything is computed."""

    def forward(self: HookedDLM, *args: object, **kwargs: object) -> torch.Tensor:
        raise AssertionError("a forward was run")

    monkeypatch.setattr(HookedDLM, "__call__", forward)
