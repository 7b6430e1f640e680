"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinklens.files import whole, write_text


def test_a_file_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    assert write_text(path, "old") == path
    with whole(path) as partial:
        assert partial.parent == path.parent  # so that it can be renamed
        partial.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("written", [False, True])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException, written: bool) -> None:
    path = write_text(tmp_path / "file.txt", "old")

    def write() -> None:
        with whole(path) as partial:
            if written:
                partial.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    """Not an empty file, and not the old one as if it were new."""
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(FileNotFoundError), whole(path):
        pass
    assert path.read_text(encoding="utf-8") == "old"


def test_text_is_utf_8(tmp_path: Path) -> None:
    assert write_text(str(tmp_path / "file.txt"), "日本 é\n").read_bytes() == "日本 é\n".encode()
