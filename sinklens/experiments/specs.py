"""Experiment files as plain data: JSON, and that part of YAML in which everything is what it looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from sinklens.errors import PlanError

LARGEST = 2**18  # bytes of a file
DEEPEST = 32  # lists and mappings in each other
_PLAIN = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+]?[0-9]+)?", "-+.0123456789"),
}


def load(path: str | Path, names: Sequence[str]) -> dict[Any, Any]:
    """The fields that a YAML or a JSON file holds.

    Of YAML: mappings, lists, texts, and as other things only null, true, false and decimal numbers (1e-3, too). What
    YAML 1.1 reads as something else than it looks like (no, on, 010, 12:30, 2024-01-01) is a text. Refused are a key
    that comes twice, nan and infinity of JSON, more than 256 KiB; of YAML anchors, aliases and tags.

    Args:
        path: The file, UTF-8; JSON if its name ends in .json.
        names: The fields that there are, for the error where the file holds none.

    Raises:
        PlanError: saying what cannot be read and where.
    """
    path = Path(path)
    try:
        said = (_json if path.suffix == ".json" else _yaml)(_text(path))
        _check(said)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise PlanError(f"{str(path)!r} cannot be read as YAML or JSON: {place}{error.problem}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise PlanError(f"{str(path)!r} cannot be read as YAML or JSON: {said}") from error
    if not isinstance(said, dict) or not said:
        what = "nothing" if not said else f"a {type(said).__name__}"
        raise PlanError(
            f"{str(path)!r} holds {what} instead of fields such as model: and edits:; the fields are {', '.join(names)}"
        )
    return said


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"it has {size} bytes, and an experiment has at most {LARGEST}")
    return path.read_text(encoding="utf-8-sig")


def _check(said: Any, left: int = DEEPEST) -> None:
    """Raise for what is nested too deep, and for half characters, which no other file could hold."""
    if left == 0:
        raise ValueError(f"it is nested too deep, in more than {DEEPEST} lists and mappings")
    if isinstance(said, str):
        said.encode()
    inside = [*said, *said.values()] if isinstance(said, dict) else said if isinstance(said, list) else ()
    for each in inside:
        _check(each, left - 1)


def _json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r} comes twice")
        return dict(items)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Strict)


class _Strict(yaml.SafeLoader):
    """YAML in which nothing is shared, tagged, or another thing than it looks like."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - so PyYAML has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        for kind, name in (("anchor", "anchors and aliases"), ("tag", "tags")):
            if getattr(event, kind, None) is not None:
                raise yaml.MarkedYAMLError(
                    problem=f"{name} are not read here ({getattr(event, kind)!r}); write what is meant in each place",
                    problem_mark=event.start_mark,
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        made: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            wrong = "is no name" if not isinstance(key, Hashable) else "comes twice" if key in made else ""
            if wrong:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} {wrong}", problem_mark=key_node.start_mark)
            made[key] = self.construct_object(value_node, deep=deep)
        return made


for _kind, (_pattern, _first) in _PLAIN.items():
    _starts: Sequence[str] = ["" if letter == "\0" else letter for letter in _first]
    _Strict.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _starts)
