"""What all probes keep: every field of a scope is honoured or refused, whose attention counts is said, no state."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sinklens as sl
from sinklens import HookedDLM, probes
from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, Probe, Scope
from sinklens.probes import (
    AttentionEntropy,
    Contribution,
    LogitLens,
    MaskedVsCommitted,
    MassOn,
    Pattern,
    QKCosine,
    QKDecomposition,
    ReceivedAttention,
    SinkMask,
)
from sinklens.sinks import Positions, Sight, SinkRule

SETS: tuple[Positions, ...] = get_args(Positions)
NEEDED: dict[str, Any] = {"MassOn": {"what": "all"}}  # arguments that have no default
EVERY = [each for each in vars(probes).values() if inspect.isclass(each) and issubclass(each, Probe)]
# These need a gate or an autoencoder of the model: test_kept.py, test_features.py.
CLASSES = [each for each in EVERY if each not in (probes.Kept, probes.Features)]
PROMPTS = [[5, 17, 9, 33, 8], [12, 40, 7]]
PLAN = sl.Plan(new_tokens=4)


def made(kind: Callable[..., Any], **fields: Any) -> Any:
    return kind(**{**NEEDED.get(kind.__name__, {}), **fields})


def fields_of(kind: Any) -> set[str]:
    return {each.name for each in dataclasses.fields(kind)}


@pytest.fixture(scope="module")
def dlm(tiny_model: Any) -> HookedDLM:
    """Four query heads on two key heads."""
    return tiny_model("LLaDA", heads=4, kv_heads=2)


def test_every_probe_is_looked_at() -> None:
    assert {each.__name__ for each in EVERY} == set(probes.__all__) - {"Estimate", "estimate"}
    assert len(EVERY) == 18


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("field", "dim", "some"), [("heads", "head", [0, 3]), ("layers", "layer", [1])])
def test_a_field_of_the_scope_is_honoured_or_refused(
    dlm: HookedDLM, kind: Any, field: str, dim: str, some: list[int]
) -> None:
    """The record holds what was asked for and nothing else, or the probe cannot be made."""
    if dim not in made(kind).dims:
        with pytest.raises(ScopeError, match=rf"{field}=.* has no meaning for {kind.__name__}"):
            made(kind, where=Scope(**{field: some}))
        return
    whole, part = made(kind), made(kind, where=Scope(**{field: some}))
    for probe in (whole, part):
        guess = probes.estimate(dlm, PLAN, [probe], prompts=2, prompt_tokens=5)
        run = sl.denoise(dlm, PROMPTS, PLAN, probes=[probe], progress=False)
        record = run.record[probe.name]
        if probe is whole:
            expected = record
            assert record[dim].to_numpy().tolist() == list(range({"heads": 4, "layers": 2}[field]))
        else:
            assert record[dim].to_numpy().tolist() == some
            # Layers that nobody hooks run fused attention, which rounds differently.
            np.testing.assert_allclose(record, expected.isel({dim: some}), rtol=1e-4, atol=1e-4)
        assert guess.by_probe[probe.name] == record.nbytes


def test_heads_of_a_rule_that_averages_them_are_all_averaged(dlm: HookedDLM) -> None:
    rule = SinkRule(0.5, per="mean")
    few = sl.denoise(dlm, PROMPTS, PLAN, probes=[SinkMask(rule, Scope(heads=[2]))], progress=False).record["sink"]
    every = sl.denoise(dlm, PROMPTS, PLAN, probes=[SinkMask(rule)], progress=False).record["sink"]
    assert few.any()
    np.testing.assert_array_equal(few, every.isel(head=[2]))


@pytest.mark.parametrize("queries", SETS)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_whose_attention_counts_is_recorded(dlm: HookedDLM, kind: Any, queries: Positions) -> None:
    named = fields_of(kind) & {"queries", "positions"}
    if not named:
        return
    (field,) = named
    probe = made(kind, **{field: queries})
    record = sl.denoise(dlm, PROMPTS, PLAN, probes=[probe], progress=False).record[probe.name]
    assert record.attrs[field] == queries
    assert queries in record.attrs["definition"]
    with pytest.raises(ValueError, match=rf"{field}='given' is unknown; choose from 'all', 'masked'"):
        made(kind, **{field: "given"})


def test_several_queries_are_a_dim(dlm: HookedDLM) -> None:
    together = ReceivedAttention(Scope(heads=[1]), queries=["all", "masked", "last"])
    assert together.queries == ("all", "masked", "last")
    record = sl.denoise(dlm, PROMPTS, PLAN, probes=[together], progress=False).record["received"]
    assert record.dims == ("prompt", "step", "layer", "head", "queries", "key")
    assert record["queries"].to_numpy().tolist() == ["all", "masked", "last"]
    assert "queries" not in record.attrs
    for which in ("all", "masked", "last"):
        alone = ReceivedAttention(Scope(heads=[1]), which)
        expected = sl.denoise(dlm, PROMPTS, PLAN, probes=[alone], progress=False).record["received"]
        np.testing.assert_array_equal(record.sel(queries=which), expected)
    assert ReceivedAttention(queries=("masked",)).dims == ("layer", "head", "queries", "key")
    for wrong in ((), ("all", "all")):
        with pytest.raises(ValueError, match="at least one set, and each set once"):
            ReceivedAttention(queries=wrong)


def test_a_rule_says_whose_attention_a_sink_mask_counts(dlm: HookedDLM) -> None:
    probe = SinkMask(SinkRule(0.5, queries="masked", keys="prompt"))
    record = sl.denoise(dlm, PROMPTS, PLAN, probes=[probe], progress=False).record["sink"]
    assert (record.attrs["queries"], record.attrs["eligible_keys"]) == ("masked", "prompt")
    with pytest.raises(ScopeError, match="queries='last' of the rule has no meaning for MaskedVsCommitted"):
        MaskedVsCommitted(SinkRule(queries="last"))


@pytest.mark.parametrize(("family", "which"), [("LLaDA", "all"), ("Llama", "last")])
def test_auto_is_the_papers_protocol(tiny_model: Any, family: str, which: Positions) -> None:
    dlm = tiny_model(family)
    rules = {queries: SinkRule(0.3, queries=queries) for queries in ("auto", which)}
    every = [SinkMask(rule, variable=f"by_{name}") for name, rule in rules.items()]
    record = sl.denoise(dlm, PROMPTS, PLAN, probes=every, progress=False).record
    assert (record["by_auto"] == 1).any()
    np.testing.assert_array_equal(record["by_auto"], record[f"by_{which}"])


# Descriptions hold no state.


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_one_probe_serves_two_runs_at_once(dlm: HookedDLM, kind: Any) -> None:
    """Step by step in turn, at other prompts and lengths: each run sees what it sees alone."""
    probe = made(kind)
    before, digest = dict(vars(probe)), probe.digest
    starts = [PROMPTS[0], [60, 2, 44, 31, 9, 28, 3]]

    def steps(prompt: list[int]) -> Any:
        return sl.denoising_steps(dlm, [prompt], PLAN, probes=[probe], seed=3)

    alone = [[probe.values(step.seen[0] or {}).clone() for step in steps(prompt)] for prompt in starts]
    seen = [(one.seen[0], two.seen[0]) for one, two in zip(*map(steps, starts), strict=True)]
    for index, prompt in enumerate(alone):
        assert len(prompt) == 4
        for step, expected in enumerate(prompt):
            torch.testing.assert_close(probe.values(seen[step][index]), expected, equal_nan=True, rtol=0, atol=0)
    assert vars(probe) == before
    assert probe.digest == digest


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_probe_cannot_be_changed_and_equal_ones_are_the_same(kind: Any) -> None:
    probe = made(kind)
    with pytest.raises(FrozenInstanceError):
        probe.where = Scope(layers=[0])
    assert probe == made(kind)
    assert hash(probe) == hash(made(kind))
    other = replace(probe, variable="other")
    assert other.name == "other"
    assert other.digest != probe.digest
    assert replace(other, variable="") == probe


def test_two_probes_of_a_kind_in_one_run(dlm: HookedDLM) -> None:
    late = ReceivedAttention(Scope(layers=-1), variable="late")
    record = sl.denoise(dlm, PROMPTS, PLAN, probes=[ReceivedAttention(), late], progress=False).record
    np.testing.assert_array_equal(record["late"].sel(layer=1), record["received"].sel(layer=1))


# Outside the loop padding counts for nothing.

VALID = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
TOKENS = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(1)).masked_fill(~VALID, 1)


@torch.no_grad()
def outside(dlm: HookedDLM, *given: Any) -> list[Tensor]:
    """What probes see of a padded batch when TransformerLens runs it; they are told of no canvas."""
    seen: list[dict[Any, Any]] = [{} for _ in given]
    hooks = [hook for probe, own in zip(given, seen, strict=True) for hook in probe.fwd_hooks(dlm, seen=own)]
    dlm.run_with_hooks(TOKENS, attention_mask=VALID.long(), fwd_hooks=hooks)
    return [probe.values(own) for probe, own in zip(given, seen, strict=True)]


@pytest.mark.parametrize("path", ["auto", "pattern"])
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "BERT", "GPT-2", "DiffuGPT"])
def test_padding_queries_are_not_counted(
    tiny_model: Any, family: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinklens.models.blocks.rows_at_once", lambda *_: 3)
    dlm = tiny_model(family)
    dlm.attention = path
    kept: dict[str, Tensor] = {}

    def keep(pattern: Tensor, *, hook: Any) -> None:
        kept[hook.name] = pattern.clone()

    points = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    with torch.no_grad():
        dlm.run_with_hooks(TOKENS, attention_mask=VALID.long(), fwd_hooks=[(point, keep) for point in points])
    pattern = torch.stack([kept[point] for point in points], 1)
    real = VALID[:, None, None, :, None]
    sums = (pattern * real).sum(-2)
    rule = SinkRule(0.2, "share")
    received, several, share, sinks, entropy, written, whole = outside(
        dlm,
        ReceivedAttention(),
        ReceivedAttention(queries=("all", "last")),
        MassOn([0]),
        SinkMask(rule),
        AttentionEntropy(),
        Contribution(),
        Pattern(),
    )
    torch.testing.assert_close(received, sums, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(several[:, :, :, 0], sums, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(several[:, :, :, 1], pattern[..., -1, :], atol=1e-5, rtol=1e-5)
    first = VALID.int().argmax(-1)  # position 0 is the first real token
    expected = torch.stack([sums[b, :, :, first[b]] / VALID[b].sum() for b in range(2)])
    torch.testing.assert_close(share, expected, atol=1e-5, rtol=1e-5)
    for b, j in np.ndindex(2, 7):
        if not VALID[b, j]:
            assert sinks[b, ..., j].isnan().all()
            assert entropy[b, ..., j].isnan().all()
            assert written[b, ..., j].isnan().all()
            assert whole[b, :, :, j].isnan().all()
            continue
        able = sum(bool(VALID[b, i]) and (i >= j or not dlm.is_causal) for i in range(7))
        assert torch.equal(sinks[b, ..., j] == 1, sums[b, ..., j] / able > 0.2)
    assert (sinks == 1).any()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "BERT", "GPT-2", "DiffuGPT"])
def test_a_mask_alone_says_what_a_canvas_says(tiny_model: Any, family: str, kind: Any) -> None:
    """Not only attention: the median of massive activations, the mean of cosines, the first position of a lens."""
    dlm, canvas, seen = tiny_model(family), replace(Canvas.plain(VALID), tokens=TOKENS), {}
    options = {"MassiveActivations": {"above": 0.5, "ratio": 1.0}, "SinkMask": {"rule": SinkRule(0.2, "share")}}
    probe = made(kind, **options.get(kind.__name__, {}))
    if kind is MaskedVsCommitted and dlm.is_causal:
        with pytest.raises(ScopeError, match="has no masks"):
            outside(dlm, probe)
        return
    (without,) = outside(dlm, probe)
    with torch.no_grad(), dlm.hooks(fwd_hooks=probe.hooks(dlm, canvas, seen)):
        dlm(TOKENS, attention_mask=VALID)
    torch.testing.assert_close(probe.values(seen), without, equal_nan=True, rtol=1e-5, atol=1e-5)


# Who sees whom is what attention says, whatever the mask.


def fed(probe: Any, model: Any, sight: Sight | None, size: int, **tensors: Tensor) -> Tensor:
    """What a probe makes of layer 0's tensors, whose attention has this sight; patterns come in blocks of `size`."""
    seen: dict[Any, Any] = {}
    hooks = dict(probe.hooks(model, None, seen))
    for point, tensor in tensors.items():
        function = hooks[f"blocks.0.attn.hook_{point}"]
        context = {} if sight is None else {"sight": sight}
        if point != "pattern":
            function(tensor, hook=SimpleNamespace(ctx=context))
            continue
        for start in range(0, tensor.shape[2], size):
            block = slice(start, min(start + size, tensor.shape[2]))
            function(tensor[:, :, block], hook=SimpleNamespace(ctx=context | {"queries": block}))
    return probe.values(seen)[:, 0]


SIGHTS = {
    "bidirectional": Sight(VALID),
    "causal": Sight(VALID, "causal"),
    "local": Sight(VALID, "bidirectional", 2),
    "local and causal": Sight(VALID, "causal", 3),
    "blocks": Sight(
        VALID, mask=torch.tensor([[[i // 3 >= j // 3 for j in range(7)] for i in range(7)]]) & VALID[:, None]
    ),
}


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("name", SIGHTS)
def test_a_window_or_mask_of_attention_counts_all_real_queries(dlm: HookedDLM, name: str, size: int) -> None:
    """Received attention, and the queries that see a key: "real" is not what the last query sees."""
    sight, generator = SIGHTS[name], torch.Generator().manual_seed(3)
    allowed = sight.rows(slice(0, 7)).expand(2, 7, 7)
    scores = 3 * torch.randn(2, 4, 7, 7, generator=generator)
    pattern = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    first = Scope(layers=0)
    received = fed(ReceivedAttention(first), dlm, sight, size, pattern=pattern)
    rule = SinkRule(0.35, "share")
    sinks = fed(SinkMask(rule, first), dlm, sight, size, pattern=pattern)
    query, key = torch.randn(2, 7, 4, 8, generator=generator), torch.randn(2, 7, 2, 8, generator=generator)
    cosine = fed(QKCosine(first), dlm, sight, size, rot_q=query, rot_k=key)
    parts = fed(QKDecomposition(first), dlm, sight, size, rot_q=query, rot_k=key)
    found = 0
    for b, h, j in np.ndindex(2, 4, 7):
        if not VALID[b, j]:
            continue
        real = [i for i in range(7) if VALID[b, i]]
        total = sum(float(pattern[b, h, i, j]) for i in real)
        assert float(received[b, h, j]) == pytest.approx(total, abs=1e-5)
        able = [i for i in real if allowed[b, i, j]]
        assert bool(sinks[b, h, j] == 1) == (total / len(able) > 0.35)
        found += int(sinks[b, h, j] == 1)
        mean = sum(float(F.cosine_similarity(query[b, i, h], key[b, j, h // 2], 0)) for i in able) / len(able)
        assert float(cosine[b, h, j]) == pytest.approx(mean, abs=1e-5)
        assert float(parts[b, h, 0, j]) == float(cosine[b, h, j])
        assert float(parts[b, h, 1, j]) == pytest.approx(float(key[b, j, h // 2].norm()), rel=1e-5)
    assert found
    real_keys = VALID[:, None].expand(received.shape)
    assert not received[~real_keys].any()


@pytest.mark.parametrize("path", ["auto", "pattern"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_model_under_a_local_mask_is_measured_as_such(
    tiny_model: Any, window: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sliding window given to the model itself: all 8 queries count, and a key is seen by those near it."""
    monkeypatch.setattr("sinklens.models.blocks.rows_at_once", lambda *_: 3)
    dlm, place = tiny_model("LLaDA", heads=4, kv_heads=2), torch.arange(8)
    dlm.attention = path
    local = (place[:, None] - place).abs() < window
    tokens, kept = torch.randint(2, 60, (1, 8), generator=torch.Generator().manual_seed(4)), {}

    def keep(tensor: Tensor, *, hook: Any) -> None:
        kept[hook.name.split(".")[-1]] = tensor[0].clone()

    every = [ReceivedAttention(), SinkMask(SinkRule(0.3, "share")), QKCosine(), MassOn("all")]
    seen: list[dict[Any, Any]] = [{} for _ in every]
    hooks = [hook for probe, own in zip(every, seen, strict=True) for hook in probe.fwd_hooks(dlm, seen=own)]
    points = [(f"blocks.1.attn.{name}", keep) for name in ("hook_pattern", "hook_rot_q", "hook_rot_k")]
    with torch.no_grad():
        dlm.run_with_hooks(tokens, attention_mask=local[None, None], fwd_hooks=points)
        dlm.run_with_hooks(tokens, attention_mask=local[None, None], fwd_hooks=hooks)
    received, sinks, cosine, mass = (probe.values(own)[0, 1] for probe, own in zip(every, seen, strict=True))
    assert not kept["hook_pattern"][:, ~local].any()
    torch.testing.assert_close(mass, torch.ones(4))
    for h, j in np.ndindex(4, 8):
        near = [i for i in range(8) if abs(i - j) < window]
        total = sum(float(kept["hook_pattern"][h, i, j]) for i in range(8))
        assert float(received[h, j]) == pytest.approx(total, abs=1e-5)
        assert bool(sinks[h, j] == 1) == (total / len(near) > 0.3)
        query, key = kept["hook_rot_q"], kept["hook_rot_k"][j, h // 2]
        mean = sum(float(F.cosine_similarity(query[i, h], key, 0)) for i in near) / len(near)
        assert float(cosine[h, j]) == pytest.approx(mean, abs=1e-5)


def test_a_lens_says_which_positions_it_scored(dlm: HookedDLM) -> None:
    record = sl.denoise(dlm, PROMPTS, PLAN, probes=[LogitLens(positions="last")], progress=False).record["lens_token"]
    assert record.attrs["positions"] == "last"
    assert record.notnull().sum("key").max() == 1
