"""The probe of an autoencoder's features: loops over the streams of each step, what is refused, and its budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_autoencoders import by_chance, of_direction

import sinklens as sl
from sinklens import Feature, HookedDLM, Plan, Scope, denoise
from sinklens.autoencoders import Formula
from sinklens.errors import AutoencoderError, ContentError, HookNeverFired, NotFinite, ScopeError
from sinklens.probes import Features, ReceivedAttention, estimate

PROMPTS = [[5, 17, 9, 33, 8], [12, 40, 7]]
PLAN = Plan(new_tokens=4)


@pytest.fixture(scope="module")
def dlm(tiny_model: Any) -> HookedDLM:
    """Two layers of d_model 32."""
    return tiny_model("LLaDA")


@pytest.mark.parametrize(
    "formula", [Formula("standard"), Formula("topk", k=5)], ids=lambda formula: formula.architecture
)
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "BERT"])
def test_features_are_those_of_each_steps_stream(tiny_model: Any, family: str, formula: Formula) -> None:
    """Each canvas of the record is run again, alone and without padding, and each position is encoded by itself."""
    dlm = tiny_model(family)
    plan = PLAN.for_causal() if dlm.is_causal else PLAN
    sae = by_chance(dlm, "blocks.1.hook_in", formula)
    some = [Features(sae, ids=[20, 3], variable="some"), Features(sae, top_k=7), Features(sae, top_k=7, what="id")]
    run = denoise(dlm, PROMPTS, plan, probes=[*some, ReceivedAttention()], progress=False)
    record = run.record
    assert record["some"].dims == ("prompt", "step", "feature", "key")
    assert record["features"].dims == record["feature_ids"].dims == ("prompt", "step", "rank", "key")
    assert record["feature"].to_numpy().tolist() == [20, 3] or record["feature"].to_numpy().tolist() == [3, 20]
    found = 0
    for prompt in range(2):
        for step in range(4):
            canvas = record["canvas"].to_numpy()[prompt, step]
            tokens = torch.tensor(canvas[canvas >= 0], dtype=torch.long)[None]
            with torch.no_grad():
                _, cache = dlm.run_with_cache(tokens)
            stream = cache["blocks.1.hook_in"][0]
            here = record.isel(prompt=prompt, step=step)
            for place, x in enumerate(stream):
                f = sae.encode(x)
                for feature in (3, 20):
                    value = float(here["some"].sel(feature=feature, key=place))
                    assert value == pytest.approx(float(f[feature]), abs=1e-4)
                order = sorted(range(24), key=lambda j: -float(f[j]))[:7]
                values = here["features"].sel(key=place).to_numpy()
                np.testing.assert_allclose(values, [float(f[j]) for j in order], atol=1e-4)
                ids = here["feature_ids"].sel(key=place).to_numpy()
                for rank, j in enumerate(order):
                    if float(f[j]) == 0:
                        assert np.isnan(ids[rank])
                    elif values[rank] > 1e-3:
                        assert float(f[int(ids[rank])]) == pytest.approx(float(f[j]), abs=1e-4)
                        found += 1
            assert np.isnan(here["some"].to_numpy()[:, len(stream) :]).all()
    assert found > 100


def test_only_the_positions_in_question_are_measured(dlm: HookedDLM) -> None:
    sae = by_chance(dlm)
    every, masked = (
        Features(sae, top_k=3, variable="every"),
        Features(sae, top_k=3, positions="masked", where=Scope(steps=1)),
    )
    record = denoise(dlm, PROMPTS, PLAN, probes=[every, masked], progress=False).record
    at = record["features"].to_numpy()
    where = np.broadcast_to((record["masked"] == 1).to_numpy()[:, :, None], at.shape)
    assert np.isnan(at[:, [0, 2, 3]]).all()
    assert (np.isnan(at[:, 1]) == ~where[:, 1]).all()
    np.testing.assert_array_equal(at[:, 1][where[:, 1]], record["every"].to_numpy()[:, 1][where[:, 1]])
    assert record["features"].attrs["positions"] == "masked"
    assert record["features"].attrs["autoencoder"] == sae.identity
    assert record["features"].attrs["hook_point"] == "blocks.0.hook_out"


def test_a_probe_sees_what_an_edit_left(dlm: HookedDLM) -> None:
    """A planted direction that was ablated is read as 0, and everything else as it was."""
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
    sae = of_direction(dlm, direction)
    probe = Features(sae, ids=[0, 1], where=Scope(steps=0))
    before = denoise(dlm, PROMPTS, PLAN, probes=[probe], progress=False).record["features"].isel(step=0)
    after = denoise(dlm, PROMPTS, PLAN, probes=[probe], interventions=[Feature(sae, [0])], progress=False)
    left = after.record["features"].isel(step=0)
    assert float(before.sel(feature=0).max()) > 0.1
    assert float(left.sel(feature=0).max()) < 1e-5
    np.testing.assert_allclose(left.sel(feature=1), before.sel(feature=1), atol=1e-5)


def test_a_record_is_saved_opened_and_estimated(dlm: HookedDLM, tmp_path: Any) -> None:
    sae = by_chance(dlm, formula=Formula("topk", k=5))
    folder = str(sae.save(tmp_path / "sae"))
    probes = [
        Features(folder, top_k=4),
        Features(folder, top_k=4, what="id"),
        Features(folder, ids=[2], variable="one"),
    ]
    run = denoise(dlm, PROMPTS, PLAN, probes=probes, save_to=tmp_path / "run.nc", progress=False)
    with sl.open(tmp_path / "run.nc") as opened:
        for name in ("features", "feature_ids", "one"):
            np.testing.assert_array_equal(opened[name], run.record[name])
    guess = estimate(dlm, PLAN, probes, prompts=2, prompt_tokens=5)
    assert guess.by_probe == {name: run.record[name].nbytes for name in ("features", "feature_ids", "one")}
    assert type(probes[0]).from_dict(probes[0].to_dict()) == probes[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give one of them"),
        ({"top_k": 2, "ids": [1]}, "give one of them"),
        ({"ids": []}, "must name features, each once, out of 0 to 23"),
        ({"ids": [3, 3]}, "must name features"),
        ({"ids": [24]}, "must name features"),
        ({"ids": [1], "what": "id"}, "given ids are known"),
        ({"top_k": 25}, "the autoencoder has 24 features"),
        ({"top_k": 2, "what": "value"}, "what='value' is unknown"),
    ],
)
def test_fields_that_mean_nothing_are_refused(dlm: HookedDLM, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ContentError, match=message):
        Features(by_chance(dlm), **fields)


def test_scopes_other_models_and_too_much_are_refused(dlm: HookedDLM) -> None:
    sae = by_chance(dlm)
    for where in (Scope(layers=[0]), Scope(heads=[0])):
        with pytest.raises(ScopeError, match="has no meaning for Features"):
            Features(sae, top_k=2, where=where)
    with pytest.raises(AutoencoderError, match="was trained on 'another'"):
        denoise(dlm, PROMPTS, PLAN, probes=[Features(by_chance("another"), top_k=2)], progress=False)
    tight = Features(sae, top_k=4, max_bytes=4 * 4 * 9 * 2 - 1)
    with pytest.raises(ValueError, match="take 288 bytes per step, more than max_bytes=287"):
        denoise(dlm, PROMPTS, PLAN, probes=[tight], progress=False)
    assert tight.bytes(9, prompts=2) == 288
    with pytest.raises(HookNeverFired, match="has measured nothing"):
        tight.values({})


def test_nan_is_an_error_and_no_missing_value(dlm: HookedDLM) -> None:
    probe, seen = Features(by_chance(dlm), top_k=2), {}
    ((_, hook),) = probe.hooks(dlm, None, seen)
    stream = torch.zeros(1, 3, 32)
    stream[0, 1, 5] = float("nan")
    hook(stream, hook=None)
    with pytest.raises(NotFinite, match=r"blocks.0.hook_out at step 0 holds nan"):
        probe.values(seen)


def test_padding_is_not_measured_outside_the_loop(dlm: HookedDLM) -> None:
    sae, seen = by_chance(dlm), {}
    valid = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    tokens = torch.tensor([[5, 17, 9, 33, 8], [1, 1, 12, 40, 7]])
    with torch.no_grad():
        dlm.run_with_hooks(
            tokens, attention_mask=valid.long(), fwd_hooks=Features(sae, ids=[0]).fwd_hooks(dlm, seen=seen)
        )
        _, cache = dlm.run_with_cache(tokens[1:, 2:])
    found = seen["values"]
    assert found[1, :, :2].isnan().all()
    torch.testing.assert_close(found[1, 0, 2:], sae.encode(cache["blocks.0.hook_out"])[0, :, 0], atol=1e-4, rtol=1e-4)
