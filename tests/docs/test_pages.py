"""Code on the site's pages runs; each error's page shows that error, and its message; commands and names exist."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from fuzzing import command
from site_parts import DOCS

import sinklens as sl
from sinklens import errors

PAGES = [DOCS / "start.md", *sorted((DOCS / "howto").glob("*.md")), *sorted((DOCS / "concepts").glob("*.md"))]
ERRORS = {path.stem: path for path in sorted((DOCS / "errors").glob("*.md"))}
CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and each.__module__ == errors.__name__ and each is not errors.SinklensError
}
ALL = [*PAGES, *ERRORS.values(), DOCS / "errors.md", DOCS / "index.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(DOCS))


def blocks(path: Path) -> list[str]:
    """The blocks that run, in order."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def not_run(path: Path) -> list[str]:
    """The blocks that need what is not here."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^```\{code-block\} python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks(path):
        exec(compile(code, name_of(path), "exec"), names)


@pytest.mark.parametrize("path", [path for path in PAGES if not_run(path)], ids=name_of)
def test_code_that_cannot_run_here_says_why_and_names_what_there_is(path: Path) -> None:
    for code in not_run(path):
        assert code.startswith("# needs ")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute):
                names = ast.unparse(node).split(".")
                if names[0] == "sl":
                    found: Any = sl
                    for name in names[1:]:
                        found = getattr(found, name)


def test_every_error_has_a_page() -> None:
    assert set(ERRORS) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_the_page_of_an_error_shows_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, cls = ERRORS[name].read_text(encoding="utf-8"), CLASSES[name]
    (message,) = re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    wrong, *right = blocks(ERRORS[name])
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        if issubclass(cls, Warning):
            warnings.simplefilter("error", cls)
        with pytest.raises(cls) as raised:
            exec(compile(wrong, name, "exec"), names)
    assert type(raised.value) is cls
    assert " ".join(message.split()) == " ".join(f"{name}: {raised.value}".split())
    for code in right:
        exec(compile(code, name, "exec"), names)


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_the_commands_of_a_page_exist(path: Path) -> None:
    shells = re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in "\n".join(shells).splitlines():
        if not line.startswith("sinklens "):
            continue
        words = line.split("#")[0].split()[1:]
        group = words[:2] if words[0] in ("select", "reproduce", "models") else words[:1]
        code, said, _ = command(*group, "--help")
        assert code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in said or group == ["eval"], line
