"""Damaged weight files: what safetensors itself reads, computed as the stock class computes it, or one clear error."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stock
import torch
from fuzzing import fuzz, refused
from hypothesis import strategies as st

from sinklens import HookedDLM

pytestmark = pytest.mark.filterwarnings("ignore")
WHOLE = stock.FIDELITY / "dream" / "checkpoint"
SHARDED = stock.FIDELITY / "llada" / "checkpoint"
TOKENS = torch.tensor([[5, 17, 62, 62, 30, 2]])
SHARE = st.floats(0, 1)
JUNK = st.sampled_from([None, True, -1, 0, 7, 2**62, 2**70, 0.5, "", "F32", "x", [], [1], [2**62, 4], {}, [[0, 4]]])


def outcome(source: Path, change: Callable[[Path], None]) -> str | None:
    """Why a changed copy is refused; one that is not computes what the stock class does with the same tensors."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for path in source.iterdir():
            shutil.copy(path, folder)
        change(folder)
        loaded: list[HookedDLM] = []
        ours = refused(lambda: loaded.append(HookedDLM.from_pretrained(made, dtype=torch.float32)))
        if ours is not None:
            return ours
        expected = stock.logits(folder, TOKENS)
        found = loaded[0](TOKENS)
        if bool(expected.isfinite().all()):
            stock.same(found, expected)
        else:  # weights so large that only a forward shows it; a run then stops
            assert not bool(found.isfinite().all())
        return None


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the data behind it."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def written(fields: dict[str, Any] | str, data: bytes) -> bytes:
    """A safetensors file of any header."""
    text = (fields if isinstance(fields, str) else json.dumps(fields)).encode()
    return struct.pack("<Q", len(text)) + text + data


@fuzz(60, 1000, share=SHARE, edge=st.sampled_from([None, 0, 1, 7, 8, 9]), behind=st.booleans())
def test_cut_weights(share: float, edge: int | None, behind: bool) -> None:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        start = 8 + struct.unpack("<Q", content[:8])[0] if behind and edge is not None else 0
        path.write_bytes(content[: start + edge if edge is not None else int(share * (len(content) - 1))])

    assert outcome(WHOLE, change) is not None


@fuzz(60, 2000, share=SHARE, bit=st.integers(0, 7), head=st.booleans())
def test_flipped_bits_of_weights(share: float, bit: int, head: bool) -> None:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        size = 8 + struct.unpack("<Q", content[:8])[0] if head else len(content)
        content[min(int(share * size), size - 1)] ^= 1 << bit
        path.write_bytes(bytes(content))

    outcome(WHOLE, change)


@fuzz(80, 3000, data=st.data())
def test_headers_that_say_something_else(data: Any) -> None:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        fields, rest = header(path.read_bytes())
        key = data.draw(st.sampled_from(sorted(set(fields) - {"__metadata__"})))
        what = data.draw(
            st.sampled_from(["dtype", "shape", "data_offsets", "name", "copy", "gone", "twice", "metadata"])
        )
        if what == "dtype":
            kinds = ["F16", "BF16", "F64", "I8", "U8", "I32", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64"]
            fields[key]["dtype"] = data.draw(st.sampled_from(kinds) | JUNK)
        elif what == "shape":
            shape = fields[key]["shape"]
            fields[key]["shape"] = data.draw(st.sampled_from([shape[::-1], [math.prod(shape)], [1, *shape], []]) | JUNK)
        elif what == "data_offsets":
            start, end = fields[key]["data_offsets"]
            moved = [[0, end - start], [start + 4, end + 4], [end, start], [start, end + 4], [0, 2**62]]
            fields[key]["data_offsets"] = data.draw(st.sampled_from(moved) | JUNK)
        elif what == "name":
            fields[data.draw(st.text(max_size=5) | st.just("model.norm.weight"))] = fields.pop(key)
        elif what == "copy":
            fields["more"] = fields[key]
        elif what == "gone":
            del fields[key]
        elif what == "metadata":
            fields["__metadata__"] = data.draw(JUNK | st.just({"format": "tf"}) | st.just({"format": 3}))
        text = json.dumps(fields)
        if what == "twice":
            text = text[:-1] + f", {json.dumps(key)}: {json.dumps(fields[key])}}}"
        path.write_bytes(written(text, rest))

    outcome(WHOLE, change)


@fuzz(
    60,
    1000,
    name=st.sampled_from(sorted(stock.weights(WHOLE))),
    kind=st.sampled_from(["float16", "bfloat16", "float64", "int8", "uint8", "bool", "int64", "float8_e4m3fn"]),
    value=st.sampled_from([None, None, float("nan"), float("inf"), -float("inf")]),
    place=SHARE,
)
def test_tensors_of_another_dtype_and_numbers_that_are_none(
    name: str, kind: str, value: float | None, place: float
) -> None:
    """A float of any width is that number; whole numbers and 8 bits are no weights without their scales."""

    def change(folder: Path) -> None:
        tensors = stock.weights(folder)
        if value is not None:
            tensors[name].view(-1)[int(place * (tensors[name].numel() - 1))] = value
        else:
            tensors[name] = tensors[name].to(getattr(torch, kind))
        stock.save(tensors, folder)

    ours = outcome(WHOLE, change)
    assert (ours is None) == (value is None and kind in ("float16", "bfloat16", "float64"))
    assert ours is None or name in ours


@fuzz(40, 1000, data=st.data())
def test_indices_that_say_something_else(data: Any) -> None:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        listed = json.loads(path.read_text())["weight_map"]
        key = data.draw(st.sampled_from(sorted(listed)))
        other = next(file for file in sorted(set(listed.values())) if file != listed[key])
        listed[key] = data.draw(st.sampled_from([other, "model-3.safetensors", "w.bin", "../w.safetensors"]) | JUNK)
        path.write_text(json.dumps({"weight_map": listed}))

    assert outcome(SHARDED, change) is not None
