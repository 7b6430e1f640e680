"""`sinklens select`: gates that learn which tokens are enough. One file per command; this one holds them together."""

from __future__ import annotations

import typer

from sinklens.cli.select_curve import curve
from sinklens.cli.select_show import show
from sinklens.cli.select_train import train

group = typer.Typer(
    no_args_is_help=True,
    help="Which tokens are enough: train a gate on a frozen model, and see what it keeps.\n\nStart with: sinklens "
    "select train tiny-dlm --out my-gate, then sinklens ablate tiny-dlm --edit keep=0.5:learned@gate=my-gate",
)
for command in (train, curve, show):
    group.command()(command)
