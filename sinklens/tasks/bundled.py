"""Tasks that come with sinklens, for real models: facts in a few words, and residues of antibodies."""

from __future__ import annotations

from pathlib import Path

from sinklens.tasks.jsonl import Jsonl

HERE = Path(__file__).parent
NAMES = ("facts", "antibodies")


def facts(limit: int | None = None) -> Jsonl:
    """Two hundred facts, each behind four others of its kind: capitals, opposites, plurals, authors, ...

    The first line of a completion is compared with the answer (one token, or several). The kinds are spread over the
    file, so that any beginning of it has some of each. Written for sinklens; edit a copy of the file as you like.
    """
    return Jsonl(HERE / "facts.jsonl", extract=r"([^\n]+)", match="first", limit=limit, name="facts")


def antibodies(limit: int | None = None) -> Jsonl:
    """Variable regions of 15 therapeutic antibodies, heavy and light, half of the residues masked.

    Every residue is a place. The first 30 are one draw of masks for each of the 30 sequences, the next 30 another for
    the same: intervals over prompts take these for new sequences, which they are not.

    Sequences: supporting data set S2 of Jain et al., "Biophysical properties of the clinical-stage antibody landscape",
    PNAS 114 (2017), doi:10.1073/pnas.1616408114, from the WHO's lists of names.
    """
    return Jsonl(HERE / "antibodies.jsonl", by="character", separator=None, limit=limit, name="antibodies")


def bundled(name: str, limit: int | None = None) -> Jsonl:
    """One of them by its name."""
    return {"facts": facts, "antibodies": antibodies}[name](limit)
