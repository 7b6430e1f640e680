"""`sinklens course`: the six chapters as notebooks, to work in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def course(
    folder: Annotated[Path, typer.Argument(help="Where the notebooks go; it is made.")] = Path("sinklens-course"),
) -> None:
    """Write the course into FOLDER: six Jupyter notebooks with exercises that check themselves.

    A notebook that is there already is never overwritten. They run on a laptop without a network; chapters that ask
    real models say so (`sinklens models get smollm2-135m`, `sinklens models get antiberty`, once).
    """
    from sinklens.course import copy

    for path in copy(folder):
        typer.echo(f"wrote {path}")
    typer.echo(f"now: jupyter lab {folder}   (VS Code opens them, too)")
