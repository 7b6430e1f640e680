"""The one home of writing: targets are checked first, files of others stay, and a file is whole or not there."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sinklens.errors import SaveError
from sinklens.interrupts import surely

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = itertools.count()


class Kind(NamedTuple):
    """A kind of file that sinklens writes, and how one is known again: only such a file is ever replaced.

    Attributes:
        name: What errors call it.
        begins: Its first bytes.
        holds: What stands somewhere in it.
    """

    name: str
    begins: bytes
    holds: bytes = b""


RECORD = Kind("record", b"\x89HDF\r\n\x1a\n", b"sinklens_schema")
SCORES = Kind("file of scores", b'{"sinklens": "scores"')
RESULT = Kind("result of an ablation", b'{"sinklens": "ablation"')
PAGE = Kind("page", b"<!DOCTYPE html>", b'<meta name="generator" content="sinklens"')


def table(*columns: str) -> Kind:
    """A CSV file that begins with these columns."""
    return Kind("table", ",".join(columns).encode())


def check(path: str | Path, kind: Kind | None) -> Path:
    """Raise for a file that could not be written; to be asked before anything is computed. Makes nothing.

    Args:
        path: The file. A link stands for what it points to.
        kind: What will be written; None if any regular file may be replaced.

    Returns:
        The path.

    Raises:
        SaveError: a folder, a device, a file that sinklens did not write, or a folder that cannot be made or written.
    """
    real = _target(path, kind)
    trial = next(each for each in real.parents if os.path.lexists(each)) / _partial()
    try:
        surely(lambda: trial.open("xb").close(), lambda: _unlink(trial))
    except OSError as error:
        raise _failed(path, error) from error
    return Path(path)


def write_bytes(path: str | Path, content: bytes | memoryview, kind: Kind | None) -> Path:
    """Write a file, whole or not at all: after an error the old one is as it was, and nothing else is left.

    Args:
        path: The file; its folder is made if need be. A link stays, and what it points to is written.
        content: All of it.
        kind: What it is; another kind of file is never replaced. None: any regular file may be.

    Raises:
        SaveError: as in `check`, or a full disk.
    """
    real = _target(path, kind)
    partial = real.with_name(_partial())

    def write() -> None:
        real.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if real.exists():
            partial.chmod(stat.S_IMODE(real.stat().st_mode))
        os.replace(partial, real)

    try:
        surely(write, lambda: _unlink(partial))
    except OSError as error:
        raise _failed(path, error) from error
    return Path(path)


def write_folder(path: str | Path, contents: Mapping[str, bytes]) -> Path:
    """Write a folder of files, whole or not at all. One that is there and holds anything is never touched.

    Args:
        path: The folder; those above it are made if need be.
        contents: All of its files, by their names in it.

    Raises:
        SaveError: something is there already, or cannot be written; nothing is left then.
    """
    try:
        real = Path(os.path.realpath(path))
        partial = real.with_name(_partial())
        taken = os.path.lexists(real) and (not real.is_dir() or any(real.iterdir()))
    except (OSError, ValueError) as error:
        raise _failed(path, error) from error
    if taken:
        raise SaveError(f"{str(path)!r} is there already, and a folder is never replaced; give another name")

    def write() -> None:
        for name, content in contents.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        os.replace(partial, real)

    try:
        surely(write, lambda: shutil.rmtree(partial, ignore_errors=True))
    except OSError as error:
        raise _failed(path, error) from error
    return Path(path)


def write_text(path: str | Path, text: str, kind: Kind | None) -> Path:
    """`write_bytes` of a text, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"), kind)


def write_table(path: str | Path, frame: pd.DataFrame, kind: Kind) -> Path:
    """`write_bytes` of a table, as CSV."""
    return write_text(path, frame.to_csv(index=False), kind)


def append(path: str | Path, content: bytes) -> None:
    """Add to the end of a file, which is made if need be; after an error it ends where it did before.

    Raises:
        SaveError: the file cannot be written, or a full disk.
    """
    try:
        with Path(path).open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
    except OSError as error:
        raise _failed(path, error) from error


def _target(path: str | Path, kind: Kind | None) -> Path:
    """Where a file really goes, if what is there may be replaced."""
    try:
        real, state = Path(os.path.realpath(path)), None
        with suppress(FileNotFoundError):
            state = real.stat()
    except (OSError, ValueError) as error:
        raise _failed(path, error) from error
    if state is None:
        return real
    if stat.S_ISDIR(state.st_mode):
        raise SaveError(f"{str(path)!r} is a folder; give the name of a file")
    if not stat.S_ISREG(state.st_mode):
        raise SaveError(f"{str(path)!r} is a device, a pipe or a socket, and no file; give the name of a file")
    if not os.access(real, os.W_OK):
        raise SaveError(f"{str(path)!r} is read-only; give another name")
    if kind is not None and state.st_size and not _wrote(kind, real):
        raise SaveError(
            f"{str(path)!r} is there already and is no {kind.name} that sinklens wrote; it is left as it is. Give "
            "another name, or move it away"
        )
    return real


def _wrote(kind: Kind, path: Path) -> bool:
    """Whether a file that is not empty is of a kind; one that cannot be read is not."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[: len(kind.begins)] == kind.begins and content.find(kind.holds) >= 0
    except OSError as error:
        raise _failed(path, error) from error


def _partial() -> str:
    """A name for a file that is being written, which nobody else uses."""
    return f".{os.getpid()}-{next(_NUMBERS)}.partial"


def _unlink(path: Path) -> None:
    if os.path.lexists(path):
        path.unlink()


def _failed(path: str | Path, error: OSError | ValueError) -> SaveError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return SaveError(f"{str(path)!r} cannot be written: {why}")
