"""Recall of a block's first keys: a loop over lists, and runs where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sinklens import HookedDLM, Plan, denoise
from sinklens.analysis.first_step import first_step_recall
from sinklens.errors import RecordError
from sinklens.hooks import Scope
from sinklens.interventions import Fixed, MaskSinks
from sinklens.probes import ReceivedAttention

PROMPTS = ["molma telme talko xa molma", "wa molma telme xa"]


@pytest.fixture(scope="module")
def run() -> Any:
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    return denoise(
        dlm, PROMPTS, Plan(new_tokens=11), probes=[ReceivedAttention(queries="block")], seed=[1, 2], progress=False
    )


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_it_is_a_loop_over_lists(run: Any, top_k: int) -> None:
    received = run.record["received"].transpose("prompt", "step", "layer", "head", "key").to_numpy()
    masked, given = run.record["masked"].to_numpy(), run.record["given"].to_numpy()
    found: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    for prompt in range(2):
        firsts: dict[int, int] = {}
        for step in range(received.shape[1]):
            real = [j for j in range(masked.shape[-1]) if masked[prompt, step, j] >= 0]
            if not real or masked[prompt, step].max() < 1:
                continue
            block = min(j for j in real if masked[prompt, step, j] == 1) // 4
            first = firsts.setdefault(block, step)
            if first == step:
                continue
            for layer, head in np.ndindex(received.shape[2:4]):
                now, then = (received[prompt, at, layer, head] for at in (step, first))
                own, old = (sorted(real, key=lambda j: -each[j])[:top_k] for each in (now, then))
                best = sum(now[j] for j in own)
                found.setdefault((layer, step - first), []).append(
                    (
                        len(set(own) & set(old)) / top_k,
                        top_k / len(real),
                        sum(now[j] for j in old) / best,
                        sum(now[j] for j in real) * top_k / len(real) / best,
                    )
                )
    table = first_step_recall(run.record, top_k).set_index(["layer", "within"])
    assert set(table.index) == set(found)
    for place, rows in found.items():
        expected = np.mean(rows, 0)
        np.testing.assert_allclose(table.loc[place, ["recall", "chance", "mass", "chance_mass"]], expected, rtol=1e-5)
        assert table.loc[place, "cases"] == len(rows)
    assert given.any()


def test_a_model_that_can_only_look_at_one_key_keeps_it() -> None:
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    others = MaskSinks(Fixed(list(range(1, 18))))
    probe = ReceivedAttention(queries="block", where=Scope(layers=0))
    run = denoise(dlm, PROMPTS[0], Plan(new_tokens=12), probes=[probe], interventions=[others], progress=False)
    table = first_step_recall(run.record, 1)
    assert (table.recall == 1).all()
    assert (table.mass == 1).all()
    assert (table.chance < 0.2).all()


def test_what_cannot_be_asked_is_an_error(run: Any) -> None:
    with pytest.raises(RecordError, match=r"top_k=12: prompt \d has \d+ keys"):
        first_step_recall(run.record, 12)
    dlm = HookedDLM.from_pretrained("tiny-bdlm")
    every = denoise(dlm, PROMPTS[0], Plan(new_tokens=4), probes=[ReceivedAttention()], progress=False)
    with pytest.raises(RecordError, match="from block queries was not measured"):
        first_step_recall(every.record)
    quick = Plan(new_tokens=8, steps=2, block_length=4)
    at_once = denoise(dlm, [[0, 5, 6, 7]], quick, probes=[ReceivedAttention(queries="block")], progress=False)
    with pytest.raises(RecordError, match="no block of this record takes two steps"):
        first_step_recall(at_once.record, 1)
