"""Finished scores on disk: what an interrupt or a kill does not lose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinklens import files
from sinklens.errors import RecordError

HEADER = {"sinklens": "scores", "schema": 1}
_FIRST = json.dumps(HEADER)


class ScoreStore:
    """Finished scores by key, in memory and, if a path is given, in a file of JSON lines (one line per batch).

    The first line says that sinklens wrote the file; any other file is left as it is. A last line that a kill cut off
    is dropped, and its batch is run again.

    Args:
        path: The file; made with the first scores. None keeps them in memory only.

    Raises:
        RecordError: a file that sinklens did not write, or a damaged line that is not the last.
        SaveError: a file that cannot be written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path is not None else None
        self.scores: dict[str, dict[str, Any]] = {}
        if self.path is not None:
            files.check(self.path, None)
            if self.path.exists():
                self._read(self.path)

    def add(self, scores: Mapping[str, dict[str, Any]]) -> None:
        """Keep finished scores, on disk at once; in memory also if that fails.

        Raises:
            SaveError: the file cannot be written any more.
        """
        self.scores.update(scores)
        if self.path is None:
            return
        if not self.path.exists() or not self.path.stat().st_size:
            files.write_text(self.path, f"{_FIRST}\n", files.SCORES)
        files.append(self.path, f"{json.dumps(scores)}\n".encode())

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{str(path)!r} cannot be read as a file of scores: {error}") from error
        if not data:
            return
        first, *lines = data.split(b"\n")
        _check_header(path, first)
        whole = [_FIRST]
        for number, line in enumerate(lines, start=2):
            is_last = number == len(lines) + 1  # what follows the last line break: nothing, or a line that was cut
            batch = _batch(line)
            if batch is not None:
                self.scores.update(batch)
                whole.append(line.decode())
            elif not is_last or line[:1] not in (b"", b"{"):
                raise RecordError(f"{path}, line {number} is damaged; delete the file to start again")
        text = "".join(f"{line}\n" for line in whole)
        if text.encode() != data:
            files.write_text(path, text, files.SCORES)


def _check_header(path: Path, first: bytes) -> None:
    try:
        header = json.loads(first)
    except ValueError:  # of JSON or of its encoding
        header = None
    if header == HEADER:
        return
    if isinstance(header, dict) and header.get("sinklens") == HEADER["sinklens"]:
        raise RecordError(f"{str(path)!r} holds scores of another version of sinklens ({header}); give a new file")
    raise RecordError(
        f"{str(path)!r} holds no scores that sinklens wrote: it begins with {first[:60].decode(errors='replace')!r}, "
        f"not with {_FIRST!r}. It is left as it is; give a new file"
    )


def _batch(line: bytes) -> dict[str, dict[str, Any]] | None:
    """Scores by key; None if the line holds no such thing."""
    try:
        batch = json.loads(line)
    except ValueError:
        return None
    good = isinstance(batch, dict) and all(isinstance(score, dict) for score in batch.values())
    return batch if good else None
