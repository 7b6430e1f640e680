"""Finished scores on disk: what an interrupt or a kill does not lose."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Store:
    """Finished scores by fingerprint, in memory and, if a path is given, in a JSONL file (one line per batch).

    A last line that a kill cut off is dropped, and its batch is run again.

    Raises:
        ValueError: a damaged line that is not the last.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path is not None else None
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path is None or not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                self.rows.update(json.loads(line))
            except (json.JSONDecodeError, ValueError, TypeError) as error:
                if number < len(lines):
                    raise ValueError(
                        f"{self.path}, line {number} is damaged; delete the file to start again"
                    ) from error
                lines = lines[:-1]
        whole = "".join(f"{line}\n" for line in lines)
        if whole != text:
            partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
            partial.write_text(whole, encoding="utf-8")
            partial.replace(self.path)

    def add(self, rows: Mapping[str, dict[str, Any]]) -> None:
        """Keep finished scores, on disk at once."""
        self.rows.update(rows)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows) + "\n")
