"""Calibration of a loaded model: what its hooks show must be what it computes, and what they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklens.errors import CheckFailed

# Relative to the largest logit: what two exact ways to compute attention may differ by in each dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}


@torch.no_grad()
def calibrate(dlm: Any) -> dict[str, float]:
    """Measure a `HookedDLM` on a few random tokens.

    Returns:
        row_sums: how far pattern rows are from summing to 1; reference: how far the logits of the hooked model are
        from those of the unhooked transformers model; edit: the least that an edit of a pattern changed them by;
        padding: how much left padding changes them at real positions. All but row_sums are relative to the largest
        logit.

    Raises:
        CheckFailed: a weight that is no number, a pattern of the wrong shape, or a deviation above the dtype's
            tolerance.
    """
    for name, weight in dlm.original_model.named_parameters():
        # A sum is finite where every weight is; only one that is not is looked at again.
        finite = bool(weight.sum(dtype=torch.float64).isfinite()) or bool(weight.isfinite().all())
        _demand(dlm, finite, f"the weight {name} holds nan or infinity")
    size = min(8, dlm.n_ctx)
    pads = min(3, size - 2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(dlm.cfg.d_vocab), (1, size), generator=generator).to(dlm.device)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(dlm.n_layers)]
    patterns: dict[str, Tensor] = {}

    def keep(tensor: Tensor, *, hook: Any) -> None:
        patterns[hook.name] = tensor

    def paths(tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Logits by every path: unhooked, with all components in place, and with every pattern hooked in both."""

        def logits(*_: Any) -> Tensor:
            return dlm(tokens, attention_mask=mask)

        out = {"plain": logits(), "components": dlm.wiring.run(logits, everything=True)}
        with dlm.hooks(fwd_hooks=[(name, keep) for name in names]):
            out["pattern"] = logits()
            out["components, pattern"] = dlm.wiring.run(logits, everything=True)
        return out

    def gap(a: Tensor, b: Tensor) -> float:
        return float((a - b).float().abs().max()) / scale

    logits = paths(tokens)
    hooked, scale = logits["pattern"], float(logits["pattern"].float().abs().max().clamp(min=1))
    shape = (1, dlm.n_heads, size, size)
    wrong = [name for name in names if name not in patterns or tuple(patterns[name].shape) != shape]
    _demand(dlm, not wrong, f"{wrong[:1]} did not carry a pattern of shape {shape}")
    found = {"row_sums": _worst([float((patterns[name].float().sum(-1) - 1).abs().max()) for name in names])}
    found["reference"] = _worst([gap(hooked, other) for other in logits.values()])
    for layer in {0, dlm.n_layers - 1}:
        # Every pattern is hooked here, too, so that a discarded edit changes nothing at all.
        edit = {names[layer]: lambda pattern, *, hook: pattern.roll(1, -1)}
        with dlm.hooks(fwd_hooks=[(name, edit.get(name, keep)) for name in names]):
            edited = dlm(tokens)
        found["edit"] = min(gap(edited, hooked), found.get("edit", float("inf")))
        _demand(dlm, found["edit"] > 0, f"an edit of {names[layer]} did not change the logits")
    real = tokens[:, : size - pads]
    padded = torch.cat([torch.cat([tokens[:, :pads], real], 1), tokens])
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[0, :pads] = False
    alone, together = paths(real), paths(padded, mask)
    # The first real row is left out: where logits are shifted it belongs to the padding before it.
    found["padding"] = _worst([gap(together[path][0, pads + 1 :], alone[path][0, 1:]) for path in alone])
    tolerance = TOLERANCE.get(dlm.dtype, 2e-1)
    _demand(dlm, found["row_sums"] < 1e-3, f"pattern rows sum to 1 +- {found['row_sums']:.2g}")
    _demand(
        dlm,
        found["reference"] < tolerance,
        f"hooked logits differ from the unhooked transformers model by {found['reference']:.2g} (relative)",
    )
    _demand(dlm, found["padding"] < tolerance, f"left padding changes real positions by {found['padding']:.2g}")
    return found


@torch.no_grad()
def hook_table(dlm: Any) -> dict[str, tuple[int, ...]]:
    """Every hook point of a `HookedDLM` that fires, with the shape it carries for one prompt of 5 tokens."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(tensor: Any, *, hook: Any) -> None:
        if isinstance(tensor, Tensor):
            shapes[hook.name] = tuple(tensor.shape)

    # Point by point: by name, TransformerLens warns about those that are switched off.
    points = list({id(point): point for point in dlm.points.values()}.values())
    tokens = torch.zeros((1, min(5, dlm.n_ctx)), dtype=torch.long, device=dlm.device)
    with dlm.wiring.lock:
        handles = [(point, point.add_hook(note)) for point in points]
        try:
            dlm(tokens)
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)
    return shapes


def _worst(values: list[float]) -> float:
    """The largest, and nan if any is nan (Python's max may drop a nan)."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _demand(dlm: Any, holds: bool, claim: str) -> None:
    if not holds:
        raise CheckFailed(
            f"{dlm.name} failed its calibration: {claim}. Its numbers would be wrong; load with check=False only "
            "to look into it."
        )
