"""A gate as files: gate.safetensors, gate.json, and a model card, which is written here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sinklens.errors import GateError
from sinklens.values.folders import Folder

GATE = Folder("gate", GateError)


def card(description: Mapping[str, Any]) -> str:
    """The model card."""
    shape, model, made = description["shape"], description["model"], description["made"]
    lines = [
        f"# A gate of {model['name']}",
        "",
        f"Which tokens of {model['name']} stay visible as keys, at a rate that the user chooses: one set of weights "
        f"for every rate. Made by sinklens; `sinklens.selection.Gate.load(folder)` loads it, and the edit that "
        f"applies it is `keep=0.5:learned@gate=FOLDER`.",
        "",
        f"- kind: {shape['kind']}, scores: {shape['scores']}"
        + (f" (of the input of layer {shape['first']})" if shape["scores"] == "shared" else ""),
        f"- selects in: layers {shape['first']} to {description['layers'] - 1}"
        + (f"; those before keep everything (compare with @layers={shape['first']}-)" if shape["first"] else ""),
        f"- for: {model['name']}, family {model['family']}, weights with SHA-256 {model['weights']} (in bfloat16)",
    ]
    for name, said in made.items():
        if name != "reached":
            lines.append(f"- {name}: {json.dumps(said)}")
    rows = made.get("reached") or []
    if rows:
        lines += ["", "On texts that it was not trained on:", "", "| " + " | ".join(rows[0]) + " |"]
        lines.append("|" + "---|" * len(rows[0]))
        lines += ["| " + " | ".join(f"{each:.4g}" for each in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"
