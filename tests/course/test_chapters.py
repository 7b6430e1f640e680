"""Chapters: their form, their exercises, the notebooks that are made of them, and what `check` says in general."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from fuzzing import command
from site_parts import part

import sinklens as sl
from sinklens.errors import CourseError

ROOT = Path(__file__).parents[2]
CHAPTERS = sl.course.chapters()
NAMES = [path.stem for path in CHAPTERS]
TEXT = {path.stem: path.read_text(encoding="utf-8") for path in CHAPTERS}


def install_cell() -> str:
    """The first cell of every chapter: pinned to this version, and to what it was tested with."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    pinned = [f'"{name}=={pins[name]}"' for name in ("transformers", "transformer-lens", "plotly")]
    wanted = ", ".join([f'"sinklens[course]=={sl.__version__}"', *pinned])
    return (
        "# Installs sinklens where it is not there (Colab, a new environment); does nothing elsewhere.\n"
        "import importlib.util\nimport subprocess\nimport sys\n\n"
        'if importlib.util.find_spec("sinklens") is None:\n'
        f"    wanted = [{wanted}]\n"
        '    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)\n'
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_installs_what_was_tested(name: str) -> None:
    assert install_cell() in TEXT[name], f"put this into {name}:\n{install_cell()}"


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_has_the_form_of_chapters(name: str) -> None:
    text = TEXT[name]
    number = int(name[:2])
    headings = re.findall(r"^# (#+ .+)$", text, re.MULTILINE)
    assert headings[0].startswith(f"# {number}. ")
    assert headings[1] == "## Learning goals"
    assert headings[-1] == "## Reading list"
    asked = re.findall(r'sl\.course\.check\("(\d\.\d)", \w+\)', text)
    assert asked == [f"{number}.{i}" for i in range(1, len(asked) + 1)]
    assert 4 <= len(asked) <= 6
    assert text.count("<summary>Hint</summary>") == text.count("<summary>Solution</summary>") == len(asked)
    sl.course.check(f"{number}.1")
    assert [each for each in sl.course.EXERCISES if each.startswith(f"{number}.")] == asked


def test_there_are_six_chapters() -> None:
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05", "06"]


def test_an_exercise_without_an_answer_says_what_it_asks_for() -> None:
    verdict = sl.course.check("1.1", None)
    assert not verdict
    assert "no answer so far; it asks for" in repr(verdict)
    assert "not yet" in verdict._repr_html_()


@pytest.mark.parametrize("name", ["0.1", "7.1", "1.99", "one", "", "1"])
def test_an_exercise_that_there_is_not_is_an_error(name: str) -> None:
    with pytest.raises(CourseError, match=re.escape(repr(name))):
        sl.course.check(name, 1.0)


def test_the_notebooks_are_the_chapters_and_are_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "course"
    code, out, said = command("course", str(folder))
    assert code == 0, said
    assert f"wrote {folder}" in out
    made = sorted(folder.glob("*.ipynb"))
    assert [path.stem for path in made] == NAMES
    for path in made:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert notebook["nbformat"] == 4
        code = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
        assert "sl.course.check" in code
        assert not any(cell.get("outputs") for cell in notebook["cells"])
    made[0].write_text("mine", encoding="utf-8")
    code, _, said = command("course", str(folder))
    assert code != 0
    assert "is there already" in said
    assert made[0].read_text(encoding="utf-8") == "mine"


EXERCISE = """# %% [markdown]
# # 1. A
# %%
answer = None
sl.course.check("1.1", answer)
# %% [markdown]
# <details><summary>Hint</summary>
#
# Look.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# answer = 3
# ```
#
# </details>
"""


def test_a_solution_is_executed_behind_its_exercise_and_must_check_right() -> None:
    notebook = part("notebooks").read(EXERCISE)
    hidden = notebook.cells[-1]
    assert hidden.metadata["tags"] == ["remove-cell"]
    assert hidden.source.startswith("answer = 3\n")

    class Said:
        course = type("Course", (), {"check": staticmethod(lambda name, answer: answer == 4)})

    with pytest.raises(RuntimeError, match=r"the solution of 1\.1"):
        exec(hidden.source, {"sl": Said})


def test_an_exercise_without_a_solution_is_an_error() -> None:
    with pytest.raises(Exception, match=r"exercise 1\.1 has no folded solution"):
        part("notebooks").read(EXERCISE.split("# <details><summary>Solution", maxsplit=1)[0])


def test_the_course_is_in_the_wheel() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"docs/course": "sinklens/course/chapters"}
