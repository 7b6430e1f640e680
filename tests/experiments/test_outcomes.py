"""Every metric of an ablation against a naive computation: one prompt, one edit, plain decoding and plain forwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Where, ZeroSinks, ablate, denoise
from sinklens.decoding.likelihood import log_likelihood
from sinklens.decoding.loop import denoising_steps
from sinklens.errors import NotFinite
from sinklens.experiments.outcomes import METRICS, Replayed, known, order
from sinklens.hooks import Canvas, Edit, Hook, Memory
from sinklens.interventions import MeanValue, control
from sinklens.models.special_ids import SpecialIds
from sinklens.tasks import Echo, Example, Prompts, Score, Task

REPLAYED = ("kl", "replayed_agreement", "confidence_committed", "confidence_uncommitted")
DECODED = ("agreement", "order")


@pytest.fixture(scope="module", params=["tiny-dlm", "tiny-arm"])
def model(request: pytest.FixtureRequest) -> HookedDLM:
    """The bundled twins."""
    return HookedDLM.from_pretrained(request.param)


class Uneven(Task):
    """Echo texts whose prompts have different lengths."""

    name = "uneven"
    echoes = tuple(Echo(1, seed=at, prompt_tokens=10 - 3 * at, answer_tokens=6) for at in range(3))

    def __len__(self) -> int:
        return len(self.echoes)

    def __getitem__(self, index: int) -> Example:
        return Example(self.echoes[index][0].prompt, self.echoes[index][0].answer, f"uneven {index}")

    def score(self, example: Example, completion: str) -> Score:
        """As Echo."""
        return self.echoes[0].score(example, completion)

    def checkable(self, example: Example, answer: Any) -> list[bool]:
        """As Echo."""
        return self.echoes[0].checkable(example, answer)


def naive_ranks(values: list[int]) -> list[float]:
    """The mean of the places that a value has in a sorted list."""
    places = sorted(values)
    return [sum(i + 1 for i, other in enumerate(places) if other == value) / places.count(value) for value in values]


def naive_spearman(one: list[int], other: list[int]) -> float:
    """Pearson's correlation of the ranks."""
    a, b = naive_ranks(one), naive_ranks(other)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    cov = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    power = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return cov / math.sqrt(power) if power else math.nan


@torch.no_grad()
def naive_prediction(model: HookedDLM, canvas: Canvas, at: int) -> Tensor:
    """Logits of the token at a position, by a forward of this canvas without any edit."""
    logits = model(canvas.tokens, attention_mask=canvas.valid)
    return logits[0, at - 1 if model.is_causal else at].double()


def naive_replay(model: HookedDLM, prompt: Any, plan: Plan, clean: Any, parts: list[Any], seed: int) -> dict:
    """Two runs that repeat the commits of the clean one, position by position."""
    found: dict[str, list[float]] = {name: [] for name in REPLAYED}
    options = {"seed": seed, "follow": clean}
    plain = denoising_steps(model, prompt, plan, **options)
    edited = denoising_steps(model, prompt, plan, interventions=parts, **options)
    for a, b in zip(plain, edited, strict=True):
        assert torch.equal(a.canvas.tokens, b.canvas.tokens)
        assert torch.equal(a.committed, b.committed)
        assert torch.equal(a.committed, clean.commit_step == a.index)
        for at in range(clean.tokens.shape[1]):
            commits = bool(a.committed[0, at])
            if model.is_causal:
                if not commits:
                    continue
            elif not bool(a.canvas.masked[0, at]):
                continue
            unedited = naive_prediction(model, a.canvas, at)
            torch.testing.assert_close(a.logits[0, at].double(), unedited, rtol=0, atol=1e-4)
            p, q = unedited.softmax(-1), b.logits[0, at].double().softmax(-1)
            found["kl"].append(float((p * (p.log() - q.log())).sum()))
            found["confidence_committed" if commits else "confidence_uncommitted"].append(float(q.max()))
            if commits:
                found["replayed_agreement"].append(float(b.predicted[0, at] == clean.tokens[0, at]))
    return {name: (sum(v) / len(v) if v else math.nan, len(v)) for name, v in found.items()}


def naive_decoded(clean: Any, own: Any) -> dict[str, tuple[float, int]]:
    """Tokens and steps of two runs."""
    steps = [each.commit_step[0].tolist() for each in (clean, own)]
    tokens = [each.tokens[0].tolist() for each in (clean, own)]
    either = [at for at in range(len(steps[0])) if steps[0][at] >= 0 or steps[1][at] >= 0]
    both = [at for at in either if steps[0][at] >= 0 and steps[1][at] >= 0]
    return {
        "agreement": (sum(tokens[0][at] == tokens[1][at] for at in both) / len(either), len(either)),
        "order": (naive_spearman([steps[0][at] for at in both], [steps[1][at] for at in both]), len(both)),
    }


def naive(
    model: HookedDLM, task: Any, plan: Plan, seed: int, index: int, parts: Callable[[], list[Any]], metrics: Any
) -> dict:
    """(value, places) of every metric."""
    example, row_seed = task[index], seed * 1_000_003 + index
    options = {"seed": row_seed, "progress": False}
    clean = denoise(model, example.prompt, plan, **options)
    own = denoise(model, example.prompt, plan, interventions=parts(), **options)
    found = naive_replay(model, example.prompt, plan, clean, parts(), row_seed) | naive_decoded(clean, own)
    if example.answer:
        score = task.score(example, own.completions[0])
        truth = model.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        forced = denoise(model, example.prompt, plan, interventions=parts(), force=[truth], **options)
        said = forced.predicted[0][forced.filled[0]].tolist()
        counts = task.checkable(example, truth)
        right = [a == b for a, b, place in zip(said, truth, counts, strict=True) if place]
        found["accuracy"] = (score.accuracy, score.total)
        found["forced_accuracy"] = (sum(right) / len(right) if right else math.nan, len(right))
        if "log_likelihood" in metrics:
            scored = log_likelihood(model, example.prompt, [truth], interventions=parts(), seed=row_seed)
            found["log_likelihood"] = (float(scored), len(truth))
    return found


def compare(model: HookedDLM, task: Any, plan: Plan, make: Callable[[], dict], metrics: Any, seeds: Any = (3,)) -> dict:
    """All rows against the naive ones; what was found, by metric."""
    result = ablate(model, task, make(), plan, metrics=metrics, seeds=seeds, progress=False)
    seen: dict[str, set[float]] = {name: set() for name in metrics}
    parts: dict[tuple[str, str], Callable[[], list[Any]]] = {("unmasked", "unmasked"): lambda: []}
    for name in make():
        parts[name, "sinks"] = lambda name=name: [make()[name]]
        parts[name, "random"] = lambda name=name: [control(make()[name])]
    cache: dict[Any, dict] = {}
    for row in result.scores:
        key = (row["condition"], row["kind"])
        at = (*key, row["prompt"], row["seed"])
        if at not in cache:
            cache[at] = naive(model, task, plan, row["seed"], row["prompt"], parts[key], metrics)
        value, places = cache[at][row["metric"]]
        assert row["value"] == pytest.approx(value, rel=1e-3, abs=2e-5, nan_ok=True), row
        assert row["places"] == places, row
        seen[row["metric"]].add(round(row["value"], 5))
    assert len(result.scores) == len(parts) * len(task) * len(seeds) * len(metrics)
    return seen


def test_every_metric_equals_a_naive_one(model: HookedDLM) -> None:
    plan = (
        Plan(new_tokens=6, block_length=6, steps=3, temperature=1.0)
        if not model.is_causal
        else Plan(6, temperature=1.0)
    )
    make = lambda: {  # noqa: E731
        "cut": MaskSinks(PreviousStep(top_k=4)),
        "mean": MeanValue(PreviousStep(top_k=2), where=Where(layers=0)),
    }
    seen = compare(model, Uneven(), plan, make, list(METRICS))
    for name, values in seen.items():
        if not (model.is_causal and name in ("confidence_uncommitted", "order")):
            assert len(values) > 1, name  # otherwise nothing was compared
    if model.is_causal:
        assert all(math.isnan(value) for value in seen["confidence_uncommitted"])
        assert all(value == 1 or math.isnan(value) for value in seen["order"])


def test_metrics_of_edits_at_some_steps(model: HookedDLM) -> None:
    plan = Plan(new_tokens=6, block_length=3, steps=4) if not model.is_causal else Plan(6)
    make = lambda: {"late": ZeroSinks(PreviousStep(top_k=3), where=Where(steps=slice(2, 4)))}  # noqa: E731
    compare(model, Uneven(), plan, make, [*DECODED, *REPLAYED, "accuracy"], seeds=(7,))


def test_metrics_where_gaps_are_filled(model: HookedDLM) -> None:
    """Rows have different numbers of gaps, so they end at different steps."""
    task = Echo(3, seed=0, prompt_tokens=10, answer_tokens=8, gaps=0.4)
    assert len({len(task[index].answer.split()) for index in range(3)}) > 1
    make = lambda: {"cut": MaskSinks(SameStep(top_k=2), queries="all")}  # noqa: E731
    compare(model, task, Plan(new_tokens=0, temperature=1.0), make, [*DECODED, *REPLAYED, "forced_accuracy"])


@pytest.mark.parametrize(
    "plan",
    [
        Plan(new_tokens=6, sampler="dream", remasking="origin", steps=4, temperature=1.0),
        Plan(new_tokens=6, sampler="dream", remasking="entropy", steps=3, temperature=0.5, alg_temp=0.5, top_p=0.9),
        Plan(new_tokens=6, threshold=0.2, remasking="maskgit_plus"),
    ],
    ids=["origin", "alg_temp", "threshold"],
)
@pytest.mark.parametrize("family", ["LLaDA", "Dream"])
def test_metrics_of_other_families_and_samplers(tiny_model: Callable[..., HookedDLM], family: str, plan: Plan) -> None:
    """Random models: Dream's logits are those of the next position, and rows stop at different steps."""
    prompts = Prompts([[0, 5, 9, 33, 7], [0, 12, 13, 14, 15, 16, 17, 18], [0, 40]])
    make = lambda: {"cut": MaskSinks(SameStep(top_k=1))}  # noqa: E731
    seen = compare(tiny_model(family), prompts, plan, make, [*DECODED, *REPLAYED])
    assert len(seen["kl"]) > 2


def test_the_unedited_run_agrees_with_itself(model: HookedDLM) -> None:
    metrics = ["agreement", "order", "kl", "replayed_agreement"]
    plan = Plan(new_tokens=6, steps=None if model.is_causal else 3, temperature=1.0)
    for row in ablate(model, Uneven(), {}, plan, metrics=metrics, progress=False).scores:
        expected = 0.0 if row["metric"] == "kl" else 1.0
        assert row["value"] == pytest.approx(expected, abs=1e-6) or (math.isnan(row["value"]) and row["places"] < 2)


class EndAtOnce(Edit):
    """Makes EOS (token 1) the likeliest token everywhere."""

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        """On the logits."""
        eos = torch.nn.functional.one_hot(torch.tensor(1), int(model.cfg.d_vocab)) * 1e4
        return [("unembed.hook_out", lambda logits, *, hook: logits + eos)]


# unedited run ends one token later than the edited one, its EOS "agrees" with a position that was never filled.
def test_a_run_that_ends_earlier_does_not_agree_with_a_later_end(tiny_stock: Callable[..., Any]) -> None:
    arm = HookedDLM.from_transformers(tiny_stock("Llama"), None, "Llama", ids=SpecialIds(None, eos=1, bos=0, pad=1))
    prompts = [[0, a, b] for a in range(2, 60, 2) for b in range(2, 60, 2)]
    clean = denoise(arm, prompts, Plan(new_tokens=2), progress=False)
    row = clean.tokens[:, 3:].tolist()
    late = next(i for i, (one, two) in enumerate(row) if one != 1 and two == 1)
    result = ablate(
        arm, [prompts[late]], {"end": EndAtOnce()}, Plan(2), controls=None, metrics=["agreement"], progress=False
    )
    assert (result.scores[1]["value"], result.scores[1]["places"]) == (0.0, 2)


# Order.


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
        ([0, 1, 2, 3], [3, 2, 1, 0], -1.0),
        ([0, 1, 2, 3], [10, 20, 30, 31], 1.0),
        ([0, 1, 2, 3], [0, 1, 3, 2], 0.8),
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0),
        ([0, 0, 1], [0, 1, 1], 0.5),
        ([0, 0, 0], [0, 1, 2], math.nan),
        ([4], [7], math.nan),
    ],
)
def test_order_by_hand(one: list[int], other: list[int], expected: float) -> None:
    assert order(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected, nan_ok=True)
    assert naive_spearman(one, other) == pytest.approx(expected, nan_ok=True)


def test_order_equals_a_naive_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (2, 5, 40):
        one, other = torch.randint(0, 6, (2, size), generator=generator).tolist()
        ours = order(torch.tensor(one), torch.tensor(other))
        assert ours == pytest.approx(naive_spearman(one, other), nan_ok=True)
    assert math.isnan(order(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long)))


# Replay.


def logits_of(*rows: list[float]) -> Tensor:
    """Logits with these probabilities [row, 1 position, vocab]."""
    return torch.tensor(rows).log()[:, None]


def test_replay_by_hand() -> None:
    """Two groups of one row; two steps, of which the second has two positions."""
    on, off = torch.tensor([[True], [True]]), torch.tensor([[False], [False]])
    replay = Replayed(2)
    replay.add(logits_of([0.5, 0.5], [0.9, 0.1]), on, off, on)  # nothing was edited here
    edited = torch.tensor([False, True])
    replay.add(logits_of([0.8, 0.2], [0.4, 0.6]), on, on, torch.tensor([[True], [False]]), edited)
    replay.add(logits_of([0.8, 0.2], [0.1, 0.9]), off, off, on)  # nothing counts
    found = replay.result()
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), 0.8 * math.log(2) + 0.2 * math.log(1 / 3)
    assert [each[0] for each in found["kl"]] == pytest.approx([0.0, sum(kl) / 2], abs=1e-6)
    assert [each[1] for each in found["kl"]] == [2, 2]
    assert [each[2] for each in found["kl"]] == [0.0, 0.5]
    assert found["replayed_agreement"] == [(1.0, 1, 0.0), (0.0, 1, 1.0)]
    assert [each[0] for each in found["confidence_committed"]] == pytest.approx([0.8, 0.6])
    assert [each[0] for each in found["confidence_uncommitted"]] == pytest.approx([0.5, 0.9])


def test_replay_of_nothing_is_nan() -> None:
    off = torch.zeros(2, 1, dtype=torch.bool)
    replay = Replayed(2)
    replay.add(logits_of([0.5, 0.5], [0.9, 0.1]), off, off, off)
    found = [row for rows in replay.result().values() for row in rows]
    assert all(math.isnan(value) and met is None and places == 0 for value, places, met in found)


def test_a_token_that_is_forbidden_in_both_adds_nothing() -> None:
    on = torch.ones(2, 1, dtype=torch.bool)
    replay = Replayed(2)
    replay.add(logits_of([0.5, 0.5, 0.0], [0.25, 0.75, 0.0]), on, on, on)
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert replay.result()["kl"][1][0] == pytest.approx(kl, abs=1e-6)


def test_a_broken_prediction_is_an_error() -> None:
    on = torch.ones(2, 1, dtype=torch.bool)
    replay = Replayed(2)
    replay.add(logits_of([0.5, 0.5], [math.nan, math.nan]), on, on, on)
    with pytest.raises(NotFinite, match="hold nan"):
        replay.result()


def test_an_impossible_token_is_infinitely_far() -> None:
    on = torch.ones(2, 1, dtype=torch.bool)
    replay = Replayed(2)
    replay.add(logits_of([0.5, 0.5], [1.0, 0.0]), on, on, on)
    assert replay.result()["kl"][1][0] == math.inf


# Names.


def test_metrics_are_known_by_name() -> None:
    assert known(["kl", "accuracy"]) == ["kl", "accuracy"]
    with pytest.raises(ValueError, match=f"metric 'KL' is unknown; the metrics are {', '.join(METRICS)}"):
        known(["kl", "KL"])
    with pytest.raises(ValueError, match="metrics is empty"):
        known([])


def test_shares_say_so() -> None:
    assert {name for name, each in METRICS.items() if each.share} == {
        "accuracy",
        "agreement",
        "forced_accuracy",
        "replayed_agreement",
    }
    assert {name for name, each in METRICS.items() if each.answers} == {"accuracy", "forced_accuracy", "log_likelihood"}
    assert len(METRICS) == 9
