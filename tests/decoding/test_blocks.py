"""Models that see block by block: masks, steps and records against loops over blocks with the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sinklens
from sinklens import HookedDLM, MaskSinks, Plan, SameStep, denoise, log_likelihood, replay, save
from sinklens.analysis import attention as analysis
from sinklens.analysis.blocks import blocks_of
from sinklens.decoding.loop import denoising_steps
from sinklens.errors import CheckpointError, ContentError, PlanError
from sinklens.hooks import Scope
from sinklens.models.families import named
from sinklens.models.outline import outline
from sinklens.probes import Pattern, ReceivedAttention
from sinklens.sinks import Blocks

WORDS = ["molma telme talko", "molma", "gake xu gake xe gake wu gake", ""]


@pytest.fixture(scope="module")
def bdlm() -> HookedDLM:
    return HookedDLM.from_pretrained("tiny-bdlm")


def aligned(dlm: HookedDLM, where: str) -> HookedDLM:
    """The same model whose blocks begin at the prompt's end, or at the start."""
    family = dlm.family.__class__(**{**vars(dlm.family), "blocks": Blocks(4, where)})
    return HookedDLM.from_transformers(dlm.original_model, dlm.tokenizer, family, ids=dlm.ids, check=False)


def numbers(length: int, prompt: int, block: int, where: str) -> list[int]:
    """The block of each position, by hand."""
    shift = (block - prompt % block) % block if where == "prompt" else 0
    return [(place + shift) // block for place in range(length)]


def plain_logits(dlm: HookedDLM, tokens: list[int], number: list[int]) -> Tensor:
    """Logits of the plain transformers model under a mask that is written out."""
    mask = torch.tensor([[key <= query for key in number] for query in number])
    with torch.no_grad():
        return dlm.original_model(torch.tensor([tokens]), attention_mask=mask[None, None], use_cache=False).logits[0]


def by_hand(
    dlm: HookedDLM, prompt: list[int], new: int, block: int, where: str, threshold: float | None = None, per: int = 1
) -> tuple[list[int], list[int]]:
    """Tokens, and the step that committed each: block after block, the surest first, stopping behind an EOS."""
    mask, tokens = dlm.ids.mask, [*prompt, *[dlm.ids.mask] * new]
    number, when, step = numbers(len(tokens), len(prompt), block, where), [-1] * len(tokens), 0
    for current in sorted({number[place] for place in range(len(prompt), len(tokens))}):
        places = [place for place in range(len(prompt), len(tokens)) if number[place] == current]
        end = max(places) + 1
        while any(tokens[place] == mask for place in places):
            logits = plain_logits(dlm, tokens[:end], number[:end])
            chances = logits.softmax(-1)
            best = logits.index_fill(-1, torch.tensor([mask]), -torch.inf).argmax(-1)
            left = [place for place in places if tokens[place] == mask]
            sure = sorted(left, key=lambda place: -float(chances[place, best[place]]))
            chosen = sure[:per]
            if threshold is not None:
                chosen = [p for p in sure if float(chances[p, best[p]]) >= threshold] or sure[:1]
            for place in chosen:
                tokens[place], when[place] = int(best[place]), step
            step += 1
        if any(tokens[place] in dlm.ids.eos for place in range(len(prompt), end)):
            break
    return tokens, when


def rows(run: Any) -> list[tuple[list[int], list[int]]]:
    """Of each prompt its tokens and commit steps, without padding."""
    token, when = run.record["token"].to_numpy(), run.record["commit_step"].to_numpy()
    return [(t[t >= 0].tolist(), w[t >= 0].tolist()) for t, w in zip(token, when, strict=True)]


@pytest.mark.parametrize("where", ["start", "prompt"])
@pytest.mark.parametrize(("block", "new"), [(4, 8), (4, 9), (3, 8), (1, 3), (16, 8)])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_a_batch_is_decoded_as_by_hand(
    bdlm: HookedDLM, where: str, block: int, new: int, threshold: float | None
) -> None:
    dlm = aligned(bdlm, where)
    run = denoise(dlm, WORDS, Plan(new_tokens=new, block_length=block, threshold=threshold), progress=False)
    prompts = [dlm.encode(text) for text in WORDS]
    assert rows(run) == [by_hand(dlm, prompt, new, block, where, threshold) for prompt in prompts]


def test_fewer_steps_than_tokens(bdlm: HookedDLM) -> None:
    dlm = aligned(bdlm, "prompt")
    run = denoise(dlm, WORDS, Plan(new_tokens=8, steps=4), progress=False)
    assert rows(run) == [by_hand(dlm, dlm.encode(text), 8, 4, "prompt", per=2) for text in WORDS]


def test_a_block_that_the_prompt_shares_has_no_more_steps_than_masks(bdlm: HookedDLM) -> None:
    """4 + 3 tokens, blocks of 4 from the start: 1 new token in the second block, 4, and 1 in the last."""
    run = denoise(bdlm, [[0, 5, 6, 7, 8, 9, 10]], Plan(new_tokens=6, steps=3), force=[[11] * 6], progress=False)
    assert rows(run)[0][1] == [-1] * 7 + [0] + sorted(rows(run)[0][1][8:12]) + [3]
    assert sorted(rows(run)[0][1][8:12]) == [1, 1, 2, 2]


def test_a_text_ends_with_the_block_of_its_eos(bdlm: HookedDLM) -> None:
    """What stands behind it is never decided; other rows go on."""
    eos = bdlm.ids.eos[0]
    texts = [[0, 38, 54], [0, 38, 54, 52]]
    with bdlm.hooks(fwd_hooks=[("unembed.hook_out", lambda logits, *, hook: _with_eos(logits, eos))]):
        run = denoise(bdlm, texts, Plan(new_tokens=12), progress=False)
    (first, when), (second, _) = rows(run)
    assert eos in first[3:4]
    assert when[4:] == [-1] * 11
    assert eos in second[4:8]
    assert second[8:] == [bdlm.ids.mask] * 8
    assert run.completions == ["", ""]


def _with_eos(logits: Tensor, eos: int) -> Tensor:
    logits = logits.clone()
    logits[..., eos] = 100.0
    return logits


def test_what_a_step_sees_ends_with_its_block(bdlm: HookedDLM) -> None:
    steps = list(denoising_steps(bdlm, [[0, 5, 6], [0, 5, 6, 7, 8, 9]], Plan(new_tokens=6), probes=[Pattern()]))
    first = steps[0].canvas
    assert first.valid.tolist() == [[False] * 3 + [True] * 4 + [False], [True] * 8]
    assert first.block is not None
    assert first.block.tolist() == [
        [False] * 3 + [True] * 4 + [False],
        [False] * 4 + [True] * 4,
    ]
    assert first.positions("block").tolist() == first.block.tolist()
    with pytest.raises(ContentError, match="positions='blok' is unknown"):
        first.positions("blok")


def test_received_attention_by_the_block_is_that_of_its_pattern(bdlm: HookedDLM) -> None:
    """Against sums over the pattern, query by query, and the nulls of both sets against 1 / (keys that are seen)."""
    probes = [ReceivedAttention(queries=["all", "block"]), Pattern()]
    record = denoise(bdlm, WORDS[:3], Plan(new_tokens=7), probes=probes, progress=False).record
    pattern, received = record["pattern"].to_numpy(), record["received"]
    prompts = record["prompt_length"].to_numpy()
    for row, step in np.ndindex(3, record.sizes["step"]):
        masked = record["masked"].to_numpy()[row, step]
        real = int((masked >= 0).sum())
        if not real:
            continue
        number = numbers(real, int(prompts[row]), 4, "start")
        current = min(n for n, m in zip(number, masked, strict=False) if m == 1)
        assert number[-1] == current
        inside = [place for place in range(real) if number[place] == current]
        for which, queries in (("all", range(real)), ("block", inside)):
            sums = pattern[row, step][:, :, list(queries), :real].sum(2)
            here = received.sel(queries=which).to_numpy()[row, step][..., :real]
            np.testing.assert_allclose(here, sums, atol=1e-5)
            sees = [sum(n <= number[q] for n in number) for q in queries]
            even = [sum(1 / s for q, s in zip(queries, sees, strict=True) if n <= number[q]) for n in number]
            null = analysis.null(record, which)["received"].to_numpy()[row, step, 0, 0]
            np.testing.assert_allclose(null[:real], even, atol=1e-6)


@given(
    length=st.integers(1, 12),
    pads=st.integers(0, 3),
    prompt=st.integers(0, 12),
    block=st.integers(1, 6),
    where=st.sampled_from(["start", "prompt"]),
)
def test_levels_are_those_of_loops(length: int, pads: int, prompt: int, block: int, where: Any) -> None:
    valid = torch.arange(pads + length) >= pads
    levels = Blocks(block, where).levels(valid[None], torch.tensor([min(prompt, length)]))[0, pads:].tolist()
    assert levels == numbers(length, min(prompt, length), block, where)


def test_a_plain_forward_counts_blocks_from_the_start(bdlm: HookedDLM) -> None:
    tokens = [0, *range(5, 18)]
    with torch.no_grad():
        logits = bdlm(torch.tensor([tokens]))[0]
    torch.testing.assert_close(logits, plain_logits(bdlm, tokens, numbers(14, 0, 4, "start")))


@pytest.mark.parametrize("tool", ["run_with_cache", "stop_at_layer", "embeddings"])
def test_tools_see_block_by_block(bdlm: HookedDLM, tool: str) -> None:
    """What comes in a later block changes nothing before it, and what comes in the same block does."""
    tokens = torch.tensor([[0, *range(5, 16)]])
    other = tokens.clone()
    other[0, 6] = 40

    def stream(given: Tensor) -> Tensor:
        with torch.no_grad():
            if tool == "run_with_cache":
                return bdlm.run_with_cache(given)[1]["blocks.1.hook_out"]
            if tool == "embeddings":
                return bdlm(bdlm.original_model.get_input_embeddings()(given))
            return bdlm(given, stop_at_layer=2)

    same = (stream(tokens) == stream(other)).all(-1)[0].tolist()
    assert same[:4] == [True] * 4
    assert not any(same[4:])


def test_blocks_of_another_length(bdlm: HookedDLM) -> None:
    """They are another model: its scores are stored apart."""
    longer = HookedDLM.from_pretrained("tiny-bdlm", block_length=8)
    assert (bdlm.in_blocks, longer.in_blocks) == (Blocks(4), Blocks(8))
    assert outline("tiny-bdlm", block_length=8).in_blocks == Blocks(8)
    assert bdlm.fingerprint() != longer.fingerprint()
    assert Plan().resolved(longer).block_length == 8
    with pytest.raises(CheckpointError, match="block_length=8: LLaDA does not see block by block"):
        HookedDLM.from_pretrained("tiny-dlm", block_length=8)


def test_a_record_is_replayed_in_its_blocks(tmp_path: Path) -> None:
    longer = HookedDLM.from_pretrained("tiny-bdlm", block_length=8)
    run = denoise(
        longer, WORDS[:2], Plan(new_tokens=8), probes=[ReceivedAttention()], save_to=tmp_path / "r.nc", progress=False
    )
    record = sinklens.open(tmp_path / "r.nc")
    assert blocks_of(record) == Blocks(8)
    again = replay(record, probes=[ReceivedAttention()], progress=False)
    np.testing.assert_array_equal(again.record["received"], run.record["received"])
    save(record, tmp_path / "again.nc")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(sampler="dream"), "sampler='dream' decides anywhere"),
        (Plan(cfg_scale=1.0), "guidance is not there"),
        (Plan(new_tokens=4, steps=5), "steps=5 is more than new_tokens=4"),
    ],
)
def test_plans_without_a_meaning_are_refused(bdlm: HookedDLM, plan: Plan, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan.resolved(bdlm)


def test_gaps_need_blocks_from_the_start(bdlm: HookedDLM) -> None:
    """Blocks with gaps are filled from left to right, and what stands behind them is not seen."""
    text = [0, 5, 2, 6, 2, 8, 9, 10, 11]
    run = denoise(bdlm, [text], Plan(new_tokens=0), progress=False)
    (tokens, when), *_ = rows(run)
    assert when == [-1, -1, 0, -1, 1, -1, -1, -1, -1]
    assert tokens[:4] == by_hand(bdlm, [0, 5], 2, 4, "start")[0][:2] + tokens[2:3] + [6]
    with pytest.raises(PlanError, match="cannot fill gaps"):
        denoise(aligned(bdlm, "prompt"), [text], Plan(new_tokens=0), progress=False)


def test_a_likelihood_is_refused(bdlm: HookedDLM) -> None:
    with pytest.raises(PlanError, match="tiny-bdlm sees block by block: its likelihood"):
        log_likelihood(bdlm, "molma", "telme")


def test_an_edit_of_a_block_model_acts_on_what_is_seen(bdlm: HookedDLM) -> None:
    run = denoise(
        bdlm,
        WORDS[:2],
        Plan(new_tokens=4),
        interventions=[MaskSinks(SameStep(top_k=1), where=Scope(steps=0))],
        progress=False,
    )
    assert run.memories[0].counts()["keys"] == 16


def test_the_family_is_read_off_the_architecture(bdlm: HookedDLM) -> None:
    assert bdlm.family is named("Stable-DiffCoder")
    assert not bdlm.is_causal
