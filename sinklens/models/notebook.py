"""What a notebook shows of a model."""

from __future__ import annotations

from typing import Any

from sinklens.values.notebook import Shown, Told


class Card(Shown):
    """The table of a HookedDLM: what it is, and whether anybody hooks it. Nothing is computed for it."""

    def told(self) -> Told:
        """Name, family, sizes, dtype and device, the mask token, hook points."""
        dlm: Any = self
        key_heads = int(getattr(dlm.cfg, "n_key_value_heads", None) or dlm.n_heads)
        kind = "autoregressive baseline" if dlm.is_causal else "masked diffusion language model"
        revision = f" at {dlm.revision}" if dlm.revision else ""
        rows: list[tuple[str, Any]] = [
            ("model", f"{dlm.name}{revision}"),
            ("family", dlm.family.name),
            ("sizes", f"{dlm.n_layers} layers, {dlm.n_heads} heads, {key_heads} key heads, width {dlm.cfg.d_model}"),
            ("vocabulary", f"{dlm.cfg.d_vocab} tokens; mask token {dlm.ids.mask}"),
            ("longest text", f"{dlm.n_ctx} tokens"),
            ("weights", f"{str(dlm.dtype).removeprefix('torch.')} on {dlm.device}"),
            ("attention", dlm.attention),
            ("hook points", f"{len(dlm.points)}; {'hooked now' if dlm.hooked else 'none is hooked'}"),
        ]
        return Told(f"A {kind}, on TransformerLens hook points.".replace("A a", "An a"), rows)
