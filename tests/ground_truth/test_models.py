"""Planted models do what they claim: numbers from the hooks against numbers that are worked out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens import MaskSinks, Plan, SameStep, ZeroSinks, denoise
from sinklens.analysis import rates as metrics
from sinklens.errors import CheckFailed
from sinklens.ground_truth.models import BOS, FILLER, FIRST_WORD, REST, PlantedExample, PlantedModel, planted_model
from sinklens.interventions import control
from sinklens.probes import ReceivedAttention, ValueNorm
from sinklens.sinks import uniform_null

KINDS = ["informative", "resting", "none"]
every_model = pytest.mark.parametrize(
    ("kind", "causal"), [(kind, causal) for kind in KINDS for causal in (False, True)]
)
either_way = pytest.mark.parametrize("causal", [False, True])

make: Callable[..., PlantedModel] = lru_cache(planted_model)


def run(model: PlantedModel, *prompts: list[int], edits: Any = (), probes: Any = (), new_tokens: int = 8) -> Any:
    """Decode greedily, one token per step."""
    plan = Plan(new_tokens=new_tokens)
    plan = plan.for_causal() if model.dlm.is_causal else plan
    return denoise(model.dlm, list(prompts), plan, interventions=edits, probes=probes, progress=False)


def new(outcome: Any) -> list[list[int]]:
    """The tokens that were filled in."""
    return [row[places].tolist() for row, places in zip(outcome.tokens, outcome.filled, strict=True)]


def whole(example: PlantedExample) -> Tensor:
    """Prompt and answer as one row [1, pos]."""
    return torch.tensor([example.prompt + example.answer])


def patterns(model: PlantedModel, tokens: Tensor) -> dict[tuple[int, int], Tensor]:
    """The pattern [query, key] of every (layer, head)."""
    _, cache = model.dlm.run_with_cache(tokens)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.dlm.n_layers)]
    return {(at, head): row for at, name in enumerate(names) for head, row in enumerate(cache[name][0])}


def even(n: int, *, causal: bool) -> Tensor:
    """Each query's attention, spread evenly over the keys that it sees."""
    seen = torch.ones(n, n).tril() if causal else torch.ones(n, n)
    return seen / seen.sum(-1, keepdim=True)


@torch.no_grad()
def logits(model: PlantedModel, tokens: Tensor, point: str, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits when the tensor of every layer's attention hook point is edited."""

    def hook_function(tensor: Tensor, *, hook: Any) -> Tensor:
        return edit(tensor)

    names = [f"blocks.{layer}.attn.{point}" for layer in range(model.dlm.n_layers)]
    return model.dlm.run_with_hooks(tokens, fwd_hooks=[(name, hook_function) for name in names])


@every_model
def test_the_reading_head_attends_as_claimed_and_the_others_evenly(kind: Any, causal: bool) -> None:
    model = make(kind, causal=causal, layers=3, heads=4, kv_heads=2)
    example = model.example(seed=5)
    found = patterns(model, whole(example))
    n = len(example.prompt + example.answer)
    flat = even(n, causal=causal)
    expected = flat
    if example.key is not None:
        sees = torch.arange(n) >= (example.key if causal else 0)
        seen = (flat > 0).sum(-1)
        to_sink = 1 / (1 + (seen - 1) * math.exp(-20))
        focused = (flat > 0) * (to_sink * math.exp(-20))[:, None]
        focused[:, example.key] = to_sink
        expected = torch.where(sees[:, None], focused, flat)
    assert (model.layer, model.head) == (1, 2)
    torch.testing.assert_close(found.pop((1, 2)), expected, rtol=1e-4, atol=1e-12)
    assert len(found) == 11
    for other in found.values():
        torch.testing.assert_close(other, flat, rtol=0, atol=1e-6)


@every_model
def test_distance_does_not_matter(kind: Any, causal: bool) -> None:
    model = make(kind, causal=causal)
    example = model.example(length=900)
    tokens = whole(example)
    found = patterns(model, tokens)[model.layer, model.head]
    torch.testing.assert_close(found, model.pattern(tokens)[0], rtol=1e-4, atol=1e-12)
    slowest = model.dlm.original_model.model.rotary_emb.inv_freq[-1]  # pyright: ignore
    assert 256 * float(slowest) < 1e-6


@every_model
def test_the_logits_are_known_under_any_edit_of_attention(kind: Any, causal: bool) -> None:
    model = make(kind, causal=causal)
    tokens = torch.randint(0, int(model.dlm.cfg.d_vocab), (3, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.dlm(tokens), model.logits(tokens), rtol=0, atol=1e-4)
    edited = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(2))
    got = logits(model, tokens, "hook_pattern", edited[:, None].expand_as)
    torch.testing.assert_close(got, model.logits(tokens, edited), rtol=0, atol=1e-4)
    assert (got - model.dlm(tokens)).abs().max() > 1


def test_the_logits_of_the_cases_by_hand() -> None:
    model = make("informative")
    tokens = torch.tensor([[BOS, FILLER, FIRST_WORD + 8 + 3, FILLER]])
    own, silent = model.dlm(tokens)[0, -1], model.logits(tokens, torch.zeros(1, 4, 4))[0, -1]
    expected = torch.zeros(FIRST_WORD + 16)
    expected[[FIRST_WORD + 3, REST]] = torch.tensor([40.0, 20.0]) / math.sqrt(2)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)
    assert silent[REST] == 20
    assert silent.count_nonzero() == 1


@every_model
def test_unedited_models_give_the_answer(kind: Any, causal: bool) -> None:
    model = make(kind, causal=causal)
    examples = [model.example(seed, length=length) for seed, length in enumerate((16, 8, 23, 11))]
    # The answers by hand, from the one cue (ids 13 to 20, for words 5 to 12) in each prompt.
    cues = [next(token for token in example.prompt if token >= 13) for example in examples]
    by_hand = {"informative": [cue - 8 for cue in cues], "resting": [REST] * 4, "none": [FILLER] * 4}[kind]
    assert len(set(cues)) > 1
    assert [example.answer for example in examples] == [[token] * 8 for token in by_hand]
    assert new(run(model, *(example.prompt for example in examples))) == [example.answer for example in examples]


@pytest.mark.parametrize(
    ("kind", "name", "masked", "zeroed"),
    [("informative", None, FILLER, REST), ("resting", REST, FILLER, REST), ("none", FILLER, FILLER, FILLER)],
)
@either_way
def test_edits_of_the_sink_do_what_is_claimed(
    kind: Any, name: int | None, masked: int, zeroed: int, causal: bool
) -> None:
    model = make(kind, causal=causal)
    assert (model.truth["masked"], model.truth["zeroed"]) == (masked, zeroed)
    examples = [model.example(seed) for seed in range(3)]
    prompts = [example.prompt for example in examples]
    answers = [example.answer for example in examples]
    if name is not None:
        assert answers == [[name] * 8] * 3
    for edit, token in ((MaskSinks, masked), (ZeroSinks, zeroed)):
        sink = edit(SameStep(top_k=1))
        edited = run(model, *prompts, edits=[sink])
        assert new(edited) == [[token] * 8] * 3
        assert edited.memories[0].counts()["keys"] == 8 * 3 * model.dlm.n_layers * model.dlm.n_heads
        matched = run(model, *prompts, edits=[control(sink)])
        assert new(matched) == answers
        assert matched.memories[0].counts()["keys"] > 0


@pytest.mark.parametrize("kind", ["informative", "resting"])
@either_way
def test_no_other_key_matters(kind: Any, causal: bool) -> None:
    model = make(kind, causal=causal)
    example = model.example(seed=2)
    tokens, changed = whole(example), []

    def without(key: int, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., -1, key] = float(
            "-inf"
        )  # of the query that predicts; a causal model's first query has one key only
        return scores

    last = model.dlm(tokens)[0, -1]
    for key in range(tokens.shape[1]):
        edited = logits(model, tokens, "hook_attn_scores", partial(without, key))[0, -1]
        if edited.argmax() != last.argmax():
            changed.append(key)
        else:
            torch.testing.assert_close(edited, last, rtol=0, atol=1e-4)
    assert changed == [example.key]


@pytest.mark.parametrize(("kind", "same"), [("resting", True), ("informative", False), ("none", False)])
@either_way
def test_zeroing_a_resting_sink_changes_not_a_bit(kind: Any, same: bool, causal: bool) -> None:
    model = make(kind, causal=causal)
    tokens = whole(model.example(seed=4))
    zeroed = logits(model, tokens, "hook_pattern", lambda p: torch.cat([torch.zeros_like(p[..., :1]), p[..., 1:]], -1))
    if kind == "informative":  # there the sink is the cue
        key = model.example(seed=4).key
        zeroed = logits(model, tokens, "hook_pattern", lambda p: p * (torch.arange(p.shape[-1]) != key))
    assert torch.equal(zeroed, logits(model, tokens, "hook_pattern", lambda p: p)) is same
    if same:
        torch.testing.assert_close(zeroed, model.dlm(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sinks_value_has_the_norm_that_is_claimed(kind: Any) -> None:
    model = make(kind)
    example = model.example(seed=1)
    record = run(model, example.prompt, probes=[ValueNorm()]).record
    norms = torch.from_numpy(record["value_norm"].to_numpy())[0, :, model.layer, model.head]
    expected = torch.ones_like(norms)
    if kind == "resting":
        assert bool((norms[:, BOS] == 0).all())
        expected[:, BOS] = 0
    torch.testing.assert_close(norms, expected, rtol=0, atol=1e-6)
    if example.key is not None:
        assert model.truth["value_norm"] == expected[0, example.key]


@either_way
def test_none_gives_every_key_what_even_attention_gives(causal: bool) -> None:
    model = make("none", causal=causal)
    record = run(model, model.example().prompt, probes=[ReceivedAttention()]).record
    for step, received in enumerate(torch.from_numpy(record["received"].to_numpy())[0]):
        keys = 16 + step if causal else 24
        null = uniform_null(keys, "causal" if causal else "bidirectional")
        torch.testing.assert_close(received[..., :keys], null.expand(2, 2, -1), rtol=0, atol=1e-5)
        assert bool(received[..., keys:].isnan().all())


@every_model
def test_the_standard_rule_finds_exactly_the_planted_sink(kind: Any, causal: bool) -> None:
    model = make(kind, causal=causal)
    for seed in range(4):
        example = model.example(seed)
        flags = metrics.sinks(run(model, example.prompt, probes=[ReceivedAttention()]).record)
        expected = torch.zeros(flags.shape, dtype=torch.bool)
        if example.key is not None:
            expected[:, :, model.layer, model.head, example.key] = True
        assert torch.equal(torch.from_numpy(flags.to_numpy()), expected)


def test_an_even_causal_head_has_a_sink_by_the_standard_rule_from_27_positions_on() -> None:
    model = make("none", causal=True)
    flags = metrics.sinks(
        run(model, model.example(length=26).prompt, probes=[ReceivedAttention()], new_tokens=2).record
    )
    short, long = torch.from_numpy(flags.to_numpy())[0]
    assert not short.any()
    assert bool(long[..., 0].all())
    assert not long[..., 1:].any()


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1, "heads": 1},
        {"words": 1},
        {"words": 61, "heads": 3},
        {"layers": 4, "heads": 6, "kv_heads": 2},
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
)
@every_model
def test_every_size_and_dtype(kind: Any, causal: bool, sizes: dict[str, Any]) -> None:
    model = planted_model(kind, causal=causal, **sizes)
    example = model.example(seed=3)
    assert model.dlm.dtype == sizes.get("dtype", torch.float32)
    assert new(run(model, example.prompt)) == [example.answer]
    for edit, outcome in ((MaskSinks, "masked"), (ZeroSinks, "zeroed")):
        got = new(run(model, example.prompt, edits=[edit(SameStep(top_k=1))]))
        assert got == [[model.truth[outcome]] * 8]


@either_way
def test_prompts_can_be_text(causal: bool) -> None:
    model = make("informative", causal=causal)
    text = "filler cue3 filler filler filler"
    assert model.dlm.encode(text) == [BOS, FILLER, FIRST_WORD + 8 + 3, FILLER, FILLER, FILLER]
    outcome = run(model, text, new_tokens=3)  # pyright: ignore[reportArgumentType]
    assert outcome.completions == ["word3 word3 word3"]
    with pytest.raises(ValueError, match="cannot read 'nonsense'"):
        model.dlm.encode("nonsense")


def test_calibration_passes_where_every_layer_writes_and_is_skipped_elsewhere() -> None:
    assert planted_model("informative", layers=1).dlm.check()["reference"] < 1e-5
    with pytest.raises(CheckFailed, match="did not change the logits"):
        make("informative").dlm.check()


def test_examples_are_seeded_and_random_numbers_stay_the_callers() -> None:
    state = torch.get_rng_state()
    model = planted_model("informative")
    examples = [model.example(seed, length=12, new_tokens=3) for seed in range(40)]
    assert torch.equal(torch.get_rng_state(), state)
    assert examples[7] == model.example(7, length=12, new_tokens=3)
    assert {example.key for example in examples} == set(range(1, 7))
    assert {example.answer[0] for example in examples} == set(range(FIRST_WORD, FIRST_WORD + 8))
    assert {(len(example.prompt), len(example.answer)) for example in examples} == {(12, 3)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "wobbling"}, "kind='wobbling' is unknown; choose from 'informative', 'resting', 'none'"),
        ({"kind": "none", "layers": 0}, "layers=0 must be at least 1"),
        ({"kind": "none", "heads": -1}, "heads=-1 must be at least 1"),
        ({"kind": "none", "words": 0}, "words=0 must be at least 1"),
        ({"kind": "none", "kv_heads": 0}, "kv_heads=0 must be at least 1"),
        ({"kind": "none", "heads": 4, "kv_heads": 3}, "kv_heads=3 must divide heads=4"),
    ],
)
def test_what_cannot_be_planted_raises(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted_model(**arguments)


@pytest.mark.parametrize("arguments", [{"length": 7}, {"new_tokens": 0}])
def test_what_is_no_example_raises(arguments: Any) -> None:
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value} "):
        make("none").example(**arguments)
