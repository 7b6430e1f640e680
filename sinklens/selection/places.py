"""Where gates are: those that come with sinklens, by name, and folders."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sinklens.errors import GateError
from sinklens.selection.storing import GATE

HOME = Path(__file__).parents[1] / "gates"
AUTO = "auto"


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """What the shipped gates are called; one that is called as its model is that model's usual one."""
    return tuple(sorted(path.parent.name for path in HOME.glob(f"*/{GATE.description_name}")))


def find(path: str, model: Any = None) -> Path:
    """The folder of a gate.

    Args:
        path: A folder; the name of a gate that comes with sinklens; or "auto": the one for the model.
        model: For "auto": a HookedDLM, or its outline.

    Raises:
        GateError: there is no such folder or name; no gate comes with sinklens for this model.
    """
    if path == AUTO and model is None:
        raise GateError("gate='auto' is the gate that comes with sinklens for a model, and no model was given")
    name = str(model.name) if path == AUTO else path
    if name in names():
        return HOME / name
    if path == AUTO:
        raise GateError(
            f"no gate comes with sinklens for {name}, only for {', '.join(names())}; train one, sinklens select train "
            f"{name}, and name its folder, as in keep=0.5:learned@gate=FOLDER"
        )
    folder = Path(path)
    if not folder.is_dir():
        raise GateError(
            f"gate={path!r} is no folder, and no gate that comes with sinklens ({', '.join(names())}); a gate is made "
            "by sinklens select train MODEL --out FOLDER"
        )
    return folder
