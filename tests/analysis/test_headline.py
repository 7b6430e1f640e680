"""The sentence about a record's sinks says what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sinklens import HookedDLM, Plan, denoise
from sinklens.analysis.headline import headline
from sinklens.ground_truth.records import planted
from sinklens.probes import ReceivedAttention
from sinklens.sinks import SinkRule


def moved(record: xr.Dataset, key: int) -> xr.Dataset:
    """The same with keys 0 and `key` exchanged in what is received."""
    order = np.arange(record.sizes["key"])
    order[[0, key]] = order[[key, 0]]
    received = record["received"]
    return record.assign(received=received.copy(data=received.isel(key=order).to_numpy()))


def test_one_sink_that_stays() -> None:
    made = planted("static", layers=3)
    place = int(made.record["received"].isel(prompt=0, step=0, layer=0, head=0).argmax("key"))
    said = headline(made.record)
    assert said.startswith("In 3 of 3 layers the typical head has exactly one sink; ")
    assert "they stay where they are from step to step (Jaccard 1.00)" in said
    assert "first token" not in said or place == 0
    assert "100% of all sinks are the first token" in headline(moved(made.record, place))


def test_sinks_that_move() -> None:
    assert "; they move from step to step (Jaccard 0.00)." in headline(planted("drifting").record)
    jumping = planted("jumping", steps=16).record  # three changes in fifteen pairs of steps
    assert f"some of them move from step to step (Jaccard {12 / 15:.2f})" in headline(jumping)


def test_none_and_several() -> None:
    assert headline(planted("none").record) == "No head of the 2 layers has a sink by this rule."
    record = planted("static", layers=2).record
    received = record["received"].copy()
    place = int(received.isel(prompt=0, step=0, layer=0, head=0).argmax("key"))
    second = received.isel(key=place).to_numpy()
    values = received.to_numpy().copy()
    values[:, :, 1, :, (place + 1) % values.shape[-1]] = second[:, :, 1]
    both = headline(record.assign(received=received.copy(data=values)), SinkRule(epsilon=3.0))
    assert both.startswith("In 1 of 2 layers the typical head has exactly one sink (in 1 more); ")


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_of_a_real_record_every_number_is_counted_by_hand(name: str) -> None:
    dlm = HookedDLM.from_pretrained(name)
    record = denoise(
        dlm, ["dolko gake xe", "gake"], Plan(new_tokens=8), probes=[ReceivedAttention()], progress=False
    ).record
    received = record["received"].transpose("prompt", "step", "layer", "head", "key").to_numpy()
    counts: list[list[int]] = [[] for _ in range(2)]
    first = total = 0
    overlaps: list[list[float]] = [[] for _ in range(2)]
    for prompt, steps in enumerate(received):
        for layer in range(2):
            for head in range(steps.shape[2]):
                before: set[int] | None = None
                for row in steps[:, layer, head]:
                    there = row[~np.isnan(row)]
                    if not len(there):
                        before = None
                        continue
                    sinks = {i for i, one in enumerate(there) if one > 3 + (there.sum() - one) / (len(there) - 1)}
                    counts[layer].append(len(sinks))
                    first, total = first + (0 in sinks), total + len(sinks)
                    if before is not None and before | sinks:
                        overlaps[layer].append(len(before & sinks) / len(before | sinks))
                    before = sinks
        assert prompt < 2
    one = sum(float(np.median(each)) == 1 for each in counts)
    said = headline(record)
    assert said.startswith(f"In {one or 'none'} of 2 layers the typical head has exactly one sink")
    if first / total >= 0.5:
        assert f"; {first / total:.0%} of all sinks are the first token" in said
    assert f"(Jaccard {np.mean([np.mean(each) for each in overlaps if each]):.2f})" in said
