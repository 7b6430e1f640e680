"""docs/compose.md, as the checks find it: `PYTHONPATH=tests python -m compose.page` writes it anew."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path

import torch
from compose import analysis_tools, cache_tools, hook_tools, patch_tools, text_tools, weight_tools
from compose.cases import COLUMNS
from compose.inventory import NOT_RUN
from compose.table import TOOLS, Tool, state
from compose.upstream import WRONG, Wrong, shown

PAGE = Path(__file__).parents[2] / "docs" / "compose.md"
MODULES = (hook_tools, cache_tools, patch_tools, analysis_tools, weight_tools, text_tools)
HEAD = """# TransformerLens's tools on a HookedDLM

A `HookedDLM` is a `TransformerBridge`, so TransformerLens's own tools take it. Each gives the right number here or
refuses and says why; there is no third state. The tests in `tests/compose` make this page: they run every cell, and
fail if it says anything else. `PYTHONPATH=tests python -m compose.page` writes it anew.

Five models: the bundled twins tiny-dlm (a diffusion model) and tiny-arm (autoregressive, the same architecture), a
random Llama with grouped-query attention and tied embeddings (SmolLM2's layout, autoregressive), a random Dream (its
logits are shifted: position i is predicted at i - 1), a random BERT (an encoder that normalises after it adds, with a
head). "Right" means equal, within rounding of float32, to transformers' own class with the same weights and eager
attention, that nobody wrapped, or to plain torch on what its modules give; the last column says to what. Rows of
logits are compared where a `HookedDLM` has them: row i about position i, of the autoregressive models about i + 1.
"Refused" is an error of sinklens's, "TL refuses" one of TransformerLens's own; what they say is under each table. Where
a tool is right but for one of its options, the option that is refused stands in front of the message.
"""


def listed(found: Tool) -> str:
    """A tool and the names that its check calls, too."""
    names = [name for name in found.covers if name != found.name]
    return ", ".join(f"`{name}`" for name in (found.name, *names))


@cache
def cells(found: Tool) -> dict[str, str]:
    """What a tool does on every model, run once."""
    return {column: state(found, column) for column in COLUMNS}


def word(said: str) -> str:
    """A cell."""
    return "right" if said == "right" else "TL refuses" if said.startswith("TransformerLens: ") else "refused"


def refusals(tools: list[Tool]) -> list[str]:
    """What refusals say, tools and models with the same message together."""
    said: dict[str, dict[str, list[str]]] = {}
    for found in tools:
        for column, text in cells(found).items():
            if text != "right":
                plain = re.sub(r"Sinklens\w+Adapter", "the adapter", text.replace(f"{column} ({column})", "this one"))
                plain = re.sub(rf"\b{column}\b(?!'s)", "this model", plain)
                said.setdefault(plain, {}).setdefault(found.name, []).append(column)
    lines = []
    for text, where in said.items():
        kind, _, message = text.partition(": ")
        models = [column for column in COLUMNS if any(column in columns for columns in where.values())]
        each = "every model" if len(models) == len(COLUMNS) else ", ".join(models)
        source = "TransformerLens" if kind == "TransformerLens" else f"`{kind}`"
        lines.append(f"- {', '.join(f'`{name}`' for name in where)} ({each}), {source}: {message.rstrip('.')}.")
    return lines


def written() -> str:
    """The page."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    parts = [HEAD]
    for room in (module.ROOM for module in MODULES):
        inside = [found for found in TOOLS if found.room == room]
        lines = [f"## {room}\n", f"| tool | {' | '.join(COLUMNS)} | compared with |", "|---" * (len(COLUMNS) + 2) + "|"]
        for found in inside:
            lines.append(f"| {listed(found)} | {' | '.join(map(word, cells(found).values()))} | {found.how} |")
        said = refusals(inside)
        parts.append("\n".join([*lines, *(["", *said] if said else [])]) + "\n")
    parts.append("## Where TransformerLens itself is wrong\n\n" + "\n".join(map(told, WRONG)))
    parts.append("## Not in the table\n\n" + "".join(f"- {names}: {why}.\n" for why, names in reasons().items()))
    logging.disable(logging.NOTSET)
    return "\n".join(parts)


def told(wrong: Wrong) -> str:
    """A reproduction with what it gives."""
    theirs, right = shown(wrong)
    code = f"```python\n{wrong.code.strip()}  # {theirs:.2f}, right is {right:.2f}\n```\n"
    return f"**{wrong.title}.** {wrong.cause}\n\n{code}"


def reasons() -> dict[str, str]:
    """Names that no check calls, by why."""
    found: dict[str, list[str]] = {}
    for name, why in NOT_RUN.items():
        found.setdefault(why, []).append(f"`{name}`")
    return {why: ", ".join(names) for why, names in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(written(), encoding="utf-8")
