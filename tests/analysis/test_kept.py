"""What a gate keeps, on planted records with hand-made choices, against loops over single keys."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sinklens.analysis import kept as kept_room
from sinklens.analysis.kept import kept, kept_by, norms_kept, sinks_kept, survival
from sinklens.analysis.norms import KEY_TYPES
from sinklens.errors import RecordError
from sinklens.ground_truth.records import planted
from sinklens.sinks import SinkRule
from sinklens.sinks.tokens import token_class

RATES = (0.25, 0.5, 0.75)
DIMS = ("prompt", "step", "layer", "rate", "key")


def with_kept(record: xr.Dataset, flags: np.ndarray, rates: tuple[float, ...] = RATES) -> xr.Dataset:
    """A record with what a gate keeps [prompt, step, layer, rate, key]."""
    labels = {"rate": list(rates), "layer": record["layer"], "step": record["step"]}
    return record.assign(kept=xr.DataArray(np.asarray(flags, float), dims=DIMS, coords=labels))


def by_chance(seed: int, **sizes: Any) -> xr.Dataset:
    """Two layers, two heads, two prompts of which the second is two keys shorter and is done after three steps."""
    record = planted("jumping", steps=5, keys=12, heads=2, prompts=2, seed=seed, strength=5.0, **sizes).record
    draw = np.random.default_rng(seed).random((2, 5, 2, 3, 12)) < 0.4
    record = with_kept(record, draw).copy(deep=True)
    for name in ("kept", "received", "masked", "key_norm"):
        missing = -1 if name == "masked" else math.nan
        values = record[name].transpose("prompt", "step", ..., "key")
        values[1, ..., 10:] = missing
        if name != "masked":
            values[1, 3:] = missing
        record[name] = values
    return record


def cells(record: xr.Dataset) -> list[tuple[int, int, int, int, int]]:
    """Every key that was measured: prompt, step, layer, index of the rate, key."""
    sizes = [record["kept"].sizes[dim] for dim in DIMS]
    chosen = record["kept"].transpose(*DIMS).to_numpy()
    return [cell for cell in itertools.product(*map(range, sizes)) if not math.isnan(chosen[cell])]


@pytest.mark.parametrize("by", [(), ("layer",), ("step", "layer"), ("prompt",)])
@pytest.mark.parametrize("epsilon", [3.0, 0.2])
def test_kept_sinks_and_chance_are_those_of_a_loop(by: tuple[Any, ...], epsilon: float) -> None:
    record, rule = by_chance(3), SinkRule(epsilon=epsilon)
    chosen = record["kept"].transpose(*DIMS).to_numpy()
    received = record["received"].transpose("prompt", "step", "layer", "head", "key").to_numpy()
    found: dict[tuple[Any, ...], np.ndarray] = {}
    for p, s, layer, r in itertools.product(range(2), range(5), range(2), range(3)):
        keys = [j for j in range(12) if not math.isnan(chosen[p, s, layer, r, j])]
        mine = {j for j in keys if chosen[p, s, layer, r, j] == 1}
        name = (RATES[r], *({"prompt": p, "step": s, "layer": layer}[dim] for dim in by))
        total = found.setdefault(name, np.zeros(5))
        total += [0, 0, 0, len(mine), len(keys)]
        for head in range(2) if keys else ():
            row = received[p, s, layer, head]
            sinks = {j for j in keys if row[j] - np.mean([row[i] for i in keys if i != j]) > epsilon}
            total += [len(sinks), len(sinks & mine), len(sinks) * len(mine) / len(keys), 0, 0]
    table = sinks_kept(record, rule, by=by)
    assert len(table) == len(found)
    for line in table.itertuples():
        sinks, both, chance, number, size = found[(line.rate, *(getattr(line, dim) for dim in by))]
        want = [sinks, both / sinks, chance / sinks, both / chance, number / size] if sinks else [0] + [math.nan] * 3
        got = [line.sinks, line.kept, line.chance, line.ratio, line.of_keys][: len(want)]
        assert got == pytest.approx(want, nan_ok=True)


def test_a_gate_that_keeps_the_sink_alone_keeps_all_sinks_and_chance_one_in_thirty_two() -> None:
    case = planted("jumping")
    flags = np.broadcast_to(case.truth["sinks"][None, :, None, None], (1, 16, 2, 1, 32))
    table = sinks_kept(with_kept(case.record, flags, (0.1,)))
    assert table["kept"].tolist() == [1, 1]
    assert table["chance"].tolist() == pytest.approx([1 / 32] * 2)
    assert table["sinks"].tolist() == [32, 32]  # 16 steps, 2 heads
    all_but = sinks_kept(with_kept(case.record, ~flags, (0.9,)))
    assert all_but["kept"].tolist() == [0, 0]
    assert all_but["of_keys"].tolist() == pytest.approx([31 / 32] * 2)


def test_chance_is_what_drawing_gives() -> None:
    """Many draws of as many keys: the mean of a hypergeometric distribution, as a simulation."""
    case, rng = planted("split", steps=4, keys=16), np.random.default_rng(0)
    shares = []
    for _ in range(100):
        flags = np.zeros((1, 4, 2, 1, 16))
        for s, layer in itertools.product(range(4), range(2)):
            flags[0, s, layer, 0, rng.choice(16, 5, replace=False)] = 1
        line = sinks_kept(with_kept(case.record, flags, (0.3,)), SinkRule(), by=()).iloc[0]
        shares.append(line["kept"])
        assert line["chance"] == pytest.approx(5 / 16)
    assert np.mean(shares) == pytest.approx(5 / 16, abs=4 * np.std(shares) / math.sqrt(100))


def test_a_record_without_a_sink_has_no_share_of_them() -> None:
    record = planted("none").record
    table = sinks_kept(with_kept(record, np.ones((1, 16, 2, 1, 32)), (0.5,)))
    assert table["sinks"].tolist() == [0, 0]
    assert table[["kept", "chance", "ratio"]].isna().all().all()


@pytest.mark.parametrize("by", [(), ("step",), ("layer",)])
def test_shares_by_kind_are_those_of_a_loop(by: tuple[Any, ...]) -> None:
    record = by_chance(5)
    chosen = record["kept"].transpose(*DIMS).to_numpy()
    masked, given = record["masked"].to_numpy(), record["given"].to_numpy()
    text = record["text"].to_numpy()

    def kind_of(kind: str, p: int, s: int, j: int) -> str:
        last = max(i for i in range(12) if masked[p, s, i] >= 0)
        hidden, which = masked[p, s, j] == 1, token_class(text[p, j])
        if kind == "token_class":
            return "mask" if hidden else which
        if kind == "place":
            mark = not hidden and which in ("bos", "eos")
            return "first" if j == 0 else "last" if j == last else "separator" if mark else "other"
        return "mask" if hidden else "prompt" if given[p, j] else "eos" if which == "eos" else "committed"

    for kind in ("token_class", "place", "key_type"):
        keys: dict[Any, int] = {}
        mine: dict[Any, int] = {}
        for p, s, layer, r, j in cells(record):
            for name in (kind_of(kind, p, s, j), None):
                key = (RATES[r], *({"step": s, "layer": layer}[dim] for dim in by), name)
                keys[key] = keys.get(key, 0) + 1
                mine[key] = mine.get(key, 0) + (chosen[p, s, layer, r, j] == 1)
        table = kept_by(record, kind, by)  # pyright: ignore[reportArgumentType]
        seen = 0
        for line in table.itertuples():
            base = (line.rate, *(getattr(line, dim) for dim in by))
            key = (*base, getattr(line, kind))
            assert line.keys == keys.get(key, 0)
            if line.keys:
                seen += 1
                want = [mine[key] / keys[key], mine[key] / mine[*base, None], keys[key] / keys[*base, None]]
                assert [line.kept, line.of_kept, line.of_keys] == pytest.approx(want)
        assert seen == len([key for key in keys if key[-1] is not None])
        for _, part in table.groupby(["rate", *by]):
            assert part["of_kept"].sum() == pytest.approx(1)
            assert part["of_keys"].sum() == pytest.approx(1)


def test_every_type_of_key_has_a_line() -> None:
    table = kept_by(by_chance(0), "key_type")
    assert table["key_type"].tolist() == [*KEY_TYPES] * 3


def test_norms_of_what_is_kept_and_dropped() -> None:
    record = by_chance(1)
    chosen = record["kept"].transpose(*DIMS).to_numpy()
    norms = record["key_norm"].transpose("prompt", "step", "layer", "kv_head", "key").to_numpy()
    for line in norms_kept(record).itertuples():
        groups: dict[bool, list[float]] = {True: [], False: []}
        for p, s, layer, r, j in cells(record):
            if (layer, RATES[r]) == (line.layer, line.rate):
                groups[bool(chosen[p, s, layer, r, j])].append(norms[p, s, layer, :, j].mean())
        want = [np.mean(groups[True]), np.mean(groups[False])]
        assert [line.kept, line.dropped, line.ratio] == pytest.approx([*want, want[0] / want[1]])


def test_a_gate_that_keeps_everything_drops_no_norm() -> None:
    line = norms_kept(with_kept(planted("static").record, np.ones((1, 16, 2, 1, 32)), (0.9,))).iloc[0]
    assert not math.isnan(line["kept"])
    assert math.isnan(line["dropped"])


@pytest.mark.parametrize(
    ("flags", "lowest"),
    [
        ((1, 1, 1), 0.25),
        ((0, 1, 1), 0.5),
        ((0, 0, 1), 0.75),
        ((0, 0, 0), 1.0),
        ((1, 0, 1), 0.75),  # kept again at 0.25: it was dropped at 0.5 first
        ((1, 1, 0), 1.0),
    ],
)
def test_a_token_survives_down_to_where_it_is_first_dropped(flags: tuple[int, ...], lowest: float) -> None:
    """Whatever the order in which rates were measured."""
    for order in itertools.permutations(range(3)):
        values = np.array(flags, float)[list(order)][:, None] * np.ones(32)
        rates = tuple(RATES[index] for index in order)
        array = survival(with_kept(planted("static").record, np.broadcast_to(values, (1, 16, 2, 3, 32)), rates))
        assert array.dims == ("prompt", "step", "layer", "key")
        assert (array == lowest).all()
        again = flags in ((1, 0, 1), (1, 1, 0))
        assert array.attrs["returned"] == (1.0 if again else 0.0)


def test_a_key_that_is_not_there_survives_nowhere() -> None:
    record = by_chance(2)
    lost = survival(record).isnull()
    assert (lost == record["kept"].isnull().all("rate")).all()
    assert lost.any()


def test_steps_and_layers_that_were_not_measured_are_left_out() -> None:
    record = by_chance(4)
    part = record.copy(deep=True)
    part["kept"] = part["kept"].where((part["layer"] == 1) & (part["step"] != 2))
    assert kept(part)["layer"].to_numpy().tolist() == [1]
    assert sorted(set(sinks_kept(part, by=("step", "layer"))["step"])) == [0, 1, 3, 4]
    whole = sinks_kept(record, by=("step", "layer"))
    whole = whole[(whole.layer == 1) & (whole.step != 2)].reset_index(drop=True)
    assert sinks_kept(part, by=("step", "layer")).equals(whole)


def test_what_is_missing_is_said() -> None:
    record = by_chance(0)
    with pytest.raises(RecordError, match=r"no 'kept'; run denoise with probes=\[Kept"):
        kept_room.kept(record.drop_vars("kept"))
    with pytest.raises(RecordError, match="no dim 'rate'"):
        survival(record.isel(rate=0))
    with pytest.raises(RecordError, match="no received attention"):
        sinks_kept(record.drop_vars("received"))
    with pytest.raises(RecordError, match="no 'key_norm'"):
        norms_kept(record.drop_vars("key_norm"))
    with pytest.raises(RecordError, match="in common"):
        sinks_kept(record.assign(received=record["received"].where(record["layer"] == 0),
                                 kept=record["kept"].where(record["layer"] == 1)))  # fmt: skip
