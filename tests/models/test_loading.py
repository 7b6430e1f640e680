"""Checkpoints load faithfully or not at all, and every refusal quotes the culprit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sinklens import HookedDLM
from sinklens.errors import CheckpointError
from sinklens.models import files
from sinklens.models.special_ids import SpecialIds

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDS = SpecialIds(mask=62, eos=1, bos=0, pad=1)
TOKENS = torch.tensor([[5, 17, 62, 62, 30, 2]])

Copy = Callable[[str], Path]


@pytest.fixture
def copy(fidelity: Path, tmp_path: Path) -> Copy:
    """Copy a recorded checkpoint to where a test may damage it."""
    return lambda folder: Path(shutil.copytree(fidelity / folder / "checkpoint", tmp_path / "checkpoint"))


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of model.safetensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(name: Path | str, *quotes: str) -> None:
    """Loading raises CheckpointError, and its message holds every quote."""
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(str(name))
    for quote in quotes:
        assert quote in str(caught.value)


# What loads.


def test_sharded_folder_equals_the_same_weights_in_one_file(copy: Copy, official: Any) -> None:
    folder = copy("llada")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) == 2
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for old in [*shards, folder / "model.safetensors.index.json"]:
        old.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole = HookedDLM.from_pretrained(str(folder))
    assert torch.equal(whole(TOKENS), official("llada")(TOKENS))


def test_every_weight_of_the_checkpoint_is_in_the_model(official: Any, fidelity: Path) -> None:
    """The renames lose nothing: the embedding and the last projection are the stored tensors."""
    dlm = official("llada")
    stored = {}
    for shard in (fidelity / "llada" / "checkpoint").glob("*.safetensors"):
        stored |= load_file(shard)
    loaded = dict(dlm.original_model.named_parameters())
    assert len(loaded) == len(stored)
    assert torch.equal(loaded["model.embed_tokens.weight"], stored["model.transformer.wte.weight"])
    gate, down = (stored[f"model.transformer.blocks.1.{name}.weight"] for name in ("ff_proj", "ff_out"))
    assert torch.equal(loaded["model.layers.1.mlp.gate_proj.weight"], gate)
    assert torch.equal(loaded["model.layers.1.mlp.down_proj.weight"], down)
    assert torch.equal(loaded["lm_head.weight"], stored["model.transformer.ff_out.weight"])


def test_special_ids_come_from_config_and_tokenizer(official: Any) -> None:
    assert official("llada").ids == SpecialIds(mask=62, eos=1, bos=0, pad=1)
    assert official("dream").ids == SpecialIds(mask=62, eos=1, bos=1, pad=1)
    assert official("a2d_qwen3").ids.mask == 62  # only in the tokenizer files
    assert official("a2d_qwen3").ids.eos == (2, 1)  # config.json and tokenizer say 2, generation_config.json [2, 1]
    assert official("a2d_qwen3").tokenizer is not None
    assert official("llada_moe").ids == SpecialIds(mask=62, eos=2, bos=None, pad=1, eot=3)
    assert official("illada").ids == SpecialIds(mask=5, eos=2, bos=0, pad=1)  # the mask only by its name
    assert official("a2d_qwen2").ids.mask == 62  # of the tokenizer files only special_tokens_map.json says so
    assert official("llada").tokenizer is None


def test_dtype_is_the_one_asked_for(copy: Copy) -> None:
    dlm = HookedDLM.from_pretrained(str(copy("dream")), dtype=torch.bfloat16)
    assert dlm.dtype == torch.bfloat16
    assert dlm(TOKENS).dtype == torch.bfloat16


@pytest.fixture
def offline_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hub cache, and no network (huggingface_hub has read its environment at import)."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def cached(offline_cache: Path, fidelity: Path) -> str:
    """A Hub id in the local cache, on branch main."""
    repository = offline_cache / "models--owner--name"
    shutil.copytree(fidelity / "dream" / "checkpoint", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return "owner/name"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_hub_id_loads_from_the_local_cache_and_knows_its_commit(
    cached: str, official: Any, revision: str | None
) -> None:
    dlm = HookedDLM.from_pretrained(cached, revision=revision)
    assert dlm.name == cached
    assert dlm.revision == COMMIT
    assert torch.equal(dlm(TOKENS), official("dream")(TOKENS))


def test_a_folder_has_no_revision(official: Any) -> None:
    assert official("dream").revision is None


def test_auto_map_runs_no_remote_code(copy: Copy, tmp_path: Path) -> None:
    """Neither the model's nor the tokenizer's auto_map; the files beside config.json would leave a trace and raise."""
    folder, ran = copy("a2d_qwen3"), tmp_path / "ran"
    for module in ("modeling_qwen3", "tokenization_qwen3"):
        code = f"open({str(ran)!r}, 'w').close()\nraise RuntimeError('remote code ran')\n"
        (folder / f"{module}.py").write_text(code)
    assert "modeling_qwen3" in json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"]
    path = folder / "tokenizer_config.json"
    remote = {"auto_map": {"AutoTokenizer": ["tokenization_qwen3.Tokenizer", "tokenization_qwen3.Tokenizer"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | remote))
    dlm = HookedDLM.from_pretrained(str(folder))
    assert dlm.tokenizer is not None
    assert not ran.exists()


# What is refused: names and files.


def test_refuses_an_unknown_name_offline(offline_cache: Path) -> None:
    refused("owner/no-such-model", "owner/no-such-model", "tiny-dlm")


def test_refuses_a_name_that_is_no_hub_id(offline_cache: Path) -> None:
    refused("no/such/folder", "no/such/folder", "tiny-dlm")


def test_refuses_a_revision_that_is_not_cached(cached: str) -> None:
    with pytest.raises(CheckpointError, match="owner/name"):
        HookedDLM.from_pretrained(cached, revision="f" * 40)


def test_refuses_a_folder_without_config(copy: Copy) -> None:
    folder = copy("dream")
    (folder / "config.json").unlink()
    refused(folder, str(folder), "config.json")


def test_refuses_a_config_that_is_no_json(copy: Copy) -> None:
    folder = copy("dream")
    (folder / "config.json").write_text('{"model_type": "Dream", ')
    refused(folder, "config.json", "JSON")


@pytest.mark.parametrize("text", ["[1, 2]", '"Dream"', "3"])
def test_refuses_a_config_that_is_no_json_object(copy: Copy, text: str) -> None:
    folder = copy("dream")
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_refuses_a_config_that_is_no_text(copy: Copy) -> None:
    folder = copy("dream")
    (folder / "config.json").write_bytes(b"\xff\xfe\x00{")
    refused(folder, "config.json")


def test_refuses_an_unknown_model_type(copy: Copy) -> None:
    folder = copy("dream")
    edit_config(folder, model_type="mamba")
    refused(folder, "'mamba'", "llada", "Dream")


def test_refuses_a_config_that_lacks_a_field(copy: Copy) -> None:
    folder = copy("llada")
    edit_config(folder, d_model=None)
    refused(folder, "d_model")


@pytest.mark.parametrize(
    ("name", "value"), [("alibi", True), ("weight_tying", True), ("block_type", "sequential"), ("rope", False)]
)
def test_refuses_a_llada_config_of_another_model(copy: Copy, name: str, value: object) -> None:
    folder = copy("llada")
    edit_config(folder, **{name: value})
    refused(folder, f"{name}={value!r}")


def test_refuses_a_checkpoint_that_names_no_mask_token(copy: Copy) -> None:
    folder = copy("llada")
    edit_config(folder, mask_token_id=None)
    refused(folder, "mask_token_id")


# What is refused: weights.

WEIGHT = "model.layers.1.self_attn.k_proj.weight"


def test_refuses_a_missing_weight(copy: Copy) -> None:
    folder = copy("dream")
    edit_weights(folder, lambda tensors: tensors.pop(WEIGHT))
    refused(folder, "missing", WEIGHT)


def test_refuses_an_unexpected_weight(copy: Copy) -> None:
    folder = copy("dream")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.ones(2)}))
    refused(folder, "unexpected", "model.layers.0.extra.weight")


def test_refuses_a_weight_of_a_layer_that_config_does_not_have(copy: Copy) -> None:
    folder = copy("dream")
    edit_config(folder, num_hidden_layers=1)
    refused(folder, "unexpected", "model.layers.1.")


def test_refuses_a_wrong_shape(copy: Copy) -> None:
    folder = copy("dream")
    edit_weights(folder, lambda tensors: tensors.update({WEIGHT: torch.ones(8, 32)}))
    refused(folder, WEIGHT, "mismatched")


def test_refuses_pickles_without_opening_them(copy: Copy, tmp_path: Path) -> None:
    folder, ran = copy("dream"), tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    refused(folder, str(folder), "pickle", "safetensors")
    assert not ran.exists()


def test_refuses_a_folder_without_weights(copy: Copy) -> None:
    folder = copy("dream")
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5])
def test_refuses_truncated_safetensors(copy: Copy, keep: float) -> None:
    folder = copy("dream")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep >= 1 or keep == 0 else int(len(data) * keep)])
    refused(folder, str(folder), "weights")


def test_refuses_a_missing_shard(copy: Copy) -> None:
    folder = copy("llada")
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, str(folder), "model-00002-of-00002.safetensors")


# From transformers.


def test_from_transformers_refuses_the_wrong_class(tiny_stock: Any) -> None:
    with pytest.raises(ValueError, match=r"LLaDA wraps a LlamaForCausalLM, not a Qwen2ForCausalLM"):
        HookedDLM.from_transformers(tiny_stock("Qwen2"), None, "LLaDA", ids=IDS)


def test_from_transformers_refuses_an_unknown_family(tiny_stock: Any) -> None:
    with pytest.raises(ValueError, match=r"'Mamba' is unknown; the families are LLaDA, MMaDA"):
        HookedDLM.from_transformers(tiny_stock("Llama"), None, "Mamba", ids=IDS)


def test_from_transformers_refuses_a_diffusion_model_without_a_mask_token(tiny_stock: Any) -> None:
    with pytest.raises(CheckpointError, match="names no mask token"):
        HookedDLM.from_transformers(tiny_stock("Llama"), None, "LLaDA")


def test_from_transformers_computes_what_the_stock_causal_model_does(tiny_stock: Any) -> None:
    model = tiny_stock("Llama")
    with torch.no_grad():
        expected = model(TOKENS).logits
    dlm = HookedDLM.from_transformers(model, None, "Llama", ids=IDS)
    assert torch.equal(dlm(TOKENS), expected)


def test_verbosity_of_transformers_is_as_before(copy: Copy) -> None:
    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    HookedDLM.from_pretrained(str(copy("dream")))
    assert (transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before


def dream_with_vocabulary(fidelity: Any, tmp_path: Path, mask: int) -> Path:
    """A Dream checkpoint with vocab.json and merges.txt, as on the Hub, instead of a tokenizer.json."""
    folder = tmp_path / "dream"
    shutil.copytree(fidelity / "dream" / "checkpoint", folder)
    edit_config(folder, mask_token_id=mask)
    (folder / "generation_config.json").unlink()
    vocabulary = {chr(97 + i): i for i in range(26)} | {"ab": 26, "Ġ": 27, "Ċ": 28}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    added = {"29": {"content": "<|endoftext|>", "special": True}, str(mask): {"content": "<|mask|>", "special": True}}
    names = {"mask_token": "<|mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    remote = {"tokenizer_class": "DreamTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_dream.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(remote | names | {"added_tokens_decoder": added}))
    return folder


def test_dreams_vocabulary_files_make_a_tokenizer_without_remote_code(fidelity: Any, tmp_path: Path) -> None:
    dlm = HookedDLM.from_pretrained(str(dream_with_vocabulary(fidelity, tmp_path, mask=30)), check=False)
    assert dlm.encode("abba ab\n<|mask|>") == [26, 1, 0, 27, 26, 28, 30]
    assert dlm.decode([26, 1]) == "abb"


def test_refuses_a_tokenizer_that_misreads_its_special_tokens(fidelity: Any, tmp_path: Path) -> None:
    folder = dream_with_vocabulary(fidelity, tmp_path, mask=40)
    with pytest.raises(CheckpointError, match=r"'<\|mask\|>' as id 30, and tokenizer_config.json says 40"):
        HookedDLM.from_pretrained(str(folder), check=False)


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ({"device": "quantum"}, "device='quantum' cannot be used"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto'"),
        ({"device": torch.device("meta")}, "device='meta' cannot be used"),
    ],
)
def test_a_device_that_is_none_is_refused_before_weights_are_read(given, quoted, monkeypatch):
    monkeypatch.setattr(files, "weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match=quoted):
        HookedDLM.from_pretrained("tiny-dlm", **given)


def test_a_tokenizer_with_more_words_than_the_embedding_has_rows_is_refused(tmp_path):
    folder = tmp_path / "twin"
    shutil.copytree(files.TWINS / "tiny-dlm", folder)
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["beyond"] = len(vocabulary)
    path.write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match="words besides added tokens"):
        HookedDLM.from_pretrained(str(folder))
