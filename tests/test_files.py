"""Files are written whole or not at all, targets are checked first, and what sinklens did not write stays."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sinklens as sl
from sinklens import files, planted, report
from sinklens.errors import SaveError
from sinklens.experiments.results import AblationResult
from sinklens.experiments.scores import ScoreStore
from sinklens.files import append, check, write_bytes, write_table, write_text


@pytest.fixture(scope="module")
def record() -> xr.Dataset:
    """A record that is quickly made."""
    return planted("static").record


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


# Whole or not at all.


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    assert write_text(path, "old", None) == path
    assert write_bytes(str(path), b"new", None) == path
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file.txt"]


def test_text_is_utf_8(tmp_path: Path) -> None:
    assert write_text(tmp_path / "file.txt", "日本 é\n", None).read_bytes() == "日本 é\n".encode()


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(("fail", "error"), [(full, SaveError), (interrupted, KeyboardInterrupt)])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fail: Callable, error: type[BaseException]
) -> None:
    path = write_text(tmp_path / "file.txt", "old", None)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error):
        write_text(path, "new", None)
    with pytest.raises(error):
        write_text(tmp_path / "other.txt", "new", None)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_mode_of_the_old_file_stays(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file.txt", "old", None)
    path.chmod(0o640)
    assert write_text(path, "new", None).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("fail", [full, interrupted])
def test_what_cannot_be_added_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable) -> None:
    path = tmp_path / "lines"
    append(path, b"one\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises((SaveError, KeyboardInterrupt)):
            append(path, b"two\n")
    append(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


# What cannot be a target.


def targets(folder: Path) -> dict[str, tuple[str, str]]:
    """Paths that are refused, and what the error says."""
    (folder / "file").write_text("mine\n")
    (folder / "task.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "link").symlink_to("file")
    foreign = "is there already and is no"
    return {
        "file": ("file", foreign),
        "link": ("link", foreign),
        "task.jsonl": ("task.jsonl", foreign),
        ".": ("", "is a folder"),
        "pipe": ("pipe", "is a device, a pipe or a socket"),
        "loop": ("loop", "cannot be written"),
        "below": ("file/below/x", "cannot be written: Not a directory"),
        "long": ("x" * 300, "cannot be written: File name too long"),
        "null": ("a\0b", "cannot be written"),
    }


WRITERS: dict[str, tuple[files.Kind, Callable[[Path, xr.Dataset], Any]]] = {
    "record": (files.RECORD, lambda path, record: sl.save(record, path)),
    "result": (files.RESULT, lambda path, _: AblationResult([]).save(path)),
    "page": (
        files.PAGE,
        lambda path, _: report.write(path, title="a", intro="", sections=[report.Section("b")]),
    ),
    "table": (files.table("a"), lambda path, _: write_table(path, pd.DataFrame({"a": [1]}), files.table("a"))),
}


@pytest.mark.parametrize("what", WRITERS)
def test_each_writer_replaces_its_own_files_and_no_others(tmp_path: Path, record: xr.Dataset, what: str) -> None:
    kind, write = WRITERS[what]
    refused = targets(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for path, said in refused.values():
        for call in (lambda p=path: check(tmp_path / p, kind), lambda p=path: write(tmp_path / p, record)):
            with pytest.raises(SaveError) as caught:
                call()
            assert said in str(caught.value)
            assert repr(str(tmp_path / path)) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    own, empty, link = tmp_path / "own", tmp_path / "empty", tmp_path / "new link"
    empty.touch()
    link.symlink_to("own")
    for path in (own, own, empty, link):
        check(path, kind)
        write(path, record)
    assert link.is_symlink()
    for other, (_, written) in WRITERS.items():
        if other != what:
            with pytest.raises(SaveError, match="is there already and is no"):
                written(own, record)


def test_a_device_and_a_socket_are_no_files(tmp_path: Path, record: xr.Dataset) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        for path in ("/dev/null", "/dev/full", tmp_path / "socket"):
            with pytest.raises(SaveError, match="is a device, a pipe or a socket"):
                sl.save(record, path)
            with pytest.raises(SaveError, match="is a device, a pipe or a socket"):
                ScoreStore(path)
    assert Path("/dev/null").is_char_device()


def test_a_link_to_nothing_is_a_new_file_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/new.txt")
    write_text(check(link, None), "text", None)
    assert link.is_symlink()
    assert (tmp_path / "there" / "new.txt").read_text() == "text"


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    check(tmp_path / "deep" / "er" / "file", None)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_takes_no_file_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(SaveError, match=f"new/file' cannot be written: {os.strerror(number)}"):
        check(tmp_path / "new" / "file", None)


def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "file.txt", "old", None)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anything
    with pytest.raises(SaveError, match="is read-only"):
        write_text(path, "new", None)
    assert path.read_text() == "old"


# A full disk.

FULL = """
import resource, sys
import sinklens as sl
from sinklens.errors import SaveError
from sinklens.probes import Pattern
dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
options = dict(probes=[Pattern()], save_to=sys.argv[1], progress=False)
first = sl.denoise(dlm, "dolko xe dolko", sl.Plan(new_tokens=3), **options)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    sl.denoise(dlm, ["dolko xe dolko"] * 64, sl.Plan(new_tokens=12), **options)
except SaveError as error:
    print(error, len(error.run.completions), error.run.record.sizes["step"], error.run.finished)
"""


def test_a_full_disk_leaves_the_run_in_memory_and_the_old_record(tmp_path: Path) -> None:
    """The netCDF writer used to end the process with a segmentation fault."""
    path = tmp_path / "run.nc"
    ran = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout == f"{str(path)!r} cannot be written: File too large 64 12 True\n"
    assert sl.open(path).sizes["prompt"] == 1
    assert names(tmp_path) == ["run.nc"]


def test_scores_on_a_full_disk_are_in_memory_and_the_file_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.jsonl"
    store = ScoreStore(path)
    store.add({"a": {"values": {"kl": [1.0, 1]}}})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SaveError, match=f"scores.jsonl' cannot be written: {os.strerror(errno.ENOSPC)}"):
            store.add({"b": {"values": {"kl": [2.0, 1]}}})
    assert path.read_bytes() == before
    assert set(store.scores) == {"a", "b"}
    store.add({"c": {"values": {"kl": [3.0, 1]}}})
    assert set(ScoreStore(path).scores) == {"a", "c"}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_record_is_serialised_before_the_file_is_touched(tmp_path: Path, record: xr.Dataset) -> None:
    path = sl.save(record, tmp_path / "run.nc")
    before = path.read_bytes()
    for bad in (record.assign_attrs(mine=None), record.assign(mine=("prompt", np.array(["2020-01-01"], "M8[ns]")))):
        with pytest.raises(sl.errors.RecordError):
            sl.save(bad, path)
    assert path.read_bytes() == before
