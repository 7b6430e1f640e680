"""The denoising loop: what is committed when, by which seed, with which hooks, and what remains after an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parts import Acts, Sees
from torch import Tensor

from sinklens import Canvas, HookedDLM, MaskSinks, Plan, SameStep, Scope, denoise, denoising_steps
from sinklens.errors import HookNeverFired, PlanError, ScopeError
from sinklens.probes import Confidence, ReceivedAttention

MASK, PAD = 62, 1
PROMPT = [5, 17, 9, 30, 2, 44]
PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7]]
DIFFUSION, BASELINES = (
    ["LLaDA", "MMaDA", "Dream", "A2D-Qwen3", "DiffuGPT", "MDLM"],
    ["Llama", "Qwen2", "Qwen3", "GPT-2"],
)

Model = Callable[[str], HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model of a family, made before any test forbids forwards."""
    return {name: tiny_model(name) for name in (*DIFFUSION, *BASELINES, "open-dcoder")}.__getitem__


def run(dlm: HookedDLM, prompts: Any, plan: Plan, **options: Any) -> Any:
    """`denoise` without a progress bar."""
    return denoise(dlm, prompts, plan, progress=False, **options)


def rows_of(result: Any) -> list[list[int]]:
    """Tokens of each row without its left padding."""
    length = result.tokens.shape[1]
    sizes = result.record["prompt_length"].values + result.filled.sum(-1).numpy()
    return [row[length - size :].tolist() for row, size in zip(result.tokens, sizes, strict=True)]


def hooks_left(dlm: HookedDLM) -> list[str]:
    """Hook points on which something is attached."""
    return [name for name, point in dlm.hook_dict.items() if point.has_hooks()]


# What a step commits.


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan for LLaDA's sampler: any block length, any even number of steps per block."""
    block, blocks = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    per_block = draw(st.integers(1, block))
    remasking = draw(st.sampled_from(["low_confidence", "random", "margin", "entropy"]))
    return Plan(new_tokens=block * blocks, block_length=block, steps=per_block * blocks, remasking=remasking)


@given(plans(), st.integers(0, 100))
def test_each_step_of_llada_commits_its_even_share_of_the_current_block(model: Model, plan: Plan, seed: int) -> None:
    dlm, blocks = model("LLaDA"), plan.new_tokens // plan.block_length
    per_block = plan.steps // blocks
    share, rest = divmod(plan.block_length, per_block)
    expected = ([share + 1] * rest + [share] * (per_block - rest)) * blocks
    steps = list(denoising_steps(dlm, [PROMPT, PROMPT[:2]], plan, seed=seed))
    assert len(steps) == plan.steps
    for step in steps:
        assert step.committed.sum(-1).tolist() == [expected[step.index]] * 2
        block = step.index // per_block
        start = len(PROMPT) + block * plan.block_length
        assert not step.committed[:, :start].any()
        assert not step.committed[:, start + plan.block_length :].any()


@given(
    st.sampled_from([*DIFFUSION, *BASELINES]),
    st.integers(1, 10),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 100),
)
def test_committed_tokens_never_change(
    model: Model, family: str, new_tokens: int, temperature: float, seed: int
) -> None:
    plan, before = Plan(new_tokens=new_tokens, temperature=temperature), None
    for step in denoising_steps(model(family), PROMPTS, plan, seed=seed):
        width = step.canvas.tokens.shape[1]
        if before is not None:
            assert torch.equal(step.canvas.tokens, before.tokens[:, :width])  # the loop hands on what it showed
            known = ~masked
            assert torch.equal(step.tokens[known], before.tokens[known])
            masked = masked & ~step.committed
        else:
            masked = torch.zeros_like(step.tokens, dtype=torch.bool)
            masked[:, -new_tokens:] = True
            assert (step.canvas.tokens[step.canvas.masked] == MASK).all()
            masked = masked & ~step.committed
        if family not in BASELINES:
            assert (step.tokens[masked] == MASK).all()
            assert (step.tokens[~masked] != MASK).all()
        before = step


@pytest.mark.parametrize("steps", [1, 3, 5, 10])
def test_dream_commits_by_timestep(model: Model, steps: int) -> None:
    """The sampler's own arithmetic: the share 1 - s/t of what is left, rounded down, all at the last step."""
    left, eps = 10, 1e-3
    for step in denoising_steps(model("Dream"), PROMPT, Plan(new_tokens=10, steps=steps)):
        t, s = (1 + (eps - 1) * k / steps for k in (step.index, step.index + 1))
        count = left if step.index == steps - 1 else int(left * (1 - s / t))
        assert int(step.committed.sum()) == count
        left -= count
    assert left == 0


@pytest.mark.parametrize("family", DIFFUSION)
def test_the_most_confident_positions_are_committed_first(model: Model, family: str) -> None:
    plan = Plan(new_tokens=9, steps=3, sampler="llada", remasking="low_confidence", block_length=9)
    for step in denoising_steps(model(family), PROMPT, plan):
        masked = step.canvas.masked
        # The mask cannot be chosen; its probability is in the confidence, as in the official samplers.
        best = step.logits.softmax(-1).index_fill(-1, torch.tensor([MASK]), 0.0).max(-1)
        torch.testing.assert_close(step.confidence[masked], best.values[masked], atol=1e-6, rtol=0)
        assert torch.equal(step.predicted[masked], best.indices[masked])
        rest = step.confidence[masked & ~step.committed]
        assert not len(rest) or step.confidence[step.committed].min() >= rest.max()
        assert step.confidence[~masked].isnan().all()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.99])
def test_a_threshold_commits_all_that_reach_it(model: Model, threshold: float) -> None:
    steps = list(denoising_steps(model("LLaDA"), [PROMPT, PROMPT[:3]], Plan(new_tokens=12, threshold=threshold)))
    for step in steps:
        for row in range(2):
            confident = step.canvas.masked[row] & (step.confidence[row] >= threshold)
            if confident.any():
                assert torch.equal(step.committed[row], confident)
            else:
                assert int(step.committed[row].sum()) == int(step.active[row])
    assert not (steps[-1].tokens == MASK).any()


@pytest.mark.parametrize("family", ["LLaDA", "Dream"])
@pytest.mark.parametrize("threshold", [-2.5, -1.0])
def test_a_threshold_on_the_entropy_commits_all_that_reach_it(model: Model, family: str, threshold: float) -> None:
    """Against the entropy of each position's logits, computed here."""
    several = False
    for step in denoising_steps(model(family), [PROMPT], Plan(new_tokens=12, threshold=threshold, remasking="entropy")):
        p = step.logits.double().softmax(-1)
        negative = (p * p.log()).sum(-1)
        sure = step.canvas.masked & (negative >= threshold)
        assert torch.equal(step.committed, sure) if sure.any() else int(step.committed.sum()) == 1
        several |= int(step.committed.sum()) > 1
    assert several or threshold > -2  # most entropies here lie between


@pytest.mark.parametrize("family", [*DIFFUSION, *BASELINES])
def test_the_mask_token_is_never_chosen(model: Model, family: str) -> None:
    """The likeliest token everywhere is the mask token (for a baseline: EOS), and it must not be committed."""
    dlm = model(family)
    favoured = dlm.ids.eos[0] if dlm.is_causal else MASK
    push = Acts(lambda logits, canvas: logits + 1e3 * (torch.arange(64) == favoured), "unembed.hook_out")
    plan = Plan(new_tokens=6, suppress_eos="logits" if dlm.is_causal else None)
    result = run(dlm, PROMPT, plan, interventions=[push])
    assert favoured not in result.tokens[0, len(PROMPT) :].tolist()
    assert (result.commit_step[0, len(PROMPT) :] >= 0).all()


@pytest.mark.parametrize("family", DIFFUSION)
def test_suppress_eos_confidence_commits_eos_last(model: Model, family: str) -> None:
    """EOS is the likeliest token at two positions and must wait for all others (appendix B.4)."""
    dlm = model(family)
    early = [7, 8]

    def favour(logits: Tensor, canvas: Canvas) -> Tensor:
        out = logits.clone()
        for position in early:
            out[:, position, list(dlm.ids.eos)] += 1e3
        return out

    plan = Plan(new_tokens=8, sampler="llada", remasking="low_confidence", block_length=8, suppress_eos="confidence")
    result = run(dlm, PROMPT, plan, interventions=[Acts(favour, "unembed.hook_out")])
    assert set(result.commit_step[0, early].tolist()) == {6, 7}
    assert result.tokens[0, early].tolist() == [*dlm.ids.eos] * 2
    plain = run(
        dlm, PROMPT, dataclasses.replace(plan, suppress_eos=None), interventions=[Acts(favour, "unembed.hook_out")]
    )
    assert set(plain.commit_step[0, early].tolist()) == {0, 1}


# Seeds.

SEEDED = [
    ("LLaDA", Plan(new_tokens=8, block_length=4)),
    ("LLaDA", Plan(new_tokens=8, steps=4, block_length=4, temperature=1.0)),
    ("LLaDA", Plan(new_tokens=8, steps=4, block_length=8, remasking="random")),
    ("LLaDA", Plan(new_tokens=8, steps=4, block_length=8, remasking="random", temperature=1.0)),
    ("A2D-Qwen3", Plan(new_tokens=8, threshold=0.3, temperature=1.0)),
    ("MMaDA", Plan(new_tokens=8, cfg_scale=1.0, temperature=1.0)),
    ("Dream", Plan(new_tokens=8, steps=5)),
    ("Dream", Plan(new_tokens=8, steps=5, temperature=1.0, top_p=0.9)),
    ("Dream", Plan(new_tokens=8, steps=5, remasking="origin", temperature=1.0)),
    ("Dream", Plan(new_tokens=8, steps=5, remasking="entropy", alg_temp=0.5)),
    ("DiffuGPT", Plan(new_tokens=8, steps=12, temperature=0.95, top_p=0.9)),
    ("DiffuGPT", Plan(new_tokens=8, steps=5)),
    ("LLaDA", Plan(new_tokens=8, sampler="diffugpt", temperature=1.0, top_k=20)),
    ("LLaDA", Plan(new_tokens=8, steps=12, sampler="ddpm_cache", temperature=1.0)),
    ("Dream", Plan(new_tokens=8, steps=5, sampler="ddpm_cache")),
    ("open-dcoder", Plan(new_tokens=8, steps=12)),
    ("open-dcoder", Plan(new_tokens=8, steps=5, temperature=0.5, top_k=20)),
    ("Llama", Plan(new_tokens=8)),
    ("GPT-2", Plan(new_tokens=8, temperature=1.0)),
    ("Qwen3", Plan(new_tokens=8, temperature=1.0, top_k=20)),
]
IDS = [f"{family}-{i}" for i, (family, _) in enumerate(SEEDED)]


@pytest.mark.parametrize(("family", "plan"), SEEDED, ids=IDS)
def test_a_row_does_not_depend_on_its_batch(model: Model, family: str, plan: Plan) -> None:
    """Alone, with rows of other lengths before and after it, and in any order."""
    dlm = model(family)
    alone = [rows_of(run(dlm, prompt, plan, seed=3))[0] for prompt in PROMPTS]
    assert rows_of(run(dlm, PROMPTS, plan, seed=3)) == alone
    assert rows_of(run(dlm, PROMPTS[::-1], plan, seed=3)) == alone[::-1]
    one = run(dlm, PROMPTS[1], plan, seed=3)
    many = run(dlm, [PROMPTS[2], PROMPTS[1]], plan, seed=[8, 3])
    assert rows_of(many)[1] == alone[1]
    assert torch.equal(many.commit_step[1], one.commit_step[0])


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        case
        for case in SEEDED
        if case[1].temperature
        or case[1].remasking in ("random", "origin")
        or case[1].alg_temp
        or "diffugpt" in (case[1].sampler, case[0].lower())
        or case[1].sampler == "ddpm_cache"
    ],
)
def test_other_seeds_give_other_results(model: Model, family: str, plan: Plan) -> None:
    results = [run(model(family), PROMPT, plan, seed=seed) for seed in range(4)]
    assert len({(str(r.tokens.tolist()), str(r.commit_step.tolist())) for r in results}) == 4


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_a_greedy_run_ignores_the_seed_and_the_global_generator(model: Model, family: str) -> None:
    first = run(model(family), PROMPT, Plan(new_tokens=8), seed=0)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = run(model(family), PROMPT, Plan(new_tokens=8), seed=5)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(torch.get_rng_state(), state)


# Baselines.


@pytest.mark.parametrize("family", BASELINES)
def test_a_baseline_generates_what_transformers_does(model: Model, family: str) -> None:
    dlm = model(family)
    for prompt in PROMPTS:
        given_ = torch.tensor([prompt])
        theirs = dlm.original_model.generate(
            given_, attention_mask=torch.ones_like(given_), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        ours = run(dlm, prompt, Plan(new_tokens=12), force=None)
        new = theirs[0, len(prompt) :].tolist()
        until = next((i + 1 for i, token in enumerate(new) if token in dlm.ids.eos), 12)
        assert ours.tokens[0, len(prompt) :][:until].tolist() == new[:until]


@pytest.mark.parametrize("family", BASELINES)
def test_a_baseline_commits_one_token_per_step_from_left_to_right(model: Model, family: str) -> None:
    result = run(model(family), PROMPT, Plan(new_tokens=6, suppress_eos="logits"))
    assert result.commit_step[0].tolist() == [-1] * len(PROMPT) + list(range(6))


def test_eos_ends_a_baselines_row_and_no_other(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm, plan = model("Llama"), Plan(new_tokens=8, suppress_eos="logits")
    free = run(dlm, [PROMPTS[0], PROMPTS[1]], plan).tokens[:, -8:].tolist()
    stop = next(i for i in range(1, 7) if free[0][i] not in free[0][:i] and free[0][i] not in free[1])
    monkeypatch.setattr(dlm, "ids", dataclasses.replace(dlm.ids, eos=free[0][stop]))
    ended = run(dlm, [PROMPTS[0], PROMPTS[1]], Plan(new_tokens=8))
    assert ended.tokens[0, -8:][: stop + 1].tolist() == free[0][: stop + 1]
    assert ended.commit_step[0, -8:].tolist() == [*range(stop + 1), *[-1] * (7 - stop)]
    assert ended.completions[0] == str(free[0][:stop])
    active = [bool(step.active[0]) for step in denoising_steps(dlm, [PROMPTS[0], PROMPTS[1]], Plan(new_tokens=8))]
    assert active == [True] * (stop + 1) + [False] * (7 - stop)
    measured = run(dlm, [PROMPTS[0], PROMPTS[1]], Plan(new_tokens=8), probes=[ReceivedAttention()]).record["received"]
    assert measured[0, : stop + 1].notnull().any("key").all()
    assert measured[0, stop + 1 :].isnull().all()  # the row has ended, the batch has not
    assert measured[1].notnull().any("key").all()


def test_a_baseline_never_sees_what_it_has_not_written(model: Model) -> None:
    for step in denoising_steps(model("Llama"), [PROMPTS[0], PROMPTS[1]], Plan(new_tokens=4, suppress_eos="logits")):
        assert step.canvas.tokens.shape[1] == 6 + step.index
        assert step.canvas.valid[0].tolist() == [False] * 3 + [True] * (3 + step.index)
        assert MASK not in step.canvas.tokens[step.canvas.valid].tolist()
    for step in denoising_steps(model("Llama"), GAPPED, Plan(new_tokens=0)):  # rows whose next gaps differ
        assert MASK not in step.canvas.tokens[step.canvas.valid & step.active[:, None]].tolist()


# Rows of logits.


@pytest.mark.parametrize("family", [*DIFFUSION, *BASELINES])
def test_row_i_of_the_logits_scores_position_i(model: Model, family: str) -> None:
    """For every model, padded or not: each row of a step against a forward of that prompt alone."""
    dlm, scored = model(family), 0
    for step in denoising_steps(dlm, PROMPTS, Plan(new_tokens=3, suppress_eos="logits" if dlm.is_causal else None)):
        width = step.canvas.tokens.shape[1]
        assert step.logits.shape[1] == width + dlm.is_causal
        for row in range(len(PROMPTS)):
            start = int(step.canvas.valid[row].int().argmax())
            alone = dlm(step.canvas.tokens[row : row + 1, start:]).detach()[0]
            for place in range(start + dlm.is_causal, step.logits.shape[1]):
                expected = alone[place - start - dlm.is_causal]  # a baseline's row i - 1 predicts token i
                torch.testing.assert_close(step.logits[row, place], expected, atol=2e-4, rtol=0)
                scored += 1
        if dlm.is_causal:
            best = step.logits.index_fill(-1, torch.tensor(dlm.ids.eos), -torch.inf).argmax(-1)
            committed = step.committed[:, : best.shape[1]]
            assert torch.equal(step.predicted[:, : best.shape[1]][committed], best[committed])
    assert scored >= 39


# Gaps and forcing.

GAPPED = [[5, MASK, 6, MASK, MASK, 9], [8, 3, MASK, 11]]


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "A2D-Qwen3", "Llama"])
def test_filling_gaps_leaves_given_tokens_alone(model: Model, family: str) -> None:
    result = run(model(family), GAPPED, Plan(new_tokens=0, suppress_eos="logits"))
    assert result.finished
    for ours, prompt in zip([result.tokens[0], result.tokens[1, 2:]], GAPPED, strict=True):
        assert len(ours) == len(prompt)
        for token, given_ in zip(ours.tolist(), prompt, strict=True):
            assert token != MASK if given_ == MASK else token == given_
    assert result.filled.tolist()[0] == [token == MASK for token in GAPPED[0]]
    assert result.record["given"].values[1].tolist() == [1, 1, 0, 1, -1, -1]
    alone = run(model(family), GAPPED[1], Plan(new_tokens=0, suppress_eos="logits"))
    assert alone.tokens[0].tolist() == result.tokens[1, 2:].tolist()


def test_a_baseline_fills_gaps_from_what_stands_to_their_left(model: Model) -> None:
    dlm = model("Llama")
    tokens = run(dlm, GAPPED[0], Plan(new_tokens=0, suppress_eos="logits")).tokens
    for gap in (1, 3, 4):
        scores = dlm(tokens[:, :gap])[0, -1].index_fill(0, torch.tensor(dlm.ids.eos), float("-inf"))
        assert int(tokens[0, gap]) == int(scores.argmax())


def test_a_baseline_that_writes_eos_into_a_gap_fills_the_others_too(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EOS ends a continuation; between given tokens it ends nothing."""
    dlm = model("Llama")
    first = int(run(dlm, GAPPED[0], Plan(new_tokens=0, suppress_eos="logits")).tokens[0, 1])
    monkeypatch.setattr(dlm, "ids", dataclasses.replace(dlm.ids, eos=first))
    assert MASK not in run(dlm, GAPPED[0], Plan(new_tokens=0)).tokens[0].tolist()


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_forced_tokens_are_committed_and_predicted_keeps_the_models_choice(model: Model, family: str) -> None:
    dlm, prompts = model(family), [PROMPTS[0], PROMPTS[1]]
    force = [[10, 11, 12, 1, 13, 14], [20, 21, 22, 23, 24, 25]]  # EOS (1) among them ends nothing
    result = run(dlm, prompts, Plan(new_tokens=6), force=force)
    assert result.tokens[:, -6:].tolist() == force
    assert (result.commit_step[:, -6:] >= 0).all()
    for step in denoising_steps(dlm, prompts, Plan(new_tokens=6), force=force):
        at = step.committed
        assert torch.equal(step.predicted[at], result.predicted[at])
        scored = step.logits if dlm.is_causal else step.logits.index_fill(-1, torch.tensor([MASK]), float("-inf"))
        choice = scored.argmax(-1)[at[:, : scored.shape[1]]]
        assert torch.equal(step.predicted[at], choice)
    assert not torch.equal(result.predicted[:, -6:], result.tokens[:, -6:])


def test_forcing_a_runs_own_tokens_repeats_it(model: Model) -> None:
    plan = Plan(new_tokens=8, steps=4, block_length=8)
    free = run(model("LLaDA"), PROMPT, plan)
    forced = run(model("LLaDA"), PROMPT, plan, force=[free.tokens[0, -8:].tolist()])
    assert torch.equal(forced.tokens, free.tokens)
    assert torch.equal(forced.commit_step, free.commit_step)


# Classifier-free guidance.


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("family", ["LLaDA", "Dream"])
def test_guidance_is_u_plus_w_plus_one_times_c_minus_u(model: Model, family: str, scale: float) -> None:
    dlm, changed = model(family), False
    plan = Plan(new_tokens=6, cfg_scale=scale, sampler="llada", remasking="low_confidence", block_length=6)
    for step in denoising_steps(dlm, [PROMPTS[0], PROMPTS[1]], plan):
        canvas = step.canvas
        blind = torch.where(canvas.prompt, MASK, canvas.tokens)
        with_prompt, without = (dlm(each, attention_mask=canvas.valid) for each in (canvas.tokens, blind))
        assert torch.equal(step.logits, with_prompt)
        guided = without + (scale + 1) * (with_prompt - without)
        best = guided.softmax(-1).index_fill(-1, torch.tensor([MASK]), 0.0).max(-1)  # only not chosen
        assert torch.equal(step.predicted[canvas.masked], best.indices[canvas.masked])
        torch.testing.assert_close(step.confidence[canvas.masked], best.values[canvas.masked], atol=1e-5, rtol=0)
        changed |= not torch.equal(best.indices[canvas.masked], with_prompt.argmax(-1)[canvas.masked])
    assert changed


@pytest.mark.usefixtures("no_forward")
def test_edits_under_guidance_are_refused(model: Model) -> None:
    with pytest.raises(PlanError, match=r"cfg_scale=1"):
        run(model("LLaDA"), PROMPT, Plan(new_tokens=4, cfg_scale=1.0), interventions=[Acts()])


# Probes and edits.


def test_an_interrupt_returns_what_was_finished(model: Model) -> None:
    def interrupt(tensor: Tensor, canvas: Canvas) -> None:
        if canvas.step == 3:
            raise KeyboardInterrupt

    dlm, plan = model("LLaDA"), Plan(new_tokens=8)
    probes = [ReceivedAttention(), Sees(interrupt, "blocks.1.attn.hook_pattern")]
    part = run(dlm, PROMPT, plan, probes=probes)
    whole = run(dlm, PROMPT, plan, probes=[ReceivedAttention()])
    assert not part.finished
    assert whole.finished
    assert part.record.sizes["step"] == 3
    assert int((part.commit_step >= 0).sum()) == 3
    assert int((part.tokens == MASK).sum()) == 5
    np.testing.assert_array_equal(part.record["received"], whole.record["received"][:, :3])
    assert json.loads(part.record.attrs["provenance"])["finished"] is False
    assert not dlm.hooked


def test_an_interrupt_at_the_first_step_has_nothing_to_return(model: Model) -> None:
    def interrupt(tensor: Tensor, canvas: Canvas) -> None:
        raise KeyboardInterrupt

    dlm = model("LLaDA")
    with pytest.raises(KeyboardInterrupt):
        run(dlm, PROMPT, Plan(new_tokens=4), probes=[Sees(interrupt, "embed.hook_out")])
    assert not dlm.hooked


@pytest.mark.parametrize("point", ["blocks.0.attn.hook_result", "blocks.7.attn.hook_pattern"])
def test_a_hook_that_never_fires_raises(model: Model, point: str) -> None:
    """One point is there and off, one is not there."""
    dlm = model("LLaDA")
    parts = [ReceivedAttention(), Sees(point=point)]
    with pytest.raises(HookNeverFired, match=point):
        run(dlm, PROMPT, Plan(new_tokens=4), probes=parts)
    assert not hooks_left(dlm)
    assert not dlm.hooked


def test_no_hooks_are_left_after_an_error_or_a_loop_that_is_left_early(model: Model) -> None:
    def fail(tensor: Tensor, canvas: Canvas) -> None:
        if canvas.step == 1:
            raise ZeroDivisionError

    dlm = model("LLaDA")
    parts = [ReceivedAttention(), Sees(fail, "blocks.1.attn.hook_pattern")]
    with pytest.raises(ZeroDivisionError):
        run(dlm, PROMPT, Plan(new_tokens=4), probes=parts)
    assert not hooks_left(dlm)
    for _ in denoising_steps(dlm, PROMPT, Plan(new_tokens=4), probes=[ReceivedAttention()]):
        assert not hooks_left(dlm)  # between two steps neither
        break
    assert not hooks_left(dlm)
    assert not dlm.hooked


def test_a_users_own_hooks_stay(model: Model) -> None:
    dlm, seen = model("LLaDA"), []
    with dlm.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda tensor, *, hook: seen.append(1))]):
        run(dlm, PROMPT, Plan(new_tokens=4), probes=[ReceivedAttention()])
        assert len(seen) == 4
        assert hooks_left(dlm) == ["blocks.0.attn.hook_pattern"]


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "A2D-Qwen3", "Llama"])
def test_received_attention_is_the_column_sum_of_the_pattern(model: Model, family: str) -> None:
    dlm, prompts, plan = model(family), [PROMPTS[0], PROMPTS[1]], Plan(new_tokens=4, suppress_eos="logits")
    received = run(dlm, prompts, plan, probes=[ReceivedAttention()]).record["received"]
    assert received.dims == ("prompt", "step", "layer", "head", "key")
    assert received.shape == (2, 4, 2, 4, 10)
    for step in denoising_steps(dlm, prompts, plan):
        valid = step.canvas.valid
        options = {"attention_mask": valid.long(), "position_ids": (valid.long().cumsum(-1) - 1).clamp(min=0)}
        with torch.no_grad():
            _, cache = dlm.run_with_cache(step.canvas.tokens, **options)
        for row, start in enumerate([3, 0]):
            length = int(valid[row].sum())
            ours = received.values[row, step.index]
            for layer in range(2):
                pattern = cache["pattern", layer][row, :, start:, start:]
                torch.testing.assert_close(torch.tensor(ours[layer, :, :length]), pattern.sum(-2), atol=1e-5, rtol=0)
            assert np.isnan(ours[:, :, length:]).all()  # what the shorter row does not have


@pytest.mark.parametrize("family", DIFFUSION)
def test_received_attention_averages_one(model: Model, family: str) -> None:
    plan = Plan(
        new_tokens=4,
        sampler=None if family in BASELINES else "llada",
        remasking=None if family in BASELINES else "low_confidence",
    )
    received = run(model(family), PROMPTS, plan, probes=[ReceivedAttention()]).record["received"]
    np.testing.assert_allclose(received.mean("key"), 1, atol=1e-5)
    real = (~received.isnull()).sum("key")
    assert (real == real.isel(step=0)).all()
    assert real.isel(step=0, layer=0, head=0).values.tolist() == [7, 10, 5]


def test_received_attention_of_some_queries_and_steps(model: Model) -> None:
    probe = ReceivedAttention(Scope(layers=[1], steps=slice(1, 3)), queries="masked")
    received = run(model("LLaDA"), PROMPT, Plan(new_tokens=4), probes=[probe]).record["received"]
    assert received.sizes["layer"] == 1
    total = received.sum("key", skipna=False).values[0, :, 0, 0]
    assert np.isnan(total[[0, 3]]).all()
    np.testing.assert_allclose(total[1:3], [3, 2], atol=1e-5)  # so many queries are still masked


def test_probes_see_what_the_edits_made(model: Model) -> None:
    edit = Acts(lambda pattern, canvas: torch.eye(pattern.shape[-1]).expand_as(pattern))
    result = run(model("LLaDA"), PROMPT, Plan(new_tokens=3), probes=[ReceivedAttention()], interventions=[edit])
    np.testing.assert_array_equal(result.record["received"].isel(layer=0), 1)
    assert not np.allclose(result.record["received"].isel(layer=1), 1)
    assert result.memories[0].steps == 3
    assert result.memories[0].counts() == {"acts": 3}
    assert result.fired[repr(edit)] == 3
    assert result.fired["ReceivedAttention()"] == 3 * 2


def test_edits_act_only_at_their_steps(model: Model) -> None:
    touched = []
    where = Scope(steps=slice(2, None))
    edit = Acts(lambda pattern, canvas: touched.append(canvas.step), where=where)
    run(model("LLaDA"), PROMPT, Plan(new_tokens=5), interventions=[edit])
    assert touched == [2, 3, 4]


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Scope(layers=[9]), "layer 9 does not exist; there are 2"),
        (Scope(layers=-3), "layer -3 does not exist"),
        (Scope(heads=[0, 4]), "head 4 does not exist; there are 4"),
        (Scope(layers=[]), "selects none"),
        (Scope(steps=slice(100, 200)), r"steps=slice\(100, 200, None\) holds at none of the 4 steps"),
        (Scope(steps=4), "steps=4 holds at none of the 4 steps"),
    ],
)
def test_a_scope_that_is_not_there_is_refused(model: Model, where: Scope, message: str) -> None:
    for options in (
        {"probes": [ReceivedAttention(where)]},
        {"interventions": [Acts(where=where)]},
    ):
        with pytest.raises(ScopeError, match=message):
            run(model("LLaDA"), PROMPT, Plan(new_tokens=4), **options)


# The run.


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_a_run_keeps_what_the_steps_showed(model: Model, family: str) -> None:
    dlm, prompts, plan = model(family), PROMPTS, Plan(new_tokens=5, suppress_eos="logits")
    result = run(dlm, prompts, plan, seed=1)
    record, steps = result.record, list(denoising_steps(dlm, prompts, plan, seed=1))
    assert torch.equal(result.tokens, steps[-1].tokens)
    assert record.sizes["step"] == len(steps)
    for step in steps:
        assert torch.equal(result.commit_step == step.index, step.committed)
        torch.testing.assert_close(result.confidence[step.committed], step.confidence[step.committed])
        for row, prompt in enumerate(prompts):
            start = 6 - len(prompt)
            seen = step.canvas.tokens[row, start:].tolist()
            assert record["canvas"].values[row, step.index, : len(seen)].tolist() == seen
    assert record["prompt_length"].values.tolist() == [3, 6, 1]
    assert record["token"].values[2].tolist() == [*result.tokens[2, 5:].tolist(), *[-1] * 5]
    provenance = json.loads(record.attrs["provenance"])
    assert provenance["plan"]["new_tokens"] == 5
    assert provenance["seed"] == 1
    assert provenance["family"] == family


def test_text_prompts_come_back_as_text(official: Any) -> None:
    dlm = official("a2d_qwen3")
    text = dlm.tokenizer.decode(PROMPT)
    result = run(dlm, text, Plan(new_tokens=4))
    assert result.tokens[0, : len(PROMPT)].tolist() == dlm.encode(text)
    new = result.tokens[0, len(PROMPT) :].tolist()
    until = next((i for i, token in enumerate(new) if token in dlm.ids.eos), 4)
    assert result.completions == [dlm.decode(new[:until])]


@pytest.mark.parametrize("prompts", [PROMPT, tuple(PROMPT), torch.tensor(PROMPT), np.array(PROMPT), [PROMPT]])
def test_one_prompt_in_every_form(model: Model, prompts: Any) -> None:
    expected = run(model("LLaDA"), [PROMPT], Plan(new_tokens=3)).tokens
    assert torch.equal(run(model("LLaDA"), prompts, Plan(new_tokens=3)).tokens, expected)


def test_several_prompts_as_a_tensor(model: Model) -> None:
    pair = [PROMPT, PROMPT[::-1]]
    expected = run(model("LLaDA"), pair, Plan(new_tokens=3)).tokens
    assert torch.equal(run(model("LLaDA"), torch.tensor(pair), Plan(new_tokens=3)).tokens, expected)


@pytest.mark.parametrize("steps", [-1, slice(-2, None), [0, -1]])
def test_steps_from_the_end_need_rows_that_take_as_many(model: Model, steps: Any) -> None:
    """Else they would mean another step in another batch."""
    dlm, edit = model("LLaDA"), MaskSinks(SameStep(top_k=1), where=Scope(steps=steps))
    gaps = [[5, MASK, 9, MASK, MASK], [12, 40, MASK]]
    with pytest.raises(ScopeError, match="the prompts of this run take 1 to 3 steps"):
        next(denoising_steps(dlm, gaps, Plan(new_tokens=0), interventions=[edit]))
    next(denoising_steps(dlm, gaps[:1] * 2, Plan(new_tokens=0), interventions=[edit]))


# The unembedding of a baseline.


def unembedded(dlm: HookedDLM, run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What a run gives, and how many positions its unembedding saw, forward by forward."""
    sizes: list[int] = []
    head: Any = dlm.original_model.lm_head
    handle = head.register_forward_hook(lambda _, inputs, out: sizes.append(inputs[0].shape[1]))
    try:
        return run(), sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", BASELINES)
def test_a_run_of_a_baseline_unembeds_the_next_position_alone(model: Model, family: str) -> None:
    """With the same tokens and confidences as steps, which show every row of logits."""
    dlm, plan = model(family), Plan(new_tokens=3, suppress_eos="logits")
    whole, every = unembedded(dlm, lambda: list(denoising_steps(dlm, PROMPTS, plan)))
    result, alone = unembedded(dlm, lambda: run(dlm, PROMPTS, plan, probes=[ReceivedAttention()]))
    assert (every, alone) == ([6, 7, 8], [1, 1, 1])
    assert torch.equal(result.tokens, whole[-1].tokens)
    for step in whole:
        torch.testing.assert_close(result.confidence[step.committed], step.confidence[step.committed])


def test_a_run_unembeds_all_that_somebody_looks_at(model: Model) -> None:
    """A probe of the logits, a hook of one's own, attention in the open, and gaps at different places."""
    dlm, plan = model("Llama"), Plan(new_tokens=2, suppress_eos="logits")
    plain = run(dlm, PROMPTS, plan)
    probed, sizes = unembedded(dlm, lambda: run(dlm, PROMPTS, plan, probes=[Confidence()]))
    assert sizes == [6, 7]
    assert torch.equal(plain.tokens, probed.tokens)
    assert probed.record["prediction_probability"].isel(prompt=1, step=1).notnull().sum() == 7
    seen: list[int] = []
    with dlm.hooks(fwd_hooks=[("unembed.hook_in", lambda tensor, hook: seen.append(tensor.shape[1]))]):
        run(dlm, PROMPTS, plan)
    assert seen == [6, 7]
    dlm.attention = "blocks"
    try:
        assert unembedded(dlm, lambda: run(dlm, PROMPTS, dataclasses.replace(plan, cache=False)))[1] == [6, 7]
    finally:
        dlm.attention = "auto"
    gaps = [[5, MASK, 9, MASK], [7, 8, MASK, MASK]]
    filled, sizes = unembedded(dlm, lambda: run(dlm, gaps, Plan(new_tokens=0)))
    assert sizes == [2, 1]  # the rows' next gaps are at 1 and 2 first, and then both at 3
    assert torch.equal(filled.tokens, list(denoising_steps(dlm, gaps, Plan(new_tokens=0)))[-1].tokens)
