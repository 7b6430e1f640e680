"""The likelihood of an answer: masks as in LLaDA's code, the mean over them, edits, baselines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from parts import Acts
from parts_text import twin
from torch import Tensor

from sinklens import HookedDLM, MaskSinks, PreviousStep, SameStep, Scope, ZeroSinks
from sinklens.decoding.likelihood import log_likelihood
from sinklens.decoding.noising import dream, llada
from sinklens.errors import PlanError, ScopeError
from sinklens.hooks import Canvas, Edit, Hook, Memory
from sinklens.interventions import Fixed, InOrder, control

PROMPT, ANSWER = [0, 20, 31, 22, 25], [21, 40, 33]


@pytest.fixture(scope="module")
def dlm() -> HookedDLM:
    """The bundled diffusion twin."""
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture(scope="module")
def arm() -> HookedDLM:
    """The bundled autoregressive twin."""
    return HookedDLM.from_pretrained("tiny-arm")


# Masks.


def llada_counts(first: int, length: int, samples: int) -> list[int]:
    """ML-GSAI/LLaDA, get_log_likelihood, for the first count `first` in 1..length; but halves are rounded up."""
    x = torch.floor(torch.arange(samples).double() * length / samples + 0.5).long() + first
    return (((x - 1) % length) + 1).tolist()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 32])
@pytest.mark.parametrize("samples", [1, 2, 4, 16])
def test_counts_are_stratified_as_in_lladas_code(length: int, samples: int) -> None:
    possible = [llada_counts(first, length, samples) for first in range(1, length + 1)]
    seen = set()
    for seed in range(12 * length):
        masks = llada(samples, length, seed).masks
        assert masks.shape == (samples, length)
        assert masks.dtype == bool
        counts = masks.sum(-1).tolist()
        assert counts in possible, (seed, counts)
        seen.add(counts[0])
    assert seen == set(range(1, length + 1))


def test_counts_cover_every_share() -> None:
    """Stratified: 16 draws of 32 tokens are 2 apart."""
    for seed in range(20):
        counts = sorted(llada(16, 32, seed).masks.sum(-1).tolist())
        assert set(np.diff(counts)) == {2}


def test_every_subset_of_a_size_is_as_likely() -> None:
    found: dict[tuple[bool, ...], int] = {}
    for seed in range(3000):
        mask = tuple(llada(1, 3, seed).masks[0].tolist())
        found[mask] = found.get(mask, 0) + 1
    assert len(found) == 7
    for mask, count in found.items():
        share = 1 / 3 / math.comb(3, sum(mask))
        assert abs(count / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000), mask


@pytest.mark.parametrize("length", [1, 3, 8])
def test_dreams_draws_are_its_forward_process(length: int) -> None:
    """Weights are 1 / p, p of stratified times; a token is masked with probability p."""
    noise = dream(20_000, length, 5)
    shares = np.sort(1 / noise.weights)
    assert np.diff(shares) == pytest.approx(np.full(len(shares) - 1, (1 - 1e-3) / 20_000), abs=1e-9)
    assert shares.min() >= 1e-3
    assert shares.max() <= 1
    for part in np.split(np.argsort(1 / noise.weights), 10):
        assert noise.masks[part].mean() == pytest.approx((1 / noise.weights)[part].mean(), abs=0.05)
    assert np.array_equal(dream(4, length, 5).masks, dream(4, length, 5).masks)


def test_masks_depend_on_the_seed_alone() -> None:
    assert np.array_equal(llada(16, 7, 3).masks, llada(16, 7, 3).masks)
    assert not np.array_equal(llada(16, 7, 3).masks, llada(16, 7, 4).masks)
    assert llada(4, 7, -5).masks.shape == (4, 7)


@pytest.mark.parametrize(("samples", "length"), [(1, 5), (3, 3), (2, 8), (16, 16), (16, 32), (5, 3), (4, 8)])
def test_every_count_is_as_likely(samples: int, length: int) -> None:
    found = [count for first in range(1, length + 1) for count in llada_counts(first, length, samples)]
    assert {found.count(count) for count in range(1, length + 1)} == {samples}


# ends in 1/2 odd counts become even. With the default 16 samples and 8 answer tokens even counts come three times as
# often as odd ones, and the estimator is not unbiased.
@pytest.mark.parametrize(("samples", "length"), [(16, 8), (16, 2), (16, 3), (16, 5), (2, 3), (4, 6)])
def test_every_count_is_as_likely_where_halves_are_rounded(samples: int, length: int) -> None:
    found = []
    for first in range(1, length + 1):
        seed = next(s for s in itertools.count() if llada(samples, length, s).masks.sum(-1)[0] == first)
        found += llada(samples, length, seed).masks.sum(-1).tolist()
    assert {found.count(count) for count in range(1, length + 1)} == {samples}


# The estimate.


def plain(dlm: HookedDLM, prompt: list[int], answer: list[int], hidden: Any) -> float:
    """(1 / x) sum over the masked answer tokens of log p, from one plain forward."""
    tokens = torch.tensor([prompt + [dlm.ids.mask if h else a for a, h in zip(answer, hidden, strict=True)]])
    logits = dlm(tokens)[0].detach().double()
    places = [len(prompt) + i for i, h in enumerate(hidden) if h]
    return sum(float(logits[at].log_softmax(-1)[answer[at - len(prompt)]]) for at in places) / len(places)


def expected(dlm: HookedDLM, prompt: list[int], answer: list[int], score: Callable[..., float] = plain) -> float:
    """The mean over all counts and, for each, all subsets."""
    by_count = []
    for count in range(1, len(answer) + 1):
        subsets = list(itertools.combinations(range(len(answer)), count))
        by_count.append(
            sum(score(dlm, prompt, answer, [i in subset for i in range(len(answer))]) for subset in subsets)
            / len(subsets)
        )
    return sum(by_count) / len(by_count)


def many(dlm: HookedDLM, answer: list[int], samples: int, seeds: range, edits: Any = ()) -> Tensor:
    """Estimates by many seeds, in one batch."""
    rows = len(seeds)
    options = {"samples": samples, "seed": list(seeds), "interventions": edits}
    return log_likelihood(dlm, [PROMPT] * rows, [answer] * rows, **options).double()


@pytest.mark.parametrize(("length", "samples"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (3, 5)])
def test_the_estimate_is_right_on_average(dlm: HookedDLM, length: int, samples: int) -> None:
    exact = expected(dlm, PROMPT, ANSWER[:length])
    found = many(dlm, ANSWER[:length], samples, range(1500))
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - exact) < 4 * error + 1e-5
    if length > 1:
        assert float(found.std()) > 0.01
        assert 4 * error < 0.15 * abs(exact)


def test_the_estimate_is_right_on_average_where_halves_are_rounded(dlm: HookedDLM) -> None:
    found = many(dlm, ANSWER, 6, range(1500))
    assert abs(float(found.mean()) - expected(dlm, PROMPT, ANSWER)) < 4 * float(found.std()) / math.sqrt(1500)


def test_more_samples_are_nearer(dlm: HookedDLM) -> None:
    spread = [float(many(dlm, ANSWER, samples, range(150)).std()) for samples in (1, 3, 12, 48)]
    assert spread == sorted(spread, reverse=True)
    assert spread[3] < 0.3 * spread[0]


@pytest.mark.parametrize("seed", [0, 5])
def test_an_estimate_equals_its_plain_forwards(dlm: HookedDLM, seed: int) -> None:
    masks = llada(16, 3, seed).masks
    by_hand = sum(plain(dlm, PROMPT, ANSWER, mask) for mask in masks) / 16
    assert float(log_likelihood(dlm, PROMPT, [ANSWER], seed=seed)) == pytest.approx(by_hand, abs=1e-5)


def test_one_token_has_one_value(dlm: HookedDLM) -> None:
    exact = plain(dlm, PROMPT, [21], [True])
    for samples in (1, 16):
        assert float(log_likelihood(dlm, PROMPT, [[21]], samples=samples)) == pytest.approx(exact, abs=1e-5)


def test_a_shifted_family(tiny_model: Callable[..., HookedDLM]) -> None:
    """Dream: dlm(tokens) already gives each position its own prediction."""
    dlm = tiny_model("Dream")
    by_hand = sum(plain(dlm, PROMPT, ANSWER, mask) for mask in llada(16, 3, 2).masks) / 16
    assert float(log_likelihood(dlm, [PROMPT], [ANSWER], seed=2)) == pytest.approx(by_hand, abs=1e-4)


def test_the_answer_of_a_text_is_likelier_than_another(dlm: HookedDLM, arm: HookedDLM) -> None:
    for model in (dlm, arm):
        prompt = "dolko talma gake xe"
        right, wrong = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("gake", "boma"))
        found = log_likelihood(model, [prompt] * 2, [right, wrong])
        assert found[0] > found[1]
        assert bool((found <= 0).all())


# Baselines.


def next_token(arm: HookedDLM, prompt: list[int], answer: list[int]) -> float:
    """Each answer token from a forward of what stands before it."""
    total = 0.0
    for at, token in enumerate(answer):
        logits = arm(torch.tensor([prompt + answer[:at]]))[0, -1].detach().double()
        total += float(logits.log_softmax(-1)[token])
    return total / len(answer)


def test_a_baseline_is_exact(arm: HookedDLM) -> None:
    exact = next_token(arm, PROMPT, ANSWER)
    for options in ({}, {"seed": 7}, {"samples": 1}):
        assert float(log_likelihood(arm, [PROMPT], [ANSWER], **options)) == pytest.approx(exact, abs=1e-5)
    assert float(log_likelihood(arm, [[0]], [ANSWER])) == pytest.approx(next_token(arm, [0], ANSWER), abs=1e-5)


# longer batch, is read from padding): the likelihood is too high, and nothing says so.
def test_a_baseline_needs_a_token_before_the_answer(arm: HookedDLM) -> None:
    assert float(log_likelihood(arm, [[]], [ANSWER])) == float(log_likelihood(arm, [[arm.ids.bos]], [ANSWER]))
    with pytest.raises(PlanError, match="prompt 0 is empty"):
        log_likelihood(twin("tiny-arm", before=False, bos=False), [[]], [ANSWER])


# Batches and padding.


PROMPTS = [[0, 20, 31, 22, 25], [0, 44], [0, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [0, 31, 32]]
ANSWERS = [[21, 40, 33], [50, 51, 52, 53, 54, 55, 56], [33], [20, 20]]


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda: [MaskSinks(SameStep(top_k=2))],
        lambda: [ZeroSinks(PreviousStep(top_k=2), where=Scope(layers=-1))],
        lambda: [control(MaskSinks(PreviousStep(top_k=2)))],
        lambda: [
            MaskSinks(SameStep(top_k=1, loop="open"), where=Scope(layers=0)),
            ZeroSinks(SameStep(top_k=1), where=Scope(layers=1)),
        ],
    ],
    ids=["none", "same step", "previous step", "random", "two"],
)
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_a_value_does_not_depend_on_the_batch(dlm: HookedDLM, arm: HookedDLM, name: str, make: Any) -> None:
    model, seeds = dlm if name == "tiny-dlm" else arm, [3, 1, 4, 1]
    together = log_likelihood(model, PROMPTS, ANSWERS, interventions=make(), seed=seeds, samples=5)
    assert together.shape == (4,)
    for row in range(4):
        one = log_likelihood(model, PROMPTS[row], [ANSWERS[row]], interventions=make(), seed=seeds[row], samples=5)
        assert float(one) == pytest.approx(float(together[row]), abs=2e-5)
    turned = log_likelihood(model, PROMPTS[::-1], ANSWERS[::-1], interventions=make(), seed=seeds[::-1], samples=5)
    torch.testing.assert_close(turned.flip(0), together, rtol=0, atol=2e-5)


def test_text_and_ids_are_the_same(dlm: HookedDLM) -> None:
    ids = dlm.encode("dolko xe dolko")
    one, other = (log_likelihood(dlm, prompt, [ANSWER]) for prompt in ("dolko xe dolko", ids))
    assert torch.equal(one, other)
    assert torch.equal(one, log_likelihood(dlm, torch.tensor(ids), [ANSWER]))


# Edits.


@dataclass(frozen=True, repr=False)
class Looking(Edit):
    """Edits nothing, and keeps what each of its three kinds of hooks is shown: (kind, canvas, memory, pattern)."""

    back: bool = False
    beside: bool = False
    where: Scope = Scope()
    shown: list[Any] = field(default_factory=list, compare=False)
    identity = "looking"

    @property
    def looks_back(self) -> bool:
        return self.back

    def _note(self, kind: str, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        def hook_function(pattern: Tensor, *, hook: Any) -> None:
            self.shown.append((kind, canvas, memory, pattern.clone()))
            memory.count(kind, torch.ones(len(pattern)))

        return [("blocks.1.attn.hook_pattern", hook_function)]

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return self._note("edited", canvas, memory)

    def watch(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return self._note("watched", canvas, memory)

    def clean(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        return self._note("clean", canvas, memory) if self.beside else []


@dataclass(frozen=True, repr=False)
class Blind(Edit):
    """Takes the first key away from layer 0, so that layer 1 sees whether a forward was edited."""

    where: Scope = Scope(layers=0)

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        def hook_function(pattern: Tensor, *, hook: Any) -> Tensor:
            return torch.cat([torch.zeros_like(pattern[..., :1]), pattern[..., 1:]], -1)

        return [("blocks.0.attn.hook_pattern", hook_function)]


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_an_edit_that_looks_back_sees_the_same_canvas_unedited_first(dlm: HookedDLM, arm: HookedDLM, name: str) -> None:
    """And a clean forward beside each edited one, with a memory that no other canvas has touched."""
    model = dlm if name == "tiny-dlm" else arm
    looking, samples = Looking(back=True, beside=True, where=Scope(layers=1)), 1 if name == "tiny-arm" else 4
    log_likelihood(model, PROMPTS, ANSWERS, interventions=[Blind(), looking], seed=[1, 2, 3, 4], samples=4)
    kinds = [kind for kind, *_ in looking.shown]
    assert kinds == ["watched", "clean", "edited"] * samples
    memories = []
    for first in range(0, len(kinds), 3):
        (_, before, one, watched), (_, canvas, two, clean), (_, now, three, edited) = looking.shown[first : first + 3]
        assert one is two is three
        memories.append(one)
        assert one.start is not None
        assert torch.equal(one.start.tokens.where(~now.masked, 0), now.tokens.where(~now.masked, 0))
        assert one.start.seeds == (1, 2, 3, 4)
        assert torch.equal(before.tokens, now.tokens)
        assert torch.equal(before.masked, now.masked)
        assert before.seeds == now.seeds
        assert (before.step, canvas.step, now.step) == (-1, 0, 0)
        with torch.no_grad():
            _, cache = model.run_with_cache(now.tokens, attention_mask=now.valid)
        real = now.valid[:, None, :, None] & now.valid[:, None, None, :]
        bare = cache["blocks.1.attn.hook_pattern"]
        for pattern in (watched, clean):
            torch.testing.assert_close(pattern.where(real, 0), bare.where(real, 0), atol=1e-5, rtol=0)
        assert (edited - bare).where(real, 0).abs().max() > 1e-3
    assert len(set(map(id, memories))) == samples


def test_an_edit_that_does_not_look_back_costs_no_forward(dlm: HookedDLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = HookedDLM.__call__
    monkeypatch.setattr(
        HookedDLM, "__call__", lambda self, *args, **kwargs: calls.append(1) or forward(self, *args, **kwargs)
    )
    for edits, forwards in (([], 4), ([Looking()], 4), ([Looking(back=True)], 8), ([Looking(beside=True)], 8)):
        calls.clear()
        log_likelihood(dlm, PROMPT, [ANSWER], interventions=edits, samples=4)
        assert len(calls) == forwards


def test_the_masks_are_the_same_under_every_edit(dlm: HookedDLM) -> None:
    found = []
    options = {"seed": [1, 2, 3, 4], "samples": 4}
    plain_value = log_likelihood(dlm, PROMPTS, ANSWERS, **options)
    for edit in (Looking(), Looking(back=True), Looking(beside=True)):
        value = log_likelihood(dlm, PROMPTS, ANSWERS, interventions=[edit], **options)
        torch.testing.assert_close(value, plain_value)
        canvases = [canvas for kind, canvas, *_ in edit.shown if kind == "edited"]
        found.append(torch.stack([canvas.tokens for canvas in canvases]))
        for canvas in canvases:
            assert torch.equal(canvas.masked, (canvas.tokens == dlm.ids.mask) & canvas.valid)
            assert canvas.masked.any(-1).all()
            assert not (canvas.masked & canvas.prompt).any()
            assert canvas.prompt.sum(-1).tolist() == [5, 2, 11, 3]
            assert canvas.valid.sum(-1).tolist() == [8, 9, 12, 5]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(found[0]) == 4


def test_random_numbers_of_an_edit_differ_from_draw_to_draw_and_depend_on_the_row_alone(dlm: HookedDLM) -> None:
    """Through the rows' seeds: an edit draws from `canvas.seeds`, and all draws are at the same step."""

    def seeds(prompts: Any, answers: Any, seed: Any) -> list[tuple[int, ...]]:
        edit = Looking()
        log_likelihood(dlm, prompts, answers, interventions=[edit], samples=6, seed=seed)
        return [canvas.seeds for _, canvas, *_ in edit.shown]

    together = seeds(PROMPTS, ANSWERS, [3, 1, 4, 1])
    assert len({row for draw in together for row in draw}) == 18  # two rows have the same seed
    assert all(draw[1] == draw[3] for draw in together)
    assert seeds(PROMPTS[0], [ANSWERS[0]], 3) == [draw[:1] for draw in together]
    assert all(0 <= seed < 2**63 for draw in together for seed in draw)


@pytest.mark.parametrize("samples", [1, 5])
def test_memories_count_over_all_draws(dlm: HookedDLM, arm: HookedDLM, samples: int) -> None:
    edits = [Looking(back=True, where=Scope(layers=0)), Looking(where=Scope(layers=1))]
    memories = [edit.memory() for edit in edits]
    options: dict[str, Any] = {"interventions": edits, "samples": samples}
    log_likelihood(dlm, PROMPTS, ANSWERS, memories=memories, **options)
    assert memories[0].counts() == {"watched": 4 * samples, "edited": 4 * samples}
    assert memories[1].per_row("edited") == [samples] * 4
    log_likelihood(arm, PROMPTS, ANSWERS, memories=memories, **options)  # a baseline has one canvas
    assert memories[1].per_row("edited") == [samples + 1] * 4
    assert all(not memory.notes for memory in memories)


@pytest.mark.usefixtures("no_forward")
def test_edits_that_overlap_are_refused_as_in_a_run(dlm: HookedDLM) -> None:
    with pytest.raises(ScopeError, match=r"same heads at the same steps.*InOrder"):
        log_likelihood(dlm, PROMPT, [ANSWER], interventions=[Looking(), Looking(back=True)])


def test_logits_that_are_minus_infinity_elsewhere_do_not_spoil_the_sum(dlm: HookedDLM, arm: HookedDLM) -> None:
    """Only answers are scored; what an edit does to the prompt's own predictions is nobody's business."""
    for model in (dlm, arm):
        spoiled = Acts(_spoil, "unembed.hook_out")
        value = log_likelihood(model, PROMPTS, ANSWERS, interventions=[spoiled], samples=3)
        torch.testing.assert_close(value, log_likelihood(model, PROMPTS, ANSWERS, samples=3))


def _spoil(logits: Tensor, canvas: Canvas) -> Tensor:
    """-inf for every token but 0 where no answer is predicted, whichever row predicts it."""
    answers = canvas.valid & ~canvas.prompt
    answers[:, :-1] |= answers[:, 1:].clone()
    keep = answers[..., None] | (torch.arange(logits.shape[-1]) == 0)
    return logits.masked_fill(~keep, -torch.inf)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_a_previous_step_is_the_same_canvas_before(dlm: HookedDLM, arm: HookedDLM, name: str) -> None:
    """So a closed-loop detector finds in layer 0 what it finds at this step, and an open one finds it everywhere."""
    model = dlm if name == "tiny-dlm" else arm
    options = {"seed": [1, 2, 3, 4], "samples": 4}
    plain_value = log_likelihood(model, PROMPTS, ANSWERS, **options)
    for loop, where in (("closed", Scope(layers=0)), ("open", Scope())):
        now, before = (
            log_likelihood(
                model, PROMPTS, ANSWERS, interventions=[MaskSinks(each(top_k=3, loop=loop), where=where)], **options
            )
            for each in (SameStep, PreviousStep)
        )
        torch.testing.assert_close(now, before)
        assert (now - plain_value).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_an_edit_equals_plain_hooked_forwards(dlm: HookedDLM, arm: HookedDLM, name: str) -> None:
    """The pattern's columns by hand, in a plain forward of each canvas."""
    model = dlm if name == "tiny-dlm" else arm

    def without_a_key(pattern: Tensor, *, hook: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[..., 4] = 0
        return pattern

    def score(model: HookedDLM, prompt: list[int], answer: list[int], hidden: Any) -> float:
        tokens = torch.tensor([prompt + [model.ids.mask if h else a for a, h in zip(answer, hidden, strict=True)]])
        hooks = [(f"blocks.{layer}.attn.hook_pattern", without_a_key) for layer in range(model.n_layers)]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks).detach()[0].double().log_softmax(-1)
        shift = 1 if model.is_causal else 0
        counted = [not model.is_causal or not h for h in hidden] if model.is_causal else hidden
        places = [i for i, h in enumerate(counted) if h]
        return sum(float(logits[len(prompt) + i - shift, answer[i]]) for i in places) / len(places)

    edit = ZeroSinks(Fixed([4]))
    memory = edit.memory()
    found = float(log_likelihood(model, PROMPT, [ANSWER], interventions=[edit], memories=[memory], seed=4))
    if model.is_causal:
        by_hand = score(model, PROMPT, ANSWER, [False] * 3)
    else:
        by_hand = sum(score(model, PROMPT, ANSWER, mask) for mask in llada(16, 3, 4).masks) / 16
    assert found == pytest.approx(by_hand, abs=1e-5)
    assert abs(found - float(log_likelihood(model, PROMPT, [ANSWER], seed=4))) > 1e-3
    assert memory.counts()["keys"] == model.n_layers * model.n_heads * (1 if model.is_causal else 16)


def test_an_edited_estimate_is_right_on_average(dlm: HookedDLM) -> None:
    def score(dlm: HookedDLM, prompt: list[int], answer: list[int], hidden: Any) -> float:
        tokens = torch.tensor([prompt + [dlm.ids.mask if h else a for a, h in zip(answer, hidden, strict=True)]])
        hooks = MaskSinks(SameStep(top_k=2)).fwd_hooks(dlm)
        logits = dlm.run_with_hooks(tokens, fwd_hooks=hooks).detach()[0].double().log_softmax(-1)
        places = [i for i, h in enumerate(hidden) if h]
        return sum(float(logits[len(prompt) + i, answer[i]]) for i in places) / len(places)

    exact = expected(dlm, PROMPT, ANSWER, score)
    found = many(dlm, ANSWER, 3, range(800), [MaskSinks(SameStep(top_k=2))])
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(800) + 1e-5
    assert abs(exact - expected(dlm, PROMPT, ANSWER)) > 1e-3


def test_nothing_stays_hooked_and_gradients_are_off(dlm: HookedDLM) -> None:
    found = log_likelihood(dlm, PROMPT, [ANSWER], interventions=[MaskSinks(SameStep(top_k=1, loop="open"))], samples=2)
    assert not found.requires_grad
    assert not dlm.hooked


# every SameStep edit, and it is counted.
@pytest.mark.parametrize("beside", [None, PreviousStep(top_k=1)], ids=["first", "beside"])
def test_every_canvas_counts_once(dlm: HookedDLM, beside: Any) -> None:
    edit = MaskSinks(
        PreviousStep(top_k=1, first="same") if beside is None else SameStep(top_k=1), where=Scope(layers=0)
    )
    others = [] if beside is None else [MaskSinks(beside, where=Scope(layers=1))]
    memories = [each.memory() for each in (edit, *others)]
    log_likelihood(dlm, PROMPT, [ANSWER], interventions=[edit, *others], memories=memories, samples=4)
    assert memories[0].counts()["keys"] == dlm.n_heads * 4


# What cannot be run.


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("steps", [0, [1], slice(0, 2)])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_scope_of_steps_is_refused(dlm: HookedDLM, steps: Any, wrap: bool) -> None:
    edit: Any = MaskSinks(SameStep(top_k=1), where=Scope(steps=steps))
    edit = InOrder(ZeroSinks(SameStep(top_k=1)), edit) if wrap else edit
    with pytest.raises(ScopeError, match="names steps, and a likelihood has none"):
        log_likelihood(dlm, PROMPT, [ANSWER], interventions=[edit])


@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize(
    ("prompts", "answers", "error", "message"),
    [
        ([PROMPT], [[]], PlanError, "at least one token each"),
        ([PROMPT, PROMPT], [ANSWER], PlanError, "2 prompts need as many answers.*there are 1"),
        ([PROMPT], [ANSWER, ANSWER], PlanError, "there are 2"),
        ([[0] * 126], [ANSWER], PlanError, "129 tokens, more than the context of 128"),
        ([[0, 9999]], [ANSWER], ValueError, "token id 9999 is outside"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    dlm: HookedDLM, prompts: Any, answers: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        log_likelihood(dlm, prompts, answers)


@pytest.mark.usefixtures("no_forward")
def test_scopes_seeds_and_detectors_are_checked_first(dlm: HookedDLM) -> None:
    for edit, message in (
        (MaskSinks(where=Scope(layers=9)), "layer 9"),
        (MaskSinks(SameStep(top_k=30)), "asks for 30 keys"),
    ):
        with pytest.raises(ScopeError, match=message):
            log_likelihood(dlm, PROMPT, [ANSWER], interventions=[edit])
    with pytest.raises(ValueError, match="seed has 2 entries for 1 prompts"):
        log_likelihood(dlm, PROMPT, [ANSWER], seed=[1, 2])


@pytest.mark.parametrize(("answer", "samples"), [(ANSWER, 0), ([9999], 1)], ids=["samples", "answer"])
def test_samples_and_answers_are_checked(dlm: HookedDLM, answer: list[int], samples: int) -> None:
    with pytest.raises(ValueError, match=r"samples=0|9999"):
        log_likelihood(dlm, PROMPT, [answer], samples=samples)
