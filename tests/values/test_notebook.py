"""What notebooks show: short, escaped, whole HTML, without a forward; and never a traceback."""

from __future__ import annotations

import dataclasses
import math
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens import records
from sinklens.experiments.results import AblationResult
from sinklens.probes import KeyNorm, ReceivedAttention

EVIL = "<script>alert('x')</script>\n<img src=x onerror=\"y\"> & é"


class Cells(HTMLParser):
    """The texts and tags of a page; a tag that is not closed in order is a failure."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert all(name == "style" for name, _ in attrs)
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def cells(thing: Any) -> list[str]:
    """What is shown; nothing but tables and lines, at most 30 KB."""
    page = thing._repr_html_()
    assert len(page) < 30_000
    found = Cells(page)
    assert found.tags <= {"div", "b", "table", "thead", "tbody", "tr", "td", "th"}
    return found.texts


@pytest.fixture(scope="module")
def dlm() -> sl.HookedDLM:
    return sl.HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture(scope="module")
def run(dlm: sl.HookedDLM) -> sl.Run:
    probes = [ReceivedAttention(), KeyNorm()]
    return sl.denoise(dlm, ["dolko xe", "gake"], sl.Plan(new_tokens=3), probes=probes, progress=False)


def score(condition: str, kind: str, value: float, prompt: int) -> dict[str, Any]:
    return {
        "model": "m", "prompt": prompt, "seed": 0, "condition": condition, "kind": kind, "metric": "accuracy",
        "value": value, "exposed": None, "places": 1, "edited_keys": 0.0, "edited_mass": 0.0,
    }  # fmt: skip


def test_a_model_says_what_it_is_without_a_forward(dlm: sl.HookedDLM, no_forward: None) -> None:
    shown = cells(dlm)
    for text in ("tiny-dlm", "LLaDA", "2 layers, 4 heads, 4 key heads, width 96", "float32 on cpu"):
        assert text in shown
    assert f"{len(dlm.hook_dict)}; none is hooked" in shown


def test_a_run_shows_completions_and_what_its_record_holds(run: sl.Run) -> None:
    shown = cells(run)
    assert set(run.completions) <= set(shown)
    at = shown.index("key_norm")
    sizes = run.record.sizes
    dims = f"prompt 2, step 3, layer 2, kv_head 4, key {sizes['key']}"
    assert shown[at : at + 3] == ["key_norm", dims, run.record["key_norm"].attrs["units"]]
    assert "layer" in run.record._repr_html_()
    table = records.contents(run.record)
    assert set(table["variable"]) == set(run.record.data_vars)
    assert table["variable"].tolist()[:2] == ["key_norm", "received"] or table["variable"][0] == "received"


def test_what_a_user_or_a_model_wrote_is_escaped(run: sl.Run) -> None:
    evil = dataclasses.replace(run, completions=[EVIL] * 300)
    shown = cells(evil)
    assert EVIL.replace("\n", "\\n") in shown
    assert "and 288 more" in shown
    result = AblationResult([score(EVIL, EVIL, 1.0, 0)], provenance={"task": EVIL, "model": EVIL})
    assert EVIL.replace("\n", "\\n") in cells(result)
    assert EVIL.replace("\n", "\\n") in cells(sl.named(EVIL, len)) or any(
        "script" in text for text in cells(sl.named(EVIL, len))
    )
    odd = run.record.assign_attrs(mine=EVIL)
    odd["text"].values[0, 0] = EVIL
    assert "<script>alert" not in odd._repr_html_()


def test_long_texts_are_cut(run: sl.Run) -> None:
    assert max(map(len, cells(dataclasses.replace(run, completions=["x" * 10**6, "y"])))) <= 200


def test_a_result_shows_the_means_of_its_scores() -> None:
    values = [
        ("unmasked", "unmasked", [1.0, 0.5]),
        ("cut", "sinks", [0.25, math.nan]),
        ("cut", "random", [math.nan] * 2),
    ]
    scores = [score(name, kind, value, n) for name, kind, several in values for n, value in enumerate(several)]
    shown = cells(AblationResult(scores, finished=False))
    for line in (["unmasked", "unmasked", "0.75", "2"], ["cut", "sinks", "0.25", "1"], ["cut", "random", "nan", "0"]):
        assert any(shown[at : at + 4] == line for at in range(len(shown)))
    assert any(text.startswith("unfinished: it was interrupted after 6 scores") for text in shown)


def test_an_effect_shows_both_differences_with_their_intervals() -> None:
    effect = sl.Effect(
        "cut", "accuracy", "random", 9, 1.0, 0.5, -0.5, (-0.75, -0.25), 0.01, margin=0.1, equivalent=False
    )
    shown = cells(effect)
    assert "-0.500 [-0.750, -0.250], p = 0.01, 9 prompts" in shown
    assert "not shown for unmasked" in shown
    with_control = dataclasses.replace(
        effect, to_control=0.125, to_control_interval=(0.0, 0.25), to_control_p=1.0, pairs_control=8
    )
    at = cells(with_control).index("beyond random")
    assert cells(with_control)[at + 1] == "+0.125 [+0.000, +0.250], p = 1, 8 prompts"


def test_values_show_what_they_are_in_python() -> None:
    edit = sl.interventions.parse("mask:top2@layers=0")
    for value in (
        edit,
        sl.Plan(),
        sl.Plan(new_tokens=8),
        sl.SinkRule(epsilon=3.0),
        sl.Where(layers=[1]),
        sl.tasks.Echo(n=2),
    ):
        assert repr(value) in cells(value)
    shown = cells(ReceivedAttention())
    at = shown.index("unit")
    assert shown[at + 1] == ReceivedAttention().unit


@dataclasses.dataclass(frozen=True)
class Big(sl.Edit):
    """Holds an array."""

    array: Any = None

    def hooks(self, model: Any, canvas: Any, memory: Any) -> list:
        return []


class Broken(Big):
    """Has a repr that fails."""

    def __repr__(self) -> str:
        raise RuntimeError(EVIL)


def test_arrays_are_shown_by_their_sizes_and_nothing_is_raised(run: sl.Run) -> None:
    assert any("<tensor 1000x1000>" in text for text in cells(Big(torch.zeros(1000, 1000))))
    assert any(text.startswith("it cannot be shown: RuntimeError: <script>") for text in cells(Broken()))
    bad = dataclasses.replace(run, record=run.record.assign_attrs(provenance="no JSON"))
    assert any("it cannot be shown: RecordError" in text for text in cells(bad))
    assert "scores" in cells(AblationResult([]))
