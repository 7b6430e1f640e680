"""For diffusion models the numbers are those of the official evaluation scripts, recorded on the tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts_harness import asked, with_words
from stock import FIDELITY

from sinklens.decoding.likelihood import log_likelihood
from sinklens.decoding.noising import Noise
from sinklens.harness import SinklensLM, scoring

DATA = Path(__file__).parents[1] / "data" / "harness"
PLANS = {"llada": "block_length=8@allow_mask=true", "dream": "allow_mask=true"}


@pytest.fixture(scope="module", params=["llada", "dream"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SinklensLM, Any]:
    """A checkpoint as a model of the harness, and what the official evaluation of its family said."""
    folder = with_words(FIDELITY / request.param / "checkpoint", tmp_path_factory.mktemp(request.param) / "model")
    lm = SinklensLM(str(folder), device="cpu", plan=PLANS[request.param], mc_num=16, batch_size=5)
    return lm, json.loads((DATA / f"{request.param}.json").read_text())


def test_the_estimator_is_the_familys_own(recorded: Any) -> None:
    lm, data = recorded
    assert lm.setting.estimator == ("dream" if "Dream" in data["about"] else "llada")


def test_log_likelihoods_under_the_recorded_masks(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, data = recorded
    cases = data["loglikelihood"]
    end = int(lm.setting.estimator == "dream")  # Dream's EOS, which is never masked
    masks = [np.array([[sign == "1" for sign in mask] for mask in case["masks"]]) for case in cases]
    shares = [np.array(case["p_mask"]) for case in cases]
    noises = [Noise(mask[:, : mask.shape[1] - end], 1 / each) for mask, each in zip(masks, shares, strict=True)]
    assert end == any(len(case["masks"][0]) > len(case["continuation"].split()) for case in cases)
    for case, noise in zip(cases, noises, strict=True):
        monkeypatch.setitem(scoring.ESTIMATORS, lm.setting.estimator, lambda samples, length, seed, noise=noise: noise)
        found = lm.loglikelihood(asked("loglikelihood", (case["context"], case["continuation"])), disable_tqdm=True)
        assert found[0][0] == pytest.approx(case["log_likelihood"], rel=2e-6)


def test_whether_a_continuation_is_greedy(recorded: Any) -> None:
    """LLaDA's `suffix_greedy_prediction`; Dream's evaluation always says no, so nothing is recorded of it."""
    lm, data = recorded
    cases = [case for case in data["loglikelihood"] if "greedy" in case]
    found = lm.loglikelihood(
        asked("loglikelihood", *((case["context"], case["continuation"]) for case in cases)), disable_tqdm=True
    )
    assert [greedy for _, greedy in found] == [case["greedy"] for case in cases]


def test_generations(recorded: Any) -> None:
    """Cut where the official code cuts; the white space that a tokenizer leaves before a cut is not compared."""
    lm, data = recorded
    cases = data["generate_until"]
    kwargs = [{"until": case["until"], "max_gen_toks": 16} for case in cases]
    requests = asked("generate_until", *((case["context"], each) for case, each in zip(cases, kwargs, strict=True)))
    found = lm.generate_until(requests, disable_tqdm=True)
    assert [text.strip() for text in found] == [case["text"].strip() for case in cases]


def test_our_own_masks_are_those_of_log_likelihood(recorded: Any) -> None:
    """`sl.log_likelihood` times the length, in other batches and without running equal draws twice."""
    lm, data = recorded
    ours = SinklensLM(lm.dlm, estimator="llada", mc_num=16, batch_size=7, seed=3)
    for case in data["loglikelihood"]:
        context, said = ours._encode_pair(case["context"], case["continuation"])
        expected = len(said) * float(log_likelihood(lm.dlm, [context], [said], samples=16, seed=3))
        (found, _), *_ = ours.loglikelihood(
            asked("loglikelihood", (case["context"], case["continuation"])), disable_tqdm=True
        )
        assert found == pytest.approx(expected, rel=1e-5)
