"""The wheel and the source distribution hold what they must and nothing else; versions agree."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import sinklens

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True).stdout.splitlines()
LARGEST = 28_000_000  # bytes of either; 25.5 million now: 15 are the three adapters, 11 the three twins


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution, the wheel built from the other one; nothing is fetched."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_every_tracked_file_of_the_package_and_the_chapters(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {name for name in TRACKED if name.startswith("sinklens/")}
    chapters = {f"sinklens/course/chapters/{Path(name).name}" for name in TRACKED if name.startswith("docs/course/")}
    assert len(chapters) == 6
    assert wanted, "git ls-files gave nothing"
    assert found == wanted | chapters


def test_neither_is_larger_than_it_must(built: tuple[Path, Path]) -> None:
    assert {path.name: path.stat().st_size for path in built if path.stat().st_size > LARGEST} == {}


def test_the_source_distribution_holds_the_package_the_chapters_and_the_examples(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as source:
        found = {member.name.split("/", 1)[1] for member in source if member.isfile()}
    folders = ("sinklens/", "docs/course/", "examples/")
    alone = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", ".gitignore"}
    assert found - {"PKG-INFO"} == alone | {name for name in TRACKED if name.startswith(folders)}


def test_the_wheel_of_the_tree_is_that_of_the_source_distribution(built: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (other,) = tmp_path.glob("*.whl")
    assert contents(other) == contents(built[0])


def contents(path: Path) -> dict[str, str]:
    """Hash of each file by its name."""
    with zipfile.ZipFile(path) as wheel:
        return {name: hashlib.sha256(wheel.read(name)).hexdigest() for name in wheel.namelist()}


def test_what_pypi_shows_is_well_formed(built: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        said = Parser().parsestr(wheel.read(name).decode())
    assert said["Version"] == sinklens.__version__
    assert said["License-Expression"] == "MIT"
    assert "Typing :: Typed" in said.get_all("Classifier", [])


def test_versions_agree() -> None:
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited == [sinklens.__version__]
    (newest,) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[:1]
    assert newest == sinklens.__version__
