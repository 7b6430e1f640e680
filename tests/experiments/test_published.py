"""Table 1 in one call: the paper's protocol, its numbers, and what is made of both."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sinklens import HookedDLM, Plan, denoise
from sinklens.errors import ContentError, PlanError
from sinklens.experiments import published as reproduce
from sinklens.experiments.config import Experiment
from sinklens.experiments.results import AblationResult
from sinklens.interventions import MaskSinks, PreviousStep, RandomKeys, SameMass, parse
from sinklens.probes import Pattern
from sinklens.report.table1 import write_table1
from sinklens.tasks import Echo

TWINS = ("tiny-dlm", "tiny-arm")
OPTIONS: dict[str, Any] = {"prompts": 3, "plan": {"new_tokens": 12, "temperature": 1.0}, "seeds": (1,), "ks": (1, 2)}

# arXiv 2510.15731, table 1, as printed (accuracy, then the harness's standard error).
PRINTED = """
GSM8K     | unmasked | 0.82±0.01 | 0.76±0.01 | 0.54±0.01 | 0.85±0.01
GSM8K     | top-1    | 0.79±0.01 | 0.75±0.01 | 0.53±0.01 | 0.02±0.00
GSM8K     | top-5    | 0.78±0.01 | 0.73±0.01 | 0.54±0.01 | 0.02±0.00
GSM8K     | top-10   | 0.75±0.01 | 0.55±0.01 | 0.37±0.01 | 0.01±0.03
HumanEval | unmasked | 0.60±0.03 | 0.37±0.03 | 0.16±0.02 | 0.66±0.04
HumanEval | top-1    | 0.64±0.03 | 0.37±0.03 | 0.16±0.03 | 0.00±0.00
HumanEval | top-5    | 0.61±0.03 | 0.39±0.03 | 0.18±0.03 | 0.00±0.00
HumanEval | top-10   | 0.57±0.03 | 0.35±0.03 | 0.09±0.02 | 0.00±0.00
"""
COLUMNS = ("Dream-7B", "LLaDA-8B", "MMaDA-8B", "Llama-3.1-8B")


@pytest.fixture(scope="module")
def results() -> list[AblationResult]:
    return [reproduce.table1(name, progress=False, **OPTIONS) for name in TWINS]


def test_the_published_numbers_are_the_papers() -> None:
    found = {(row.task, row.model, row.setting): row.accuracy for row in reproduce.published().itertuples()}
    expected = {}
    for line in PRINTED.strip().splitlines():
        task, setting, *values = (part.strip() for part in line.split("|"))
        for model, value in zip(COLUMNS, values, strict=True):
            expected[task, model, setting] = float(value.partition("±")[0])
    assert found == expected
    wide = reproduce.wide(reproduce.published()).set_index(["task", "setting"])
    assert tuple(wide.columns) == COLUMNS
    assert wide.loc[("HumanEval", "top-1"), "Dream-7B"] == "0.64"
    assert list(wide.index) == [(task, name) for task in ("GSM8K", "HumanEval") for name in reproduce.SETTINGS]


def test_the_edits_are_the_papers_and_the_controls_are_there(results: list[AblationResult]) -> None:
    for result in results:
        made = result.provenance["conditions"]
        for k in (1, 2):
            selector = PreviousStep(top_k=k)
            assert made[f"top-{k} (sinks)"] == MaskSinks(selector).to_dict()
            assert made[f"top-{k} (random)"] == MaskSinks(RandomKeys(selector)).to_dict()
            assert made[f"top-{k} (same_mass)"] == MaskSinks(SameMass(selector)).to_dict()
        assert result.provenance["metrics"] == ["accuracy"]
    assert reproduce.KS == (1, 5, 10)
    assert reproduce.SETTINGS == ("unmasked", "top-1", "top-5", "top-10")


@pytest.mark.parametrize("name", TWINS)
def test_the_edit_does_what_the_paper_says(name: str) -> None:
    """At step t the top key of step t - 1 is -inf in every layer and head; in tiny-arm by the last query alone."""
    dlm, prompt, plan = HookedDLM.from_pretrained(name), Echo(1, seed=1)[0].prompt, Plan(new_tokens=3)
    cut = parse("mask:top1")
    assert cut.selector.rule.counting("last" if dlm.is_causal else "all") == ("last" if name == "tiny-arm" else "all")
    plain, edited = (
        denoise(dlm, prompt, plan, probes=[Pattern()], interventions=edits, progress=False).record["pattern"]
        for edits in ([], [cut])
    )
    plain, edited = (each.isel(prompt=0).transpose("step", "layer", "head", "query", "key") for each in (plain, edited))
    np.testing.assert_allclose(edited[0], plain[0], atol=1e-6)  # step 0 has no step before: nothing is edited
    before, after, unedited = (np.nan_to_num(each) for each in (plain[0], edited[1], plain[1]))
    last = int(np.isfinite(plain[0, 0, 0, :, 0]).sum()) - 1
    for layer, head in product(range(2), range(4)):
        received = before[layer, head, last] if dlm.is_causal else before[layer, head].sum(0)
        expected = unedited[layer, head].copy()
        expected[:, received.argmax()] = 0
        left = expected.sum(-1) > 0  # the first row of a causal model has no other key, and keeps it
        assert left.sum() >= last
        assert (after[layer, head][left, received.argmax()] == 0).all()
        if layer == 0:  # in the second layer the first one's edit changes everything else, too
            expected = expected[left] / expected[left].sum(-1, keepdims=True)
            np.testing.assert_allclose(after[layer, head][left], expected, atol=1e-5)


def test_the_layout_is_the_papers_with_the_controls_beside(results: list[AblationResult]) -> None:
    table = reproduce.layout(results)
    columns = ["task", "model", "editing", "setting", "accuracy", "low", "high", "exposed"]
    columns += ["random keys", "same_mass keys"]
    columns += ["pairs", "minus_control", "minus_control_low", "minus_control_high", "p_holm"]
    assert list(table.columns) == columns
    expected = [(name, setting) for name in TWINS for setting in ("unmasked", "top-1", "top-2")]
    assert list(zip(table.model, table.setting, strict=True)) == expected
    for result, name in zip(results, TWINS, strict=True):
        rows = result.to_dataframe()
        for row in table[table.model == name].itertuples():
            here = rows[rows.condition == row.setting]
            kind = "unmasked" if row.setting == "unmasked" else "sinks"
            assert row.accuracy == pytest.approx(here[here.kind == kind]["value"].mean())
            if kind == "sinks":
                effect = result.effect(row.setting, "accuracy", control="random")
                assert row.minus_control == pytest.approx(effect.to_control)
                assert (row.minus_control_low, row.minus_control_high) == pytest.approx(effect.to_control_interval)
                assert row.pairs == effect.pairs_control
    random = table[(table.model == "tiny-dlm") & (table.setting == "top-2")]["random keys"].iloc[0]
    rows = results[0].to_dataframe()
    expected = rows[(rows.condition == "top-2") & (rows.kind == "random")]["value"].mean()
    assert random == pytest.approx(expected)
    unedited = table[table.setting == "unmasked"]
    assert unedited[["random keys", "same_mass keys", "minus_control", "p_holm"]].isna().all(axis=None)


def test_as_the_paper_prints_it(results: list[AblationResult]) -> None:
    table = reproduce.layout(results)
    wide = reproduce.wide(table)
    assert list(wide.columns) == ["task", "setting", *TWINS]
    assert list(wide.setting) == ["unmasked", "top-1", "top-2"]
    first = table.iloc[0]
    assert wide["tiny-dlm"].iloc[0] == f"{first.accuracy:.2f} [{first.low:.2f}, {first.high:.2f}]"


def test_files_and_page(results: list[AblationResult], tmp_path: Path) -> None:
    page = write_table1(results, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    text = page.read_text(encoding="utf-8")
    for words in ("Table 1", "2510.15731", "controls that the paper lacks", "Llama-3.1-8B", "tiny-dlm", "tiny-arm"):
        assert words in text
    table = pd.read_csv(tmp_path / "out" / "table1.csv")
    pd.testing.assert_frame_equal(table, reproduce.layout(results))
    for result, name in zip(results, TWINS, strict=True):
        assert AblationResult.open(tmp_path / "out" / f"result-{name}.json").scores == result.scores


def test_a_table_that_was_cut_off_goes_on_and_ends_the_same(
    results: list[AblationResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "scores.jsonl"
    options = {**OPTIONS, "batch_size": 7}  # a prompt per batch
    whole = reproduce.table1("tiny-arm", save_to=store, progress=False, **options)
    assert _sorted(whole) == _sorted(results[1])
    lines = store.read_text().splitlines()
    assert len(lines) == 1 + 3
    store.write_text("\n".join([*lines[:2], lines[2][: len(lines[2]) // 2]]))  # as a kill leaves it
    assert reproduce.table1("tiny-arm", save_to=store, progress=False, **options).scores == whole.scores
    kept = [set(json.loads(line)) for line in store.read_text().splitlines()[1:]]
    assert [len(each) for each in kept] == [7, 7, 7]
    assert len(set().union(*kept)) == 21

    def forward(self: HookedDLM, *args: object, **kwargs: object) -> torch.Tensor:
        raise AssertionError("a forward was run")

    loaded = HookedDLM.from_pretrained("tiny-arm")  # its calibration runs the model
    monkeypatch.setattr(HookedDLM, "from_pretrained", lambda *args, **kwargs: loaded)
    monkeypatch.setattr(HookedDLM, "__call__", forward)
    assert reproduce.table1("tiny-arm", save_to=store, progress=False, **options).scores == whole.scores


def _sorted(result: AblationResult) -> list[tuple]:
    """Scores and counts, whatever the batches."""
    fields = ("prompt", "condition", "kind", "value", "places", "edited_keys")
    return sorted(tuple(row[name] for name in fields) for row in result.scores)


def test_a_task_from_a_file(tmp_path: Path) -> None:
    """As for the paper's models: prompts and answers from JSONL, and what is compared."""
    path, task = tmp_path / "mine.jsonl", Echo(2, seed=3)
    lines = [json.dumps({"prompt": task[i].prompt, "answer": f"#### {i}"}) for i in range(2)]
    path.write_text("\n".join(lines))
    options = {**OPTIONS, "prompts": 2, "ks": (1,), "extract": r"(\w+)"}
    result = reproduce.table1("tiny-dlm", str(path), progress=False, **options)
    table = reproduce.layout([result])
    assert set(table.task) == {"mine.jsonl"}
    assert set(table.accuracy) == {0.0}  # the toy language has no numbers
    assert re.search(r"mine\.jsonl", result.provenance["experiment"]["task"])


def test_a_baseline_runs_beside_a_diffusion_model_by_its_own_part_of_the_plan() -> None:
    """What only diffusion models use is left out, and the provenance says so; `ablate` itself would refuse it."""
    options = {**OPTIONS, "prompts": 2, "ks": (1,), "plan": {"new_tokens": 4, "steps": 2, "block_length": 4}}
    diffusion, baseline = (reproduce.table1(name, progress=False, **options) for name in TWINS)
    plans = [Experiment.from_dict(each.provenance["experiment"]).make_plan() for each in (diffusion, baseline)]
    assert plans[0] == Plan(new_tokens=4, steps=2, block_length=4, temperature=1.0)
    assert plans[1] == Plan(new_tokens=4, temperature=1.0)
    with pytest.raises(PlanError, match="has no meaning for the autoregressive tiny-arm"):
        Experiment(model="tiny-arm", edits=["mask:top1"], plan=plans[0]).run(progress=False)


def test_two_models_with_one_last_name_do_not_share_a_file(results: list[AblationResult], tmp_path: Path) -> None:
    """A result of one would replace that of the other."""
    models = ["/a/model", "/b/model", "nobody/other"]
    several = [
        replace(results[0], provenance={**results[0].provenance, "model": model}, scores=_of(results[0], model))
        for model in models
    ]
    write_table1(several, tmp_path)
    files = {path.name: AblationResult.open(path) for path in tmp_path.glob("result-*.json")}
    assert set(files) == {"result-a--model.json", "result-b--model.json", "result-other.json"}
    assert {name: found.provenance["model"] for name, found in files.items()} == {
        "result-a--model.json": "/a/model",
        "result-b--model.json": "/b/model",
        "result-other.json": "nobody/other",
    }
    with pytest.raises(ContentError, match="two results are of '/a/model'"):
        write_table1([several[0], several[0]], tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def _of(result: AblationResult, model: str) -> list[dict[str, Any]]:
    return [{**row, "model": model} for row in result.scores]
