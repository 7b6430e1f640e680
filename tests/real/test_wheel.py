"""The wheel, without the checkout: it runs the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.real


def test_the_demo_runs_from_the_wheel(tmp_path: Path) -> None:
    """In a new environment with what sinklens needs, but not sinklens; `make test-wheel` makes an empty one."""
    dist, room = tmp_path / "dist", tmp_path / "room"
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(dist), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    venv.create(room, with_pip=True)
    python = room / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, cwd=tmp_path, env=environment)
    site = next((room / "lib").glob("python*")) / "site-packages"
    # A path, not a .pth folder: files named .pth in there are not read, so the editable sinklens stays away.
    (site / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    where = "import sinklens; print(sinklens.__file__)"
    found = subprocess.run(
        [python, "-c", where], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert found.stdout.strip() == str(site / "sinklens" / "__init__.py")
    demo = [room / "bin" / "sinklens", "demo", "--prompts", "8", "--out", "out"]
    done = subprocess.run(demo, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").stat().st_size > 1_000_000
    course = subprocess.run([room / "bin" / "sinklens", "course", "lessons"], check=True, cwd=tmp_path, env=environment)
    assert course.returncode == 0
    assert len(list((tmp_path / "lessons").glob("*.ipynb"))) == 6
