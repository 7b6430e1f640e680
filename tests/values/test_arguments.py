"""Functions read their arguments as values read their fields: exact, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import sinklens as sl
from sinklens.analysis import dynamics, norms, overlap, rates
from sinklens.decoding.likelihood import log_likelihood
from sinklens.errors import SinklensError
from sinklens.experiments.ablation import ablate, doses
from sinklens.experiments.published import experiment1
from sinklens.interventions import (
    ByToken,
    Fixed,
    InOrder,
    MaskSinks,
    RandomKeys,
    SinkToken,
    ZeroSinks,
    control,
    other_prompt,
)
from sinklens.probes import MassOn, ReceivedAttention, estimate
from sinklens.values.kinds import read, whole_number

PROMPT = [0, 20, 30]
PLAN = sl.Plan(new_tokens=2)


@lru_cache(maxsize=1)
def twin() -> Any:
    return sl.HookedDLM.from_pretrained("tiny-dlm")


@lru_cache(maxsize=1)
def record() -> xr.Dataset:
    return sl.planted("drifting", steps=4, keys=8).record


def run(**options: Any) -> Any:
    return sl.denoise(twin(), PROMPT, PLAN, **{"progress": False, **options})


def ablation(**options: Any) -> Any:
    given: dict[str, Any] = {"plan": PLAN, "progress": False, "conditions": {"a": ZeroSinks(Fixed(0))}} | options
    return ablate(twin(), [PROMPT], **given)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: run(seed=1.5), "seed=1.5 must be a whole number from 0 to .* or a list of"),
    (lambda: run(seed=True), "seed=True must be"),
    (lambda: run(seed="3"), "seed='3' must be"),
    (lambda: run(seed=-1), "seed=-1 must be a whole number from 0"),
    (lambda: run(seed=2**63), "seed=9223372036854775808 must be"),
    (lambda: run(seed=[1.0]), r"seed=\[1.0\] must be"),
    (lambda: run(interventions=MaskSinks()), "interventions=MaskSinks.* must be a list in which each is an Edit"),
    (lambda: run(probes=ReceivedAttention()), "probes=.* must be a list in which each is a Probe"),
    (lambda: run(probes=[MaskSinks()]), "probes=.* must be a list in which each is a Probe"),
    (lambda: run(save_to=3), "save_to=3 must be a text, a Path or null"),
    (lambda: run(progress=2), "progress=2 must be true or false or a text"),
    (lambda: run(force=[[1.5, 2]]), r"force=\[\[1.5, 2\]\] must be"),
    (lambda: run(force=[["1", "2"]]), "force=.* must be"),
    (lambda: run(force=[[1, 10**6]]), r"force\[0\]: token id 1000000 is outside the vocabulary of \d+"),
    (lambda: run(force=[[1, -2]]), r"force\[0\]: token id -2 is outside the vocabulary"),
    (lambda: run(follow=3), "follow=3 must be a Trajectory or null"),
    (lambda: sl.denoise("tiny-dlm", PROMPT), "dlm='tiny-dlm' must be a HookedDLM"),  # type: ignore[arg-type]
    (lambda: sl.denoise(twin(), PROMPT, {"steps": 3}), "plan={'steps': 3} must be a Plan or null"),  # type: ignore[arg-type]
    (lambda: next(sl.denoising_steps(twin(), PROMPT, PLAN, seed=0.5)), "seed=0.5 must be"),  # type: ignore[arg-type]
    (lambda: log_likelihood(twin(), PROMPT, [[5]], seed=True), "seed=True must be"),
    (lambda: log_likelihood(twin(), PROMPT, [[5]], seed=-3), "seed=-3 must be"),
    (lambda: log_likelihood(twin(), PROMPT, [[5]], samples=1.5), "samples=1.5 must be"),
    (lambda: ablation(metrics="accuracy"), "metrics='accuracy' must be a list of texts"),
    (lambda: ablation(metrics=[3]), r"metrics=\[3\] must be a list of texts"),
    (lambda: ablation(seeds=[0.5]), r"seeds=\[0.5\] must be a list of whole numbers"),
    (lambda: ablation(seeds=3), "seeds=3 must be a list of whole numbers"),
    (lambda: ablation(seeds="12"), "seeds='12' must be a list of whole numbers"),
    (lambda: ablation(seeds=[2**50]), "seeds=.* must be a list of whole numbers from 0 to"),
    (lambda: ablation(batch_size=1.5), "batch_size=1.5 must be a whole number of at least 1"),
    (lambda: ablation(batch_size=True), "batch_size=True must be a whole number"),
    (lambda: ablation(controls=3), "controls=3 must be"),
    (lambda: ablation(conditions={1: MaskSinks()}), "conditions={1: .* must be a mapping from names"),
    (lambda: ablation(conditions=[MaskSinks()]), "conditions=.* must be a mapping from names"),
    (lambda: ablation(plan="fast"), "plan='fast' must be a Plan or null"),
    (lambda: doses("k", "abc", lambda k: MaskSinks(Fixed(k))), "values='abc' must be a list"),
    (lambda: control(MaskSinks(), "random", seed=1.5), "seed=1.5 must be"),  # type: ignore[arg-type]
    (lambda: control("mask:top1"), "edit='mask:top1' must be an Edit"),  # type: ignore[arg-type]
    (lambda: other_prompt(record(), shift=0.5), "shift=0.5 must be a whole number"),  # type: ignore[arg-type]
    (lambda: estimate(twin(), PLAN, [], prompts=0), "prompts=0 must be a whole number of at least 1"),
    (lambda: experiment1("tiny-dlm", ks=[1.5]), r"ks=\[1.5\] must be"),  # type: ignore[list-item]
    (lambda: rates.sinks(record(), "gu"), "rule='gu' must be a SinkRule or null"),  # type: ignore[arg-type]
    (lambda: rates.per_layer(record(), 0), "rule=0 must be a SinkRule or null"),  # type: ignore[arg-type]
    (lambda: rates.sink_tokens(record(), top=-1), "top=-1 must be a whole number of at least 1 or null"),
    (lambda: rates.sink_tokens("run.nc"), "record='run.nc' must be a Dataset"),  # type: ignore[arg-type]
    (lambda: dynamics.filtered_share(record(), "123"), "epsilons='123' must be a list"),  # type: ignore[arg-type]
    (lambda: dynamics.filtered_share(record(), [True]), "epsilons=.* must be a list of finite numbers"),
    (lambda: dynamics.filtered_share(record(), [float("nan")]), "epsilons=.* must be a list of finite numbers"),
    (lambda: dynamics.classify(record(), share=90), "share=90 must be a number from 0 to 1"),
    (lambda: norms.kind(record(), low="0.5"), "low='0.5' must be a finite number of at least 0"),  # type: ignore[arg-type]
    (lambda: overlap.overlap(record(), "heads"), "between='heads' is unknown; choose from 'layer', 'head', 'queries'"),  # type: ignore[arg-type]
    (lambda: sl.plots.histogram(record(), bins=0), "bins=0 must be a whole number of at least 1"),
    (lambda: sl.plots.histogram(record(), layer="0"), "layer='0' must be a whole number or null"),  # type: ignore[arg-type]
    (lambda: sl.plots.timeline(record(), prompt=True), "prompt=True must be a whole number"),
    (lambda: sl.plots.timeline(record(), prompt=0.0), "prompt=0.0 must be a whole number"),  # type: ignore[arg-type]
    (lambda: sl.plots.heads(record(), layers=[0.5]), r"layers=\[0.5\] must be a list of whole numbers or null"),  # type: ignore[list-item]
    (lambda: sl.rule(3), "name=3 must be a text"),  # type: ignore[arg-type]
]


@pytest.mark.usefixtures("twins", "no_forward")
@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_an_argument_of_another_kind_is_refused_by_name(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SinklensError, match=message):
        call()


@pytest.fixture
def twins() -> None:
    """The models and records are made before forwards are forbidden."""
    twin()
    record()


def test_numbers_of_any_library_are_arguments() -> None:
    same = [run(seed=seed).record for seed in (3, np.int64(3), torch.tensor(3), [3], np.array([3]), (np.uint8(3),))]
    assert all(one.equals(same[0]) for one in same)
    scores = [ablation(seeds=seeds, batch_size=size).scores for seeds, size in (([1], 8), (np.array([1]), np.int64(8)))]
    assert scores[0] == scores[1]
    one, other = (log_likelihood(twin(), PROMPT, [[5, 6]], seed=seed, samples=2) for seed in (4, np.int32(4)))
    assert torch.equal(one, other)
    assert rates.sink_tokens(record(), top=np.int64(1)).equals(rates.sink_tokens(record(), top=1))  # type: ignore[arg-type]


@pytest.mark.usefixtures("twins", "no_forward")
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ByToken(10**6), r"ByToken.*token id 1000000 is outside the vocabulary of \d+"),
        (ByToken([5, 99_999]), "token id 99999 is outside the vocabulary"),
        (Fixed(50), r"Fixed.*the shortest row has positions 0 to 4"),
        (RandomKeys(ByToken(10**6)), "token id 1000000 is outside"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_the_first_forward(part: Any, message: str) -> None:
    for edit in (MaskSinks(part), InOrder(MaskSinks(part))):
        with pytest.raises(SinklensError, match=message):
            run(interventions=[edit])
        with pytest.raises(SinklensError, match=message):
            ablation(conditions={"a": edit}, controls=None)


@pytest.mark.usefixtures("twins", "no_forward")
def test_an_added_token_and_a_measured_one_must_be_in_the_vocabulary() -> None:
    with pytest.raises(SinklensError, match="token id 1000000 is outside the vocabulary"):
        run(interventions=[SinkToken(10**6)])
    with pytest.raises(SinklensError, match="token id 1000000 is outside the vocabulary"):
        run(probes=[MassOn(tokens=10**6)])


def test_what_was_read_says_what_it_must_be() -> None:
    assert read("x", np.float32(0.5), float) == 0.5
    assert whole_number("n", np.int8(3), 1) == 3
    with pytest.raises(ValueError, match="n=0 must be a whole number of at least 1"):
        whole_number("n", 0, 1)
    with pytest.raises(ValueError, match=r"x=\[0, 0, .* 0, 0\] must be a text"):
        read("x", [0] * 10_000, str)
