"""Probes: each against a naive computation from cached activations, known answers, padding, the loop and sizes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge.sources import build_bridge_from_module

import sinklens as sl
from sinklens import HookedDLM, probes
from sinklens.errors import HookNeverFired, NotFinite, ScopeError
from sinklens.hooks import Canvas, Edit, Memory, Probe, Scope, with_hooks
from sinklens.probes import (
    AttentionEntropy,
    Confidence,
    Contribution,
    KeyNorm,
    LogitLens,
    MassiveActivations,
    MassOn,
    Pattern,
    QKCosine,
    QueryNorm,
    ResidualNorm,
    ValueNorm,
    estimate,
)

MASK = 62
GQA = {"heads": 4, "kv_heads": 2, "layers": 2}
Naive = Callable[["Sight", int, Any], Any]

EVERY: dict[str, Callable[[], Probe]] = {
    "AttentionEntropy": AttentionEntropy,
    "MassOn": lambda: MassOn("masked"),
    "KeyNorm": KeyNorm,
    "ValueNorm": ValueNorm,
    "Contribution": Contribution,
    "ResidualNorm": ResidualNorm,
    "MassiveActivations": lambda: MassiveActivations(above=1.0, ratio=3.0),
    "QKCosine": QKCosine,
    "QueryNorm": QueryNorm,
    "Confidence": Confidence,
    "ConfidenceEntropy": lambda: Confidence("entropy"),
    "LensToken": LogitLens,
    "LensProbability": lambda: LogitLens("probability"),
    "LensEntropy": lambda: LogitLens("entropy", chunk=4),
    "Pattern": Pattern,
}


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., HookedDLM]) -> Callable[[str], HookedDLM]:
    """One random model per family, with two query heads per key head."""
    made: dict[str, HookedDLM] = {}

    def get(family: str) -> HookedDLM:
        if family not in made:
            made[family] = tiny_model(family, **GQA)
        return made[family]

    return get


def ids(batch: int, positions: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 60, (batch, positions), generator=torch.Generator().manual_seed(seed))


def canvas_of(tokens: Tensor, prompt: int = 3, committed: int = 1) -> Canvas:
    """All real: `prompt` given positions, `committed` committed ones, the rest masked."""
    tokens = tokens.clone()
    tokens[:, prompt + committed :] = MASK
    given = (torch.arange(tokens.shape[1]) < prompt).expand(tokens.shape)
    return Canvas(tokens, torch.ones_like(given), tokens == MASK, given, seeds=(0,) * len(tokens))


def padded(canvas: Canvas, left: int) -> Canvas:
    """The same rows with padding to their left."""

    def pad(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor.long(), (left, 0), value=value).to(tensor.dtype)

    return replace(
        canvas,
        tokens=pad(canvas.tokens, 1),
        valid=pad(canvas.valid, 0),
        masked=pad(canvas.masked, 0),
        prompt=pad(canvas.prompt, 0),
    )


@torch.no_grad()
def measure(dlm: HookedDLM, probe: Probe, canvas: Canvas) -> Tensor:
    seen: dict[Any, Any] = {}
    parts = [(repr(probe), probe.hooks(dlm, canvas, seen))]
    with_hooks(dlm, parts, {}, lambda: dlm(canvas.tokens, attention_mask=canvas.valid))
    values = probe.values(seen)
    assert values.ndim == 1 + len(probe.dims)
    return values


@torch.no_grad()
def outside(bridge: Any, probe: Probe, tokens: Tensor) -> Tensor:
    """What a probe measures in a forward outside the loop, by TransformerLens's own means."""
    seen: dict[Any, Any] = {}
    bridge.run_with_hooks(tokens, fwd_hooks=probe.fwd_hooks(bridge, seen=seen))
    return probe.values(seen)


class Sight:
    """Cached activations of one canvas, and how a naive loop reads them."""

    def __init__(self, dlm: HookedDLM, canvas: Canvas) -> None:
        with torch.no_grad():
            _, self.cache = dlm.run_with_cache(canvas.tokens)
        self.dlm, self.canvas = dlm, canvas
        self.groups = dlm.n_heads // self.cache["blocks.0.attn.v.hook_out"].shape[2]

    def at(self, layer: int, point: str) -> Tensor:
        return self.cache[f"blocks.{layer}.{point}"]

    def queries(self, row: int, probe: Probe) -> list[int]:
        which = getattr(probe, "queries", None) or getattr(probe, "positions", "all")
        return self.canvas.positions(which)[row].nonzero()[:, 0].tolist()


# Naive computations: one number for (batch row, layer, head, position), straight from the definition.


def naive_entropy(see: Sight, probe: Any, b: int, layer: int, h: int, i: int) -> float:
    if i not in see.queries(b, probe):
        return math.nan
    row = see.at(layer, "attn.hook_pattern")[b, h, i].tolist()
    return -sum(a * math.log(a) for a in row if a > 0)


def naive_mass(see: Sight, probe: Any, b: int, layer: int, h: int) -> float:
    pattern, queries = see.at(layer, "attn.hook_pattern")[b, h], see.queries(b, probe)
    keys = see.canvas.masked[b].nonzero()[:, 0].tolist()
    return sum(float(pattern[i, j]) for i in queries for j in keys) / len(queries)


def naive_key_norm(see: Sight, probe: Any, b: int, layer: int, h: int, j: int) -> float:
    return math.sqrt(sum(x * x for x in see.at(layer, "attn.hook_rot_k")[b, j, h].tolist()))


def naive_value_norm(see: Sight, probe: Any, b: int, layer: int, h: int, j: int) -> float:
    return math.sqrt(sum(x * x for x in see.at(layer, "attn.v.hook_out")[b, j, h].tolist()))


def naive_contribution(see: Sight, probe: Any, b: int, layer: int, h: int, j: int) -> float:
    value = see.at(layer, "attn.v.hook_out")[b, j, h // see.groups]
    inner = see.dlm.blocks[layer].attn.original_component
    out = inner.c_proj.weight.T if hasattr(inner, "c_proj") else inner.o_proj.weight
    weight = out.detach()[:, 8 * h : 8 * h + 8]
    pattern = see.at(layer, "attn.hook_pattern")[b, h]
    return sum(float((pattern[i, j] * (weight @ value)).norm()) for i in see.queries(b, probe))


def naive_residual(see: Sight, probe: Any, b: int, layer: int, j: int) -> float:
    return math.sqrt(sum(x * x for x in see.at(layer, "hook_out")[b, j].tolist()))


def naive_massive(see: Sight, probe: Any, b: int, layer: int, j: int) -> float:
    size = see.at(layer, "hook_out")[b].abs()
    return sum(x > probe.above and x >= probe.ratio * float(size.median()) for x in size[j].tolist())


def naive_cosine(see: Sight, probe: Any, b: int, layer: int, h: int, j: int) -> float:
    query, key = see.at(layer, "attn.hook_rot_q")[b], see.at(layer, "attn.hook_rot_k")[b]
    who = [i for i in see.queries(b, probe) if i >= j or not see.dlm.is_causal]
    cosines = [float(F.cosine_similarity(query[i, h], key[j, h // see.groups], 0)) for i in who]
    return sum(cosines) / len(cosines) if cosines else math.nan


def naive_query_norm(see: Sight, probe: Any, b: int, layer: int, h: int, i: int) -> float:
    return float(see.at(layer, "attn.hook_rot_q")[b, i, h].norm()) if i in see.queries(b, probe) else math.nan


def naive_pattern(see: Sight, probe: Any, b: int, layer: int, h: int, i: int, j: int) -> float:
    return float(see.at(layer, "attn.hook_pattern")[b, h, i, j]) if i in see.queries(b, probe) else math.nan


def _scored(logits: Tensor, what: str) -> float:
    chance = logits.double().softmax(-1)
    if what == "entropy":
        return float(-(chance * chance.log()).sum())
    return float(chance.max() if what == "probability" else chance.argmax())


def naive_confidence(see: Sight, probe: Any, b: int, i: int) -> float:
    return _scored(see.cache["unembed.hook_out"][b, i], probe.what) if i in see.queries(b, probe) else math.nan


def naive_lens(see: Sight, probe: Any, b: int, layer: int, i: int) -> float:
    if i not in see.queries(b, probe):
        return math.nan
    x = see.at(layer, "hook_out")[b, max(i - 1, 0) if see.dlm.family.shift else i]
    norm, unembed = see.dlm.ln_final.original_component, see.dlm.unembed.original_component
    if hasattr(norm, "variance_epsilon"):
        normed = norm.weight.detach() * x * (x.square().mean() + norm.variance_epsilon).rsqrt()
    else:  # GPT-2's also centres
        centred = x - x.mean()
        normed = norm.weight.detach() * centred * (centred.square().mean() + norm.eps).rsqrt() + norm.bias.detach()
    return _scored(unembed.weight.detach() @ normed, probe.what)


NAIVE: dict[str, Callable[..., float]] = {
    "AttentionEntropy": naive_entropy,
    "MassOn": naive_mass,
    "KeyNorm": naive_key_norm,
    "ValueNorm": naive_value_norm,
    "Contribution": naive_contribution,
    "ResidualNorm": naive_residual,
    "MassiveActivations": naive_massive,
    "QKCosine": naive_cosine,
    "QueryNorm": naive_query_norm,
    "Confidence": naive_confidence,
    "LogitLens": naive_lens,
    "Pattern": naive_pattern,
}


def assert_naive(dlm: HookedDLM, probe: Probe, canvas: Canvas) -> None:
    values = measure(dlm, probe, canvas)
    see, naive = Sight(dlm, canvas), NAIVE[type(probe).__name__]
    layers = [layer % dlm.n_layers for layer in probe.where.layers or range(dlm.n_layers)]
    for index in np.ndindex(*values.shape):
        place = [index[0], layers[index[1]], *index[2:]] if "layer" in probe.dims else list(index)
        expected = naive(see, probe, *place)
        assert float(values[index]) == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True), (probe, index)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "GPT-2", "DiffuGPT"])
def test_equals_a_naive_computation(models: Any, family: str, make: Callable[[], Probe]) -> None:
    assert_naive(models(family), make(), canvas_of(ids(2, 6)))


LAST = Scope(layers=[-1])
SCOPED: list[Probe] = [
    AttentionEntropy(LAST, "masked"),
    Contribution(LAST, "masked"),
    QKCosine(LAST, "masked"),
    QueryNorm(LAST, "masked"),
    Pattern(LAST, "masked"),
    MassOn("masked", where=LAST, queries="masked"),
    Confidence(positions="masked"),
    LogitLens("probability", LAST, positions="masked"),
]


@pytest.mark.parametrize("probe", SCOPED, ids=repr)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_only_the_layers_and_queries_in_scope(models: Any, family: str, probe: Probe) -> None:
    dlm, canvas, seen = models(family), canvas_of(ids(2, 6)), {}
    assert_naive(dlm, probe, canvas)
    if "layer" in probe.dims:
        with torch.no_grad(), dlm.hooks(fwd_hooks=probe.hooks(dlm, canvas, seen)):
            dlm(canvas.tokens)
        assert probe.coords(seen)["layer"] == [1]
        assert probe.values(seen).shape[1] == 1


def test_qwen3_reads_the_normalised_keys(models: Any) -> None:
    dlm = models("A2D-Qwen3")
    for probe in (KeyNorm(), QKCosine(), LogitLens("entropy")):
        assert_naive(dlm, probe, canvas_of(ids(1, 5)))


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "BERT", "GPT-2", "DiffuGPT"])
def test_left_padding_changes_nothing(models: Any, family: str, make: Callable[[], Probe]) -> None:
    dlm, canvas = models(family), canvas_of(ids(2, 6, seed=3))
    alone, batched = measure(dlm, make(), canvas), measure(dlm, probe := make(), padded(canvas, 3))
    for axis, dim in enumerate(probe.dims, start=1):
        if dim in ("query", "key"):
            # Nothing was measured at padding; for a pattern's keys there, no attention.
            padding = batched.narrow(axis, 0, 3)
            assert (padding.isnan() | (padding == 0)).all() if "query" in probe.dims else padding.isnan().all()
            batched = batched.narrow(axis, 3, 6)
    torch.testing.assert_close(batched, alone, atol=2e-4, rtol=2e-4, equal_nan=True)


# Known answers: hooks are plain functions, so a planted tensor goes straight in.


def feed(probe: Probe, dlm: HookedDLM, canvas: Canvas | None = None, **tensors: Tensor) -> Tensor:
    """What the probe makes of these tensors, given as point="blocks.0. ..." with dots as double underscores."""
    seen: dict[Any, Any] = {}
    hooks = dict(probe.hooks(dlm, canvas, seen))
    for point, tensor in tensors.items():
        hooks[f"blocks.0.{point.replace('__', '.')}"](tensor, hook=None)
    return probe.values(seen)


FIRST = Scope(layers=0)


def test_entropy_of_even_and_one_hot_rows(models: Any) -> None:
    pattern = torch.full((1, 4, 8, 8), 1 / 8)
    pattern[0, 1] = torch.eye(8)
    values = feed(AttentionEntropy(FIRST), models("LLaDA"), attn__hook_pattern=pattern)
    torch.testing.assert_close(values[0, 0, 0], torch.full((8,), math.log(8)))
    assert values[0, 0, 1].tolist() == [0.0] * 8
    causal = torch.ones(1, 1, 8, 8).tril()
    even = feed(AttentionEntropy(FIRST), models("LLaDA"), attn__hook_pattern=causal / causal.sum(-1, keepdim=True))
    torch.testing.assert_close(even[0, 0, 0], torch.arange(1.0, 9.0).log())


@pytest.mark.parametrize(
    "partition",
    [
        [MassOn("masked"), MassOn("committed")],
        [MassOn("prompt"), MassOn("response")],
        [MassOn("all")],
        [MassOn([0, 1]), MassOn([2]), MassOn(range(3, 99))],
        [MassOn(tokens=[MASK]), MassOn(tokens=range(2, 60))],
    ],
    ids=str,
)
@pytest.mark.parametrize("queries", ["all", "masked", "last"])
@pytest.mark.parametrize("left", [0, 2])
def test_masses_of_a_partition_add_up_to_one(models: Any, partition: list[MassOn], queries: Any, left: int) -> None:
    canvas, total = padded(canvas_of(ids(2, 7)), left), torch.zeros(())
    for part in partition:
        values = measure(models("LLaDA"), replace(part, queries=queries), canvas)
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6
        total = total + values
    torch.testing.assert_close(total, torch.ones(2, 2, 4), atol=1e-5, rtol=0)


def test_mass_of_one_key(models: Any) -> None:
    pattern = torch.zeros(1, 4, 5, 5)
    pattern[..., 2] = 1.0
    for probe, expected in [(MassOn(2, where=FIRST), 1.0), (MassOn([0], where=FIRST), 0.0)]:
        assert (feed(probe, models("LLaDA"), attn__hook_pattern=pattern) == expected).all()


def test_positions_count_from_the_first_real_token(models: Any) -> None:
    dlm, canvas = models("LLaDA"), padded(canvas_of(ids(2, 6)), 2)
    pattern = measure(dlm, Pattern(), canvas)
    torch.testing.assert_close(measure(dlm, MassOn([0]), canvas), pattern[..., 2:, 2].mean(-1))


def test_mass_on_tokens_needs_no_canvas(models: Any) -> None:
    dlm, tokens = models("LLaDA"), ids(2, 6)
    wanted = tokens[0, :2].tolist()
    probe = MassOn(tokens=wanted)
    values = outside(dlm, probe, tokens)
    plain = replace(Canvas.plain(torch.ones(2, 6, dtype=torch.bool)), tokens=tokens)
    torch.testing.assert_close(values, measure(dlm, probe, plain))
    assert values.max() > 0


def test_mass_without_queries_is_not_a_number(models: Any) -> None:
    canvas = replace(canvas_of(ids(2, 5)), masked=torch.zeros(2, 5, dtype=torch.bool))
    assert measure(models("LLaDA"), MassOn("all", queries="masked"), canvas).isnan().all()
    assert (measure(models("LLaDA"), MassOn("masked"), canvas) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"what": "verbs"},
            r"what='verbs' is unknown; choose from 'all', .*'last', 'block', 'bos', .*'white space'",
        ),
        ({}, "either a set of keys"),
        ({"what": "all", "tokens": [1]}, "not both"),
        ({"what": []}, "at least one"),
        ({"what": [-1]}, r"what=\[-1\] must be .* a list of whole numbers of at least 0"),
        ({"tokens": []}, r"tokens=\[\]"),
    ],
)
def test_mass_on_an_unknown_set(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MassOn(**arguments)


def test_a_zero_value_contributes_nothing(models: Any) -> None:
    dlm, probe, canvas = models("Dream"), Contribution(FIRST), canvas_of(ids(2, 6))

    def zero(value: Tensor, *, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 2] = 0
        return value

    seen: dict[Any, Any] = {}
    with torch.no_grad():
        hooks = probe.fwd_hooks(dlm, seen=seen)
        dlm.run_with_hooks(canvas.tokens, fwd_hooks=[("blocks.0.attn.v.hook_out", zero), *hooks])
    values = probe.values(seen)
    assert (values[..., 2] == 0).all()
    assert (values[..., [0, 1, 3, 4, 5]] > 0).all()


def test_contributions_bound_what_attention_writes(models: Any) -> None:
    """What attention writes is the sum of what the keys write, so no longer than their contributions together."""
    dlm, probe = models("LLaDA"), Contribution(FIRST)
    with torch.no_grad():
        _, cache = dlm.run_with_cache(tokens := ids(1, 6))
    written = cache["blocks.0.attn.hook_out"].norm(dim=-1).sum()
    assert float(written) <= float(outside(dlm, probe, tokens).sum())


def test_planted_massive_activations(models: Any) -> None:
    stream = torch.full((2, 5, 32), 0.1)
    stream[0, 1, 7], stream[0, 1, 9], stream[0, 3, 4] = 150.0, -101.0, 99.0
    stream[1] = 1.0
    stream[1, 2, 0] = 999.0  # above 100, not 1000 times the median
    values = feed(MassiveActivations(FIRST), models("LLaDA"), hook_out=stream)
    assert values[:, 0].tolist() == [[0, 2, 0, 0, 0], [0, 0, 0, 0, 0]]
    loose = feed(MassiveActivations(FIRST, above=90.0, ratio=900.0), models("LLaDA"), hook_out=stream)
    assert loose[:, 0].tolist() == [[0, 2, 0, 1, 0], [0, 0, 1, 0, 0]]


def test_cosines_of_planted_directions(models: Any) -> None:
    query, key = torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, 2, 8)
    query[..., 0], key[0, 0, :, 0], key[0, 1, :, 1], key[0, 2, :, 0] = 5.0, 0.1, 3.0, -2.0
    values = feed(QKCosine(FIRST), models("LLaDA"), attn__hook_rot_q=query, attn__hook_rot_k=key)
    assert values[0, 0].tolist() == [[1.0, 0.0, -1.0]] * 4
    lengths = feed(QueryNorm(FIRST), models("LLaDA"), attn__hook_rot_q=query)
    assert lengths[0, 0].tolist() == [[5.0] * 3] * 4
    keys = feed(KeyNorm(FIRST), models("LLaDA"), attn__hook_rot_k=key)
    torch.testing.assert_close(keys[0, 0], torch.tensor([[0.1, 3.0, 2.0]] * 2))


def test_norms_and_cosine_give_the_scores(models: Any) -> None:
    """q.k = |q||k|cos: with one query in scope the decomposition is exact."""
    dlm, canvas = models("LLaDA"), canvas_of(ids(1, 6))
    cosine, length, key = (
        measure(dlm, probe, canvas) for probe in (QKCosine(queries="last"), QueryNorm(queries="last"), KeyNorm())
    )
    with torch.no_grad():
        _, cache = dlm.run_with_cache(canvas.tokens)
    rebuilt = cosine * key.repeat_interleave(2, 2) * length[..., -1:] / math.sqrt(8)
    scores = torch.stack([cache[f"blocks.{layer}.attn.hook_attn_scores"][:, :, -1] for layer in (0, 1)], 1)
    torch.testing.assert_close(rebuilt, scores, atol=1e-4, rtol=1e-4)


# Predictions.


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "A2D-Qwen3", "RND1", "Llama", "BERT"])
@pytest.mark.parametrize("left", [0, 3])
def test_predictions_are_the_models_own(models: Any, family: str, left: int) -> None:
    dlm, canvas = models(family), padded(canvas_of(ids(2, 6)), left)
    with torch.no_grad():
        chance = dlm(canvas.tokens, attention_mask=canvas.valid).softmax(-1)
    expected = {
        "token": chance.argmax(-1).float(),
        "probability": chance.amax(-1),
        "entropy": -(chance * chance.log()).sum(-1),
    }
    for what, own in expected.items():
        lens = measure(dlm, LogitLens(what, where=Scope(layers=-1)), canvas)[:, 0]  # type: ignore[arg-type]
        torch.testing.assert_close(lens[:, left:], own[:, left:], atol=1e-4, rtol=1e-4)
        if what != "token":
            sure = measure(dlm, Confidence(what), canvas)  # type: ignore[arg-type]
            torch.testing.assert_close(sure[:, left:], own[:, left:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_the_lens_holds_one_chunk_and_fires_no_hook(models: Any, positions: Any) -> None:
    dlm, canvas, sizes, fired = models("LLaDA"), canvas_of(ids(2, 7)), [], []
    probe, seen = LogitLens("entropy", positions=positions, chunk=4), {}
    handle = dlm.unembed.original_component.register_forward_hook(
        lambda module, inputs, out: sizes.append(tuple(out.shape))
    )

    def count(tensor: Tensor, *, hook: Any) -> None:
        fired.append(hook.name)

    watch = [("unembed.hook_in", count), ("unembed.hook_out", count), ("ln_final.hook_out", count)]
    try:
        with torch.no_grad():
            dlm.run_with_hooks(canvas.tokens, fwd_hooks=[*probe.hooks(dlm, canvas, seen), *watch])
    finally:
        handle.remove()
    assert len(fired) == 3
    chunks = [shape for shape in sizes if len(shape) == 2]
    assert sum(shape[0] for shape in chunks) == 2 * int(canvas.positions(positions).sum())
    assert max(shape[0] for shape in chunks) <= 4
    whole = measure(dlm, LogitLens("entropy", positions=positions), canvas)
    torch.testing.assert_close(probe.values(seen), whole, equal_nan=True)


def test_unknown_scores() -> None:
    with pytest.raises(ValueError, match="what='margin' is unknown; choose from 'token', 'probability', 'entropy'"):
        LogitLens("margin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="what='token' is unknown; choose from 'probability', 'entropy'"):
        Confidence("token")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk=0"):
        LogitLens(chunk=0)


# Outside the loop.


def bare_bridges() -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    llama = transformers.LlamaConfig(
        **sizes,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    gpt2 = transformers.GPT2Config(**sizes, n_layer=2, n_head=4, n_embd=32, n_positions=64)
    for model in (transformers.LlamaForCausalLM(llama), transformers.GPT2LMHeadModel(gpt2)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        name = type(model).__name__
        yield build_bridge_from_module(model.eval(), name, hf_config=model.config, model_name=name)


def test_every_probe_on_bridges_that_are_not_ours() -> None:
    tokens = ids(2, 5)
    for bridge in bare_bridges():
        for make in EVERY.values():
            assert outside(bridge, make(), tokens).isfinite().all(), make()
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(tokens)
        lens = outside(bridge, LogitLens("probability", Scope(layers=[1])), tokens)
        cosine = outside(bridge, QKCosine(FIRST), tokens)
        torch.testing.assert_close(lens[:, 0], logits.softmax(-1).amax(-1), atol=1e-5, rtol=1e-4)
        rotary = "blocks.0.attn.hook_rot_k" in cache
        query = cache["blocks.0.attn.hook_rot_q" if rotary else "blocks.0.attn.q.hook_out"][0, 3:, 1]
        key = cache["blocks.0.attn.hook_rot_k" if rotary else "blocks.0.attn.k.hook_out"][0, 3, 0 if rotary else 1]
        expected = F.cosine_similarity(query, key[None], -1).mean()  # the queries at and after key 3
        assert float(cosine[0, 0, 1, 3]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_a_probe_only_looks(models: Any, make: Callable[[], Probe]) -> None:
    dlm, tokens, probe = models("LLaDA"), ids(2, 6), make()

    def look(tensor: Tensor, *, hook: Any) -> None:
        return None

    with torch.no_grad():
        hooks = probe.fwd_hooks(dlm)
        plain = dlm.run_with_hooks(tokens, fwd_hooks=[(name, look) for name, _ in hooks])
        assert torch.equal(dlm.run_with_hooks(tokens, fwd_hooks=hooks), plain)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_a_probe_is_a_probe(models: Any, make: Callable[[], Probe]) -> None:
    probe = make()
    assert isinstance(probe, Probe)
    assert probe.unit
    assert probe.definition
    assert len(repr(probe)) < 80
    assert type(probe).from_dict(json.loads(json.dumps(probe.to_dict()))) == probe
    with pytest.raises(HookNeverFired, match="measured nothing"):
        probe.values({})
    doc = " ".join((type(probe).__doc__ or "").split())
    assert all(part in doc for part in ("0:", "1", "Source:", "Attributes:"))
    if "layer" in probe.dims:
        with pytest.raises(ScopeError, match="layer 9"):
            replace(probe, where=Scope(layers=[9])).fwd_hooks(models("LLaDA"))


def test_values_carry_no_graph(models: Any) -> None:
    for make in EVERY.values():
        probe, seen = make(), {}
        models("LLaDA").run_with_hooks(ids(1, 4), fwd_hooks=probe.fwd_hooks(models("LLaDA"), seen=seen))
        assert not probe.values(seen).requires_grad


@pytest.mark.parametrize(
    ("probe", "text"),
    [
        (AttentionEntropy(), "AttentionEntropy()"),
        (AttentionEntropy(queries="masked"), "AttentionEntropy(queries='masked')"),
        (AttentionEntropy(Scope(heads=1)), "AttentionEntropy(where=Scope(heads=1))"),
        (MassOn("masked"), "MassOn(what='masked')"),
        (MassOn(0), "MassOn(what=(0,))"),
        (MassOn(tokens=[5, 6], variable="marks"), "MassOn(variable='marks', tokens=(5, 6))"),
        (MassiveActivations(above=50.0), "MassiveActivations(above=50.0)"),
        (LogitLens("entropy", chunk=8), "LogitLens(what='entropy', chunk=8)"),
        (Confidence("entropy"), "Confidence(what='entropy')"),
        (Pattern(max_bytes=10), "Pattern(max_bytes=10)"),
    ],
)
def test_reprs_name_what_is_not_the_default(probe: Probe, text: str) -> None:
    assert repr(probe) == text


def test_names_tell_sets_apart() -> None:
    made = [
        MassOn("masked"),
        MassOn("masked", queries="masked"),
        MassOn([0, 1]),
        MassOn(tokens=[0, 1]),
        MassOn([0], variable="bos"),
    ]
    assert [probe.name for probe in made] == [
        "mass_on_masked",
        "mass_on_masked_from_masked",
        "mass_on_position_0_1",
        "mass_on_token_0_1",
        "bos",
    ]


# In the loop.


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "BERT", "GPT-2", "DiffuGPT"])
def test_every_probe_in_the_loop(models: Any, family: str) -> None:
    dlm, plan = models(family), sl.Plan(new_tokens=4)
    prompts = [ids(1, 3)[0].tolist(), ids(1, 5, seed=1)[0].tolist()]
    every = [make() for make in EVERY.values()]
    run = sl.denoise(dlm, prompts, plan, probes=every, seed=0, progress=False)
    alone = sl.denoise(dlm, prompts[:1], plan, probes=[make() for make in EVERY.values()], seed=0, progress=False)
    assert torch.equal(run.tokens[0, 2:], alone.tokens[0])
    for probe in every:
        variable = run.record[probe.name]
        assert variable.dims == ("prompt", "step", *probe.dims)
        assert variable.attrs["units"] == probe.unit
        assert variable.attrs["definition"] == probe.definition
        assert run.fired[repr(probe)] > 0
        # The row of three tokens, padded in the batch, against itself alone: position 0 is its first token.
        batched = variable.isel(prompt=0).values
        cut = tuple(slice(7) if dim in ("query", "key") else slice(None) for dim in variable.dims[1:])
        np.testing.assert_allclose(batched[cut], alone.record[probe.name].isel(prompt=0).values, atol=3e-4, rtol=3e-4)
        for axis, dim in enumerate(variable.dims[1:]):
            if dim in ("query", "key"):
                assert np.isnan(np.moveaxis(batched, axis, 0)[7:]).all()


def test_the_record_holds_what_each_step_saw(models: Any) -> None:
    dlm = models("LLaDA")
    probe, prompt = QKCosine(Scope(layers=[1], steps=slice(1, 3))), ids(1, 4)
    run = sl.denoise(dlm, prompt, sl.Plan(new_tokens=4), probes=[probe], progress=False)
    variable = run.record["qk_cosine"]
    assert variable.layer.values.tolist() == [1]
    assert np.isnan(variable.isel(step=[0, 3]).values).all()
    tokens = torch.from_numpy(run.record["canvas"].isel(step=2).values).long()
    canvas = replace(Canvas.plain(torch.ones(1, 8, dtype=torch.bool)), tokens=tokens)
    again = measure(dlm, QKCosine(Scope(layers=[1])), canvas)
    np.testing.assert_allclose(variable.isel(step=2).values, again.numpy(), atol=1e-5)


def test_edits_come_before_probes(models: Any) -> None:
    """A probe measures what the model used: a key whose column an edit emptied has no mass."""
    dlm, canvas = models("LLaDA"), canvas_of(ids(1, 6))

    @dataclass(frozen=True)
    class Empty(Edit):
        def hooks(self, model: Any, canvas: Canvas | None, memory: Memory) -> list[Any]:
            def drop(pattern: Tensor, *, hook: Any) -> Tensor:
                return pattern * (torch.arange(pattern.shape[-1]) != 0)

            return [("blocks.0.attn.hook_pattern", drop)]

    mass, contribution = MassOn([0], where=FIRST), Contribution(FIRST)
    plan = sl.Plan(new_tokens=0)
    step = next(sl.denoising_steps(dlm, canvas.tokens, plan, probes=[mass, contribution], interventions=[Empty()]))
    share, written = (probe.values(seen or {}) for probe, seen in zip((mass, contribution), step.seen, strict=True))
    assert (share == 0).all()
    assert (written[..., 0] == 0).all()
    assert (written[..., 1:] > 0).all()


# Sizes.


@pytest.mark.usefixtures("no_forward")
def test_a_large_pattern_is_refused_before_the_forward(models: Any) -> None:
    dlm, probe = models("LLaDA"), Pattern(max_bytes=1000)
    size = 2 * 4 * 8 * 8 * 4
    message = rf"{size:,} bytes per step.*max_bytes=1,000.*Pattern\(Scope\(layers=\[0\]\)\)"
    with pytest.raises(ValueError, match=message):
        sl.denoise(dlm, ids(1, 4), sl.Plan(new_tokens=4), probes=[probe], progress=False)
    assert probe.bytes(dlm, positions=8) == size
    assert probe.bytes(dlm, positions=8, steps=3, prompts=2) == 6 * size
    assert Pattern(FIRST).bytes(dlm, positions=8) == size // 2
    assert Pattern(Scope(heads=[0])).bytes(dlm, positions=8) == size // 4
    assert Pattern(max_bytes=size).fwd_hooks(dlm, canvas_of(ids(1, 8)))


def test_a_large_pattern_is_refused_without_a_canvas(models: Any) -> None:
    hooks = Pattern(max_bytes=1000).fwd_hooks(models("LLaDA"))
    with pytest.raises(ValueError, match="more than max_bytes"), torch.no_grad():
        models("LLaDA").run_with_hooks(ids(1, 8), fwd_hooks=hooks)


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_the_estimate_is_what_a_run_takes(models: Any, family: str) -> None:
    dlm, plan = models(family), sl.Plan(new_tokens=4)
    prompts = [ids(1, 5)[0].tolist(), ids(1, 3)[0].tolist()]
    every: list[Any] = [make() for make in EVERY.values()]
    every += [probes.ReceivedAttention(queries=("masked", "committed"))]
    guess = estimate(dlm, plan, every, prompts=2, prompt_tokens=5)
    run = sl.denoise(dlm, prompts, plan, probes=every, force=[[3, 4, 5, 6]] * 2, progress=False)
    assert guess.steps == run.record.sizes["step"] == 4
    assert dict(guess.by_probe) == {probe.name: run.record[probe.name].nbytes for probe in every}
    assert guess.total_bytes == sum(guess.by_probe.values())
    assert guess.shapes["key_norm"] == {"prompt": 2, "step": 4, "layer": 2, "kv_head": 2, "key": 9}
    assert guess.shapes["received"]["queries"] == 2


def test_the_estimate_counts_the_scope(models: Any) -> None:
    dlm, where = models("LLaDA"), Scope(layers=[1], steps=slice(-2, None))
    probe = QueryNorm(where)
    guess = estimate(dlm, sl.Plan(new_tokens=4), [probe], prompt_tokens=5)
    run = sl.denoise(dlm, ids(1, 5), sl.Plan(new_tokens=4), probes=[probe], progress=False)
    assert guess.by_probe["query_norm"] == 2 * 1 * 4 * 9 * 4
    assert guess.by_probe["query_norm"] == 4 * int(run.record["query_norm"].notnull().sum())
    text = str(guess)
    assert text.startswith("288 B for 1 probes over 4 steps")
    assert re.search(r"query_norm +288 B +1 prompt x 2 step x 1 layer x 4 head x 9 query", text)


def test_the_estimate_of_plans_without_a_number_of_steps(models: Any) -> None:
    dlm = models("LLaDA")
    assert estimate(dlm, sl.Plan(new_tokens=8, threshold=0.9), [KeyNorm()]).steps == 8
    assert estimate(dlm, sl.Plan(new_tokens=0), [KeyNorm()], prompt_tokens=6).steps == 6
    assert estimate(dlm, sl.Plan(new_tokens=0, steps=3), [KeyNorm()], prompt_tokens=6).steps == 3


def test_the_estimate_refuses_what_a_run_would(models: Any) -> None:
    dlm, plan = models("LLaDA"), sl.Plan(new_tokens=4)
    with pytest.raises(ValueError, match="two probes are named 'key_norm'"):
        estimate(dlm, plan, [KeyNorm(), KeyNorm(FIRST)])
    with pytest.raises(ScopeError, match="layer 7"):
        estimate(dlm, plan, [KeyNorm(Scope(layers=[7]))])
    with pytest.raises(ScopeError, match="none of the 4 steps"):
        estimate(dlm, plan, [KeyNorm(Scope(steps=[9]))])


def test_a_gigantic_estimate_reads_well(models: Any) -> None:
    guess = estimate(models("LLaDA"), sl.Plan(new_tokens=32), [Pattern()], prompts=100, prompt_tokens=10_000)
    assert "TB" in str(guess)


def test_received_attention_stops_at_a_nan_and_says_where() -> None:
    """A nan in a record means "no such key", so a nan that was measured must not get there."""
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")

    def breaks(scores: Tensor, *, hook: Any) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-2])[:, None] == 2, float("-inf"))

    with (
        dlm.hooks(fwd_hooks=[("blocks.1.attn.hook_attn_scores", breaks)]),
        pytest.raises(NotFinite, match=r"step 0: .*since layer 1"),
    ):
        sl.denoise(dlm, "zuko xi zuko", sl.Plan(new_tokens=4), probes=[sl.probes.ReceivedAttention()], progress=False)
    assert not dlm.hooked
