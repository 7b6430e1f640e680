"""The command line: demo, trace, patch, ablate, eval, reproduce, models, select, hooks, course; one file each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from sinklens.cli import options
from sinklens.cli.ablate import ablate
from sinklens.cli.course import course
from sinklens.cli.demo import demo
from sinklens.cli.evaluate import evaluate
from sinklens.cli.hooks import hooks
from sinklens.cli.models import group
from sinklens.cli.patch import patch
from sinklens.cli.reproduce import table1
from sinklens.cli.reproduce_l2 import l2
from sinklens.cli.select import group as selecting
from sinklens.cli.trace import trace


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """A command that says so when it is interrupted where it keeps nothing itself."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            options.interrupted("what was not written yet is not written; start the same command again")

    return run


app = typer.Typer(
    help="Measure and edit attention sinks in diffusion language models.\n\nStart with: sinklens demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (demo, trace, patch, ablate, hooks, course):
    app.command()(_stoppable(command))
app.command("eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_stoppable(evaluate))
app.add_typer(group, name="models")
reproduce = typer.Typer(
    help="Published results by their own protocols, with the controls they lack.", no_args_is_help=True
)
for command in (table1, l2):
    reproduce.command()(_stoppable(command))
app.add_typer(reproduce, name="reproduce")
app.add_typer(selecting, name="select")


def main() -> None:
    """Run the command line; an error that sinklens raises on purpose is one line, not a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            app()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        from sinklens.errors import SinklensError

        if not isinstance(error, SinklensError | ValueError):
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def _note(message: Warning | str, *others: Any, **more: Any) -> None:
    """A warning as one line, without the line of code that it comes from."""
    typer.echo(f"note: {message}", err=True)


if __name__ == "__main__":
    main()
