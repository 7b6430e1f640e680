"""What comes from a file is of the kind that its field says, or the error quotes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from sinklens.errors import ContentError
from sinklens.sinks import SinkRule
from sinklens.values.content import Value, build, rebuilt
from sinklens.values.kinds import read_all


@dataclass(frozen=True)
class Everything(Value):
    """A field of every kind."""

    whole: int = 1
    number: float = 1.0
    text: str = ""
    flag: bool = False
    choice: Literal["a", "b"] = "a"
    perhaps: int | None = None
    several: tuple[int, ...] = ()
    texts: Sequence[str] = ()
    pair: tuple[int, str] = (1, "")
    table: Mapping[str, float] | None = None
    rule: SinkRule | None = None
    function: Callable[..., Any] | None = None
    anything: Any = None


GOOD = [
    {"whole": np.int64(3), "number": 3, "perhaps": None, "several": (1, 2), "texts": ["a"], "table": {"a": 1}},
    {
        "number": np.float32(0.5),
        "flag": True,
        "choice": "b",
        "pair": (1, "x"),
        "rule": SinkRule(),
        "anything": object(),
    },
    {"function": print, "anything": object(), "perhaps": 4, "texts": (), "several": []},
]
BAD = [
    ({"whole": "3"}, "whole='3' must be a whole number, without quotes"),
    ({"whole": 3.0}, r"whole=3\.0 must be a whole number"),
    ({"whole": True}, "whole=True must be a whole number"),
    ({"number": "1e-3"}, r"number='1e-3' must be a number, without quotes"),
    ({"number": False}, "number=False must be a number"),
    ({"flag": "yes"}, "flag='yes' must be true or false"),
    ({"flag": 1}, "flag=1 must be true or false"),
    ({"text": 3}, "text=3 must be a text"),
    ({"choice": "c"}, "choice='c' is unknown; choose from 'a', 'b'"),
    ({"perhaps": "four"}, "perhaps='four' must be a whole number or null$"),
    ({"several": 3}, "several=3 must be a list of whole numbers"),
    ({"several": "34"}, "several='34' must be a list of whole numbers"),
    ({"several": (1, "2")}, r"several=\(1, '2'\) must be a list of whole numbers"),
    ({"texts": "abc"}, "texts='abc' must be a list of texts"),
    ({"pair": (1, 2)}, r"pair=\(1, 2\) must be"),
    ({"table": {"a": "1"}}, "table={'a': '1'} must be a mapping"),
    ({"rule": "rulli"}, "rule='rulli' must be a SinkRule or null"),
]


@pytest.mark.parametrize("values", GOOD)
def test_what_fits(values: dict) -> None:
    read_all(Everything, values)


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_does_not_fit_is_quoted(values: dict, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        read_all(Everything, values)
    with pytest.raises(ContentError, match=f"Everything.{message}"):
        build(Everything, values)


def test_what_a_dict_describes_is_checked_all_the_way_down() -> None:
    good = SinkRule(epsilon=None, top_k=2)
    assert rebuilt(good.to_dict()) == good
    for wrong in ({"top_k": "2"}, {"units": 3}, {"queries": ["all"]}):
        with pytest.raises(ContentError, match=f"SinkRule.{next(iter(wrong))}="):
            rebuilt(good.to_dict() | wrong)


def test_a_missing_field_is_named() -> None:
    @dataclass(frozen=True)
    class Needs(Value):
        by: float

    with pytest.raises(ContentError, match="Needs needs the field 'by'"):
        build(Needs, {})
