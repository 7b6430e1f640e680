"""Store events: when they come, what probes see at them, and what an edit of them is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sinklens
from sinklens.decoding.loop import denoising_steps
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.errors import PlanError, ScopeError
from sinklens.hooks import Scope
from sinklens.interventions import Fixed, MaskSinks
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.probes import ReceivedAttention

STORE = Scope(event="store")
PROMPTS = ["molma telme talko xa", "molma", "telme talko xa molma telme wa"]


@pytest.fixture(scope="module")
def bdlm() -> HookedDLM:
    return HookedDLM.from_pretrained("tiny-bdlm")


def by_hand(dlm: HookedDLM, tokens: torch.Tensor, block: int) -> np.ndarray:
    """What keys receive from the queries of one block, of a whole text under the mask of blocks, by eager attention."""
    number = torch.arange(len(tokens)) // 4
    model: Any = dlm.original_model
    model.set_attn_implementation("eager")
    try:
        mask = torch.zeros(len(tokens), len(tokens)).masked_fill(number[:, None] < number, float("-inf"))
        with torch.no_grad():
            out = model(tokens[None], attention_mask=mask[None, None], output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation("sinklens")
    return torch.stack(out.attentions)[:, 0][:, :, number == block].sum(2).numpy()


@pytest.mark.parametrize("cache", [True, False])
def test_a_finished_blocks_attention_is_recorded_once(bdlm: HookedDLM, cache: bool) -> None:
    probes = [ReceivedAttention(queries="block", where=STORE), ReceivedAttention(queries="block")]
    plan = Plan(new_tokens=13, cache=cache, suppress_eos="logits")
    run = denoise(bdlm, PROMPTS, plan, probes=probes, progress=False)
    stored = run.record["stored_received"]
    assert stored.dims == ("prompt", "block", "layer", "head", "key")
    compared = 0
    for row, prompt in enumerate(PROMPTS):
        tokens = run.tokens[row, run.tokens.shape[1] - len(bdlm.encode(prompt)) - 13 :]
        whole = len(bdlm.encode(prompt)) // 4  # blocks of the prompt are read at once, and stand at the last one
        for block in range(stored.sizes["block"]):
            values = stored.isel(prompt=row, block=block).to_numpy()
            if block < max(whole - 1, 0) or block * 4 >= len(tokens):
                assert np.isnan(values).all()
                continue
            expected = by_hand(bdlm, tokens[: (block + 1) * 4], block)
            if block == whole - 1:
                expected = sum(by_hand(bdlm, tokens[: (block + 1) * 4], each) for each in range(whole))
            np.testing.assert_allclose(values[..., : expected.shape[-1]], expected, atol=2e-6)
            assert np.isnan(values[..., expected.shape[-1] :]).all()
            compared += 1
    assert compared == sum(-(-(len(bdlm.encode(p)) + 13) // 4) - max(len(bdlm.encode(p)) // 4 - 1, 0) for p in PROMPTS)


def test_records_with_store_events_are_saved_and_opened(bdlm: HookedDLM, tmp_path: Any) -> None:
    probes = [ReceivedAttention(queries="block", where=STORE)]
    run = denoise(bdlm, PROMPTS[0], Plan(new_tokens=8), probes=probes, progress=False)
    sinklens.save(run.record, tmp_path / "record.nc")
    assert sinklens.open(tmp_path / "record.nc").identical(run.record)


def test_events_belong_to_the_step_that_finished_the_block(bdlm: HookedDLM) -> None:
    probes = [ReceivedAttention(queries="block", where=STORE)]
    plan = Plan(new_tokens=11, suppress_eos="logits")
    steps = list(denoising_steps(bdlm, [[0, 7, 30, 9, 12]], plan, probes=probes))
    numbers = [[int(event.number[0]) for event in step.stored] for step in steps]
    assert numbers == [[0], [], [1], [], [], [], [2], [], [], [], [3]]
    for step in steps:
        for event in step.stored:
            assert not bool((event.canvas.masked & event.canvas.valid).any())
            assert event.canvas.tokens.shape[1] == 4 * (int(event.number[0]) + 1)


@pytest.mark.parametrize("layers", [None, 0, 1])
def test_local_edits_that_also_act_when_a_block_is_stored_are_edits_from_scratch(
    bdlm: HookedDLM, layers: int | None
) -> None:
    """Then every row that a later one sees is edited in the same way, once, where from scratch it is at every step."""
    selector = Fixed([0])
    edits = [MaskSinks(selector, where=Scope(layers=layers, event=event)) for event in ("step", "store")]  # type: ignore[arg-type]
    for prompt in PROMPTS:
        options: Any = {"progress": False, "seed": 4}
        local = denoise(bdlm, prompt, Plan(new_tokens=13, editing="local"), interventions=edits, **options)
        scratch = denoise(bdlm, prompt, Plan(new_tokens=13), interventions=edits[:1], **options)
        without = denoise(bdlm, prompt, Plan(new_tokens=13, editing="local"), interventions=edits[:1], **options)
        assert torch.equal(local.tokens, scratch.tokens)
        np.testing.assert_allclose(local.confidence, scratch.confidence, atol=3e-6)
        if layers == 0:
            assert float((without.confidence - scratch.confidence).abs().nan_to_num().max()) > 1e-4


def test_what_has_no_store_events_refuses_them(bdlm: HookedDLM) -> None:
    store = ReceivedAttention(queries="block", where=STORE)
    for name in ("tiny-dlm", "tiny-arm"):
        with pytest.raises(PlanError, match="has none: it does not see block by block"):
            denoise(HookedDLM.from_pretrained(name), "molma", Plan(new_tokens=4), probes=[store], progress=False)
    edit = MaskSinks(Fixed([0]), where=STORE)
    with pytest.raises(PlanError, match="it would never act"):
        denoise(bdlm, "molma", Plan(new_tokens=4), interventions=[edit], progress=False)
    with pytest.raises(PlanError, match="one prompt at a time"):
        denoise(bdlm, PROMPTS, Plan(new_tokens=4, editing="local"), interventions=[edit], progress=False)
    with pytest.raises(ScopeError, match="store events are no steps"):
        Scope(steps=0, event="store")
