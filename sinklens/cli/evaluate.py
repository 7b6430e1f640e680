"""`sinklens eval`: lm-evaluation-harness on the model `sinklens`, edited or not."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import typer

from sinklens.errors import PlanError


def evaluate(context: typer.Context) -> None:
    """Run lm-evaluation-harness (lm_eval run) with --model sinklens; all options are its own.

    lm_eval itself finds no models of other packages, so it is started here.

    --model_args: pretrained=MODEL, then any of edit=mask:top1@layers=0-3 (sinklens ablate --grammar),
    control=random, seed=0, plan=steps=16@block_length=8, mc_num=128, estimator=llada or dream; and dtype, device_map,
    revision, attention, family, mask_token_id. Values with a comma need quotes inside the argument, or all of it as
    JSON.

    For example: sinklens eval --model_args pretrained=tiny-arm,edit=mask:same/top1 --tasks my_task --include_path tasks
    """
    if find_spec("lm_eval") is None:
        raise PlanError("sinklens eval needs lm-evaluation-harness: pip install 'sinklens[evals]'")
    said = [word for word in context.args if word.split("=")[0] in ("--model", "-M")]
    if said:
        raise PlanError(f"{said[0]}: sinklens eval is for the model 'sinklens'; leave it out (lm_eval runs others)")
    import sinklens.harness  # noqa: F401 - it registers the model
    from sinklens.models.devices import best_device

    placed = {word.split("=")[0] for word in context.args} & {"--device", "--config", "-C"}
    where = [] if placed else ["--device", best_device()]  # lm_eval would say cuda:0, whether it is there or not
    before = sys.argv
    sys.argv = ["lm_eval", "run", *context.args, *where, "--model", "sinklens"]
    try:
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    finally:
        sys.argv = before
