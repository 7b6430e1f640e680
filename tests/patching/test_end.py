"""Patches asked at the end of the run: against whole runs, one for each patch; and figures of parts of a record."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sinklens as sl
from sinklens.decoding.loop import denoising_steps
from sinklens.hooks import Canvas, Edit, Hook, Memory, Scope
from sinklens.plots import patching

CLEAN, CORRUPT = "pante dolko xy", "pante talma xy"


class Put(Edit):
    """The clean run's residual stream before layer 1 at one position, at one step."""

    def __init__(self, taken: Tensor, position: int, step: int) -> None:
        self.taken, self.position, self.where = taken, position, Scope(steps=(step,))

    def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Hook]:
        def put(tensor: Tensor, *, hook: Any) -> Tensor:
            out = tensor.clone()
            out[0, self.position] = self.taken[0, self.position]
            return out

        return [("blocks.1.hook_in", put)]


def decided(dlm: sl.HookedDLM, plan: sl.Plan, edits: Any, seed: int) -> tuple[dict[int, Tensor], list[Canvas]]:
    """By which logits each position was decided for the last time, in a whole run of the corrupt prompt."""
    found, canvases = {}, []
    for step in denoising_steps(dlm, CORRUPT, plan, interventions=edits, seed=seed):
        canvases.append(step.canvas)
        for position in step.committed[0].nonzero()[:, 0].tolist():
            found[position] = step.logits[0, position].double()
    return found, canvases


@pytest.mark.parametrize("sampler", ["p2", None])
def test_positions_that_are_decided_again_or_not_are_those_of_a_whole_run(sampler: Any) -> None:
    """Under p2 the plain run masks a position again that a patched run may leave as it was."""
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    plan, seed = sl.Plan(new_tokens=6, sampler=sampler, temperature=0.9), 3
    patches = sl.Patches(outcome="end", layers=[1], least=1e-9)
    record = sl.patch(dlm, CLEAN, CORRUPT, plan, patches, seed=seed, progress=False)
    answers = {name: record[f"answer_{name}"][0].to_numpy() for name in ("clean", "corrupt")}
    places = [p for p in range(len(answers["clean"])) if answers["clean"][p] >= 0]
    assert (record["places"][0] == len(places)).all()
    for index, step in enumerate(record["step"].to_numpy().tolist()):
        tokens = torch.tensor(record["canvas_clean"][0, index].to_numpy())[None].long()
        taken = dlm.run_with_cache(tokens)[1]["blocks.1.hook_in"]
        for position in range(tokens.shape[1]):
            found, _ = decided(dlm, plan, [Put(taken, position, step)], seed)
            value = sum(float(found[p][answers["clean"][p]] - found[p][answers["corrupt"][p]]) for p in places)
            assert float(record["patched"][0, index, 0, position]) == pytest.approx(value / len(places), abs=1e-4)


def test_a_function_sees_the_canvas_behind_the_last_step() -> None:
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    metric = sl.named("last", lambda logits, canvas: logits.logsumexp(-1).sum(-1) + canvas.masked.sum(-1))
    patches = sl.Patches(metric=metric, outcome="end", layers=[0], least=1e-9)
    record = sl.patch(dlm, CLEAN, CORRUPT, sl.Plan(new_tokens=4), patches, progress=False)
    assert record["effect"].notnull().any()


def test_a_figure_of_a_part_of_a_record_keeps_its_names() -> None:
    dlm, plan = sl.HookedDLM.from_pretrained("tiny-dlm"), sl.Plan(new_tokens=2)
    pairs: Any = [["pante dolko", "molma pante"], ["pante talma", "molma tuste"]]
    record = sl.patch(dlm, *pairs, plan, sl.Patches(least=1e-9), progress=False)
    whole = patching(record, 1).layout.xaxis.ticktext
    assert any("tuste" in text for text in whole)
    assert patching(record.isel(prompt=[1, 0]), 1).layout.xaxis.ticktext == whole
    assert patching(record.isel(prompt=[1]), 1).layout.xaxis.ticktext == whole
    assert patching(record.isel(position=[2, 1]), 1).layout.xaxis.ticktext == (whole[2], whole[1])
    assert patching(record).layout.yaxis.ticktext == ("0", "1", "2 (end)")
    assert patching(record.isel(layer=[0, 1])).layout.yaxis.ticktext == ("0", "1")
    for dim in ("prompt", "step"):
        with pytest.raises(ValueError, match=f"lost its dim '{dim}'"):
            patching(record.isel({dim: 0}))
