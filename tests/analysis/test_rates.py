"""Metrics on records with planted sinks, whose answers are known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sinklens import HookedDLM, Plan, Scope, SinkRule, denoise
from sinklens.analysis import attention
from sinklens.analysis import rates as metrics
from sinklens.errors import RecordError
from sinklens.probes import KeyNorm, ReceivedAttention

NAN = float("nan")
DIMS = ("prompt", "step", "layer", "head", "key")


def planted(sinks: Any, lengths: Any, *, layers: Any = None, received: float = 5.0, causal: bool = False) -> xr.Dataset:
    """A record of received attention: `sinks[prompt][step][layer][head]` lists the planted keys.

    `lengths[prompt][step]` keys exist (0: the step did not happen for this prompt); each planted key receives
    `received`, the others share the rest evenly, so that keys average 1. What does not exist is nan.
    """
    prompts, steps = len(sinks), len(sinks[0])
    depth, heads = len(sinks[0][0]), len(sinks[0][0][0])
    keys = max(max(row) for row in lengths)
    values = np.full((prompts, steps, depth, heads, keys), NAN, np.float32)
    for p in range(prompts):
        for t in range(steps):
            size = lengths[p][t]
            for layer in range(depth):
                for h in range(heads):
                    chosen = sinks[p][t][layer][h]
                    if size:
                        rest = size - len(chosen)
                        values[p, t, layer, h, :size] = (size - received * len(chosen)) / rest
                        values[p, t, layer, h, chosen] = received
    masked = np.where(np.isnan(values[:, :, 0, 0]), -1, 0).astype(np.int8)
    data = xr.Dataset(
        {
            "received": (DIMS, values, {"queries": "all"}),
            "masked": (("prompt", "step", "key"), masked),
            "given": (("prompt", "key"), np.ones((prompts, keys), np.int8)),
            "text": (("prompt", "key"), np.array([["word"] * keys] * prompts, dtype=object)),
        },
        coords={"layer": list(layers or range(depth))},
        attrs={"provenance": json.dumps({"causal": causal})},
    )
    return data


STATIC, JUMP, NONE = [[0]] * 6, [[3], [3], [3], [17], [17], [17]], [[]] * 6


def movie(*heads: list[list[int]], length: int = 20) -> xr.Dataset:
    """One prompt, one layer per head given (each layer has one head), six steps."""
    sinks = [[[[head[t]] for head in heads] for t in range(6)]]
    return planted(sinks, [[length] * 6])


# Which keys.


def test_planted_sinks_are_found_and_nothing_else() -> None:
    flags = metrics.sinks(movie(STATIC, JUMP, NONE))
    assert flags.dims == DIMS
    assert flags.dtype == bool
    expected = np.zeros((1, 6, 3, 1, 20), bool)
    expected[:, :, 0, 0, 0] = True
    expected[:, :3, 1, 0, 3] = True
    expected[:, 3:, 1, 0, 17] = True
    np.testing.assert_array_equal(flags, expected)


def test_what_is_not_there_is_no_sink_and_no_yardstick() -> None:
    """A prompt of 8 keys beside one of 40: the shorter one's rule sees 8 keys."""
    record = planted([[[[[2]]]], [[[[2]]]]], [[8], [40]])
    flags = metrics.sinks(record)
    assert flags[1, 0, 0, 0].values.nonzero()[0].tolist() == [2]
    assert flags[0, 0, 0, 0].values.nonzero()[0].tolist() == [2]
    top = metrics.sinks(record, SinkRule(epsilon=None, top_k=12))
    assert top.sum("key").values.flatten().tolist() == [8, 12]
    z = metrics.sinks(record, SinkRule(epsilon=2.5, units="zscore"))
    values = record["received"].values[0, 0, 0, 0, :8]
    by_hand = values > values.mean() + 2.5 * values.std()
    assert z[0, 0, 0, 0].values.tolist() == [*by_hand.tolist(), *[False] * 32]


def test_rules_and_coordinates_pass_through() -> None:
    record = planted([[[[[2]], [[2]]]]], [[20]], layers=[1, 7])
    assert metrics.sinks(record)["layer"].values.tolist() == [1, 7]
    assert metrics.per_layer(record)["layer"].tolist() == [1, 7]
    assert metrics.movement(planted([[[[[2]], [[2]]]] * 2], [[20] * 2], layers=[1, 7]))["layer"].tolist() == [1, 7]
    assert not metrics.sinks(record, SinkRule(epsilon=4.5)).any()
    assert metrics.sinks(record, SinkRule(epsilon=4.0)).any()


@pytest.mark.parametrize(
    "metric",
    [
        attention.received,
        attention.existing,
        attention.null,
        metrics.sinks,
        metrics.token_classes,
        metrics.classes,
        metrics.movement,
        metrics.per_layer,
    ],
)
def test_a_record_without_received_attention_is_refused(metric: Any) -> None:
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    record = denoise(dlm, [5, 6, 7], Plan(new_tokens=2), progress=False).record
    with pytest.raises(RecordError, match=r"probes=\[ReceivedAttention\(\)\]"):
        metric(record)


# Per layer.


def test_sinks_per_layer_are_means_over_heads_and_steps_that_happened() -> None:
    two = [[[0], []], [[0], [5]], [[], []], [[0, 5], [0]]]  # 1, 2, 0, 3 sinks in the two heads of each step
    record = planted([[[heads] for heads in two], [[[[1], [1]]], *[[[[], []]]] * 3]], [[20] * 4, [10, 0, 0, 0]])
    table = metrics.per_layer(record).iloc[0]
    assert table["sinks"] == pytest.approx((1 + 2 + 0 + 3 + 2) / (5 * 2))
    shares = [1 - 1 / 40, 1 - 2 / 40, 1, 1 - 3 / 40, 1 - 2 / 20]
    assert table["not_sinks"] == pytest.approx(sum(shares) / 5)
    assert table["null"] == 0


def test_layers_are_kept_apart() -> None:
    table = metrics.per_layer(movie(STATIC, JUMP, NONE))
    assert table["sinks"].tolist() == [1, 1, 0]
    assert table["not_sinks"].tolist() == pytest.approx([0.95, 0.95, 1])


def test_the_causal_null_counts_the_first_key_where_it_would_pass() -> None:
    """Uniform causal attention: key 0 gets H_S. Its excess over the other keys' mean passes 3 from S = 38 on."""

    def passes(size: int) -> bool:
        first = sum(1 / k for k in range(1, size + 1))
        return first - (size - first) / (size - 1) > 3 if size > 1 else False

    sizes = [10, 64, 0, 30]
    record, even = (planted([[[[[]]] for _ in sizes]], [sizes], causal=causal) for causal in (True, False))
    expected = sum(passes(size) for size in sizes if size) / 3
    assert 0 < expected < 1
    assert metrics.per_layer(record)["null"].tolist() == pytest.approx([expected])
    assert metrics.per_layer(even)["null"].tolist() == [0]
    assert metrics.per_layer(record, SinkRule(epsilon=None, top_k=2))["null"].tolist() == [2]


# Token classes.

CLASSES = [
    ("<|mdm_mask|>", "mask"),
    ("<|mask|>", "mask"),
    ("<|MASK|>", "mask"),
    ("[MASK]", "mask"),
    ("<|startoftext|>", "bos"),
    ("[CLS]", "bos"),
    ("<cls>", "bos"),
    ("[SEP]", "eos"),
    ("<eos>", "eos"),
    ("<|begin_of_text|>", "bos"),
    ("<s>", "bos"),
    ("<|bos|>", "bos"),
    ("<|endoftext|>", "eos"),
    ("<|eot_id|>", "eos"),
    ("<|im_end|>", "eos"),
    ("</s>", "eos"),
    ("\n", "white space"),
    ("\n\n", "white space"),
    (" ", "white space"),
    ("\t", "white space"),
    (".", "punctuation"),
    (" .", "punctuation"),
    (",", "punctuation"),
    (".\n", "punctuation"),
    (" (", "punctuation"),
    ("$", "punctuation"),
    ("12", "digit"),
    (" 7", "digit"),
    (" the", "word"),
    ("The", "word"),
    ("'s", "word"),
    (" mask", "word"),
    ("masked", "word"),
    ("é", "word"),
    ("x2", "word"),
]


@pytest.mark.parametrize(("text", "kind"), CLASSES)
def test_the_class_of_a_token(text: str, kind: str) -> None:
    assert metrics.token_class(text) == kind
    assert kind in metrics.CLASSES


@pytest.mark.parametrize("text", ["<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|role_end|>"])
def test_markup_is_no_sentence_mark_and_no_mask(text: str) -> None:
    assert metrics.token_class(text) not in ("bos", "eos", "mask", "white space", "digit")


def test_shares_of_token_classes() -> None:
    """Two steps, 10 keys: BOS, eight words or masks, a full stop; a position counts as mask until committed."""
    sinks = [[[[[0], [0, 9]]], [[[4], [0]]]]]
    record = planted(sinks, [[10, 10]], received=3.5)
    record["text"] = (("prompt", "key"), np.array([["<|bos|>", *["talma"] * 8, "."]], dtype=object))
    record["masked"].values[0, 0, 4:9] = 1
    record["masked"].values[0, 1, 4] = 1
    table = metrics.token_classes(record, SinkRule(epsilon=2.0)).set_index("token_class")
    keys = {"bos": 2, "mask": 6, "word": 10, "punctuation": 2}
    sink_counts = {"bos": 3, "mask": 1, "punctuation": 1}
    for name in metrics.CLASSES:
        assert table.loc[name, "share_of_keys"] == pytest.approx(keys.get(name, 0) / 20)
        assert table.loc[name, "share_of_sinks"] == pytest.approx(sink_counts.get(name, 0) / 5)
    assert table["share_of_sinks"].sum() == pytest.approx(1)
    assert table["share_of_keys"].sum() == pytest.approx(1)


def test_token_classes_do_not_count_what_is_not_there() -> None:
    record = planted([[[[[0]]]], [[[[0]]]]], [[6], [18]], received=4.9)
    record["text"] = (("prompt", "key"), np.array([["."] * 6 + [""] * 12, ["12"] * 18], dtype=object))
    table = metrics.token_classes(record).set_index("token_class")
    assert table["share_of_keys"].to_dict() == {
        name: {"punctuation": 0.25, "digit": 0.75}.get(name, 0) for name in metrics.CLASSES
    }
    assert table.loc["white space", "share_of_keys"] == 0
    assert table["share_of_sinks"].sum() == pytest.approx(1)


def test_places_of_sinks_whatever_word_stands_there() -> None:
    """Two steps, 8 keys: the first is a word, key 3 a line break, masked at step 0, key 5 is EOS, the last is BOS."""
    sinks = [[[[[0], [3, 7]]], [[[3], [5]]]]]
    record = planted(sinks, [[8, 8]], received=3.5)
    words = ["talma", "x", "y", "\n\n", "z", "<|eos|>", "w", "<|bos|>"]
    record["text"] = (("prompt", "key"), np.array([words], dtype=object))
    record["masked"].values[0, 0, 3] = 1
    table = metrics.place_classes(record, SinkRule(epsilon=2.0)).set_index("place")
    assert table["share_of_keys"].to_dict() == {"first": 2 / 16, "last": 2 / 16, "separator": 3 / 16, "other": 9 / 16}
    counts = {"first": 0, "last": 0, "separator": 0, "other": 0}
    for step, head_keys in ((0, [0]), (0, [3, 7]), (1, [3]), (1, [5])):
        for key in head_keys:
            separator = key == 5 or (key == 3 and step == 1)
            counts["first" if key == 0 else "last" if key == 7 else "separator" if separator else "other"] += 1
    for place, count in counts.items():
        assert table.loc[place, "share_of_sinks"] == pytest.approx(count / 5), place


def test_without_a_sink_their_classes_are_unknown() -> None:
    table = metrics.token_classes(movie(NONE))
    assert table["share_of_sinks"].isna().all()
    assert table["share_of_keys"].sum() == pytest.approx(1)


# Movement.


def test_movement_of_a_static_a_jumping_and_no_sink() -> None:
    table = metrics.movement(movie(STATIC, JUMP, NONE)).set_index("layer")
    assert table.loc[0].tolist() == [1, 1, 1]
    assert table.loc[1].tolist() == [pytest.approx(4 / 5), 2, 0]  # one jump in five transitions
    assert np.isnan(table.loc[2, "jaccard"])
    assert table.loc[2, ["ever", "always"]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("first", "second", "jaccard"),
    [([3], [4], 0), ([3, 7], [7, 3], 1), ([3], [3, 7], 0.5), ([3, 7], [7], 0.5), ([3], [], 0), ([1, 2], [2, 3], 1 / 3)],
)
def test_jaccard(first: list[int], second: list[int], jaccard: float) -> None:
    record = planted([[[[first]], [[second]]]], [[20, 20]])
    table = metrics.movement(record).iloc[0]
    assert table["jaccard"] == pytest.approx(jaccard)
    assert table["ever"] == len({*first, *second})
    assert table["always"] == len({*first} & {*second})


def test_steps_without_sinks_on_both_sides_do_not_count() -> None:
    record = planted([[[[[3]]], [[[3]]], [[[]]], [[[]]]]], [[20] * 4])
    assert metrics.movement(record)["jaccard"].tolist() == pytest.approx([(1 + 0) / 2])


def test_a_row_that_is_done_neither_moves_nor_stays() -> None:
    """The second prompt ends after two steps; its sink was always there."""
    record = planted([[[[[3]]]] * 4, [[[[5]]], [[[5]]], [[[]]], [[[]]]]], [[20] * 4, [12, 12, 0, 0]])
    assert metrics.movement(record).iloc[0].tolist() == [0, 1, 1, 1]


def test_a_key_that_comes_later_was_not_always_there() -> None:
    """A baseline's sequence grows; key 9 exists from the second step on."""
    record = planted([[[[[0]]], [[[0, 9]]], [[[0, 9]]]]], [[9, 20, 21]])
    table = metrics.movement(record).iloc[0]
    assert table["jaccard"] == pytest.approx((1 / 2 + 1) / 2)
    assert (table["ever"], table["always"]) == (2, 1)


def test_movement_averages_over_prompts_and_heads() -> None:
    record = planted([[[[[0], [1]]], [[[0], [2]]]], [[[[0], []]], [[[0], []]]]], [[20] * 2] * 2)
    table = metrics.movement(record).iloc[0]
    assert table["jaccard"] == pytest.approx((1 + 0 + 1) / 3)
    assert table["ever"] == pytest.approx((1 + 2 + 1 + 0) / 4)
    assert table["always"] == pytest.approx((1 + 0 + 1 + 0) / 4)


# A record as the loop makes it.


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_a_real_record_agrees_with_naive_counting(name: str) -> None:
    dlm = HookedDLM.from_pretrained(name)
    prompts = ["dolko xe dolko xo dolko talma wi", "gake xe"]
    record = denoise(dlm, prompts, Plan(new_tokens=12), probes=[ReceivedAttention()], progress=False).record
    values, rule = record["received"].values, SinkRule(epsilon=2.0)
    counts, shares, kinds, keys = [[], []], [[], []], {}, {}
    for p in range(values.shape[0]):
        texts = record["text"].values[p]
        for t in range(values.shape[1]):
            there = [j for j in range(values.shape[-1]) if not np.isnan(values[p, t, 0, 0, j])]
            if not there:
                continue
            for j in there:
                kind = "mask" if record["masked"].values[p, t, j] == 1 else metrics.token_class(texts[j])
                keys[kind] = keys.get(kind, 0) + 1
            for layer in range(2):
                total = 0
                for h in range(4):
                    row = values[p, t, layer, h]
                    for j in there:
                        if row[j] > np.mean([row[k] for k in there if k != j]) + 2:
                            total += 1
                            kind = "mask" if record["masked"].values[p, t, j] == 1 else metrics.token_class(texts[j])
                            kinds[kind] = kinds.get(kind, 0) + 1
                counts[layer].append(total / 4)
                shares[layer].append(1 - total / (4 * len(there)))
    assert sum(kinds.values()) > 10
    table = metrics.per_layer(record, rule)
    assert table["sinks"].tolist() == pytest.approx([np.mean(layer) for layer in counts])
    assert table["not_sinks"].tolist() == pytest.approx([np.mean(layer) for layer in shares])
    classes = metrics.token_classes(record, rule).set_index("token_class")
    for kind in metrics.CLASSES:
        assert classes.loc[kind, "share_of_sinks"] == pytest.approx(kinds.get(kind, 0) / sum(kinds.values()))
        assert classes.loc[kind, "share_of_keys"] == pytest.approx(keys.get(kind, 0) / sum(keys.values()))


# The rule's own query set and keys.


def sets_record() -> xr.Dataset:
    """One head, 8 keys: 0 to 3 given, 4 and 5 committed, 6 and 7 masked. Each query set has a sink of its own."""
    record = planted([[[[[]]]]], [[8]])
    rows = {"all": [5, 0, 0, 0, 0, 0, 3, 0], "masked": [0, 0, 0, 0, 0, 0, 2, 0], "committed": [4, 0, 0, 2, 0, 0, 0, 0]}
    values = np.array(list(rows.values()), np.float32).reshape(1, 1, 1, 1, 3, 8)
    record["received"] = (("prompt", "step", "layer", "head", "queries", "key"), values)
    record = record.assign_coords(queries=list(rows))
    record["masked"].values[0, 0, 6:] = 1
    record["given"] = (("prompt", "key"), np.array([[1] * 4 + [0] * 4], np.int8))
    return record


def keys_of(flags: xr.DataArray) -> list[int]:
    return flags.to_numpy().reshape(-1, flags.sizes["key"])[0].nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SinkRule(1.5), [0, 6]),  # 5 - 3/7 and 3 - 5/7
        (SinkRule(1.5, queries="masked"), [6]),
        (SinkRule(1.5, queries="committed"), [0]),  # 2 - 4/7 = 1.43 is too little
        (SinkRule(1.4, queries="committed"), [0, 3]),
        (SinkRule(1.4, queries="committed", keys="prompt"), [0]),  # among four keys 3 has 2 - 4/3
        (SinkRule(1.5, keys="masked"), [6]),  # 3 - 0
        (SinkRule(2.9, keys="response"), [6]),
        (SinkRule(2.9, keys="committed"), [0]),
        (SinkRule(0.5, keys="last"), []),
        (SinkRule(None, top_k=1, keys="masked"), [6]),
        (SinkRule(None, top_k=1, queries="committed", keys="all"), [0]),
        (SinkRule(4.4, keys="prompt"), [0]),
        (SinkRule(55.0, "percent", keys="prompt"), [0]),  # 5 of 8 queries: all of them count, 62.5 %
        (SinkRule(63.0, "percent", keys="prompt"), []),
        (SinkRule(0.6, "share", keys="prompt"), [0]),
        (SinkRule(0.6, "share", queries="masked"), [6]),  # 2 of 2 queries
    ],
    ids=repr,
)
def test_a_rule_reads_its_own_queries_and_keys(rule: SinkRule, expected: list[int]) -> None:
    assert keys_of(metrics.sinks(sets_record(), rule)) == expected


def test_queries_that_were_not_measured_are_refused() -> None:
    with pytest.raises(RecordError, match=r"from last queries was not measured, only from all, masked, committed"):
        metrics.sinks(sets_record(), SinkRule(queries="last"))
    with pytest.raises(RecordError, match=r"from masked queries.*only from all.*ReceivedAttention\(queries='masked'\)"):
        metrics.sinks(movie(STATIC), SinkRule(queries="masked"))


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", range(8)),
        ("masked", [6, 7]),
        ("committed", range(6)),
        ("prompt", range(4)),
        ("response", range(4, 8)),
        ("last", [7]),
    ],
)
def test_key_sets(which: Any, expected: Any) -> None:
    assert keys_of(attention.positions(sets_record(), which)) == list(expected)


@pytest.mark.parametrize(
    "metric",
    [metrics.sink_tokens, metrics.token_classes, metrics.movement, metrics.per_layer],
)
def test_metrics_of_a_record_that_has_only_the_rules_queries(metric: Any) -> None:
    record = sets_record()
    metric(record.sel(queries=["masked"]), SinkRule(1.5, queries="masked"))
    metric(record.sel(queries="masked"), SinkRule(1.5, queries="masked"))


def test_what_exists_does_not_hang_on_the_first_layer() -> None:
    """Received attention of layer 1 beside a probe of both layers."""
    dlm = HookedDLM.from_pretrained("tiny-dlm")
    probes = [ReceivedAttention(Scope(layers=[1])), KeyNorm()]
    record = denoise(dlm, "boma wa boma", Plan(new_tokens=3), probes=probes, progress=False).record
    assert attention.existing(record).any()


# Which tokens.


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("rule", [SinkRule(0.7), SinkRule(0.3, queries="prompt"), SinkRule(None, top_k=1)], ids=repr)
def test_sink_tokens_equal_naive_counting(name: str, rule: SinkRule) -> None:
    dlm = HookedDLM.from_pretrained(name)
    prompts = ["dolko xe, dolko xo. dolko talma wi", "gake xe"]
    probes = [ReceivedAttention(queries=("all", "prompt"))]
    record = denoise(dlm, prompts, Plan(new_tokens=6), probes=probes, progress=False).record
    received = record["received"].sel(queries=rule.queries).to_numpy()
    sinks_of, keys_of_token = {}, {}
    for p, t in np.ndindex(*received.shape[:2]):
        there = [j for j in range(received.shape[-1]) if record["masked"].values[p, t, j] >= 0]
        words = {
            j: "[MASK]"
            if record["masked"].values[p, t, j]
            else str(dlm.tokenizer.decode([record["canvas"].values[p, t, j]]))
            for j in there
        }
        for j in there:
            keys_of_token[words[j]] = keys_of_token.get(words[j], 0) + 1
        for layer, h in np.ndindex(*received.shape[2:4]):
            row = received[p, t, layer, h].astype(float)
            for j in there:
                others = [row[k] for k in there if k != j]
                if row[j] > np.mean(others) + rule.epsilon if rule.epsilon else row[j] > max(others):
                    sinks_of[words[j]] = sinks_of.get(words[j], 0) + 1
    table = metrics.sink_tokens(record, rule, top=None)
    assert list(table.columns) == ["token", "share_of_sinks", "share_of_keys", "ratio"]
    assert set(table["token"]) == set(sinks_of)
    for row in table.itertuples():
        share = sinks_of[row.token] / sum(sinks_of.values())
        common = keys_of_token[row.token] / sum(keys_of_token.values())
        assert row.share_of_sinks == pytest.approx(share)
        assert row.share_of_keys == pytest.approx(common)
        assert row.ratio == pytest.approx(share / common)
    assert table["share_of_sinks"].sum() == pytest.approx(1)
    assert table["share_of_keys"].sum() <= 1
    assert table["share_of_sinks"].is_monotonic_decreasing
    assert ("[MASK]" in set(table["token"])) == (not dlm.is_causal and "[MASK]" in sinks_of)
    assert metrics.sink_tokens(record, rule, top=2).equals(table.head(2))
    assert len(metrics.sink_tokens(record, rule)) == min(5, len(table))


def test_a_token_is_a_mask_until_it_is_committed() -> None:
    """Key 4 is the sink of both heads at three steps, and committed before the last: [MASK] twice, then "."."""
    record = planted([[[[[4], [4]]]] * 3], [[10] * 3])
    record["text"] = (("prompt", "key"), np.array([["a"] * 4 + ["."] + ["b"] * 5], dtype=object))
    record["masked"].values[0, :2, 4] = 1
    table = metrics.sink_tokens(record).set_index("token")
    assert table["share_of_sinks"].to_dict() == {"[MASK]": pytest.approx(2 / 3), ".": pytest.approx(1 / 3)}
    assert table["share_of_keys"].to_dict() == {"[MASK]": pytest.approx(2 / 30), ".": pytest.approx(1 / 30)}
    assert table["ratio"].to_dict() == {"[MASK]": pytest.approx(10), ".": pytest.approx(10)}


def test_sink_tokens_do_not_count_what_is_not_there() -> None:
    record = planted([[[[[0]]]], [[[[0]]]]], [[6], [18]], received=4.9)
    record["text"] = (("prompt", "key"), np.array([["."] * 6 + [""] * 12, ["12"] * 18], dtype=object))
    table = metrics.sink_tokens(record).set_index("token")
    assert table["share_of_sinks"].to_dict() == {"12": 0.5, ".": 0.5}
    assert table["share_of_keys"].to_dict() == {"12": 0.75, ".": 0.25}


def test_without_a_sink_there_are_no_sink_tokens() -> None:
    table = metrics.sink_tokens(movie(NONE))
    assert len(table) == 0
    assert list(table.columns) == ["token", "share_of_sinks", "share_of_keys", "ratio"]
