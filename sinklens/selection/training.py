"""Training a gate: the model around it stays as it is, bit for bit, and gradients reach the gate alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sinklens import files
from sinklens.errors import GateError
from sinklens.interrupts import again, surely
from sinklens.models.fingerprint import ModelId
from sinklens.progress import hidden
from sinklens.selection import checkpoints
from sinklens.selection.batches import Batch, batch_of, refilled
from sinklens.selection.checkpoints import Checkpoint
from sinklens.selection.gate import Gate
from sinklens.selection.measuring import calibrate, divergence, measure, surprise
from sinklens.selection.recipe import LOGGED, Recipe
from sinklens.selection.selected import Shown, by_gate, selected
from sinklens.selection.storing import GATE
from sinklens.selection.texts import Chains, Texts, texts_for
from sinklens.values import digest
from sinklens.values.kinds import reads
from sinklens.version import __version__

R = TypeVar("R")
LOG = "log.jsonl"
LOG_KIND = files.Kind("log of a training", b'{"sinklens": "gate training"')
REACHED = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)  # rates of the table in a gate's model card
EVERY = 16  # how often the log gets a line, and the checkpoint is written, in all
CALIBRATING = 4  # batches that are calibrated on
CLIP = 1.0  # of the gradient's norm
TRAINED, MEASURED, CALIBRATED = 1, 2, 3  # streams of random numbers, beside each seed


@reads("dlm", "texts")
def train(
    dlm: Any,
    recipe: Recipe | None = None,
    texts: Texts | None = None,
    *,
    out: Path | None = None,
    progress: bool = True,
) -> Gate:
    """Train a gate on a frozen model.

    For each update a rate is drawn, the gate chooses keys in every layer by it, and the forward under that choice is
    compared with the plain one. Nothing of the model changes: no weight, no `requires_grad` and no mode.

    Args:
        dlm: A HookedDLM.
        recipe: How; what it leaves open is chosen for the model.
        texts: On what; what fits the model's vocabulary when None (`texts_for`).
        out: A folder for the gate, its log and a checkpoint, from which an interrupted training goes on: the same
            call again gives what an uninterrupted one gives, bit for bit (with as many threads).
        progress: Show a bar.

    Returns:
        The gate, with what it reached on held-out texts in `made`.

    Raises:
        GateError: texts that the model cannot read, or a checkpoint of another training.
        SaveError: a folder or file that cannot be written.
        KeyboardInterrupt: after the checkpoint was written.
    """
    recipe = (recipe or Recipe()).for_model(dlm)
    texts = texts_for(dlm) if texts is None else texts
    identity = digest([__version__, recipe.to_dict(), texts.about(), ModelId.of(dlm).to_dict()])
    gate = Gate.fresh(recipe.shape, dlm, recipe.seed).to(dlm.device)
    if out is not None:
        check(out)
    return _frozen(dlm, lambda: _trained(dlm, gate, recipe, texts, out, identity, progress))


def check(out: Path) -> None:
    """Raise for a folder that could not be written, before anything is computed.

    Raises:
        SaveError: as `files.check` says.
    """
    for name, kind in {**GATE.kinds, LOG: LOG_KIND, checkpoints.NAME: checkpoints.KIND}.items():
        files.check(out / name, kind)


def _frozen(dlm: Any, body: Callable[[], R]) -> R:
    """What `body` gives while the model takes no gradients and drops nothing out; then it is as it was found."""
    model = dlm.original_model
    wanted = [(weight, weight.requires_grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    grad = torch.is_grad_enabled()

    def frozen() -> R:
        model.requires_grad_(False).eval()
        torch.set_grad_enabled(True)
        return body()

    def restore() -> None:
        torch.set_grad_enabled(grad)
        for weight, wants in wanted:
            weight.requires_grad_(wants)
        for module, training in modes:
            module.training = training

    return surely(frozen, restore)


def _trained(
    dlm: Any, gate: Gate, recipe: Recipe, texts: Texts, out: Path | None, identity: str, progress: bool
) -> Gate:
    total, rows, length = recipe.updates or 1, recipe.batch or 1, recipe.length or 4
    held = replace(texts, part="test").draw(dlm)  # pyright: ignore[reportArgumentType] - every kind is a dataclass
    draw, refill = texts.draw(dlm), isinstance(texts, Chains)
    tests = [batch_of(dlm, held(rng, rows, length), rng) for rng in (_random(recipe, MEASURED, i) for i in range(4))]
    adam = torch.optim.Adam(gate.parameters(), lr=recipe.rate_of_learning or 0.0, betas=(0.9, 0.99))
    found = None if out is None else checkpoints.read(out, identity, gate)
    log: list[dict[str, Any]] = []
    if found is not None:
        found.restore(gate, adam)
        log = [dict(line) for line in found.log]
    done = found or Checkpoint.of(0, gate, adam, log)
    every = max(1, total // EVERY)

    def keep() -> None:
        if out is not None:
            done.write(out, identity)
            lines = [{"sinklens": "gate training", **line} for line in done.log]
            files.write_text(out / LOG, "".join(json.dumps(line) + "\n" for line in lines), LOG_KIND)

    bar = tqdm(
        total=total,
        initial=done.updates,
        desc=f"gate of {dlm.name}",
        unit="update",
        disable=hidden(progress),
        leave=False,
    )
    try:
        for update in range(done.updates, total):
            rng = _random(recipe, TRAINED, update)
            rate = float(rng.uniform(recipe.lowest, 1.0))
            lines = draw(rng, rows, length)
            batch = batch_of(dlm, refilled(dlm, lines, rng) if refill else lines, rng)
            for group in adam.param_groups:
                group["lr"] = (recipe.rate_of_learning or 0.0) * _slope(update, total)
            said = _update(dlm, gate, adam, recipe, batch, rate)
            last = update + 1 == total
            if (update + 1) % every == 0 or last:
                reached = measure(dlm, gate, tests[:1], LOGGED)
                log.append({"update": update + 1, "rate": rate, **said, "held_out": reached})
            done = Checkpoint.of(update + 1, gate, adam, log)
            if (update + 1) % every == 0 and not last:
                keep()
            bar.set_postfix(rate=f"{rate:.2f}", kept=f"{said['share']:.2f}", loss=f"{said['loss']:.3f}", refresh=False)
            bar.update()
    except KeyboardInterrupt:
        again(keep)
        raise
    finally:
        bar.close()
    if recipe.calibrated and recipe.per_layer:
        rng = _random(recipe, CALIBRATED, 0)
        calibrate(dlm, gate, batch_of(dlm, draw(rng, CALIBRATING * rows, length), rng))
    about = {"recipe": recipe.to_dict(), "texts": texts.about(), "sinklens": __version__}
    gate.made = {**about, "reached": measure(dlm, gate, tests, REACHED)}
    gate.requires_grad_(False)
    if out is not None:
        keep()
        gate.save(out)
        (out / checkpoints.NAME).unlink()
    return gate


def _update(
    dlm: Any, gate: Gate, adam: torch.optim.Adam, recipe: Recipe, batch: Batch, rate: float
) -> dict[str, float]:
    """One update; what it was, in numbers."""
    with torch.no_grad():
        plain = dlm(batch.tokens, attention_mask=batch.valid)
    choose = by_gate(gate, rate, batch.valid)
    logits, shown = selected(dlm, batch.tokens, batch.valid, choose, gate.source, recipe.temperature)
    each = divergence(plain, logits, batch) if recipe.loss == "kl" else surprise(logits, batch)
    fidelity, shares = each.mean(), kept_shares(shown, batch, recipe.temperature)
    if recipe.shape.scores == "shared":
        shares = shares[:1]
    apart = (shares - rate).square().mean() if recipe.per_layer else (shares.mean() - rate).square()
    loss = fidelity + recipe.penalty * apart
    if not bool(loss.isfinite()):
        raise GateError(f"the loss is {float(loss.detach())} at a rate of {rate:.3f}, and nothing is learned from that")
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(gate.parameters(), CLIP)
    adam.step()
    said = {"loss": loss, recipe.loss: fidelity, "share": shares.mean()}
    return {name: float(amount.detach()) for name, amount in said.items()}


def kept_shares(shown: Shown, batch: Batch, temperature: float) -> Tensor:
    """The share of valid tokens that each layer kept [layer]; backward that of sigmoid(score / temperature)."""
    real, shares = batch.valid.sum(), []
    for layer, kept in shown.kept.items():
        hard = kept.sum() / real
        soft = (torch.sigmoid(shown.scores[layer] / temperature) * batch.valid).sum() / real if shown.scores else hard
        shares.append(hard + soft - soft.detach())
    return torch.stack(shares)


def _slope(update: int, total: int) -> float:
    """The rate of learning, as a share of its highest."""
    return min(1.0, (update + 1) / max(1, total // 20)) * (1 - 0.9 * update / total)


def _random(recipe: Recipe, stream: int, index: int) -> np.random.Generator:
    """Random numbers of one update: the same whatever came before."""
    return np.random.default_rng([recipe.seed, stream, index])
