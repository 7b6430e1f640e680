"""The probe of what a gate keeps: a loop over single tokens, beside the edit that drops keys, and what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinklens import HookedDLM, Plan, Scope, denoise
from sinklens import open as open_record
from sinklens.errors import ContentError, GateError, HookNeverFired, ScopeError
from sinklens.interventions import LearnedSelection
from sinklens.probes import Kept, ReceivedAttention, estimate
from sinklens.selection import Gate, Shape

RATES = (0.15, 0.5, 0.85, 1.0)
SHAPES = {
    "conditioned": Shape(first=0),
    "threshold": Shape(kind="threshold", first=0),
    "from layer 1": Shape(),
    "shared": Shape(scores="shared", first=1),
}
PROMPTS = ["dolko xe, dolko xo. talma wi", "gake xe"]


@pytest.fixture(scope="module")
def twins() -> dict[str, HookedDLM]:
    """Both bundled twins."""
    return {name: HookedDLM.from_pretrained(name) for name in ("tiny-dlm", "tiny-arm")}


@pytest.fixture(scope="module")
def gates(twins: dict[str, HookedDLM], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """Untrained gates by model and shape; their scores are by chance, and fall on both sides of 0."""
    out = {}
    for (name, dlm), (kind, shape) in itertools.product(twins.items(), SHAPES.items()):
        folder = tmp_path_factory.mktemp("gates") / f"{name}-{kind}"
        out[name, kind] = str(Gate.fresh(shape, dlm, seed=3).save(folder) and folder)
    return out


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_what_is_kept_is_what_a_loop_over_tokens_finds(
    twins: dict[str, HookedDLM], gates: dict[tuple[str, str], str], name: str, kind: str
) -> None:
    """Each canvas of the record is run again by itself, without padding, and each token is scored alone."""
    dlm, path = twins[name], gates[name, kind]
    gate, plan = Gate.load(path), Plan(new_tokens=4, suppress_eos="logits")
    record = denoise(dlm, PROMPTS, plan, probes=[Kept(path, RATES)], progress=False).record
    assert record["kept"].dims == ("prompt", "step", "layer", "rate", "key")
    assert record["rate"].to_numpy().tolist() == list(RATES)
    layers = [1] if kind in ("shared", "from layer 1") else [0, 1]  # the gate does not select in the others
    assert record["layer"].to_numpy().tolist() == layers
    seen = {0.0: 0, 1.0: 0}
    for row, step in itertools.product(range(2), range(4)):
        canvas = record["canvas"].to_numpy()[row, step]
        tokens = torch.tensor(canvas[canvas >= 0], dtype=torch.long)[None]
        _, cache = dlm.run_with_cache(tokens)
        for layer, (r, rate) in itertools.product(layers, enumerate(RATES)):
            residual = cache[f"blocks.{layer}.hook_in"]
            scores = [float(gate.scores(residual[:, j : j + 1], layer, rate)) for j in range(tokens.shape[1])]
            want = [float(score > 0 or rate == 1) for score in scores]
            got = record["kept"].sel(layer=layer).to_numpy()[row, step, r]
            if not any(want):  # then the best one; equal tokens are equally good, up to rounding
                best = int(np.nanargmax(got))
                assert scores[best] > max(scores) - 1e-5
                want[best] = 1.0
            assert got[: len(want)].tolist() == want
            assert np.isnan(got[len(want) :]).all()
            if rate < 1:
                seen = {flag: number + want.count(flag) for flag, number in seen.items()}
    assert min(seen.values()) > 10


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_an_edited_run_keeps_what_the_edit_counts(
    twins: dict[str, HookedDLM], gates: dict[tuple[str, str], str], name: str
) -> None:
    path, plan = gates[name, "conditioned"], Plan(new_tokens=4)
    edit = LearnedSelection(path, rate=0.5)
    run = denoise(twins[name], PROMPTS, plan, probes=[Kept(path, (0.5,))], interventions=[edit], progress=False)
    clean = denoise(twins[name], PROMPTS, plan, probes=[Kept(path, (0.5,))], progress=False)
    counts = run.memories[0].counts()
    assert run.record["kept"].sum() == counts["kept"]
    assert run.record["kept"].notnull().sum() == counts["eligible"]
    assert counts["kept"] < counts["eligible"]
    assert not np.array_equal(run.record["kept"], clean.record["kept"], equal_nan=True)


def test_steps_and_layers_out_of_scope_are_left_out(
    twins: dict[str, HookedDLM], gates: dict[tuple[str, str], str]
) -> None:
    path, plan = gates["tiny-dlm", "conditioned"], Plan(new_tokens=4)
    part = Kept(path, RATES, where=Scope(layers=[1], steps=[0, 2]), variable="part")
    record = denoise(twins["tiny-dlm"], PROMPTS, plan, probes=[Kept(path, RATES), part], progress=False).record
    inside, outside = record["part"].sel(layer=1, step=[0, 2]), record["part"].sel(layer=0)
    assert inside.equals(record["kept"].sel(layer=1, step=[0, 2]))
    assert outside.isnull().all()
    assert record["part"].sel(step=[1, 3]).isnull().all()


def test_a_record_of_it_can_be_saved_and_its_size_is_known(
    twins: dict[str, HookedDLM], gates: dict[tuple[str, str], str], tmp_path: Path
) -> None:
    dlm, path = twins["tiny-dlm"], gates["tiny-dlm", "threshold"]
    probes, plan = [Kept(path), ReceivedAttention()], Plan(new_tokens=4)
    run = denoise(dlm, PROMPTS, plan, probes=probes, progress=False, save_to=tmp_path / "record.nc")
    again = open_record(tmp_path / "record.nc")
    assert again["kept"].equals(run.record["kept"])
    size = estimate(dlm, plan, probes, prompts=2, prompt_tokens=run.record.sizes["key"] - 4)
    assert size.by_probe["kept"] == run.record["kept"].nbytes


def test_probes_of_two_gates_are_two(gates: dict[tuple[str, str], str]) -> None:
    one, other = (Kept(gates["tiny-dlm", kind]) for kind in ("conditioned", "threshold"))
    assert one.digest != other.digest
    assert one.digest == Kept(gates["tiny-dlm", "conditioned"]).digest


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rates": (0.5, 0.0)}, ContentError, "above 0 and at most 1"),
    ({"rates": (math.nan,)}, ContentError, "nan"),
    ({"rates": ()}, ContentError, "is empty"),
    ({"rates": (0.5, 0.5)}, ContentError, "names one twice"),
    ({"gate": "/nowhere"}, GateError, "'/nowhere'"),
    ({"mark": "0123"}, GateError, "another gate now"),
    ({"where": Scope(heads=[0])}, ScopeError, "heads"),
]


def test_layers_in_which_the_gate_does_not_select_are_refused(
    twins: dict[str, HookedDLM], gates: dict[tuple[str, str], str]
) -> None:
    probe = Kept(gates["tiny-dlm", "shared"], where=Scope(layers=0))
    with pytest.raises(ScopeError, match="from layer 1 on"):
        denoise(twins["tiny-dlm"], PROMPTS, Plan(new_tokens=2), probes=[probe], progress=False)


@pytest.mark.parametrize(("given", "error", "message"), WRONG)
def test_what_cannot_be_measured_is_refused(
    gates: dict[tuple[str, str], str], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Kept(**{"gate": gates["tiny-dlm", "conditioned"], **given})


def test_a_gate_of_another_model_is_refused(twins: dict[str, HookedDLM], gates: dict[tuple[str, str], str]) -> None:
    with pytest.raises(GateError, match="tiny-dlm"):
        denoise(twins["tiny-arm"], PROMPTS, Plan(new_tokens=2), probes=[Kept(gates["tiny-dlm", "shared"])])


def test_a_gate_that_was_trained_anew_is_another_gate(twins: dict[str, HookedDLM], tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    Gate.fresh(Shape(), twins["tiny-dlm"], seed=1).save(folder)
    probe = Kept(str(folder))
    Gate.fresh(Shape(), twins["tiny-dlm"], seed=2).save(folder)
    with pytest.raises(GateError, match="another gate now"):
        denoise(twins["tiny-dlm"], PROMPTS, Plan(new_tokens=2), probes=[probe], progress=False)


def test_values_before_a_forward_are_refused(gates: dict[tuple[str, str], str]) -> None:
    with pytest.raises(HookNeverFired, match="measured nothing"):
        Kept(gates["tiny-dlm", "shared"]).values({})
