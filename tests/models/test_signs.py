"""A diffusion checkpoint in the layout of a baseline is no baseline unasked; an ordinary baseline is never doubted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sinklens import HookedDLM
from sinklens.errors import CheckpointError
from sinklens.models import loading
from sinklens.models.loading import describe
from sinklens.sinks import Blocks

TWINS = Path(loading.__file__).parents[1] / "twins"
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, tiny_stock: Any) -> Make:
    """Write a stock checkpoint; nothing in its config.json says what it is."""

    def write(decoder: str = "Llama", called: str = "model", mask: str | None = None, **files: str) -> Path:
        folder = tmp_path / called
        tiny_stock(decoder).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        assert config.pop("is_causal", True)
        config |= json.loads(files.pop("config", "{}"))
        (folder / "config.json").write_text(json.dumps(config))
        for name, text in files.items():
            (folder / name.replace("_json", ".json").replace("_md", ".md")).write_text(text)
        if mask is not None:
            Tokenizer(WordLevel({"a": 0, "b": 1, mask: 2}, unk_token="a")).save(str(folder / "tokenizer.json"))
        return folder

    return write


DIFFUSION: list[tuple[dict[str, str], str]] = [
    ({"called": "diffullama"}, "its name is 'diffullama'"),
    ({"called": "open-dcoder-0.5B", "decoder": "Qwen2"}, "its name is 'open-dcoder-0.5B'"),
    ({"called": "Qwen2.5-0.5B-diffusion-mdlm-v0.1", "decoder": "Qwen2"}, "its name is"),
    ({"called": "models--fredzzp--open-dcoder-0.5B/snapshots/0a1b"}, "its name is 'fredzzp/open-dcoder-0.5B'"),
    (
        {"config": '{"_name_or_path": "diffusionfamily/diffullama"}'},
        "names as _name_or_path 'diffusionfamily",
    ),
    ({"config": '{"mask_token_id": 5}'}, "config.json says mask_token_id=5"),
    ({"config": '{"is_causal": false}'}, "config.json says is_causal=False"),
    ({"generation_config_json": '{"mask_token_id": 5}'}, "generation_config.json says mask_token_id=5"),
    ({"README_md": "---\ntags:\n- text\n- diffusion\n---\n"}, "its README.md says 'diffusion'"),
    (
        {"README_md": "---\nbase_model: diffusionfamily/diffullama\n---\n# Mine\n"},
        "its README.md says 'diffusionfamily",
    ),
    ({"README_md": "# Open Diffusion Language Model\ntext"}, "its README.md says 'Open Diffusion"),
    ({"mask": "<|mask|>"}, "its tokenizer has the mask token '<|mask|>'"),
    ({"mask": "<M>", "decoder": "Qwen3"}, "its tokenizer has the mask token '<M>'"),
    ({"mask": "<x>", "tokenizer_config_json": '{"mask_token": "<x>"}'}, "its tokenizer has the mask token '<x>'"),
]


@pytest.mark.parametrize(("what", "says"), DIFFUSION, ids=[says for _, says in DIFFUSION])
def test_a_sign_of_a_diffusion_model_is_refused_before_weights(
    make: Make, what: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(**what)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        HookedDLM.from_pretrained(str(folder))
    assert says in str(error.value)
    assert "family=" in str(error.value)
    assert "Dream" in str(error.value)


def test_family_decides(make: Make) -> None:
    folder = str(make("Qwen2", "open-dcoder-0.5B"))
    assert HookedDLM.from_pretrained(folder, family="Qwen2").is_causal
    dlm = HookedDLM.from_pretrained(folder, family="Dream", mask_token_id=62)
    assert (dlm.is_causal, dlm.ids.mask) == (False, 62)


BASELINES: list[dict[str, str]] = [
    {"called": "Meta-Llama-3.1-8B-Instruct"},
    {"called": "Qwen2.5-Coder-0.5B-Instruct", "decoder": "Qwen2", "mask": "b2"},
    {"called": "Qwen3-8B", "decoder": "Qwen3"},
    {"called": "SmolLM2-135M-Instruct", "config": '{"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}'},
    {"called": "stable-diffusion-prompts-llama"},
    {"called": "dreamer-unmasked-diffusional"},
    {"called": "diffullama", "config": '{"is_causal": true}'},
    {"config": '{"_name_or_path": "/data/diffusion/llama-7b"}'},
    {"README_md": "---\ndatasets:\n- poloclub/diffusion\ntags:\n- llama\n---\n# Llama\nA baseline of diffusion.\n"},
    {"README_md": "no head at all, and diffusion only in the text"},
]


@pytest.mark.parametrize("what", BASELINES, ids=map(str, BASELINES))
def test_an_ordinary_baseline_is_not_doubted(make: Make, what: dict[str, str]) -> None:
    assert describe(str(make(**what))).family.causal


def test_the_bundled_baseline_is_one_wherever_it_lies(tmp_path: Path) -> None:
    for folder in (TWINS / "tiny-arm", *(TWINS / "tiny-arm" / "checkpoints").iterdir()):
        copy = tmp_path / "diffusion" / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoints"))
        assert describe(str(copy)).family.name == "Llama"


@pytest.mark.parametrize(("layout", "base"), [("a2d_qwen3", "Qwen3-0.6B"), ("a2d_qwen2", "Qwen2.5-Coder-0.5B")])
def test_a_model_trained_block_by_block_is_one_by_its_name(
    fidelity: Path, tmp_path: Path, layout: str, base: str
) -> None:
    """Dllm's bd3lm checkpoints have the config.json of its mdlm checkpoints, and only their names tell."""
    blocks, both = (str(tmp_path / f"{base}-diffusion-{kind}-v0.1") for kind in ("bd3lm", "mdlm"))
    for called in (blocks, both):
        shutil.copytree(fidelity / layout / "checkpoint", called)
    plain = describe(both).family
    assert describe(blocks).family.name == f"{plain.name}-BD3LM"
    assert describe(blocks).family.blocks == Blocks(32, "prompt")
    assert plain.blocks is None
    assert describe(blocks, family=plain.name).family == plain  # whoever says so gets it
    assert describe(both, family=f"{plain.name}-BD3LM").family == describe(blocks).family


def test_a_model_trained_block_by_block_in_another_layout_is_refused(fidelity: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llama-bd3lm"
    shutil.copytree(fidelity / "a2d_llama" / "checkpoint", folder)
    with pytest.raises(CheckpointError, match=r"llama-bd3lm', .*block by block.*family='A2D-Llama'"):
        describe(str(folder))


@pytest.mark.parametrize(
    ("called", "refused"), [("LLaDA2.0-mini", ""), ("LLaDA2.1-mini", "llada2.1"), ("llada2_2-x", "llada2_2")]
)
def test_llada2_that_touches_committed_tokens_is_told_by_its_name(
    fidelity: Path, tmp_path: Path, called: str, refused: str
) -> None:
    folder = tmp_path / called
    shutil.copytree(fidelity / "llada2" / "checkpoint", folder)
    if not refused:
        assert describe(str(folder)).family.name == "LLaDA2"
        return
    with pytest.raises(CheckpointError, match=rf"called '{refused}', .*replace tokens that are committed"):
        describe(str(folder))
    assert describe(str(folder), family="LLaDA2").family.blocks == Blocks(32)
