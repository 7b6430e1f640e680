"""The key-norm protocol: what is asked, what is kept of it, and what its summary says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sinklens import HookedDLM
from sinklens.caches.cut import Cut
from sinklens.caches.retrieval import Retrieval
from sinklens.errors import ContentError, ScopeError, TaskError, Unsupported
from sinklens.experiments import l2_run
from sinklens.experiments.l2 import L2, Window
from sinklens.experiments.l2_result import WHOLE, L2Result
from sinklens.experiments.l2_run import l2


@pytest.fixture
def arm(tiny_model, monkeypatch: pytest.MonkeyPatch) -> HookedDLM:
    """A random model of 64 words with room for 256: each character is a token."""
    made = tiny_model("Llama", layers=3, max_position_embeddings=512)
    read = lambda text, **_: [2 + ord(c) % 60 for c in text]  # noqa: E731
    monkeypatch.setattr(type(made), "encode", lambda self, text, **more: read(text))
    monkeypatch.setattr(type(made), "encode_piece", lambda self, text: read(text))
    return made


SMALL = L2(
    shares=(0.5,), rankings=("low_norm", "random", "random + first"), outcomes=("perplexity", "passkey", "correlation"),
    skip_layers=(0,), lengths=(220,), depths=(0.0, 1.0), repeats=1, recomputed=220, texts=2, window=40, limit=20,
)  # fmt: skip


def test_every_line_is_there_and_a_second_run_computes_nothing(arm: HookedDLM, tmp_path: Path, monkeypatch) -> None:
    store = tmp_path / "scores.jsonl"
    result = l2(arm, SMALL, save_to=store, progress=False)
    assert result.finished
    table = result.table()
    counts = table.groupby(["outcome", "semantics", "ranking"]).size().to_dict()
    every = ("low_norm", "random", "random + first")
    assert counts == {
        **{("passkey", semantics, name): 2 for semantics in ("cache", "recomputed") for name in every},
        **{("perplexity", "cache", name): 2 for name in (*every, WHOLE)},
        ("passkey", "cache", WHOLE): 2,
    }
    assert len(result.correlations) == 2 * 4 * 3 * 2  # windows, ways, layers, key heads

    def fails(*args: object, **options: object) -> None:
        raise AssertionError("a forward was run")

    monkeypatch.setattr(HookedDLM, "run_with_hooks", fails)
    again = l2(arm, SMALL, save_to=store, progress=False)
    assert again.lines == result.lines
    # more shares ask anew, and nothing else does
    with pytest.raises(AssertionError, match="a forward"):
        l2(arm, L2(**{**_fields(SMALL), "shares": (0.5, 0.25)}), save_to=store, progress=False)


def _fields(protocol: L2) -> dict:
    return {name: value for name, value in vars(protocol).items() if name in L2.__dataclass_fields__}


def test_an_interrupt_keeps_what_is_finished(arm: HookedDLM, tmp_path: Path, monkeypatch) -> None:
    store, calls, real = tmp_path / "scores.jsonl", [], l2_run._retrieve

    def stops(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(l2_run, "_retrieve", stops)
    with pytest.raises(KeyboardInterrupt) as stop:
        l2(arm, SMALL, save_to=store, progress=False)
    part = stop.value.result  # type: ignore[attr-defined]
    assert (part.done, part.total) == (3, 4)
    assert part.unfinished == "unfinished: 3 of 4 trials"
    assert len(store.read_text().splitlines()) == 1 + 2 * 2 + 2
    whole = l2(arm, SMALL, save_to=store, progress=False)
    assert len(calls) == 3
    assert whole.lines[: len(part.lines)] == part.lines


def test_perplexity_of_the_whole_cache_is_the_models(arm: HookedDLM) -> None:
    result = l2(arm, L2(**{**_fields(SMALL), "outcomes": ("perplexity",)}), progress=False)
    for index, context in enumerate(L2(**{**_fields(SMALL), "outcomes": ("perplexity",)}).contexts(arm)):
        tokens = torch.tensor([context])
        with torch.no_grad():
            logits = arm.original_model(tokens).logits[0, 20:-1].double()
        nats = -logits.log_softmax(-1).gather(-1, tokens[0, 21:, None]).mean()
        found = [line["value"] for line in result.lines if line["ranking"] == WHOLE and line["trial"] == index]
        assert found == [pytest.approx(float(nats), abs=1e-4)]


def test_correlations_against_numpy(arm: HookedDLM) -> None:
    result = l2(arm, L2(**{**_fields(SMALL), "outcomes": ("correlation",), "texts": 1}), progress=False)
    context = L2(**{**_fields(SMALL), "outcomes": ("correlation",), "texts": 1}).contexts(arm)[0]
    _, cache = arm.run_with_cache(torch.tensor([context]))
    size = len(context)

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(values)).astype(float)

    def rank_r(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(ranks(a), ranks(b))[0, 1])

    for line in result.correlations:
        layer, head = line["layer"], line["key_head"]
        norms = np.linalg.norm(cache[f"blocks.{layer}.attn.hook_rot_k"][0, :, head].double().numpy(), axis=-1)
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, 2 * head : 2 * head + 2].double().numpy()
        received, places = pattern.mean(0).sum(0), np.arange(size)
        mean = received / (size - places)
        if line["way"] == "received":
            expected = rank_r(-norms, received)
        elif line["way"] == "per query":
            expected = rank_r(-norms, mean)
        elif line["way"] == "without the first":
            expected = rank_r(-norms[1:], mean[1:])
        else:  # the correlation of what linear regressions of the ranks on the position leave
            x, y, z = ranks(-norms[1:]), ranks(mean[1:]), ranks(places[1:])
            left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
            expected = float(np.corrcoef(*left)[0, 1])
        assert line["correlation"] == pytest.approx(expected, abs=1e-5), line


def _result(values: dict[str, list[float]], outcome: str = "passkey") -> L2Result:
    result = L2Result("planted", SMALL, 1)
    for number in range(len(next(iter(values.values())))):
        trial = Window(number) if outcome == "perplexity" else Retrieval("passkey", 100, 0.5, number)
        found = {name: each[number] for name, each in values.items() if name != WHOLE}
        part = "perplexity" if outcome == "perplexity" else "cache"
        result.add(trial, part, {WHOLE: values[WHOLE][number], "0.5": found})
    return result


def test_the_summary_says_what_was_planted() -> None:
    table = _result({
        WHOLE: [1.0] * 8,
        "low_norm": [1, 1, 1, 1, 1, 1, 1, 0],
        "random": [0, 0, 0, 0, 0, 0, 0, 0],
        "random + first": [1, 1, 1, 1, 1, 1, 1, 0],
    }).summary().set_index("ranking")  # fmt: skip
    low = table.loc["low_norm"]
    assert (low["value"], low.minus_random, low.minus_random_first) == (0.875, 0.875, 0.0)
    assert low.minus_random_p_holm == pytest.approx(2 * 2 / 2**7)  # both signs of 7 pairs, two comparisons
    assert low.minus_random_first_p_holm == 1
    assert math.isnan(table.loc["random"].minus_random)
    assert table.loc[WHOLE].share == 1


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    nats = {WHOLE: [1.0, 2.0], "low_norm": [2.0, 3.0], "random": [2.5, 3.5], "random + first": [2.0, 3.0]}
    table = _result(nats, "perplexity").summary().set_index("ranking")
    assert table.loc["low_norm"]["value"] == pytest.approx(math.exp(2.5))
    assert table.loc["low_norm"].minus_random == pytest.approx(-0.5)
    assert table.loc["low_norm"].low >= math.exp(2.0) - 1e-9


def test_names_of_rankings_are_cuts() -> None:
    cuts = L2(rankings=("low_norm - first", "random + first", "recent"), seed=4).cuts(0.5)
    assert cuts == [
        Cut(0.5, "low_norm", "dropped", seed=4),
        Cut(0.5, "random", "kept", seed=4),
        Cut(0.5, "recent", "ranked", seed=4),
    ]
    assert [cut.name for cut in cuts] == ["low_norm - first", "random + first", "recent"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shares": (0.5, 1.0)}, "share 1.0 keeps everything"),
        ({"shares": ()}, "shares=.. is empty"),
        ({"rankings": ("low_norm", "low_norm")}, "names one twice"),
        ({"rankings": ("lowest",)}, "by='lowest' is unknown"),
        ({"rankings": ("low_norm + last",)}, "'low_norm . last' is unknown"),
        ({"depths": (2.0,)}, "depths"),
        ({"outcomes": ("accuracy",)}, "outcomes"),
    ],
)
def test_a_protocol_that_means_nothing_is_refused(fields: dict, said: str) -> None:
    with pytest.raises((ContentError, ScopeError), match=said):
        L2(**fields)


def test_what_a_model_cannot_be_asked_is_said_before_a_forward(arm: HookedDLM, tiny_model, request) -> None:
    both_ways = tiny_model("LLaDA")
    request.getfixturevalue("no_forward")
    for fields, error, said in (
        ({"skip_layers": (9,)}, ScopeError, "no layer 9"),
        ({"lengths": (900,)}, TaskError, "exceed the 512 positions"),
        ({"lengths": (30,)}, TaskError, "too short"),
        ({"window": 20}, ScopeError, "longer"),
        ({"shares": (0.99,)}, ScopeError, "no room"),
        ({"texts": 100_000}, TaskError, "held-out text has"),
    ):
        with pytest.raises(error, match=said):
            l2(arm, L2(**{**_fields(SMALL), **fields}), progress=False)
    with pytest.raises(Unsupported, match="l2_in_diffusion"):
        l2(both_ways, SMALL, progress=False)


def test_lines_can_be_written_as_json(arm: HookedDLM) -> None:
    result = l2(arm, L2(**{**_fields(SMALL), "outcomes": ("passkey",)}), progress=False)
    assert json.loads(json.dumps(result.lines)) == result.lines


def test_the_wide_table_is_the_summary_for_people() -> None:
    ones = [1.0] * 7
    result = _result({WHOLE: ones, "low_norm": ones, "random": [0.0] * 7, "random + first": ones})
    table = result.wide("passkey").set_index("ranking")
    assert list(table.columns) == ["100%", "50%"]
    assert table.loc["low_norm", "50%"] == "1.00 [0.59, 1.00]"  # Clopper and Pearson: .025 ** (1 / 7) = .590
    assert table.loc["low_norm", "100%"] == ""
    differences = result.wide("passkey", column="minus_random").set_index("ranking")
    assert differences.loc["low_norm", "50%"] == "1.00 [0.18, 1.00]*"  # 1 - 2 (1 - .590)
    assert "random" not in differences.index


def test_two_layers_of_which_one_is_cut(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole cache has no layers to skip, however few there are."""
    made = tiny_model("Llama", layers=2, max_position_embeddings=512)
    monkeypatch.setattr(type(made), "encode_piece", lambda self, text: [2 + ord(c) % 60 for c in text])
    result = l2(made, L2(**{**_fields(SMALL), "outcomes": ("perplexity",)}), progress=False)
    assert {line["ranking"] for line in result.lines} == {WHOLE, "low_norm", "random", "random + first"}


def test_an_answer_that_is_read_with_its_question_is_refused_before_a_forward(arm, monkeypatch, no_forward) -> None:
    monkeypatch.setattr(type(arm), "encode_piece", lambda self, text: [2 + len(text) % 60, *[5] * len(text)])
    with pytest.raises(TaskError, match="cannot be told from the question"):
        l2(arm, SMALL, progress=False)
