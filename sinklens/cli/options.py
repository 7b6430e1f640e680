"""Options that commands share. A parameter is named after the field of `Experiment` or of `Plan` that it sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="tiny-dlm, tiny-arm, a folder, or a Hub id.")]
Task = Annotated[
    str | None, typer.Option(help="echo, or a JSONL file of prompt and answer (GSM8K, say).", show_default="echo")
]
Prompts = Annotated[int | None, typer.Option(min=1, help="How many examples.", show_default="64")]
Extract = Annotated[str | None, typer.Option(help="JSONL: regular expression of what is compared.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Repetitions, several times.", show_default="0")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows per forward.", show_default="128")]

NewTokens = Annotated[int | None, typer.Option(help="Positions to generate; 0 fills the mask tokens in the prompts.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; one token per step by default.")]
BlockLength = Annotated[int | None, typer.Option(help="Semi-autoregressive blocks (the paper: 32).")]
Temperature = Annotated[float | None, typer.Option(help="Of the sampling; 0 takes the likeliest token.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompts into the model's chat template.")]
PLAN = ("new_tokens", "steps", "block_length", "temperature", "chat")


def fields_of(params: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """The fields of `Experiment` that the user set, out of a command's parameters.

    Args:
        params: All parameters by name (`typer.Context.params`).
        others: Parameters that are no fields.
    """
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    said = {name: value for name, value in said.items() if _is_said(value) and name not in others}
    if said.get("controls") == ("none",):
        said["controls"] = ()
    return {**{name: value for name, value in said.items() if name not in PLAN}, "plan": plan_of(params)}


def plan_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Plan` that the user set."""
    return {name: params[name] for name in PLAN if _is_said(params.get(name))}


def _is_said(value: Any) -> bool:
    return not (value is None or value is False or value == ())  # 0 is said


def few_threads(*models: str) -> None:
    """Use one thread for the bundled models: a second gains them little, and beside other programs it loses a lot."""
    import torch

    from sinklens.models.loading import BUNDLED

    if set(models) <= set(BUNDLED):
        torch.set_num_threads(1)


def text_of(frame: Any) -> str:
    """A table as text."""
    return frame.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="")
