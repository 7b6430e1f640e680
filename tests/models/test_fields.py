"""Config fields: what the stock class knows is passed on, what nobody knows is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sinklens import HookedDLM
from sinklens.errors import CheckpointError
from sinklens.models import loading

TOKENS = torch.arange(2, 50)[None]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
Make = Callable[..., Path]


@pytest.fixture
def make(tiny_stock: Any, tmp_path: Path) -> Make:
    """A folder with the weights of a tiny Llama (or another decoder) and these fields in its config.json."""

    def write(decoder: str = "Llama", drop: str = "", **fields: Any) -> Path:
        tiny_stock(decoder).save_pretrained(tmp_path)
        own = {"architectures": [f"{decoder}ForCausalLM"], "model_type": decoder.lower()}
        config = {name: value for name, value in (CONFIG | own | fields).items() if name != drop}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def refused(folder: Path, *quotes: str, **options: Any) -> None:
    """Loading raises CheckpointError, and its message holds every quote."""
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(str(folder), check=False, **options)
    for quote in quotes:
        assert quote in str(caught.value)


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
ROPES = [
    {"rope_theta": 500.0},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 32},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "longrope", **LONG}, "original_max_position_embeddings": 32},
    {"rope_scaling": {"type": "longrope", "factor": 4.0, **LONG}, "original_max_position_embeddings": 64},
    {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decoder", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("fields", ROPES, ids=lambda fields: json.dumps(fields)[:60])
def test_logits_are_those_of_the_stock_class_that_reads_the_same_config(
    make: Make, decoder: str, fields: dict[str, Any]
) -> None:
    folder = make(decoder, head_dim=8, **fields)
    config = transformers.AutoConfig.from_pretrained(folder)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        expected = stock(TOKENS).logits
    assert torch.equal(HookedDLM.from_pretrained(str(folder))(TOKENS), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_rope_changes_the_logits(make: Make) -> None:
    """The test above is about something: each rope gives logits of its own."""
    logits = [HookedDLM.from_pretrained(str(make(**ROPES[i])), check=False)(TOKENS) for i in (0, 1, 4, 6, 7, 8, 9)]
    for place, one in enumerate(logits):
        for other in logits[:place]:
            assert float((one - other).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping=50.0",)),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"per_layer_config": {"0": {}}}, ("per_layer_config",)),
        ({"transformers_weights": "x.bin"}, ("transformers_weights",)),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor=0.5",)),
        ({"rope_scaling": {"type": "su"}}, ("'su'", "yarn")),
        ({"rope_scaling": {"type": "linear"}}, ("linear rope's factor",)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True}}, ("finetuned=True",)),
        ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, ("'linear'", "'dynamic'")),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, ("factor=nan",)),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, ("6.0", "5.0", "which is it")),
        ({"original_max_position_embeddings": 32}, ("original_max_position_embeddings=32", "'default'")),
        ({"rope_scaling": [1]}, ("rope_scaling=[1]",)),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, ("[1.0]", "4 numbers")),
        ({"hidden_act": "gelu"}, ("hidden_act='gelu'",)),
        ({"use_sliding_window": True}, ("use_sliding_window=True",)),
        ({"layer_types": ["sliding_attention"] * 2}, ("sliding_attention",)),
        ({"num_hidden_layers": 10**12}, (f"num_hidden_layers={10**12}",)),
        ({"num_hidden_layers": 10**6}, ("missing", "1000000 layers")),
        ({"vocab_size": 10**9}, ("mismatched", "embed_tokens")),
        ({"intermediate_size": 10**9}, ("mismatched", "gate_proj")),
        ({"num_attention_heads": 0}, ("num_attention_heads=0",)),
        ({"num_attention_heads": 5}, ("num_attention_heads=5", "multiple")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads=3",)),
        ({"hidden_size": 32.0}, ("hidden_size=32.0",)),
        ({"hidden_size": "32"}, ("hidden_size='32'",)),
        ({"num_hidden_layers": True}, ("num_hidden_layers=True",)),
        ({"num_hidden_layers": [2]}, ("num_hidden_layers=[2]",)),
        ({"num_hidden_layers": None}, ("num_hidden_layers",)),
        ({"max_position_embeddings": -1}, ("max_position_embeddings=-1",)),
        ({"rms_norm_eps": float("nan")}, ("rms_norm_eps=nan",)),
        ({"rms_norm_eps": "small"}, ("rms_norm_eps='small'",)),
        ({"tie_word_embeddings": "no"}, ("tie_word_embeddings='no'",)),
        ({"architectures": ["StableDiffcoderForCausalLM"], "block_size": 0}, ("block_size", "0")),
        ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}, ("lacks expert_intermediate_size",)),
        ({"architectures": ["SomethingElse"]}, ("SomethingElse", "family=")),
        ({"is_causal": False}, ("is_causal=False", "family=")),
        ({"mask_token_id": 62}, ("mask_token_id=62", "family=")),
    ],
)
def test_refuses_and_quotes_what_it_cannot_compute(make: Make, fields: dict[str, Any], quotes: tuple[str, ...]) -> None:
    refused(make(**fields), *quotes)


def test_family_says_what_config_does_not(make: Make, tiny_stock: Any) -> None:
    """A Qwen3 that sees both ways, with nothing in config.json that says so."""
    folder = make("Qwen3", head_dim=8)
    assert HookedDLM.from_pretrained(str(folder)).is_causal
    dlm = HookedDLM.from_pretrained(str(folder), family="A2D-Qwen3", mask_token_id=62)
    assert (dlm.family.name, dlm.ids.mask, dlm.is_causal) == ("A2D-Qwen3", 62, False)
    wrapped = HookedDLM.from_transformers(
        tiny_stock("Qwen3", max_position_embeddings=128), None, "A2D-Qwen3", ids=dlm.ids
    )
    assert torch.equal(dlm(TOKENS), wrapped(TOKENS))


def test_family_must_fit_the_weights_and_the_mask_the_vocabulary(make: Make) -> None:
    folder = make("Qwen3", head_dim=8)
    refused(folder, "no mask token", "mask_token_id=", family="A2D-Qwen3")
    refused(folder, "64", "mask", family="A2D-Qwen3", mask_token_id=64)
    refused(folder, "'62'", family="A2D-Qwen3", mask_token_id="62")
    refused(folder, "Dream", "missing", family="Dream", mask_token_id=62)
    refused(folder, "d_model", family="LLaDA", mask_token_id=62)
    with pytest.raises(ValueError, match="'GPT' is unknown"):
        HookedDLM.from_pretrained(str(folder), family="GPT")


@pytest.fixture
def changed(fidelity: Path, tmp_path: Path) -> Make:
    """A copy of a recorded checkpoint with other fields in its config.json; None drops a field."""

    def copy(folder: str, **fields: Any) -> Path:
        shutil.copytree(fidelity / folder / "checkpoint", tmp_path / folder)
        path = tmp_path / folder / "config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
        return path.parent

    return copy


@pytest.mark.parametrize(
    ("folder", "fields", "quotes"),
    [
        ("illada", {"layer_norm_eps": 1e-5}, ("layer_norm_eps=1e-05", "null")),
        ("illada", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("'linear'", "'default'")),
        ("illada", {"head_dim": 16}, ("head_dim=16", "32 / 4")),
        ("illada", {"tie_word_embeddings": None}, ("lacks tie_word_embeddings",)),
        ("coda", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("'linear'", "'default'")),
        ("coda", {"head_dim": None, "rope_theta": None}, ("lacks head_dim, rope_theta",)),
        ("coda", {"mask_ratio": 0.5}, ("mask_ratio=0.5",)),
        ("a2d_llama", {"num_hidden_layers": 1}, ("unexpected", "model.layers.1.")),
    ],
)
def test_a_family_refuses_what_its_official_class_would_compute_otherwise(
    changed: Make, monkeypatch: pytest.MonkeyPatch, folder: str, fields: dict[str, Any], quotes: tuple[str, ...]
) -> None:
    monkeypatch.setattr(loading, "_weights", nothing_read)
    refused(changed(folder, **fields), *quotes)


def nothing_read(*_: Any, **__: Any) -> None:
    """Instead of reading weights."""
    raise AssertionError("weights were read")


def test_what_is_refused_is_refused_before_weights_are_read(
    make: Make, changed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_weights", nothing_read)
    qwen3 = make("Qwen3", head_dim=8)
    refused(qwen3, "DiffuLLaMA", "unexpected", "k_norm", family="DiffuLLaMA", mask_token_id=62)
    refused(qwen3, "open-dcoder", "missing", "bias", family="open-dcoder", mask_token_id=62)
    refused(qwen3, "64", "outside", family="open-dcoder", mask_token_id=64)
    refused(qwen3, "no mask token", "<M>", "mask_token_id=", family="open-dcoder")
    refused(changed("diffullama"), "no mask token", family="DiffuLLaMA")
    # Weights that fit, and numbers that would be wrong: config.json says which diffusion family it is.
    refused(changed("a2d_qwen2"), "'a2d-qwen2'", "A2D-Qwen2", "Dream", family="Dream")
    refused(changed("coda"), "'CoDA'", "A2D-Qwen3", family="A2D-Qwen3")


@pytest.mark.parametrize(
    ("folder", "fields", "family"),
    [
        ("a2d_qwen3", {"architectures": ["_A2DQwen3LMHeadModel"]}, "A2D-Qwen3"),  # OPDLM's
        ("llada_moe", {"architectures": ["LLaDAMoEModel"]}, "LLaDA-MoE"),
        ("llada_moe", {"model_type": "lladamoe", "architectures": None}, "LLaDA-MoE"),  # as dllm registers it
        ("rnd1", {"architectures": ["RND1"]}, "RND1"),
        ("llada", {"architectures": ["LLaDAModelLM"]}, "LLaDA"),  # the same model_type as LLaDA-MoE's
    ],
)
def test_the_names_by_which_a_family_is_known(changed: Make, folder: str, fields: dict[str, Any], family: str) -> None:
    assert loading.describe(str(changed(folder, **fields))).family.name == family


def test_a_head_of_its_own_and_one_that_is_the_embedding(fidelity: Path) -> None:
    """CoDA's config.json does not say that its head is a matrix of its own; iLLaDA's says that it is none."""
    for folder, tied in (("coda", False), ("illada", True)):
        model: Any = HookedDLM.from_pretrained(str(fidelity / folder / "checkpoint"), check=False).original_model
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) == tied


# The files that a checkpoint names.


@pytest.mark.parametrize("named", ["w.bin", "../model.safetensors", "/tmp/w.safetensors", "sub/w.safetensors", 3, "."])
def test_an_index_names_plain_safetensors_files_of_the_folder(make: Make, named: Any) -> None:
    folder = make()
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": named}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, str(named))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "x.txt"]
)
def test_a_pipe_is_no_file(make: Make, name: str) -> None:
    folder = make()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, name, "no regular file")


def test_links_to_files_are_files_as_in_the_hubs_cache(make: Make) -> None:
    folder = make()
    expected = HookedDLM.from_pretrained(str(folder))(TOKENS)
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(blobs / name)
    assert torch.equal(HookedDLM.from_pretrained(str(folder))(TOKENS), expected)


def test_a_weight_that_two_files_have_is_refused(make: Make) -> None:
    folder = make()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors", {"format": "pt"})
    save_file({"model.norm.weight": tensors["model.norm.weight"] * 2}, folder / "b.safetensors", {"format": "pt"})
    where = {name: "a.safetensors" for name in tensors} | {"model.norm.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    refused(folder, "model.norm.weight", "twice")


def test_an_adapter_is_no_checkpoint(make: Make) -> None:
    folder = make()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    refused(folder, "adapter_config.json")


def test_a_real_config_loads(make: Make) -> None:
    """What SmolLM2's config.json says besides the sizes changes nothing."""
    expected = HookedDLM.from_pretrained(str(make()))(TOKENS)
    more = {"_model_name_or_path": "Smollm2", "pretraining_tp": 1, "unk_token_id": 0, "rope_interleaved": False}
    more |= {"is_llama_config": True, "transformers.js_config": {"kv_cache_dtype": {}}, "use_cache": True}
    assert torch.equal(HookedDLM.from_pretrained(str(make(**more)))(TOKENS), expected)
