"""What gates are trained on: the twins' language, the English that every Python carries, antibodies, files of text."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from sinklens.errors import GateError
from sinklens.models.prompts import read_prompts
from sinklens.tasks import Echo, EchoGrammar, antibodies
from sinklens.values import Value
from sinklens.values.kinds import reads

T = TypeVar("T")
Part = Literal["train", "test"]
Draw = Callable[[np.random.Generator, int, int], list[list[int]]]  # (random numbers, rows, length) -> token ids
TRAINING = 0.8  # the first so much of a text is for training
CHAINS = 30  # of 15 antibodies
HELD_OUT = 5  # every fifth antibody is for testing
RESIDUES = frozenset("ACDEFGHIKLMNPQRSTVWY")
ECHO_SEEDS = {"train": 5_000_000_000, "test": 6_000_000_000}  # and 10**9 from there on; tasks take small ones


class Texts(Value, ABC):
    """Rows of text, endless, drawn by chance.

    Attributes:
        part: "train", or "test": what is held out of training.
    """

    part: Part = "train"
    kind_error = GateError

    @abstractmethod
    def draw(self, dlm: Any) -> Draw:
        """How rows of token ids are drawn for a model: at most so long, specials of its tokenizer around them.

        Raises:
            GateError: the model cannot read these texts, or there are too few.
        """

    def about(self) -> dict[str, Any]:
        """What they are, for the description of a gate."""
        return self.to_dict()


@dataclass(frozen=True, repr=False)
class EchoTexts(Texts):
    """Texts of the twins' language, by seeds far from those of tasks."""

    part: Part = "train"

    def draw(self, dlm: Any) -> Draw:
        """Texts that fill the length."""
        first = ECHO_SEEDS[self.part]

        def drawn(rng: np.random.Generator, rows: int, length: int) -> list[list[int]]:
            seed = first + int(rng.integers(10**9))
            return Echo(rows, seed, prompt_tokens=2, answer_tokens=max(1, length - 2)).texts.tolist()

        return drawn


@dataclass(frozen=True, repr=False)
class Prose(Texts):
    """Windows of one long text, at places drawn by chance.

    Attributes:
        text: The text; the first 80 % of it are for training.
        name: Where it is from.
    """

    text: str
    name: str
    part: Part = "train"

    def draw(self, dlm: Any) -> Draw:
        """Windows that fill the length."""
        return _windows(self.name, dlm.encode_piece(split(self.text, self.part)), dlm)

    def about(self) -> dict[str, Any]:
        """Its name, hash and part."""
        sha256 = hashlib.sha256(self.text.encode()).hexdigest()
        return {"type": "Prose", "name": self.name, "sha256": sha256, "part": self.part}

    def __repr__(self) -> str:
        return f"Prose({self.name!r}, {len(self.text)} letters, part={self.part!r})"


@dataclass(frozen=True, repr=False)
class Rows(Texts):
    """Rows as they are: texts, or token ids; longer ones are cut to a window. Held out is every fifth.

    Attributes:
        rows: The rows, in any form that `denoise` takes.
        name: Where they are from.
    """

    rows: Any
    name: str = "rows"
    part: Part = "train"

    def __post_init__(self) -> None:
        listed = tuple(read_prompts(self.rows))
        if not listed:
            raise GateError(f"rows={self.rows!r} holds no row; give at least one")
        object.__setattr__(self, "rows", listed)

    def draw(self, dlm: Any) -> Draw:
        """Rows by chance."""
        ids = [dlm.encode(row) for row in _held(self.rows, self.part) or self.rows]

        def drawn(rng: np.random.Generator, rows: int, length: int) -> list[list[int]]:
            return [_cut(ids[int(index)], rng, length) for index in rng.integers(len(ids), size=rows)]

        return drawn

    def about(self) -> dict[str, Any]:
        """Its name, the number of rows, and their hash."""
        return {"type": "Rows", "name": self.name, "rows": len(self.rows), "digest": self.digest, "part": self.part}

    def __repr__(self) -> str:
        return f"Rows({self.name!r}, {len(self.rows)} rows, part={self.part!r})"


def python_reference(part: Part) -> str:
    """The English text that every Python carries (`pydoc_data.topics`), about 465,000 letters.

    It differs a little between versions of Python. The first 80 % are for training, the rest is held out.
    """
    return split(_reference(), part)


def antibody_chains(part: Part) -> list[str]:
    """The chains of the bundled antibodies, whole; every fifth antibody (both chains) is held out of training."""
    chains = []
    for example in antibodies(CHAINS):  # what follows are the same ones, masked at other places
        pieces, answer = example.prompt.split("[MASK]"), iter(example.answer)
        chains.append("".join(piece + next(answer, "") for piece in pieces))
    pairs = list(zip(chains[::2], chains[1::2], strict=True))  # heavy, light
    return [chain for pair in _held(pairs, part) for chain in pair]


def split(text: str, part: Part) -> str:
    """The first 80 % of a text, up to the end of a line, or the rest."""
    cut = text.rfind("\n", 0, int(TRAINING * len(text))) + 1 or int(TRAINING * len(text))
    return text[:cut] if part == "train" else text[cut:]


@reads("dlm")
def texts_for(dlm: Any, path: Path | str | None = None) -> Texts:
    """What a model is trained on: a file, or what fits its vocabulary.

    Args:
        dlm: The model, or its outline.
        path: Plain text, or JSON lines (texts, or objects with "text", or "prompt" and perhaps "answer").

    Raises:
        GateError: a file that cannot be read; a model without a tokenizer.
    """
    if path is not None:
        return _from_file(Path(path))
    if dlm.tokenizer is None:
        raise GateError(f"{dlm.name} has no tokenizer to read a text with; give rows of token ids (selection.Rows)")
    known = dlm.tokenizer.get_vocab()
    if known.items() >= EchoGrammar().id.items():
        return EchoTexts()
    if len(known) < 64 and set(known) >= RESIDUES:
        return Chains()
    return Prose(_reference(), "pydoc_data.topics")


@dataclass(frozen=True, repr=False)
class Chains(Texts):
    """Chains of the bundled antibodies (`antibody_chains`)."""

    part: Part = "train"

    def draw(self, dlm: Any) -> Draw:
        """Whole chains, or windows of them."""
        ids = [dlm.encode(chain) for chain in antibody_chains(self.part)]

        def drawn(rng: np.random.Generator, rows: int, length: int) -> list[list[int]]:
            return [_cut(ids[int(index)], rng, length) for index in rng.integers(len(ids), size=rows)]

        return drawn


@lru_cache(maxsize=1)
def _reference() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _from_file(path: Path) -> Texts:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GateError(f"--text {str(path)!r} cannot be read: {error}") from error
    if not text.strip():
        raise GateError(f"--text {str(path)!r} is empty")
    if path.suffix not in (".jsonl", ".ndjson"):
        return Prose(text, path.name)
    rows = [_row(line, number, path) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return Rows(rows, path.name)


def _row(line: str, number: int, path: Path) -> str:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise GateError(f"--text {str(path)!r}, line {number}: no JSON: {error}") from error
    if isinstance(said, dict):
        prompt, answer = said.get("prompt"), said.get("answer", "")
        said = said.get("text", f"{prompt} {answer}".rstrip() if isinstance(prompt, str) else None)
    if not isinstance(said, str):
        raise GateError(f'--text {str(path)!r}, line {number}: neither a text nor an object with "text" or "prompt"')
    return said


def _windows(name: str, ids: Sequence[int], dlm: Any) -> Draw:
    before = [dlm.ids.bos] if dlm.prepends_bos else []
    around = len(before) + len(dlm.closing)

    def drawn(rng: np.random.Generator, rows: int, length: int) -> list[list[int]]:
        size = length - around
        if len(ids) <= size:
            raise GateError(f"{name} holds {len(ids)} tokens of {dlm.name}, too few for rows of {length}")
        starts = rng.integers(len(ids) - size, size=rows).tolist()
        return [[*before, *ids[start : start + size], *dlm.closing] for start in starts]

    return drawn


def _held(several: Sequence[T], part: Part) -> list[T]:
    """Every fifth for testing, the others for training."""
    return [each for index, each in enumerate(several) if (index % HELD_OUT == HELD_OUT - 1) == (part == "test")]


def _cut(row: list[int], rng: np.random.Generator, length: int) -> list[int]:
    start = int(rng.integers(len(row) - length + 1)) if len(row) > length else 0
    return row[start : start + length]
