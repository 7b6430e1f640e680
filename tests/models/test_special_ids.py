"""Special tokens: every EOS that a checkpoint names ends a text, and what padding holds decides nothing."""

from __future__ import annotations

import copy as copy_module
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinklens import HookedDLM, Plan, denoise
from sinklens.errors import CheckpointError, Unsupported
from sinklens.models.special_ids import SpecialIds

PROMPTS = [[5, 17, 9, 33, 41], [12, 40, 8]]
MASK = 62

Copy = Callable[..., Path]


@pytest.fixture
def copy(fidelity: Path, tmp_path: Path) -> Copy:
    """Copy a recorded checkpoint, with other fields in its JSON files."""

    def make(folder: str = "a2d_qwen3", **files: dict[str, Any]) -> Path:
        target = Path(shutil.copytree(fidelity / folder / "checkpoint", tmp_path / folder))
        for name, fields in files.items():
            path = target / f"{name}.json"
            path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))
        return target

    return make


def ids(folder: Path) -> SpecialIds:
    """What a folder names."""
    return HookedDLM.from_pretrained(str(folder), check=False).ids


# EOS: all of them.


def test_one_several_or_no_eos() -> None:
    assert SpecialIds(62, eos=1).eos == (1,)
    assert SpecialIds(62, eos=[2, 1, 2]).eos == (2, 1)
    assert SpecialIds(62, eos=None).eos == SpecialIds(62).eos == ()
    assert dataclasses.replace(SpecialIds(62, eos=[2, 1]), bos=0) == SpecialIds(62, eos=(2, 1), bos=0)


def test_eos_of_all_three_files_count_in_order_and_without_doubles(copy: Copy) -> None:
    """config.json says 5 and 7, generation_config.json 7 and 1, the tokenizer <|im_end|>, which is 2."""
    folder = copy(config={"eos_token_id": [5, 7]}, generation_config={"eos_token_id": [7, 1]})
    assert ids(folder).eos == (5, 7, 1, 2)


def test_an_end_of_turn_ends_a_text_only_where_the_checkpoint_names_it_as_eos(copy: Copy) -> None:
    folder = copy(
        config={"eos_token_id": 1}, generation_config={"eos_token_id": 1}, tokenizer_config={"eos_token": None}
    )
    found = ids(folder)
    assert (found.eos, found.eot) == ((1,), 2)


def test_the_eos_ids_of_a_model_in_memory_are_its_configs_and_its_generation_configs(tiny_stock: Any) -> None:
    model = tiny_stock("Llama")
    model.config.eos_token_id, model.generation_config.eos_token_id = 1, [3, 1]
    assert HookedDLM.from_transformers(model, None, "Llama").ids.eos == (1, 3)


@pytest.fixture
def ended(tiny_model: Any) -> tuple[HookedDLM, list[list[int]]]:
    """A baseline, and what it writes for two prompts when nothing ends a text."""
    dlm = tiny_model("Llama")
    dlm.ids = SpecialIds(bos=0, pad=1)
    return dlm, denoise(dlm, PROMPTS, Plan(new_tokens=8), progress=False).tokens[:, -8:].tolist()


def test_every_eos_ends_a_row_and_cuts_its_completion(ended: tuple[HookedDLM, list[list[int]]]) -> None:
    """Each prompt's third token is an EOS, the second of two for one of them."""
    dlm, free = ended
    dlm.ids = SpecialIds(eos=[free[0][2], free[1][2]], bos=0, pad=1)
    run = denoise(dlm, PROMPTS, Plan(new_tokens=8), progress=False)
    for row, tokens in enumerate(free):
        end = next(i for i, token in enumerate(tokens) if token in dlm.ids.eos)
        assert run.commit_step[row, -8:].tolist() == [*range(end + 1), *[-1] * (7 - end)]
        assert run.completions[row] == str(tokens[:end])


def test_no_eos_is_chosen_when_they_are_suppressed(ended: tuple[HookedDLM, list[list[int]]]) -> None:
    dlm, free = ended
    dlm.ids = SpecialIds(eos=[free[0][0], free[1][0], free[0][1]], bos=0, pad=1)
    new = denoise(dlm, PROMPTS, Plan(new_tokens=8, suppress_eos="logits"), progress=False).tokens[:, -8:]
    assert not set(new.flatten().tolist()) & set(dlm.ids.eos)


def favouring(dlm: HookedDLM, tokens: list[int]) -> Any:
    """A context in which these tokens are the likeliest at every position."""

    def push(logits: torch.Tensor, *, hook: Any) -> torch.Tensor:
        out = logits.clone()
        for place, token in enumerate(tokens):
            out[:, 5 + place, token] += 1e3
        return out

    return dlm.hooks(fwd_hooks=[("unembed.hook_out", push)])


def test_no_eos_of_a_diffusion_model_is_chosen_when_they_are_suppressed(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    dlm.ids = SpecialIds(MASK, eos=[20, 21], pad=1)
    plan = Plan(new_tokens=4, suppress_eos="logits")
    with favouring(dlm, [20, 21, 20, 21]):
        run = denoise(dlm, PROMPTS[0], plan, progress=False)
    assert not {20, 21} & set(run.tokens[0, -4:].tolist())


def test_every_eos_and_eot_commit_last_when_they_must(tiny_model: Any) -> None:
    """LLaDA, appendix B.4: three of four positions prefer an EOS or EoT, and the fourth comes first."""
    dlm = tiny_model("LLaDA")
    dlm.ids = SpecialIds(MASK, eos=[20, 21], pad=1, eot=22)
    plan = Plan(new_tokens=4, steps=4, block_length=4, suppress_eos="confidence")
    with favouring(dlm, [20, 21, 22]):
        run = denoise(dlm, PROMPTS[0], plan, progress=False)
    assert run.tokens[0, -4:-1].tolist() == [20, 21, 22]
    assert run.commit_step[0, -1] == 0
    assert sorted(run.commit_step[0, -4:-1].tolist()) == [1, 2, 3]


# Padding: any token, for nobody looks at it.


@pytest.mark.parametrize("pad", [-1, 64, 10**9, None])
def test_a_pad_outside_the_vocabulary_is_another_token(copy: Copy, pad: int | None) -> None:
    folder = copy("llada", config={"pad_token_id": pad})
    assert ids(folder).pad == 1  # EOS


def test_without_an_eos_the_pad_is_bos_and_without_that_0(copy: Copy) -> None:
    nothing = {"eos_token_id": None, "pad_token_id": -1}
    assert ids(copy("llada", config=nothing, generation_config={"eos_token_id": None, "bos_token_id": 3})).pad == 3
    assert ids(copy("mmada", config=nothing, generation_config={"eos_token_id": None, "pad_token_id": None})).pad == 0


def test_a_model_in_memory_may_have_a_pad_outside_its_vocabulary(tiny_stock: Any) -> None:
    dlm = HookedDLM.from_transformers(tiny_stock("Llama"), None, "LLaDA", ids=SpecialIds(MASK, eos=1, pad=-1))
    assert dlm.ids.pad == 1
    assert len(denoise(dlm, PROMPTS, Plan(new_tokens=2), progress=False).tokens) == 2


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "A2D-Qwen3", "Llama"])
def test_what_the_padding_holds_changes_no_number(tiny_model: Any, family: str) -> None:
    """A batch of two lengths, with every kind of token as its padding: the mask token's, EOS's, an ordinary one's."""
    dlm = tiny_model(family)
    runs = {}
    for pad in (1, 0, 37, MASK):
        dlm.ids = dataclasses.replace(dlm.ids, pad=pad)
        runs[pad] = denoise(dlm, PROMPTS, Plan(new_tokens=4, suppress_eos="logits"), seed=3, progress=False)
    for run in runs.values():
        assert torch.equal(run.tokens[:, 2:], runs[1].tokens[:, 2:])
        assert torch.equal(run.commit_step, runs[1].commit_step)
        assert run.completions == runs[1].completions
        assert run.record["confidence"].equals(runs[1].record["confidence"])


# What cannot be.


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"mask_token_id": 64}, ("64", "mask", "vocabulary of 64")),
        ({"mask_token_id": -3}, ("-3", "mask")),
        ({"eos_token_id": [1, 900]}, ("900", "eos")),
        ({"bos_token_id": 64}, ("64", "bos")),
        ({"eos_token_id": 62}, ("62", "mask token and as an EOS")),
        ({"mask_token_id": "62"}, ("mask_token_id='62'",)),
        ({"mask_token_id": True}, ("mask_token_id=True",)),
        ({"mask_token_id": [62, 3]}, ("mask_token_id=[62, 3]",)),
        ({"eos_token_id": [1, 2.0]}, ("eos_token_id=[1, 2.0]",)),
        ({"eos_token_id": {"id": 1}}, ("eos_token_id={'id': 1}",)),
    ],
)
def test_refuses_ids_that_are_none(copy: Copy, fields: dict[str, Any], quotes: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError) as caught:
        ids(copy("llada", config=fields))
    for quote in quotes:
        assert quote in str(caught.value)


@pytest.mark.parametrize(
    ("config", "quote"),
    [({"mask_token_id": 62}, "several mask tokens, 62, 2"), ({}, "2 as its mask token and as an EOS")],
)
def test_refuses_a_tokenizer_whose_mask_and_eos_are_swapped(copy: Copy, config: dict[str, Any], quote: str) -> None:
    folder = copy(config=config, tokenizer_config={"mask_token": "<|im_end|>", "eos_token": "<|mask|>"})
    with pytest.raises(CheckpointError, match=quote):
        ids(folder)


# Generation from left to right.


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "A2D-Qwen3"])
def test_a_diffusion_model_does_not_generate_whoever_asks(tiny_model: Any, family: str) -> None:
    dlm, tokens = tiny_model(family), torch.tensor([PROMPTS[0]])
    for call in (
        dlm.generate,
        dlm.hf_generate,
        dlm.original_model.generate,
        copy_module.deepcopy(dlm).original_model.generate,
    ):
        with pytest.raises(Unsupported, match="left to right"):
            call(tokens, max_new_tokens=2)


def test_a_model_that_becomes_a_baseline_generates_again(tiny_stock: Any) -> None:
    model, tokens = tiny_stock("Llama"), torch.tensor([PROMPTS[0]])
    expected = tiny_stock("Llama").generate(tokens, max_new_tokens=4, do_sample=False)
    HookedDLM.from_transformers(model, None, "LLaDA", ids=SpecialIds(MASK, 1, 0, 1))
    dlm = HookedDLM.from_transformers(model, None, "Llama", ids=SpecialIds(None, 1, 0, 1))
    assert torch.equal(dlm.original_model.generate(tokens, max_new_tokens=4, do_sample=False), expected)
