"""The text timeline shows the record's numbers and the run's own texts, and no token can break the page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import xarray as xr

import sinklens as sl
from sinklens import plots
from sinklens.ground_truth.records import planted
from sinklens.plots import filling
from sinklens.probes import ReceivedAttention

EPSILON = 1.5
RULE = sl.SinkRule(epsilon=EPSILON)
PROMPTS = ["zuko xi zuko", "pante dolko xa dolko girmo boma"]


@pytest.fixture(scope="module")
def dlm():
    return sl.HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture(scope="module")
def arm():
    return sl.HookedDLM.from_pretrained("tiny-arm")


def run(model, prompts=PROMPTS, seed=0, **plan) -> xr.Dataset:
    plan = sl.Plan(**{"new_tokens": 6, "temperature": 1.0, **plan})
    plan = plan.for_causal() if model.is_causal else plan
    return sl.denoise(model, prompts, plan, probes=[ReceivedAttention()], seed=seed, progress=False).record


def embedded(picture: plots.TextTimeline) -> dict:
    """What a browser would parse."""
    (held,) = re.findall(r'<script type="application/json">(.*?)</script>', picture.page(), re.DOTALL)
    return json.loads(held)


def only(picture: plots.TextTimeline) -> dict:
    (record,) = embedded(picture)["records"]
    return record


def dense(view: dict, shape: tuple[int, int]) -> np.ndarray:
    counts = np.zeros(shape, int)
    for step, key, number in view["sinks"]:
        counts[step, key] = number
    return counts


def by_hand(received: np.ndarray) -> np.ndarray:
    """Sinks [step, layer, head, key] by the definition: above the mean of the other keys by epsilon."""
    there = ~np.isnan(received)
    number = there.sum(-1, keepdims=True)
    others = (np.nansum(received, -1, keepdims=True) - received) / (number - 1)
    return there & (received - others > EPSILON)


@pytest.mark.parametrize("which", ["dlm", "arm"])
@pytest.mark.parametrize("prompt", [0, 1])
def test_every_number_is_the_records(which, prompt, request):
    record = run(request.getfixturevalue(which))
    told = only(plots.text_timeline(record, prompt=prompt, rule=RULE))
    keys = int((record["token"].values[prompt] >= 0).sum())
    received = record["received"].transpose("prompt", "step", "layer", "head", "key").values[prompt, ..., :keys]
    sinks = by_hand(received.astype(float))
    assert sinks.any()
    expected = {"mean over layers and heads": (received.mean((1, 2)), sinks.sum((1, 2)))}
    for layer in range(received.shape[1]):
        expected[f"layer {layer}, mean over heads"] = received[:, layer].mean(1), sinks[:, layer].sum(1)
        for head in range(received.shape[2]):
            expected[f"layer {layer}, head {head}"] = received[:, layer, head], sinks[:, layer, head]
    assert [view["label"] for view in told["views"]][:2] == ["mean over layers and heads", "layer 0, mean over heads"]
    assert {view["label"] for view in told["views"]} == set(expected)
    for view in told["views"]:
        values, counts = expected[view["label"]]
        np.testing.assert_allclose(np.array(view["received"], float), values, rtol=6e-4)
        np.testing.assert_array_equal(dense(view, counts.shape), counts)


@pytest.mark.parametrize("which", ["dlm", "arm"])
def test_the_uniform_null_is_one_or_the_sum_of_what_later_queries_share(which, request):
    model = request.getfixturevalue(which)
    told = only(plots.text_timeline(run(model, PROMPTS[0]), rule=RULE))
    (uniform,) = told["uniform"]
    assert {view["uniform"] for view in told["views"]} == {0}
    for row, states in zip(uniform, told["state"], strict=True):
        number = sum(state not in "oa" for state in states)
        shares = [1 / (query + 1) for query in range(number)]
        expected = [sum(shares[key:]) for key in range(number)] if model.is_causal else [1.0] * number
        np.testing.assert_allclose(row[:number], expected, rtol=6e-4)
        assert row[number:] == [None] * (len(row) - number)


def walked(record: xr.Dataset, prompt: int) -> list[list[tuple[bool, bool]]]:
    """[step][key]: is it masked or missing before the step, and after it."""
    masked = record["masked"].values[prompt]
    final = (record["commit_step"].values[prompt] < 0) & (record["given"].values[prompt] != 1)
    after = [*(masked[1:] != 0), final]
    return [list(zip(now != 0, then, strict=True)) for now, then in zip(masked, after, strict=True)]


def check_states(record: xr.Dataset, told: dict, prompt: int = 0) -> None:
    """Letters against what was open before and after each step; tokens against the run's own texts."""
    given = record["given"].values[prompt] == 1
    kinds = {(True, True): "mo", (True, False): "na", (False, False): "c", (False, True): "x"}
    for step, row in enumerate(walked(record, prompt)[: len(told["state"])]):
        for key, state in enumerate(told["state"][step]):
            assert state in ("p" if given[key] else kinds[row[key]]), (step, key)
    texts = [plots.visible(text) for text in record["text"].values[prompt][: len(told["tokens"])]]
    assert told["tokens"] == texts


def test_a_diffusion_models_text_fills_in(dlm):
    record = run(dlm)
    for prompt in range(2):
        told = only(plots.text_timeline(record, prompt=prompt))
        check_states(record, told, prompt)
        assert told["masks"] is True
        assert [row.count("n") for row in told["state"]] == [1] * 6
        assert "m" not in told["state"][-1]
        assert told["other"] == []


def test_a_baselines_tokens_are_not_there_before_they_are_written(arm):
    record = run(arm, PROMPTS[0])
    told = only(plots.text_timeline(record))
    check_states(record, told)
    given = int(record["prompt_length"].values[0])
    assert told["masks"] is False
    assert told["state"] == ["p" * given + "c" * step + "a" + "o" * (5 - step) for step in range(6)]
    assert [value is None for value in told["views"][0]["received"][2]] == [False] * (given + 2) + [True] * 4


def test_tokens_that_are_taken_back_are_shown_as_they_stood(dlm):
    record = run(dlm, PROMPTS[0], new_tokens=12, sampler="p2", remasking="low_confidence", steps=12)
    told = only(plots.text_timeline(record))
    check_states(record, told)
    back = [(step, key) for step, row in enumerate(told["state"]) for key, state in enumerate(row) if state == "x"]
    assert back, "this run must undo a commit"
    changed = {(step, key): text for step, key, text in told["other"]}
    canvas, final = record["canvas"].values[0], record["token"].values[0]
    for step, row in enumerate(told["state"]):
        for key, state in enumerate(row):
            source = {"c": step, "x": step, "n": step + 1}.get(state, len(canvas))
            stood = int(canvas[source, key] if source < len(canvas) else final[key])
            text = changed.get((step, key), told["tokens"][key])
            assert state in "pm" or text == plots.visible(dlm.tokenizer.decode([stood]).strip()), (step, key)


def test_a_batch_shows_a_prompt_as_it_is_alone(dlm):
    told = [plots.text_timeline(run(dlm, prompts, temperature=0.0), step=0) for prompts in (PROMPTS, PROMPTS[0])]
    batch, alone = (only(picture) for picture in told)
    assert batch["tokens"] == alone["tokens"]
    assert batch["state"] == alone["state"]
    values = [np.array(each["views"][0]["received"], float) for each in (batch, alone)]
    np.testing.assert_allclose(*values, rtol=2e-3)


NASTY = [
    "</script><script>alert(1)</script>",
    "<!--",
    '"&quot;',
    "\u202eabc",
    "\x00\x1b[0m\u2028",
    "]]>",
    "\u05d0\u05d1",
]


def test_no_token_title_or_name_ends_the_script():
    record = planted("static").record.isel(prompt=[0], key=slice(0, len(NASTY))).copy(deep=True)
    record["text"][0, :] = NASTY
    picture = plots.text_timeline({"</script>": record}, title="</title><script>x</script>")
    page = picture.page()
    assert len(re.findall(r"</script", page)) == len(re.findall(r"<script", page)) == 2
    assert "\u202e" not in page
    assert "<!--" not in page
    assert only(picture)["tokens"] == [plots.visible(token) for token in NASTY]
    frame = picture._repr_html_()
    assert frame.count('"') == 2 * len(re.findall(r'\S+="', frame)), "a quote would end srcdoc"
    assert "http:" not in page + frame
    assert "https:" not in page + frame


def test_what_is_too_large_is_left_out_and_said(dlm, monkeypatch):
    record = run(dlm, PROMPTS[0])
    cells = record.sizes["step"] * record.sizes["key"]
    for most, entries, said in ((cells * 11, 11, ""), (cells * 3, 3, "single heads"), (cells, 1, "layers and heads")):
        monkeypatch.setattr(filling, "CELLS", most)
        data = embedded(plots.text_timeline(record))
        assert len(data["records"][0]["views"]) == entries
        assert any("left out" in note and said in note for note in data["notes"]) == bool(said)
    monkeypatch.setattr(filling, "CELLS", cells // 2)
    data = embedded(plots.text_timeline(record))
    assert data["records"][0]["steps"] == [0, 2, 4]
    assert data["records"][0]["state"][-1].count("n") == 2
    assert any("one of 2 steps" in note for note in data["notes"])


def test_a_token_that_is_replaced_is_taken_back(dlm):
    record = run(dlm, PROMPTS[0]).copy(deep=True)
    (key,) = np.flatnonzero(record["commit_step"].values[0] == 1)
    made = json.loads(record.attrs["provenance"])
    record.attrs["provenance"] = json.dumps({**made, "undone": {"999": "other"}})
    record["canvas"][0, 2:4, key] = 999
    told = only(plots.text_timeline(record))
    assert "".join(row[key] for row in told["state"]) == "mncxcc"
    assert [each for each in told["other"] if each[1] == key] == [[step, key, "other"] for step in (1, 2, 3)]


def test_steps_without_measurement_and_unfinished_runs_are_said(dlm):
    record = run(dlm, PROMPTS[0]).copy(deep=True)
    record["received"][:, 3] = np.nan
    made = json.loads(record.attrs["provenance"])
    record.attrs |= {"provenance": json.dumps({**made, "finished": False}), "finished": 0}
    told = only(plots.text_timeline(record))
    assert "interrupted" in told["name"]
    for view in told["views"]:
        assert set(view["received"][3]) == {None}
        assert all(step != 3 for step, _, _ in view["sinks"])


def test_show_opens_a_page_of_its_own(dlm, monkeypatch):
    opened = []
    monkeypatch.setattr(filling.webbrowser, "open", opened.append)
    picture = plots.text_timeline(run(dlm, PROMPTS[0]))
    picture.show()
    assert Path(url2pathname(urlparse(opened[0]).path)).read_text(encoding="utf-8") == picture.page()


def test_several_records_share_one_slider(dlm, arm):
    data = embedded(plots.text_timeline({"one": run(dlm), "two": run(arm, new_tokens=4)}, step=5))
    assert [record["name"] for record in data["records"]] == ["one", "two"]
    assert [len(record["steps"]) for record in data["records"]] == [6, 4]
    assert data["start"] == 5
    assert {state for state, _, _ in data["legend"]} >= {"p", "c", "n", "m", "o", "s"}


def test_errors_say_what_exists(dlm):
    record = run(dlm)
    with pytest.raises(ValueError, match="step 6 does not exist; there are 6: 0 to 5"):
        plots.text_timeline(record, step=6)
    with pytest.raises(ValueError, match="prompt 2 does not exist; there are 2"):
        plots.text_timeline(record, prompt=2)
    with pytest.raises(ValueError, match="records is empty"):
        plots.text_timeline({})
    with pytest.raises(ValueError, match=r"probes=\[ReceivedAttention\(\)\]"):
        plots.text_timeline(record.drop_vars("received"))


def dom(path, folder) -> str:
    """The page as a browser has it after its scripts ran."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    where = [f"--user-data-dir={folder / 'user'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    run = subprocess.run(["chromium", *arguments, *where], capture_output=True, text=True, timeout=120, check=True)
    return run.stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_it_from_a_file(dlm, tmp_path):
    path = plots.text_timeline(run(dlm), step=4).save(tmp_path / "timeline.html")
    assert 'class="sinklens-timeline" data-step="4"' in dom(path, tmp_path)


ASK = """<script>
const root = document.querySelector(".sinklens-timeline").shadowRoot;
const [slider, select, map] = ["input", "select", "canvas"].map((name) => root.querySelector(name));
slider.value = 2; slider.dispatchEvent(new Event("input"));
select.selectedIndex = 2; select.dispatchEvent(new Event("change"));
map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
const said = [root.querySelector(".read").textContent, root.querySelector(".count").textContent,
  [...root.querySelectorAll(".text .w")].map((word) => word.textContent).join("\\n")];
document.body.append(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(said) }));
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_slider_menu_and_keyboard_tell_the_records_numbers(dlm, tmp_path):
    record = run(dlm, PROMPTS[0])
    path = tmp_path / "page.html"
    page = f"<!DOCTYPE html><meta charset=utf-8><body>{plots.text_timeline(record).fragment()}{ASK}</body>"
    path.write_text(page, encoding="utf-8")
    read, count, words = json.loads(html.unescape(re.findall(r"<pre>(.*?)</pre>", dom(path, tmp_path))[0]))
    value = float(record["received"].isel(prompt=0, step=2, layer=1, key=1).mean("head"))
    found = re.fullmatch(
        r"Step 2, position 1: \u2068zuko\u2069; received (\S+), uniform 1 \((\S+) times\), sink in 0 of 4 heads", read
    )
    assert found, read
    assert [float(number) for number in found.groups()] == pytest.approx([value] * 2, rel=6e-3)
    assert count == "3 still masked, 1 written now"
    final, committed = record["text"].values[0], record["commit_step"].values[0] <= 2
    assert words.split("\n") == [
        plots.visible(text) if done else "" for text, done in zip(final, committed, strict=True)
    ]


WIDE = """<script>
const root = document.querySelector(".sinklens-timeline").shadowRoot, found = [];
for (const width of [1200, 700]) {
  document.body.style.width = `${width}px`;
  const boxes = [...root.querySelectorAll(".panel")].map((each) => each.getBoundingClientRect());
  found.push(["top", "left"].map((side) => new Set(boxes.map((box) => Math.round(box[side]))).size));
}
document.body.append(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(found) }));
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_three_records_stand_in_one_row_or_below_each_other(dlm, tmp_path):
    """Never two and one: how many different tops and left sides the three panels have, at 1200 and at 700 pixels."""
    picture = plots.text_timeline(dict.fromkeys("abc", run(dlm, PROMPTS[0])))
    path = tmp_path / "page.html"
    path.write_text(f"<!DOCTYPE html><body>{picture.fragment()}{WIDE}</body>", encoding="utf-8")
    assert json.loads(re.findall(r"<pre>(.*?)</pre>", dom(path, tmp_path))[0]) == [[1, 3], [3, 1]]
