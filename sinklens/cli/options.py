"""Options that commands share. A parameter is named after the field of `Experiment` or of `Plan` that it sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from sinklens.experiments.config import Experiment
    from sinklens.files import Kind
    from sinklens.models.placing import Placing

R = TypeVar("R")
Model = Annotated[str, typer.Argument(help="tiny-dlm, tiny-bdlm, tiny-arm, a folder, or a Hub id.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="echo, facts, antibodies, or a JSONL file of prompt and answer (GSM8K, say).", show_default="echo"
    ),
]
Prompts = Annotated[int | None, typer.Option(min=1, help="How many examples.", show_default="64")]
Extract = Annotated[
    str | None,
    typer.Option(help="JSONL: regular expression of what is compared; of several matches the last (see --match)."),
]
Match = Annotated[
    str | None, typer.Option(help="JSONL: which match of --extract: last, first or full.", show_default="last")
]
Separator = Annotated[
    str | None,
    typer.Option(
        help="JSONL: white space between prompt and answer where the prompt ends in none; or as-written: both as they "
        "are.",
        show_default="one space",
    ),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Repetitions, several times.", show_default="0")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows per forward.", show_default="128")]

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...", show_default="the best there is; it is printed")
]
Dtype = Annotated[
    str | None, typer.Option(help="bfloat16, float16, float32 or float64.", show_default="the checkpoint's own")
]
DeviceMap = Annotated[str | None, typer.Option(help="Several devices, as in transformers: auto, balanced, ...")]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit; of a twin a step of its training.")]
Attention = Annotated[
    str | None, typer.Option(help="How attention is computed: auto, pattern or blocks.", show_default="auto")
]
Family = Annotated[str | None, typer.Option(help="What it is, where config.json does not say: LLaDA, Dream, ...")]
MaskTokenId = Annotated[int | None, typer.Option(min=0, help="Its mask token, where the checkpoint names none.")]
PLACING = ("device", "dtype", "device_map", "revision", "attention", "family", "mask_token_id")

NewTokens = Annotated[int | None, typer.Option(help="Positions to generate; 0 fills the mask tokens in the prompts.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; one token per step by default.")]
BlockLength = Annotated[int | None, typer.Option(help="Semi-autoregressive blocks (the paper: 32).")]
Temperature = Annotated[float | None, typer.Option(help="Of the sampling; 0 takes the likeliest token.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompts into the model's chat template.")]
Editing = Annotated[
    Literal["scratch", "local"] | None,
    typer.Option(
        help="What an edit means where there is a past (baselines, models that see block by block): scratch edits "
        "every position at every step; local, as in a decoder with a cache, only what a step computes.",
        show_default="scratch",
    ),
]
PLAN = ("new_tokens", "steps", "block_length", "temperature", "chat", "editing")


def fields_of(params: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """The fields of `Experiment` that the user set, out of a command's parameters.

    Args:
        params: All parameters by name (`typer.Context.params`).
        others: Parameters that are no fields.
    """
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    said = {name: value for name, value in said.items() if is_said(value) and name not in others}
    if said.get("controls") == ("none",):
        said["controls"] = ()
    return {**{name: value for name, value in said.items() if name not in PLAN}, "plan": plan_of(params)}


def plan_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Plan` that the user set."""
    return {name: params[name] for name in PLAN if is_said(params.get(name))}


def is_said(value: Any) -> bool:
    """Whether an option was given."""
    return not (value is None or value is False or value in ((), []))  # 0 is said


def few_threads(*models: str) -> None:
    """Use one thread for the bundled models: a second gains them little, and beside other programs it loses a lot."""
    import torch

    from sinklens.models.files import BUNDLED

    if set(models) <= set(BUNDLED):
        torch.set_num_threads(1)


def text_of(frame: Any) -> str:
    """A table as text."""
    return frame.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="")


def placed(params: Mapping[str, Any]) -> Placing:
    """How a command loads its model: as the options say, on the best device if they name none."""
    from sinklens.models.devices import best_device
    from sinklens.models.placing import Placing

    said = {name: params[name] for name in PLACING if is_said(params.get(name))}
    anywhere = {"device": best_device()} if not {"device", "device_map"} & set(said) else {}
    return Placing(**anywhere, **said)


def on_best_device(experiment: Experiment) -> Experiment:
    """An experiment that names no device, on the best one."""
    from dataclasses import replace

    from sinklens.models.devices import best_device

    free = experiment.device is None and experiment.device_map is None
    return replace(experiment, device=best_device()) if free else experiment


def tell_model(name: str, placing: Placing) -> None:
    """Say which model is loaded, and where."""
    where = placing.device or f"several devices ({placing.device_map})"
    said = [placing.dtype, placing.revision, placing.attention and f"attention {placing.attention}", placing.family]
    typer.echo(", ".join([f"{name} on {where}", *(each for each in said if each)]))


def folder(path: Path, kinds: Mapping[str, Kind]) -> Path:
    """A folder for results, checked before anything is computed; made when there is something to write.

    Args:
        path: The folder.
        kinds: The files that will be written there, by name.

    Raises:
        PlanError: it is no folder, or cannot be written to.
        SaveError: one of the files is there already, and sinklens did not write it.
    """
    from sinklens import files
    from sinklens.errors import PlanError

    there = next(each for each in (path, *path.absolute().parents) if each.exists() or each.is_symlink())
    if not there.is_dir():
        raise PlanError(f"--out {str(path)!r}: {str(there)!r} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PlanError(f"--out {str(path)!r}: {str(there)!r} cannot be written to")
    for name, kind in kinds.items():
        files.check(path / name, kind)
    return path


def kept(call: Callable[[], R], attribute: str) -> tuple[R | None, bool]:
    """What a call gives, and whether it was interrupted; then what was finished, None if nothing was.

    Args:
        call: `denoise`, or an ablation.
        attribute: Where an interrupt carries what was finished.
    """
    try:
        given: Any = call()
    except KeyboardInterrupt as stop:
        return getattr(stop, attribute, None), True
    return given, not given.finished


def warn(text: str) -> None:
    """Say above a table what must not be overlooked."""
    typer.echo(f"*** {text} ***\n")


def interrupted(kept: str) -> NoReturn:
    """End an interrupted command: say what was kept and how to go on.

    Raises:
        Exit: 130, as the shell has it.
    """
    typer.echo(f"interrupted; {kept}", err=True)
    raise typer.Exit(130)
