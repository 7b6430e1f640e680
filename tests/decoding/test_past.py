"""Runs that keep a cache: the same as runs that compute everything anew, and what an edit means in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sinklens.decoding.loop import denoising_steps
from sinklens.decoding.plan import Plan
from sinklens.decoding.run import denoise
from sinklens.errors import PlanError
from sinklens.experiments.ablation import ablate
from sinklens.hooks import Edit, Memory, Scope, by_query
from sinklens.interventions import (
    BiasSinks,
    MaskSinks,
    NullKey,
    PreviousStep,
    RandomKeys,
    SameStep,
    ScaleSinks,
    ZeroSinks,
    ZeroValue,
)
from sinklens.models.families import FAMILIES
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.probes import Confidence, MassOn, ReceivedAttention
from sinklens.sinks import SinkRule
from sinklens.tasks import Echo

PROMPTS = ["molma telme talko xa", "molma", "telme talko xa molma telme", "wa molma telme"]
MODELS = {"tiny-arm": "last", "tiny-bdlm": "block"}


@pytest.fixture(scope="module", params=MODELS)
def dlm(request: pytest.FixtureRequest) -> HookedDLM:
    return HookedDLM.from_pretrained(request.param)


def both(dlm: HookedDLM, plan: dict[str, Any], **options: Any) -> list[Any]:
    options = {"seed": [1, 2, 3, 4], "progress": False, **options}
    return [denoise(dlm, PROMPTS, Plan(**plan, cache=cache), **options) for cache in (True, False)]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cached_run_is_the_recomputed_one(dlm: HookedDLM, temperature: float) -> None:
    sets = MODELS[dlm.name]
    probes = [ReceivedAttention(queries=sets), MassOn("bos", queries=sets)]
    kept, anew = both(dlm, {"new_tokens": 21, "temperature": temperature}, probes=probes)
    assert torch.equal(kept.tokens, anew.tokens)
    assert torch.equal(kept.commit_step, anew.commit_step)
    close(kept.confidence, anew.confidence)
    for name in ("received", "mass_on_bos_from_" + sets):
        close(kept.record[name], anew.record[name])
    assert kept.forwards["step"] == anew.forwards["step"] == kept.record.sizes["step"]
    assert "store" not in anew.forwards


@pytest.mark.parametrize(
    "plan",
    [{"remasking": "random"}, {"threshold": 0.4}, {"steps": 8}, {"block_length": 7}, {"temperature": 0.7, "steps": 12}],
)
def test_ways_to_decode_in_blocks(plan: dict[str, Any]) -> None:
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    kept, anew = both(dlm, {"new_tokens": 18, **plan})
    assert torch.equal(kept.tokens, anew.tokens)
    assert torch.equal(kept.commit_step, anew.commit_step)


def test_a_baseline_writes_what_its_stock_class_writes_with_its_cache() -> None:
    dlm = HookedDLM.from_pretrained("tiny-arm")
    run = denoise(dlm, PROMPTS[:1], Plan(new_tokens=20, cache=True), progress=False)
    tokens = torch.tensor([dlm.encode(PROMPTS[0])])
    ids: Any = {"eos_token_id": list(dlm.ids.eos), "pad_token_id": 0}
    with torch.no_grad():
        written = dlm.original_model.generate(tokens, max_new_tokens=20, do_sample=False, use_cache=True, **ids)
    assert run.tokens[0, : written.shape[1]].tolist() == written[0].tolist()
    assert run.forwards == {"step": 20}  # the prompt is read by the first step's own forward


def test_every_finished_block_is_stored_by_one_forward_of_itself() -> None:
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    sizes: list[int] = []
    handle = dlm.original_model.model.embed_tokens.register_forward_hook(lambda m, a, out: sizes.append(out.shape[1]))
    try:
        run = denoise(dlm, [[7] * 9], Plan(new_tokens=11, cache=True, suppress_eos="logits"), progress=False)
    finally:
        handle.remove()
    # two blocks of the prompt, and the block that the prompt's last token shares with three new ones
    assert sizes == [8, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert run.forwards == {"step": 11, "store": 3}


def test_the_past_is_what_a_stock_cache_holds_of_the_finished_blocks() -> None:
    """By hand: the stock class reads each finished block over a DynamicCache, and then the block with its masks."""
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    prompt = [0, 7, 30, 9, 12, 31, 40, 8]
    steps = denoising_steps(dlm, [prompt], Plan(new_tokens=8, cache=True, suppress_eos="logits"))
    model: Any = dlm.original_model
    seen = 0
    for step in steps:
        tokens = step.canvas.tokens
        begin = int(step.canvas.block[0].long().argmax())
        cache = DynamicCache()
        with torch.no_grad():
            for first in range(0, begin + 1, 4):
                ones = torch.ones(1, 1, 4, first + 4, dtype=torch.bool)
                places = torch.arange(first, first + 4)[None]
                part: Any = {"attention_mask": ones, "position_ids": places, "past_key_values": cache}
                logits = model(tokens[:, first : first + 4], use_cache=True, **part).logits
        assert step.first == begin
        close(step.logits, logits)
        seen += 1
    assert seen == 8


EDITS = [
    lambda sets: MaskSinks(SameStep(top_k=1)),
    lambda sets: MaskSinks(PreviousStep(top_k=2)),
    lambda sets: BiasSinks(-2.0, SameStep(SinkRule(epsilon=None, top_k=1, queries=sets))),
    lambda sets: ZeroSinks(SameStep(top_k=1)),
    lambda sets: ScaleSinks(0.3, SameStep(top_k=2), diagonal=False),
    lambda sets: NullKey(1.0),
]


@pytest.mark.parametrize("edit", EDITS)
def test_local_is_an_edit_of_the_blocks_own_queries(edit: Any) -> None:
    """Where earlier rows see no new ones, an edit of new queries alone does the same from scratch."""
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    edit = edit("block")
    alone = replace(edit, queries="block")
    options: Any = {"seed": [1, 2, 3, 4], "progress": False, "probes": [ReceivedAttention(queries="block")]}
    local = denoise(dlm, PROMPTS, Plan(new_tokens=17, editing="local"), interventions=[edit], **options)
    scratch = denoise(dlm, PROMPTS, Plan(new_tokens=17), interventions=[alone], **options)
    assert torch.equal(local.tokens, scratch.tokens)
    close(local.confidence, scratch.confidence)
    close(local.record["received"], scratch.record["received"])
    assert local.memories[0].counts() == pytest.approx(scratch.memories[0].counts(), rel=1e-5)


@dataclass(frozen=True, repr=False)
class OwnTopKey(Edit):
    """Every query from a position on loses the key that it attends to most: as in a decoder with a cache."""

    first: int

    def hooks(self, model: Any, canvas: Any, memory: Memory) -> list[Any]:
        def mask(scores: Tensor, *, hook: Any) -> Tensor:
            place = torch.arange(scores.shape[-2])[:, None] + hook.ctx["queries"].start
            top = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.argmax(-1, keepdim=True), True)
            several = (scores > torch.finfo(scores.dtype).min / 2).sum(-1, keepdim=True) > 1
            return scores.masked_fill(top & several & (place >= self.first), float("-inf"))

        return [(f"blocks.{layer}.attn.hook_attn_scores", by_query(mask)) for layer in range(int(model.cfg.n_layers))]


def test_local_edits_of_a_baseline_leave_what_was_read_as_it_was_read() -> None:
    """The prompt is read without the edit, and each new token keeps what its own step made of it."""
    dlm = HookedDLM.from_pretrained("tiny-arm")
    for prompt in PROMPTS:
        size = len(dlm.encode(prompt))
        options: Any = {"progress": False, "seed": 3}
        edits = [MaskSinks(SameStep(top_k=1))]
        local = denoise(dlm, prompt, Plan(new_tokens=12, editing="local"), interventions=edits, **options)
        by_hand = denoise(dlm, prompt, Plan(new_tokens=12), interventions=[OwnTopKey(size - 1)], **options)
        assert torch.equal(local.tokens, by_hand.tokens)
        close(local.confidence, by_hand.confidence)


def test_a_row_depends_on_no_other_row_also_where_edits_are_local(dlm: HookedDLM) -> None:
    """Rows of other lengths are at other places of their blocks, and some finished positions are computed again."""
    edits = [
        MaskSinks(SameStep(top_k=1), where=Scope(layers=0)),
        ZeroSinks(RandomKeys(SameStep(top_k=1)), where=Scope(layers=1)),
    ]
    options: Any = {"interventions": edits, "progress": False}
    together = denoise(dlm, PROMPTS, Plan(new_tokens=13, editing="local"), seed=[1, 2, 3, 4], **options)
    for row, prompt in enumerate(PROMPTS):
        alone = denoise(dlm, prompt, Plan(new_tokens=13, editing="local"), seed=row + 1, **options)
        size = alone.tokens.shape[1]
        assert together.tokens[row, -size:].tolist() == alone.tokens[0].tolist()
        close(together.confidence[row, -size:], alone.confidence[0])


def test_the_two_meanings_differ(dlm: HookedDLM) -> None:
    edits, options = [MaskSinks(SameStep(top_k=1))], {"progress": False}
    local, scratch = (
        denoise(dlm, PROMPTS, Plan(new_tokens=12, editing=edits_), interventions=edits, **options).confidence  # type: ignore[arg-type]
        for edits_ in ("local", "scratch")
    )
    assert float((local - scratch).abs().nan_to_num().max()) > 1e-3  # rounding is below 1e-6


@pytest.mark.parametrize("where", [Scope(layers=-1)])
def test_the_two_meanings_agree_in_the_last_layer(dlm: HookedDLM, where: Scope) -> None:
    """Nothing is passed on from there, so that it does not matter what earlier rows are."""
    edits = [MaskSinks(SameStep(top_k=1), where=where)]
    options: Any = {"progress": False, "interventions": edits}
    local, scratch = (
        denoise(dlm, PROMPTS, Plan(new_tokens=12, editing=edits_), **options)  # type: ignore[arg-type]
        for edits_ in ("local", "scratch")
    )
    assert torch.equal(local.tokens, scratch.tokens)
    close(local.confidence, scratch.confidence)


def test_a_text_of_one_block_has_no_past() -> None:
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    edits: Any = {"interventions": [MaskSinks(SameStep(top_k=1))], "progress": False}
    runs = [denoise(dlm, [[0, 7]], Plan(new_tokens=2, editing=meaning), **edits) for meaning in ("local", "scratch")]  # type: ignore[arg-type]
    close(runs[0].confidence, runs[1].confidence)
    assert runs[0].forwards == {"step": 2}


def test_a_cache_is_kept_where_nothing_needs_more(dlm: HookedDLM) -> None:
    def forwards(probe: Any, **options: Any) -> int:
        seen: list[int] = []
        hook = dlm.original_model.model.embed_tokens.register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
        try:
            denoise(dlm, PROMPTS[:1], Plan(new_tokens=12), probes=[probe], progress=False, **options)
        finally:
            hook.remove()
        return max(seen[4:])

    assert forwards(ReceivedAttention(queries=MODELS[dlm.name])) <= 4  # type: ignore[arg-type]
    assert forwards(ReceivedAttention()) > 4
    assert forwards(Confidence()) > 4
    assert forwards(ReceivedAttention(queries=MODELS[dlm.name]), interventions=[MaskSinks(SameStep(top_k=1))]) > 4  # type: ignore[arg-type]


def test_whoever_takes_the_steps_gets_all_rows_of_logits(dlm: HookedDLM) -> None:
    for step in denoising_steps(dlm, PROMPTS[:1], Plan(new_tokens=8)):
        assert step.first == 0
        assert step.logits.shape[1] == step.canvas.tokens.shape[1] + dlm.is_causal


@pytest.mark.parametrize(
    ("plan", "parts", "said"),
    [
        ({"cache": True}, {"probes": [ReceivedAttention()]}, "asks for positions that are settled"),
        ({"cache": True}, {"probes": [Confidence()]}, "asks for positions that are settled"),
        ({"cache": True}, {"interventions": [MaskSinks(SameStep(top_k=1))]}, "acts on every position from scratch"),
        ({"editing": "local"}, {"interventions": [ZeroValue(SameStep(top_k=1))]}, "more than the scores and weights"),
        ({"editing": "local"}, {"interventions": [MaskSinks(SameStep(top_k=1, loop="open"))]}, "more than the scores"),
        (
            {"editing": "local"},
            {"interventions": [MaskSinks(SameStep(SinkRule(queries="all")))]},
            "reads the attention of others",
        ),
        ({"editing": "local", "new_tokens": 0}, {"interventions": [NullKey(0.0)]}, "gaps inside a text"),
    ],
)
def test_what_has_no_meaning_with_a_cache_is_an_error(
    dlm: HookedDLM, plan: dict[str, Any], parts: dict[str, Any], said: str
) -> None:
    prompts: Any = ["molma telme"] if plan.get("new_tokens", 4) else [[0, 7, dlm.ids.mask, 8]]
    with pytest.raises(PlanError, match=said):
        denoise(dlm, prompts, Plan(**{"new_tokens": 4, **plan}), progress=False, **parts)


@pytest.mark.parametrize("plan", [{"cache": True}, {"editing": "local"}])
def test_what_sees_the_whole_canvas_has_no_past(plan: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="sees the whole canvas at every step"):
        denoise(HookedDLM.from_pretrained("tiny-dlm"), "molma", Plan(new_tokens=4, **plan), progress=False)


def test_local_edits_without_a_cache_contradict_each_other() -> None:
    with pytest.raises(PlanError, match="leave cache=False out"):
        Plan(cache=False, editing="local")


def test_a_likelihood_has_no_local_edits() -> None:
    dlm = HookedDLM.from_pretrained("tiny-arm")
    with pytest.raises(PlanError, match="a likelihood has none"):
        ablate(dlm, Echo(2), {"top-1": MaskSinks(SameStep(top_k=1))}, Plan(editing="local"), metrics=["log_likelihood"])


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_an_ablation_in_either_meaning_is_what_single_runs_are(dlm: HookedDLM, metric: str) -> None:
    """Arms share forwards there; each is what its own run says."""
    task, edit = Echo(3, seed=2), MaskSinks(SameStep(top_k=1))
    plan = Plan(new_tokens=12, editing="local")
    result = ablate(dlm, task, {"top-1": edit}, plan, metrics=[metric], progress=False)
    table = result.summary().set_index("kind").value
    values = []
    for index in range(len(task)):
        start: Any = {"seed": index, "progress": False}
        clean = denoise(dlm, task[index].prompt, plan, **start)
        if metric == "accuracy":
            run = denoise(dlm, task[index].prompt, plan, interventions=[edit], **start)
            score = task.score(task[index], run.completions[0])
            values += [score.accuracy] if score.total else []
            continue
        pairs = zip(
            denoising_steps(dlm, [task[index].prompt], plan, seed=index, follow=clean, interventions=[edit]),
            denoising_steps(dlm, [task[index].prompt], plan, seed=index, follow=clean),
            strict=True,
        )
        for edited, plain in pairs:
            where = edited.committed if dlm.is_causal else plain.canvas.masked & plain.canvas.valid
            p, q = (
                step.logits[where[:, step.first : step.first + step.logits.shape[1]]].float().log_softmax(-1)
                for step in (plain, edited)
            )
            values += (p.exp() * (p - q)).sum(-1).tolist()
    assert table["sinks"] == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES if family.causal])
def test_every_baseline_writes_the_same_with_a_cache(tiny_model: Any, family: str) -> None:
    """Also GPT-2, whose positions are embedded, and experts; prompts of several lengths, one of which ends early."""
    dlm = tiny_model(family)
    prompts = [[5, 17, 9, 33], [8, 12], [7, 40, 21, 3, 11, 30]]
    runs = [
        denoise(
            dlm,
            prompts,
            Plan(new_tokens=9, temperature=temperature, cache=cache),
            probes=[ReceivedAttention(queries="last")],
            seed=[1, 2, 3],
            progress=False,
        )
        for temperature in (0.0, 1.0)
        for cache in (True, False)
    ]
    for kept, anew in (runs[:2], runs[2:]):
        assert torch.equal(kept.tokens, anew.tokens)
        close(kept.confidence, anew.confidence)
        close(kept.record["received"], anew.record["received"])
