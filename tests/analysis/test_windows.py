"""Layers that see their neighbourhood only: what uniform attention would give them, and who can see whom."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from sinklens import Plan, Scope, SinkRule, denoise, plots, probes
from sinklens.analysis import attention, rates
from sinklens.errors import RecordError

PROMPTS = [[5, 17, 9, 33, 8, 21, 50, 4, 11], [12, 40, 7]]
NEAR = 3  # positions to each side, in layers 1 and 2


@pytest.fixture(scope="module")
def run(tiny_model: Any) -> Any:
    """A ModernBERT of four layers: 0 and 3 see everything, 1 and 2 three positions to each side."""
    dlm = tiny_model("ModernBERT", layers=4)
    assert dlm.windows == (None, NEAR + 1, NEAR + 1, None)
    measured = [probes.ReceivedAttention(), probes.Pattern(), probes.SinkMask(SinkRule(epsilon=0.5))]
    return denoise(dlm, PROMPTS, Plan(new_tokens=4, steps=2, block_length=4), probes=measured, progress=False)


def naive_null(length: int, near: int) -> np.ndarray:
    """Column sums of rows that are even over what they see, key by key."""
    sees = [[j for j in range(length) if abs(i - j) <= near] for i in range(length)]
    return np.array([sum(1 / len(row) for row in sees if j in row) for j in range(length)])


def test_no_pattern_reaches_further_than_its_window(run: Any) -> None:
    pattern = run.record["pattern"].isel(prompt=0, step=0).to_numpy()  # [layer, head, query, key]
    query, key = np.indices(pattern.shape[-2:])
    far = np.abs(query - key) > NEAR
    for layer, local in enumerate((False, True, True, False)):
        assert (pattern[layer][:, far] == 0).all() == local
        assert (pattern[layer][:, ~far] > 0).all()


def test_the_null_is_of_each_layers_window(run: Any) -> None:
    assert json.loads(run.record.attrs["provenance"])["windows"] == [None, NEAR + 1, NEAR + 1, None]
    even = attention.null(run.record)["received"]
    assert even.sizes["layer"] == 4
    for prompt, length in enumerate((13, 7)):
        for layer, near in enumerate((99, NEAR, NEAR, 99)):
            ours = even.isel(prompt=prompt, step=0, layer=layer, head=0).to_numpy()
            np.testing.assert_allclose(ours[:length], naive_null(length, near), atol=1e-6)
            assert np.isnan(ours[length:]).all()
    assert abs(naive_null(13, NEAR)[0] - 1) > 0.1  # it is not that of a layer that sees everything


def test_sinks_of_a_record_are_those_of_the_probe(run: Any) -> None:
    """Shares count the queries that can see a key: the record's windows, and what attention was told."""
    rule = SinkRule(epsilon=0.5)
    there = run.record["sink"].notnull()
    assert bool((rates.sinks(run.record, rule) == (run.record["sink"] == 1)).where(there, True).all())
    share = SinkRule(epsilon=0.3, units="share")
    by_hand = run.record["received"].to_numpy()[0, 0, 1] / [min(j, NEAR) + min(12 - j, NEAR) + 1 for j in range(13)]
    assert np.array_equal(rates.sinks(run.record, share).to_numpy()[0, 0, 1], by_hand > 0.3)


def test_tables_and_figures_know_the_windows(run: Any) -> None:
    strict = SinkRule(epsilon=0.02)
    table = rates.per_layer(run.record, strict)
    one = rates.flagged(attention.null(run.record), strict)[1].sum("key").mean(["prompt", "step", "head"]).to_numpy()
    np.testing.assert_allclose(table["null"], one)
    assert table["null"].iloc[0] == table["null"].iloc[3] == 0 < table["null"].iloc[1]
    for figure in (
        plots.heads(run.record), plots.layer_steps(run.record), plots.histogram(run.record, layer=1),
        plots.filtered_curve(run.record), plots.sink_lives(run.record, layer=1, head=0), plots.timeline(run.record),
    ):  # fmt: skip
        assert figure.data
    title = plots.histogram(run.record).layout.title.text.replace("<br>", " ")
    assert "In 2 layers no key is seen from further than 3 positions" in title


def test_a_scope_of_layers_keeps_their_windows(tiny_model: Any) -> None:
    dlm = tiny_model("ModernBERT", layers=4)
    some = [probes.ReceivedAttention(Scope(layers=[1, 3]))]
    record = denoise(dlm, PROMPTS, Plan(new_tokens=4, steps=2, block_length=4), probes=some, progress=False).record
    even = attention.null(record)["received"]
    assert even["layer"].to_numpy().tolist() == record["received"]["layer"].to_numpy().tolist()
    np.testing.assert_allclose(even.sel(layer=1)[0, 0, 0, :13], naive_null(13, NEAR), atol=1e-6)
    assert len(rates.per_layer(record)) == 2


def test_a_provenance_of_other_layers_is_refused(run: Any) -> None:
    for wrong, words in (([None], "1 layers"), ("far", "expected one for each layer")):
        said = json.loads(run.record.attrs["provenance"]) | {"windows": wrong}
        with pytest.raises(RecordError, match=words):
            attention.null(run.record.assign_attrs(provenance=json.dumps(said)))


@torch.no_grad()
def test_models_that_see_everything_say_nothing_of_windows(tiny_model: Any) -> None:
    for family in ("BERT", "LLaDA"):
        dlm = tiny_model(family)
        assert dlm.windows == (None, None)
        record = denoise(dlm, [[5, 6]], Plan(new_tokens=2), probes=[probes.ReceivedAttention()], progress=False).record
        assert "windows" not in json.loads(record.attrs["provenance"])
        assert attention.null(record)["received"].sizes["layer"] == 1
