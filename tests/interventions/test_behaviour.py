"""Edits, selectors and controls, against attention that is recomputed by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from sinklens import Canvas, HookedDLM, Plan, Probe, Scope, SinkRule, denoise, denoising_steps
from sinklens.errors import ScopeError
from sinklens.hooks import Hook, Memory
from sinklens.interventions import (
    Evidence,
    MaskSinks,
    PreviousStep,
    RandomKeys,
    SameStep,
    Selector,
    SinkEdit,
    ZeroSinks,
    control,
)
from sinklens.probes import ReceivedAttention
from sinklens.sinks import Sight

PROMPTS = [[5, 17, 9], [33, 8, 21, 50, 12, 40], [7, 7]]
STARTS = [3, 0, 4]
MASK = 62
FAMILIES = ["LLaDA", "Dream", "A2D-Qwen3", "LLaDA-MoE", "Llama", "Qwen3", "GPT-2", "DiffuGPT", "MDLM"]
KINDS = ["all", "masked", "committed", "prompt", "response", "last"]
EDITS: list[Any] = [MaskSinks, ZeroSinks]
INF = float("inf")

Model = Callable[[str], HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Model:
    """A random model of a family (grouped-query attention: 4 query heads, 2 key heads) or a bundled twin, made once."""
    return lru_cache(lambda name: HookedDLM.from_pretrained(name) if name.startswith("tiny") else tiny_model(name))


def plan_for(dlm: HookedDLM, new_tokens: int, **options: Any) -> Plan:
    """A plan that runs to its end in every family, one token per step (two have samplers that reveal by chance)."""
    if dlm.family.name in ("DiffuGPT", "MDLM"):
        options = {"sampler": "llada", "remasking": "low_confidence", **options}
    return Plan(new_tokens=new_tokens, suppress_eos="logits" if dlm.is_causal else None, **options)


def steps_of(dlm: HookedDLM, edit: SinkEdit | None, new_tokens: int = 5, **options: Any) -> list[Any]:
    """All steps of a run over PROMPTS."""
    edits = [] if edit is None else [edit]
    return list(denoising_steps(dlm, PROMPTS, plan_for(dlm, new_tokens), interventions=edits, **options))


def logits_of(dlm: HookedDLM, step: Any) -> Tensor:
    """A step's logits as the model gives them, one row per position that it has seen."""
    return step.logits[:, 1:] if dlm.is_causal else step.logits


def every(k: int) -> SinkRule:
    """The k keys that receive most from all queries, in any model."""
    return SinkRule(None, top_k=k)


# Attention by hand.


def top_keys(pattern: Tensor, counted: list[int], eligible: list[int], k: int) -> list[int]:
    """The k eligible keys with the largest column sums over the counted queries."""
    sums = {j: sum(float(pattern[i, j]) for i in counted) for j in eligible}
    return sorted(eligible, key=lambda j: -sums[j])[:k]


def edited_by_hand(scores: Tensor, sinks: list[int], queries: list[int], kind: type[SinkEdit]) -> Tensor:
    """One head's pattern [query, key] with the sinks removed from the given queries."""
    pattern = scores.softmax(-1).nan_to_num(0.0)
    for i in queries:
        seen = [j for j in range(scores.shape[1]) if scores[i, j] > -INF]
        if kind is ZeroSinks:
            pattern[i, sinks] = 0.0
            continue
        kept = [j for j in seen if j not in sinks] or [max(seen, key=lambda j: float(scores[i, j]))]
        row = torch.zeros_like(pattern[i])
        for j in kept:  # the kept keys take the others' mass in proportion
            row[j] = pattern[i, j] / sum(pattern[i, m] for m in kept)
        pattern[i] = row
    return pattern


def by_hand(
    forward: Callable[[list[Any]], Tensor],
    layers: list[int],
    valid: Tensor,
    kind: type[SinkEdit],
    k: int,
    *,
    causal: bool,
    points: tuple[str, str, str] = ("hook_rot_q", "hook_rot_k", "v.hook_out"),
) -> Tensor:
    """Logits with the top k sinks of `layers` removed: layer after layer recomputed in Python, in float64."""
    overrides: list[Any] = []
    for layer in layers:
        seen: dict[str, Tensor] = {}

        def keep(tensor: Tensor, *, hook: Any, seen: dict[str, Tensor] = seen) -> None:
            seen[hook.name] = tensor.double()

        names = [f"blocks.{layer}.attn.{point}" for point in points]
        forward([*overrides, *((name, keep) for name in names)])
        q, k_, v = (seen[name] for name in names)
        # Rotated tensors are [batch, head, pos, d], the others [batch, pos, head, d].
        length = valid.shape[1]
        v = v.view(*v.shape[:2], -1, q.shape[-1]).transpose(1, 2)
        if points[0] != "hook_rot_q":
            q, k_ = (t.view(*t.shape[:2], -1, q.shape[-1]).transpose(1, 2) for t in (q, k_))
        elif q.shape[1] == length and q.shape[2] != length:
            q, k_ = q.transpose(1, 2), k_.transpose(1, 2)
        batch, heads, _, size = q.shape
        groups = heads // k_.shape[1]
        z = torch.zeros(batch, length, heads, size, dtype=torch.float64)
        for b in range(batch):
            real = [i for i in range(length) if valid[b, i]]
            for h in range(heads):
                scores = q[b, h] @ k_[b, h // groups].T / math.sqrt(size)
                for i in range(length):
                    for j in range(length):
                        if not valid[b, j] or (causal and j > i):
                            scores[i, j] = -INF
                pattern = scores.softmax(-1).nan_to_num(0.0)
                sinks = top_keys(pattern, real[-1:] if causal else real, real, k)
                z[b, :, h] = edited_by_hand(scores, sinks, real, kind) @ v[b, h // groups]

        def put(tensor: Tensor, *, hook: Any, z: Tensor = z) -> Tensor:
            return z.reshape(tensor.shape).to(tensor.dtype)

        overrides.append((f"blocks.{layer}.attn.o.hook_in", put))
    return forward(overrides)


@torch.no_grad()
def forward_of(dlm: HookedDLM, tokens: Tensor, valid: Tensor, hooks: list[Any]) -> Tensor:
    """Aligned logits with hooks."""
    with dlm.hooks(fwd_hooks=hooks):
        return dlm(tokens, attention_mask=valid)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Float32 logits of size 20 to 50 against float64 attention."""
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(("layers", "k"), [([0], 1), ([1], 3), ([0, 1], 1), ([0, 1], 3)])
@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_step_edits_equal_attention_by_hand(
    model: Model, family: str, kind: type[SinkEdit], k: int, layers: list[int]
) -> None:
    """In the loop, rows of three lengths in one batch."""
    dlm = model(family)
    edit = kind(SameStep(top_k=k), where=Scope() if layers == [0, 1] else Scope(layers=layers))
    step = steps_of(dlm, edit, new_tokens=3)[-1]
    tokens, valid = step.canvas.tokens, step.canvas.valid
    forward = partial(forward_of, dlm, tokens, valid)
    expected = by_hand(forward, layers, valid, kind, k, causal=dlm.is_causal)
    # Where logits are shifted, a row's first real position takes them from padding.
    real = valid & valid.roll(1, 1) if dlm.family.shift else valid
    close(logits_of(dlm, step)[real], expected[real])
    assert (logits_of(dlm, step) - forward([]))[valid].abs().max() > 0.1


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_same_step_edits_of_the_twins_equal_attention_by_hand(model: Model, name: str, kind: type[SinkEdit]) -> None:
    dlm = model(name)
    prompts = ["dolko xe dolko xo dolko talma", "gake xe gake"]
    plan = plan_for(dlm, 2)
    for step in denoising_steps(dlm, prompts, plan, interventions=[kind(SameStep(top_k=1))]):
        tokens, valid = step.canvas.tokens, step.canvas.valid
        forward = partial(forward_of, dlm, tokens, valid)
        close(logits_of(dlm, step)[valid], by_hand(forward, [0, 1], valid, kind, 1, causal=dlm.is_causal)[valid])


# Without the loop.


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_edits_are_plain_hooks(model: Model, family: str, kind: type[SinkEdit]) -> None:
    dlm, tokens = model(family), torch.tensor(PROMPTS[1:2])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    forward = partial(forward_of, dlm, tokens, valid)
    edit = kind(SameStep(top_k=1))
    memory = edit.memory()
    with torch.no_grad():
        ours = dlm.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(dlm, memory=memory))
    close(ours, by_hand(forward, [0, 1], valid, kind, 1, causal=dlm.is_causal))
    assert memory.counts()["keys"] == 2 * 4
    assert not dlm.hooked


@pytest.mark.parametrize("kind", EDITS)
def test_edits_work_on_a_stock_bridge(tiny_stock: Any, kind: type[SinkEdit]) -> None:
    """A Llama that sinklens never touched."""
    stock = tiny_stock("Llama")
    bridge = build_bridge_from_module(stock, "LlamaForCausalLM", hf_config=stock.config)
    tokens = torch.tensor(PROMPTS[1:2])

    @torch.no_grad()
    def forward(hooks: list[Any]) -> Tensor:
        return bridge.run_with_hooks(tokens, fwd_hooks=hooks)

    ours = forward(kind(SameStep(top_k=1)).fwd_hooks(bridge))
    close(ours, by_hand(forward, [0, 1], torch.ones_like(tokens, dtype=torch.bool), kind, 1, causal=True))


@pytest.fixture(scope="module")
def native() -> TransformerBridge:
    """TransformerLens's own random model, whose pattern hook is live and whose score hook is not."""
    config = TransformerBridgeConfig(
        d_model=32,
        n_layers=2,
        n_heads=4,
        d_head=8,
        n_ctx=32,
        d_vocab=64,
        d_mlp=48,
        act_fn="gelu",
        normalization_type="LN",
        architecture="TransformerLensNative",
        seed=0,
    )
    return TransformerBridge.boot_native(config)


def test_zeroing_works_on_a_native_bridge(native: TransformerBridge) -> None:
    tokens = torch.tensor(PROMPTS[1:2])

    @torch.no_grad()
    def forward(hooks: list[Any]) -> Tensor:
        return native.run_with_hooks(tokens, fwd_hooks=hooks)

    ours = forward(ZeroSinks(SameStep(top_k=1)).fwd_hooks(native))
    points = ("q.hook_out", "k.hook_out", "v.hook_out")
    valid = torch.ones_like(tokens, dtype=torch.bool)
    close(ours, by_hand(forward, [0, 1], valid, ZeroSinks, 1, causal=True, points=points))
    assert (ours - forward([])).abs().max() > 0.01


def test_masking_on_a_bridge_with_dead_score_hooks_is_not_silent(native: TransformerBridge) -> None:
    edit = MaskSinks(SameStep(top_k=1))
    with torch.no_grad(), pytest.warns(UserWarning, match="edit is discarded"):
        native.run_with_hooks(torch.tensor(PROMPTS[1:2]), fwd_hooks=edit.fwd_hooks(native))


# One hook call, on random tensors.

HEADS = 3


def fake(*, causal: bool = False) -> Any:
    """As much of a model as `fwd_hooks` asks for."""
    return SimpleNamespace(cfg=SimpleNamespace(n_layers=2), is_causal=causal)


def canvas_of(batch: int, length: int, seed: int, step: int = 0, pads: bool = True) -> Canvas:
    """A random canvas with left padding, prompts and masks; each row has at least one of each kind."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, length - 2, (batch, 1), generator=generator) if pads else torch.zeros(batch, 1)
    position = torch.arange(length)
    valid = position >= start
    masked = valid & (torch.rand(batch, length, generator=generator) < 0.4)
    masked[:, -1] = True
    given_ = valid & ~masked & (torch.rand(batch, length, generator=generator) < 0.6)
    tokens = torch.randint(0, 60, (batch, length), generator=generator)
    return Canvas(tokens, valid, masked, given_, step, tuple(range(batch)))


def scores_for(canvas: Canvas, seed: int, *, causal: bool = False) -> Tensor:
    """Random scores, -inf at padding keys and (causal) later keys."""
    batch, length = canvas.tokens.shape
    scores = 3 * torch.randn(batch, HEADS, length, length, generator=torch.Generator().manual_seed(seed + 1))
    scores = scores.masked_fill(~canvas.valid[:, None, None], -INF)
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -INF) if causal else scores


def tensor_for(edit: SinkEdit, scores: Tensor) -> Tensor:
    """What the edit's hook point carries."""
    return scores if isinstance(edit, MaskSinks) else scores.softmax(-1).nan_to_num(0.0)


def call(
    edit: SinkEdit,
    canvas: Canvas,
    tensor: Tensor,
    layer: int = 0,
    *,
    causal: bool = False,
    memory: Memory | None = None,
) -> Tensor:
    """Run the edit's hook of one layer; its input must stay as it was."""
    before = tensor.clone()
    hooks = dict(edit.fwd_hooks(fake(causal=causal), canvas, memory))
    out = hooks[f"blocks.{layer}.attn.{edit.hook_point}"](tensor, hook=None)
    assert torch.equal(tensor, before)
    return tensor if out is None else out


def positions(canvas: Canvas, row: int, kind: str) -> list[int]:
    """Positions of one kind in one row, by its definition."""
    real = [i for i in range(canvas.tokens.shape[1]) if canvas.valid[row, i]]
    return {
        "all": real,
        "masked": [i for i in real if canvas.masked[row, i]],
        "committed": [i for i in real if not canvas.masked[row, i]],
        "prompt": [i for i in real if canvas.prompt[row, i]],
        "response": [i for i in real if not canvas.prompt[row, i]],
        "last": real[-1:],
    }[kind]


shapes = {"batch": st.integers(1, 3), "length": st.integers(3, 8), "seed": st.integers(0, 10_000)}


@given(**shapes, k=st.integers(1, 3))
def test_zeroing_lowers_row_sums_by_exactly_the_sinks_mass(batch: int, length: int, seed: int, k: int) -> None:
    canvas = canvas_of(batch, length, seed)
    pattern = tensor_for(ZeroSinks(), scores_for(canvas, seed))
    edit = ZeroSinks(SameStep(top_k=k))
    out = call(edit, canvas, pattern)
    for b in range(batch):
        real = positions(canvas, b, "all")
        for h in range(HEADS):
            sinks = top_keys(pattern[b, h], real, real, k)
            for i in range(length):
                mass = float(pattern[b, h, i, sinks].sum()) if i in real else 0.0
                assert float(out[b, h, i].sum()) == pytest.approx(float(pattern[b, h, i].sum()) - mass, abs=1e-5)
                others = [j for j in range(length) if j not in sinks]
                assert torch.equal(out[b, h, i, others], pattern[b, h, i, others])  # nobody takes the mass


@given(**shapes, k=st.integers(1, 3), causal=st.booleans())
def test_masking_keeps_row_sums_and_is_zeroing_renormalised(
    batch: int, length: int, seed: int, k: int, causal: bool
) -> None:
    canvas = canvas_of(batch, length, seed)
    scores = scores_for(canvas, seed, causal=causal)
    mask, zero, memory = MaskSinks(SameStep(every(k))), ZeroSinks(SameStep(every(k))), Memory()
    masked = call(mask, canvas, scores, causal=causal, memory=memory).softmax(-1)
    zeroed = call(zero, canvas, tensor_for(zero, scores), causal=causal)
    left = zeroed.sum(-1, keepdim=True)
    seen = canvas.valid[:, None, :].expand(left.shape[:-1])
    torch.testing.assert_close(masked.sum(-1)[seen], torch.ones(int(seen.sum())), atol=1e-5, rtol=0)
    lost = seen & (left[..., 0] == 0)
    kept = seen & ~lost
    torch.testing.assert_close(masked[kept], (zeroed / left)[kept], atol=1e-4, rtol=0)
    assert sum(memory.per_row("rows_that_kept_one_key")) == int(lost.sum())


@pytest.mark.parametrize("queries", KINDS)
@pytest.mark.parametrize("kind", EDITS)
@settings(max_examples=15)
@given(
    keys=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    diagonal=st.booleans(),
    heads=st.sampled_from([None, [1], [0, -1]]),
)
def test_a_scope_touches_what_it_names_and_nothing_else(
    kind: type[SinkEdit], queries: str, keys: str, seed: int, diagonal: bool, heads: list[int] | None
) -> None:
    canvas = canvas_of(2, 6, seed)
    selector = SameStep(SinkRule(None, top_k=2, keys=keys))
    edit = kind(selector, where=Scope(heads=heads), queries=queries, diagonal=diagonal)
    scores, memory = scores_for(canvas, seed), edit.memory()
    tensor = tensor_for(edit, scores)
    out = call(edit, canvas, tensor, memory=memory)
    gone, counted = -INF if kind is MaskSinks else 0.0, 0
    for b in range(2):
        real, eligible = positions(canvas, b, "all"), positions(canvas, b, keys)
        for h in range(HEADS):
            in_scope = heads is None or h in [head % HEADS for head in heads]
            sinks = top_keys(scores[b, h].softmax(-1), real, eligible, 2) if in_scope else []
            counted += len(sinks)
            expected = tensor[b, h].clone()
            for i in positions(canvas, b, queries):
                removed = [j for j in sinks if diagonal or i != j]
                if kind is MaskSinks and set(removed) >= set(real):
                    removed = [j for j in real if scores[b, h, i, j] < scores[b, h, i].max()]
                expected[i, removed] = gone
            assert torch.equal(out[b, h], expected)
    assert memory.counts()["keys"] == counted


def test_layers_in_scope_are_hooked_and_no_others(model: Model) -> None:
    dlm = model("LLaDA")
    for layers, expected in [(None, [0, 1]), (1, [1]), ([0], [0]), (range(1, 2), [1]), (-1, [1]), (slice(0, 1), [0])]:
        names = [name for name, _ in MaskSinks(SameStep(top_k=1), where=Scope(layers=layers)).fwd_hooks(dlm)]
        assert names == [f"blocks.{layer}.attn.hook_attn_scores" for layer in expected]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", ["all", "last"])
def test_a_row_that_would_lose_every_key_keeps_its_largest(queries: Any, causal: bool) -> None:
    canvas = canvas_of(3, 6, seed=4)
    scores = scores_for(canvas, 4, causal=causal)
    edit, memory = MaskSinks(SameStep(SinkRule(None, top_k=50, queries=queries))), Memory()
    out = call(edit, canvas, scores, causal=causal, memory=memory)
    pattern = out.softmax(-1)
    rows = 0
    for b in range(3):
        for i in positions(canvas, b, "all"):
            for h in range(HEADS):
                assert pattern[b, h, i].tolist() == [float(j == scores[b, h, i].argmax()) for j in range(6)]
                rows += 1
    assert memory.counts()["rows_that_kept_one_key"] == rows
    assert memory.counts()["keys"] == rows  # every real key of every row, in every head
    padding = ~canvas.valid[:, None].expand(out.shape[:-1])
    assert torch.equal(out[padding], scores[padding])


@pytest.mark.parametrize("top_k", [1, 4, None])
@pytest.mark.parametrize("selector", [SameStep, PreviousStep])
@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_ever_nan(model: Model, family: str, kind: Any, selector: Any, top_k: int | None) -> None:
    """A padded batch; None removes every key."""
    dlm = model(family)
    edit = kind(selector(top_k=top_k) if top_k else selector(SinkRule(epsilon=-1e6)))
    for step in steps_of(dlm, edit, new_tokens=3):
        assert not logits_of(dlm, step)[step.canvas.valid].isnan().any()
        assert not step.confidence[step.committed].isnan().any()


def test_counts_are_what_happened() -> None:
    """By a threshold: some heads have sinks, some do not."""
    canvas, rule = canvas_of(3, 8, seed=2), SinkRule(epsilon=1.5)
    scores = scores_for(canvas, 2)
    keys = without = 0
    for b in range(3):
        real = positions(canvas, b, "all")
        for h in range(HEADS):
            pattern = scores[b, h].softmax(-1)
            sums = {j: sum(float(pattern[i, j]) for i in real) for j in real}
            sinks = [j for j in real if sums[j] > sum(sums[k] for k in real if k != j) / (len(real) - 1) + 1.5]
            keys += len(sinks)
            without += not sinks
    assert keys
    assert without
    for kind in EDITS:
        edit = kind(SameStep(rule))
        tensor, memory = tensor_for(edit, scores), edit.memory()
        names = {"keys", "candidates", "mass", "heads_without_sink", "heads_with_fewer", "rows_that_kept_one_key"}
        assert memory.counts() == dict.fromkeys(names, 0)
        for layer in (0, 1):
            call(edit, canvas, tensor, layer, memory=memory)
        assert memory.counts()["keys"] == 2 * keys
        assert memory.counts()["candidates"] == 2 * HEADS * int(canvas.valid.sum())
        assert memory.counts()["heads_without_sink"] == 2 * without
        assert set(memory.counts()) == names
        assert edit.memory().counts() == dict.fromkeys(names, 0)


def test_heads_out_of_scope_are_not_counted_as_heads_without_a_sink() -> None:
    """Every head in scope has a sink, for `top_k=1` always finds one."""
    canvas = canvas_of(2, 6, seed=0)
    edit = MaskSinks(SameStep(top_k=1), where=Scope(heads=[0]))
    memory = edit.memory()
    call(edit, canvas, scores_for(canvas, 0), memory=memory)
    counts = memory.counts()
    assert (counts["keys"], counts["heads_without_sink"], counts["heads_with_fewer"]) == (2, 0, 0)


# Steps.


@dataclass(frozen=True, repr=False)
class Watch(Probe):
    """Keeps the scores of every step and layer as the model used them (after the edits)."""

    scores: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)
    valid: dict[int, Tensor] = field(default_factory=dict, compare=False)
    identity, name, dims, unit, definition = "watch", "watch", (), "", ""

    def hooks(self, model: Any, canvas: Canvas | None, seen: dict[Any, Any]) -> list[Hook]:
        """On the scores."""
        return [(f"blocks.{i}.attn.hook_attn_scores", partial(self._keep, i, canvas)) for i in range(2)]

    def _keep(self, layer: int, canvas: Canvas, scores: Tensor, *, hook: Any) -> None:
        self.scores[canvas.step, layer], self.valid[canvas.step] = scores.clone(), canvas.valid

    def values(self, seen: dict[Any, Any]) -> Tensor:
        """Nothing."""
        return torch.zeros(len(PROMPTS))


def watched(dlm: HookedDLM, edit: SinkEdit, new_tokens: int = 5, raise_key: int | None = None) -> tuple[Any, Any, Any]:
    """Scores before the edit and after it, by (step, layer), and which positions were real, by step."""
    before: dict[tuple[int, int], Tensor] = {}
    calls = [0, 0]

    def look(scores: Tensor, *, hook: Any) -> Tensor:
        layer = int(hook.name.split(".")[1])
        if raise_key is not None:
            scores = scores.index_add(-1, torch.tensor([raise_key]), torch.full((*scores.shape[:-1], 1), 200.0))
        before[calls[layer], layer] = scores.clone()
        calls[layer] += 1
        return scores

    watch = Watch()
    hooks = [(f"blocks.{i}.attn.hook_attn_scores", look) for i in range(2)]
    with dlm.hooks(fwd_hooks=hooks):
        denoise(dlm, PROMPTS, plan_for(dlm, new_tokens), interventions=[edit], probes=[watch], progress=False)
    return before, watch.scores, watch.valid


def expected_at(before: dict, valid: dict, source: int, step: int, layer: int, k: int, *, causal: bool) -> Tensor:
    """Step `step`'s scores with the top k keys of step `source` masked, by hand."""
    out = before[step, layer].clone()
    for b in range(len(PROMPTS)):
        real = [i for i in range(out.shape[-1]) if valid[step][b, i]]
        then = [i for i in range(before[source, layer].shape[-1]) if valid[source][b, i]]
        for h in range(out.shape[1]):
            pattern = before[source, layer][b, h].softmax(-1).nan_to_num(0.0)
            sinks = top_keys(pattern, then[-1:] if causal else then, then, k)
            for i in real:
                seen = [j for j in real if out[b, h, i, j] > -INF]
                gone = [j for j in seen if j in sinks]
                if gone == seen:
                    gone.remove(int(out[b, h, i].argmax()))
                out[b, h, i, gone] = -INF
    return out


@pytest.mark.parametrize("first", ["none", "same"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_previous_step_edits_what_stood_out_one_step_before(model: Model, family: str, k: int, first: str) -> None:
    dlm = model(family)
    before, after, valid = watched(dlm, MaskSinks(PreviousStep(top_k=k, first=first)))
    assert set(after) == {(step, layer) for step in range(5) for layer in range(2)}
    for (step, layer), scores in after.items():
        if step == 0 and first == "none":
            assert torch.equal(scores, before[0, layer])
            continue
        expected = expected_at(before, valid, max(step - 1, 0), step, layer, k, causal=dlm.is_causal)
        assert torch.equal(scores, expected)
        assert not torch.equal(scores, before[step, layer])


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_a_scope_of_steps_still_sees_the_step_before_it(model: Model, family: str) -> None:
    dlm = model(family)
    before, after, valid = watched(dlm, MaskSinks(PreviousStep(top_k=1), where=Scope(steps=slice(3, None))))
    for (step, layer), scores in after.items():
        if step < 3:
            assert torch.equal(scores, before[step, layer])
        else:
            expected = expected_at(before, valid, step - 1, step, layer, 1, causal=dlm.is_causal)
            assert torch.equal(scores, expected)
            assert not torch.equal(scores, before[step, layer])


@pytest.mark.parametrize("first", ["none", "same"])
def test_only_the_very_step_before_counts(first: Any) -> None:
    """What was seen two steps before is stale, and is refused; `watch` shows the one before."""
    edit, memory = MaskSinks(PreviousStep(top_k=1, first=first)), Memory()
    early, late = (canvas_of(2, 6, seed=1, step=step) for step in (1, 3))
    scores, others = scores_for(early, 1), scores_for(early, 2)
    with pytest.raises(ScopeError, match="has not been shown the forward before this one"):
        call(edit, early, scores, memory=memory)
    look(edit, dataclasses.replace(early, step=0), others, memory)
    fresh = MaskSinks(SameStep(top_k=1))
    out = call(edit, early, scores, memory=memory)
    masked = (out == -INF) & (scores > -INF)
    assert torch.equal(masked.any(-2), (call(fresh, early, others) == -INF).any(-2) & early.valid[:, None])
    with pytest.raises(ScopeError, match="was last shown step 1, and acts at step 3"):
        call(edit, late, others, memory=memory)
    look(edit, dataclasses.replace(late, step=2), others, memory)
    before = memory.counts()
    again = call(edit, late, scores, memory=memory)
    masked = (again == -INF) & (scores > -INF)
    assert torch.equal(masked.any(-2), (call(fresh, late, others) == -INF).any(-2) & late.valid[:, None])
    assert memory.counts()["keys"] == 2 * before["keys"] == 2 * 2 * HEADS  # looking counts nothing


def look(edit: SinkEdit, canvas: Canvas | None, tensor: Tensor, memory: Memory) -> None:
    """Show a forward, alike in both layers, to an edit that looks back; it changes nothing."""
    hooks = edit.watch(fake(), canvas, memory)
    assert [name for name, _ in hooks] == [f"blocks.{layer}.attn.{edit.hook_point}" for layer in (0, 1)]
    for _, function in hooks:
        assert function(tensor, hook=None) is None


def test_outside_the_loop_the_forward_before_is_shown_by_hand(model: Model) -> None:
    """Without one the edit would do nothing, and nothing would say so."""
    dlm, tokens = model("LLaDA"), torch.tensor(PROMPTS[1:2])
    edit, memory = MaskSinks(PreviousStep(top_k=1)), Memory()
    with pytest.raises(ScopeError, match=r"has not been shown the forward before.*edit\.watch.*first='same'"):
        edit.fwd_hooks(dlm)
    with torch.no_grad():
        same = dlm.run_with_hooks(tokens, fwd_hooks=MaskSinks(SameStep(top_k=1)).fwd_hooks(dlm))
        first = dlm.run_with_hooks(tokens, fwd_hooks=MaskSinks(PreviousStep(top_k=1, first="same")).fwd_hooks(dlm))
        plain = dlm.run_with_hooks(tokens, fwd_hooks=edit.watch(dlm, None, memory))
        assert memory.counts() == {}
        after = dlm.run_with_hooks(tokens, fwd_hooks=edit.hooks(dlm, None, memory))
    assert torch.equal(first, same)
    assert (plain - same).abs().max() > 0.1
    assert (after - plain).abs().max() > 0.1
    assert memory.counts()["keys"] == 2 * 4


def test_steps_that_are_not_consecutive_each_see_the_step_before(model: Model) -> None:
    dlm = model("LLaDA")
    before, after, valid = watched(dlm, MaskSinks(PreviousStep(top_k=1), where=Scope(steps=[1, -1])))
    for (step, layer), scores in after.items():
        if step in (1, 4):
            assert torch.equal(scores, expected_at(before, valid, step - 1, step, layer, 1, causal=False))
        else:
            assert torch.equal(scores, before[step, layer])


@pytest.mark.parametrize("selector", [PreviousStep(top_k=1, first="same"), PreviousStep(SinkRule()), SameStep(top_k=1)])
def test_masking_does_not_alternate(model: Model, selector: Any) -> None:
    """A key that stays dominant is masked at every step, though at each it has no mass left after the edit."""
    dominant = 7  # a real key of every row
    _, after, valid = watched(model("LLaDA"), MaskSinks(selector), raise_key=dominant)
    for (step, _), scores in after.items():
        if step == 0 and isinstance(selector, PreviousStep) and selector.first == "none":
            continue
        rows = valid[step][:, None].expand(scores.shape[:-1])
        assert (scores[..., dominant][rows] == -INF).all()


def test_a_run_does_not_remember_the_one_before(model: Model) -> None:
    dlm, edit = model("LLaDA"), MaskSinks(PreviousStep(top_k=1))
    first = denoise(dlm, PROMPTS, Plan(new_tokens=4), interventions=[edit], progress=False)
    counts = first.memories[0].counts()
    second = denoise(dlm, PROMPTS, Plan(new_tokens=4), interventions=[edit], progress=False)
    assert torch.equal(first.tokens, second.tokens)
    assert first.memories[0].counts() == second.memories[0].counts() == counts
    assert counts["keys"] == 3 * 3 * 2 * 4  # steps 1 to 3, rows, layers, heads


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("selector", [SameStep(top_k=1), PreviousStep(top_k=1)])
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_out_of_its_steps_an_edit_changes_no_bit(model: Model, family: str, kind: Any, selector: Any) -> None:
    """The true tokens are committed from left to right in both runs, so that both see the same canvases."""
    dlm = model(family)
    force = [[10 + i, 20 + i, 30 + i, 40 + i, 50 + i] for i in range(3)]
    plan = plan_for(dlm, 5) if dlm.is_causal else Plan(new_tokens=5, block_length=1)
    edit = kind(selector, where=Scope(steps=[2]))
    runs = [
        list(denoising_steps(dlm, PROMPTS, plan, force=force, interventions=edits, probes=[ReceivedAttention()]))
        for edits in ([], [edit])
    ]
    for plain, edited in zip(*runs, strict=True):
        assert torch.equal(plain.canvas.tokens, edited.canvas.tokens)
        assert torch.equal(plain.logits, edited.logits) == (plain.index != 2)


# Rows are independent.

INDEPENDENT = {
    "mask": MaskSinks(PreviousStep(top_k=2)),
    "zero": ZeroSinks(SameStep(SinkRule(epsilon=1.0, top_k=3))),
    "masked queries": MaskSinks(SameStep(SinkRule(None, top_k=1, keys="committed")), queries="response"),
    "random": control(MaskSinks(PreviousStep(top_k=2)), seed=1),
    "random zero": control(ZeroSinks(SameStep(top_k=1)), seed=2),
}


@pytest.mark.parametrize("edit", INDEPENDENT.values(), ids=INDEPENDENT)
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_a_row_does_not_depend_on_its_batch(model: Model, family: str, edit: SinkEdit) -> None:
    dlm = model(family)
    plan, seeds = plan_for(dlm, 5, temperature=1.0), [11, 12, 13]

    def outputs(order: list[int]) -> dict[int, Any]:
        prompts = [PROMPTS[row] for row in order]
        chosen = [seeds[row] for row in order]
        steps = list(denoising_steps(dlm, prompts, plan, interventions=[edit], seed=chosen))
        longest = max(map(len, prompts))
        out = {}
        for at, row in enumerate(order):
            start = longest - len(PROMPTS[row])
            logits = [step.logits[at, start + 1 :] for step in steps]
            out[row] = steps[-1].tokens[at, start:].tolist(), logits
        return out

    alone = {row: outputs([row])[row] for row in range(3)}
    for order in ([0, 1, 2], [2, 0]):
        for row, (tokens, logits) in outputs(order).items():
            assert tokens == alone[row][0]
            for ours, theirs in zip(logits, alone[row][1], strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


# Controls.


def drawn(selector: Selector, canvas: Canvas, received: Tensor, layer: int = 0) -> Tensor:
    """Keys that a control selects, every valid key being eligible."""
    eligible = canvas.valid[:, None].expand(received.shape)
    evidence = Evidence(None, layer, canvas, Sight(canvas.valid), "all", received, eligible, Memory())
    return selector.find(evidence)[0]


@given(**shapes, k=st.integers(1, 9), epsilon=st.sampled_from([None, 0.5, 1.5]))
def test_as_many_random_keys_and_none_of_them_a_sink(
    batch: int, length: int, seed: int, k: int, epsilon: float | None
) -> None:
    canvas, of = canvas_of(batch, length, seed), SameStep(SinkRule(epsilon, top_k=k))
    received = torch.rand(batch, HEADS, length, generator=torch.Generator().manual_seed(seed)) * 6
    received = received.masked_fill(~canvas.valid[:, None], 0.0)
    eligible = canvas.valid[:, None].expand(received.shape)
    sinks = drawn(of, canvas, received)
    random = drawn(RandomKeys(of, seed=seed), canvas, received)
    assert not (random & sinks).any()
    assert not (random & SinkRule()(received, eligible)).any()
    assert not (random & ~eligible).any()
    free = eligible & ~sinks & ~SinkRule()(received, eligible)
    assert torch.equal(random.sum(-1), torch.minimum(sinks.sum(-1), free.sum(-1)))


def flat(batch: int, length: int, seeds: tuple[int, ...] | None = None, step: int = 0) -> tuple[Canvas, Tensor]:
    """A canvas without padding, and received attention with one sink: key 0."""
    canvas = dataclasses.replace(canvas_of(batch, length, 0, pads=False), step=step)
    received = torch.full((batch, HEADS, length), 0.5)
    received[..., 0] = 9.0
    return dataclasses.replace(canvas, seeds=seeds or tuple(range(batch))), received


def test_random_keys_are_uniform_over_the_eligible_ones() -> None:
    """Pearson's statistic over 3 x 4000 draws from 7 keys: its mean is 6, and 33 is passed once in 100 000."""
    rows = 4000
    canvas, received = flat(rows, 8)
    for layer in range(3):
        counts = drawn(RandomKeys(SameStep(top_k=1)), canvas, received, layer).sum((0, 1))
        assert int(counts[0]) == 0
        assert int(counts.sum()) == rows * HEADS
        expected = rows * HEADS / 7
        assert float((counts[1:] - expected).square().sum() / expected) < 33


@pytest.mark.parametrize("selector", [SameStep(top_k=1), SameStep(SinkRule(epsilon=None, top_k=1))])
def test_a_sink_that_the_selector_leaves_is_not_drawn_either(selector: SameStep) -> None:
    """Keys 0 and 1 are sinks by the standard rule, of which top_k=1 selects one."""
    canvas, received = flat(300, 20)
    received[..., 1] = 8.0
    counts = drawn(RandomKeys(selector), canvas, received).sum((0, 1))
    assert counts[:2].tolist() == [0, 0]
    assert (counts[2:] > 0).all()


def test_random_pairs_of_keys_are_uniform() -> None:
    """Not only each key: 3 x 4000 draws of 2 of 5 keys, 10 pairs (9 degrees of freedom, 40 once in 100 000)."""
    canvas, received = flat(4000, 7)
    received[..., 1] = 8.0  # two sinks
    chosen = drawn(RandomKeys(SameStep(top_k=2)), canvas, received)
    pairs = chosen.flatten(0, 1)[:, 2:].long() @ (2 ** torch.arange(5))
    counts = torch.bincount(pairs, minlength=32)[[3, 5, 6, 9, 10, 12, 17, 18, 20, 24]]
    assert int(counts.sum()) == 12_000
    assert float((counts - 1200).square().sum() / 1200) < 40


def test_random_keys_differ_by_layer_head_step_and_seeds() -> None:
    """Two independent draws from 40 keys agree once in 40; all four rows of one agree by far never."""
    canvas, received = flat(60, 41, seeds=(5,) * 60)
    selector = RandomKeys(SameStep(top_k=1))
    base = drawn(selector, canvas, received).float().argmax(-1)
    assert (base == base[:1]).all()  # same seed, same keys
    assert torch.equal(base, drawn(RandomKeys(SameStep(top_k=1)), canvas, received).float().argmax(-1))
    assert len(set(base[0].tolist())) > 1  # heads
    varied = {
        "layer": [drawn(selector, canvas, received, layer)[0] for layer in range(60)],
        "step": [drawn(selector, dataclasses.replace(canvas, step=step), received)[0] for step in range(60)],
        "row seed": list(drawn(selector, dataclasses.replace(canvas, seeds=tuple(range(60))), received)),
        "seed": [drawn(RandomKeys(SameStep(top_k=1), seed=seed), canvas, received)[0] for seed in range(60)],
    }
    for what, draws in varied.items():
        keys = torch.stack([draw[0].float().argmax() for draw in draws])
        assert len(keys.unique()) >= 25, what  # 60 draws from 40 keys hit 31 different ones on average
        repeats = int((keys[1:] == keys[:-1]).sum())
        assert repeats <= 8, what


def test_random_keys_do_not_depend_on_padding() -> None:
    canvas, received = flat(2, 8, seeds=(3, 4))
    received[..., 1] = 8.0
    selector = RandomKeys(SameStep(top_k=2))
    plain = drawn(selector, canvas, received)
    pad = torch.zeros(2, 5, dtype=torch.bool)
    wider = dataclasses.replace(
        canvas,
        tokens=torch.cat([torch.zeros(2, 5, dtype=torch.long), canvas.tokens], 1),
        valid=torch.cat([pad, canvas.valid], 1),
        masked=torch.cat([pad, canvas.masked], 1),
        prompt=torch.cat([pad, canvas.prompt], 1),
    )
    padded = drawn(selector, wider, torch.cat([torch.zeros(2, HEADS, 5), received], -1))
    assert torch.equal(padded[..., 5:], plain)
    assert not padded[..., :5].any()


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
@pytest.mark.parametrize("kind", EDITS)
def test_a_control_does_as_much_as_its_edit_in_the_same_scope(model: Model, family: str, kind: type[SinkEdit]) -> None:
    dlm = model(family)
    # From step 2 on even the baseline's shortest row has two keys that are no sinks.
    edit = kind(PreviousStep(top_k=2), where=Scope(layers=[1], heads=[0, 2], steps=slice(2, None)))
    matched = control(edit)
    assert (type(matched), matched.where) == (kind, edit.where)
    ours, theirs = (steps_of(dlm, each)[-1].memories[0].counts() for each in (edit, matched))
    assert ours["keys"] == 3 * 3 * 2 * 2  # steps, rows, heads, keys
    assert theirs["keys"] == ours["keys"]


@pytest.mark.parametrize("k", [1, 2])
def test_a_control_draws_no_key_that_the_matched_selector_finds(model: Model, k: int) -> None:
    """In the loop: the columns that a control masks are not the top k of the step before."""
    before, after, valid = watched(model("LLaDA"), control(MaskSinks(PreviousStep(top_k=k))))
    for (step, layer), scores in after.items():
        for b in range(3):
            real = [i for i in range(scores.shape[-1]) if valid[step][b, i]]
            for h in range(4):
                gone = [j for j in real if (scores[b, h, real, j] == -INF).all()]
                if step == 0:
                    assert gone == []
                    continue
                pattern = before[step - 1, layer][b, h].softmax(-1).nan_to_num(0.0)
                assert not set(gone) & set(top_keys(pattern, real, real, k))
                assert len(gone) == k


def test_making_a_control_leaves_the_edit_as_it_was(model: Model) -> None:
    dlm, edit = model("LLaDA"), MaskSinks(PreviousStep(top_k=1), where=Scope(layers=[1]))
    first, content = steps_of(dlm, edit), edit.to_dict()
    counts = first[-1].memories[0].counts()
    steps_of(dlm, control(edit))
    assert edit.to_dict() == content
    assert first[-1].memories[0].counts() == counts
    for step, again in zip(first, steps_of(dlm, edit), strict=True):
        assert torch.equal(step.logits, again.logits)


def test_edit_and_control_run_side_by_side(model: Model) -> None:
    """Both watch the same steps without getting into each other's memory."""
    dlm, edit = model("LLaDA"), MaskSinks(PreviousStep(top_k=1), where=Scope(layers=[0]))
    matched = control(MaskSinks(PreviousStep(top_k=1), where=Scope(layers=[1])))
    run = denoise(dlm, PROMPTS, Plan(new_tokens=4), interventions=[edit, matched], progress=False)
    assert [memory.counts()["keys"] for memory in run.memories] == [3 * 3 * 4] * 2


# Errors.


def test_a_threshold_on_one_query_is_refused_with_a_reason(model: Model) -> None:
    """By "auto" or by name; a rule that counts all queries means what it says, also in a baseline."""
    one = SinkRule(epsilon=3.0, top_k=1, queries="auto")
    for selector in (SameStep(), PreviousStep(one), RandomKeys(SameStep())):
        with pytest.raises(ScopeError, match=r"at most 1, so epsilon=3 can never fire; use top_k"):
            denoise(model("Llama"), PROMPTS, Plan(new_tokens=2), interventions=[MaskSinks(selector)], progress=False)
        with pytest.raises(ScopeError, match="can never fire"):
            MaskSinks(selector).fwd_hooks(model("Llama"))
    for rule in (SinkRule(), SinkRule(0.3, queries="auto")):
        assert len(steps_of(model("Llama"), MaskSinks(SameStep(rule)), new_tokens=2)) == 2
    assert len(steps_of(model("LLaDA"), MaskSinks(SameStep()), new_tokens=2)) == 2


@pytest.mark.usefixtures("no_forward")
def test_a_threshold_on_one_query_is_refused_before_any_forward(model: Model) -> None:
    with pytest.raises(ScopeError, match="can never fire"):
        denoise(model("Llama"), PROMPTS, Plan(new_tokens=2), interventions=[MaskSinks(SameStep())], progress=False)


@pytest.mark.parametrize("selector", [SameStep, PreviousStep])
def test_a_rule_and_top_k_together_are_refused(selector: Any) -> None:
    for rule in (SinkRule(), SinkRule(queries="auto")):
        with pytest.raises(ValueError, match="give a rule or top_k, not both"):
            selector(rule, top_k=1)


def test_an_unknown_first_step_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="first='last' is unknown; choose from 'none', 'same'"):
        PreviousStep(top_k=1, first="last")  # pyright: ignore[reportArgumentType]


def test_edits_that_differ_are_told_apart() -> None:
    """By content, and by the names that firing counts are read by."""
    edits = [
        kind(selector, **reach)
        for kind in EDITS
        for selector in (
            SameStep(top_k=1),
            PreviousStep(top_k=1),
            PreviousStep(top_k=1, first="same"),
            PreviousStep(top_k=2),
            PreviousStep(every(1)),
            PreviousStep(SinkRule(epsilon=3.0, top_k=1)),
            RandomKeys(PreviousStep(top_k=1)),
            RandomKeys(PreviousStep(top_k=1), seed=1),
        )
        for reach in (
            {},
            {"where": Scope(layers=[0])},
            {"where": Scope(steps=slice(3, None))},
            {"diagonal": False},
            {"queries": "masked"},
        )
    ]
    for tell in (lambda each: each.digest, repr):
        assert len({tell(edit) for edit in edits}) == len(edits)
