"""Records and ablations as folders of datasets: read back, by `datasets`, too; nothing of others is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
import xarray as xr

import sinklens as sl
from sinklens.errors import RecordError, SaveError
from sinklens.experiments.results import AblationResult

RECORD = sl.planted("static", steps=3, keys=9, prompts=2).record
SCORE = {
    "model": "m", "prompt": 0, "seed": 0, "condition": "unmasked", "kind": "unmasked", "metric": "accuracy",
    "value": 0.1, "exposed": None, "places": 1, "edited_keys": 0.0, "edited_mass": 0.0,
}  # fmt: skip
RESULT = AblationResult([SCORE, SCORE | {"prompt": 1, "value": 1 / 3}], provenance={"task": "t"})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_record_and_an_ablation_come_back(tmp_path: Path) -> None:
    assert sl.push(RECORD, tmp_path / "a") == str(tmp_path / "a")
    found = sl.pull(tmp_path / "a")
    xr.testing.assert_identical(found, RECORD)
    assert set(content(tmp_path / "a")) == {
        "README.md", "record.nc", *(f"tables/{name}.parquet" for name in RECORD.data_vars)
    }  # fmt: skip
    sl.push(RESULT, str(tmp_path / "b"))
    assert sl.pull(str(tmp_path / "b")) == RESULT


@pytest.mark.filterwarnings("ignore")
def test_datasets_reads_the_tables_by_the_card(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    folder, cache = str(tmp_path / "run"), str(tmp_path / "cache")
    sl.push(RECORD, folder)
    table = datasets.load_dataset(folder, "received", split="train", cache_dir=cache).to_pandas()
    pd.testing.assert_frame_equal(table, sl.to_frame(RECORD, "received"), check_like=False)
    sl.push(RESULT, tmp_path / "result")
    scores = datasets.load_dataset(str(tmp_path / "result"), "scores", split="train", cache_dir=cache)
    assert scores["value"][:] == [0.1, 1 / 3]


def test_nothing_of_others_is_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "other.parquet").write_text("mine")
    sl.push(RECORD, tmp_path)
    before = content(tmp_path)
    sl.push(RECORD, tmp_path)  # the same once more
    assert content(tmp_path) == before
    other = RECORD.isel(prompt=[0])
    with pytest.raises(SaveError, match=r"is there already and holds something else; replace=True"):
        sl.push(other, tmp_path)
    with pytest.raises(SaveError, match="a dataset holds one thing"):
        sl.push(RESULT, tmp_path, replace=True)
    assert content(tmp_path) == before
    sl.push(other, tmp_path, replace=True)
    xr.testing.assert_identical(sl.pull(tmp_path), other)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "tables" / "other.parquet").read_text() == "mine"


def test_a_card_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine")
    with pytest.raises(SaveError, match=r"README.md' is there already"):
        sl.push(RESULT, tmp_path)
    assert content(tmp_path) == {"README.md": b"# Mine"}


def test_the_card_escapes_and_says_what_is_unfinished(tmp_path: Path) -> None:
    evil = AblationResult([SCORE | {"condition": "<script>|\n# x", "kind": "sinks"}], finished=False)
    sl.push(evil, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "&lt;script&gt;\\| # x" in card
    assert "<script>" not in card
    assert "**unfinished: it was interrupted" in card


def test_what_is_no_such_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"neither record.nc nor ablation.json. A dataset on the Hub is hf://"):
        sl.pull("user/name")
    with pytest.raises(RecordError, match="is neither a folder nor hf://datasets/user/name"):
        sl.pull("https://huggingface.co/datasets/user/name")
    with pytest.raises(RecordError, match="revision='main': a folder has none"):
        sl.pull(tmp_path, revision="main")
    sl.push(RECORD, tmp_path)
    (tmp_path / "record.nc").write_bytes((tmp_path / "record.nc").read_bytes()[:-100])
    with pytest.raises(RecordError, match="cannot be read"):
        sl.pull(tmp_path)


def test_the_hub_gets_the_same_folder_and_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, calls = tmp_path / "hub", []
    hub.mkdir()

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append((repo_id, options))

        def list_repo_files(self, repo_id: str, **_: Any) -> list[str]:
            return list(content(hub))

        def upload_folder(self, *, folder_path: str, allow_patterns: list[str], **_: Any) -> str:
            sent = content(Path(folder_path))
            assert sorted(sent) == allow_patterns
            for name, value in sent.items():
                (hub / name).parent.mkdir(exist_ok=True)
                (hub / name).write_bytes(value)
            return "there"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(hub))
    assert sl.push(RECORD, "hf://datasets/me/run") == "there"
    assert calls == [("me/run", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    sl.push(RECORD, tmp_path / "here")
    assert content(hub) == content(tmp_path / "here")
    xr.testing.assert_identical(sl.pull("hf://datasets/me/run"), RECORD)
    with pytest.raises(SaveError, match=r"has README.md, record.nc, .* already; give another name, or replace=True"):
        sl.push(RECORD.isel(prompt=[0]), "hf://datasets/me/run")
    with pytest.raises(SaveError, match="holds another kind of thing"):
        sl.push(RESULT, "hf://datasets/me/run", replace=True)


def test_a_card_says_what_kind_of_record_it_is_of(tmp_path: Path) -> None:
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    patches = sl.Patches("values", "head", steps=0, layers=0)
    record = sl.patch(dlm, "pante dolko xy", "pante talma xy", sl.Plan(new_tokens=2), patches, progress=False)
    for name, thing, title in (("a", RECORD, "denoising run"), ("b", record, "sweep of patches")):
        sl.push(thing, tmp_path / name)
        assert f"# Record of a {title}\n" in (tmp_path / name / "README.md").read_text()
