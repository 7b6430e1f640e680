"""Blocks of queries instead of whole patterns: the same numbers for every probe and edit, and no whole pattern."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from made_autoencoders import by_chance

from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, SameStep, Scope, denoise, probes
from sinklens.directions import Direction
from sinklens.errors import ScopeError
from sinklens.hooks import Canvas, by_query, watching
from sinklens.interventions import (
    BiasSinks,
    ByKeyNorm,
    ByToken,
    Feature,
    Fixed,
    FromRecord,
    InOrder,
    KeepKeys,
    LastQuery,
    MeanValue,
    NoiseValue,
    NoOp,
    NullKey,
    Pin,
    Redistribute,
    ScaleSinks,
    SideBySide,
    SinkToken,
    Splice,
    Steer,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.interventions.controls import CONTROLS
from sinklens.models import blocks as attention_blocks
from sinklens.models.families import FAMILIES, named
from sinklens.models.fingerprint import ModelId
from sinklens.sinks import SinkRule, received_attention

Model = Any
PROMPTS = [[5, 17, 9, 33, 8, 21, 50], [12, 40, 7]]
PLAN = Plan(new_tokens=6, temperature=1.0)
LONGEST = len(PROMPTS[0]) + 6


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """Random models of a family, one per family."""
    return lru_cache(tiny_model)


def hidden(dlm: HookedDLM) -> Any:
    """Some queries: the masked ones, or in a baseline, which has none, those that it wrote."""
    return "response" if dlm.is_causal else "masked"


def every_probe(dlm: HookedDLM) -> list[Any]:
    """All that read the pattern, query by query, and some that need none."""
    overlap = [] if dlm.is_causal else [probes.MaskedVsCommitted(SinkRule(epsilon=0.3))]
    return [
        probes.ReceivedAttention(queries=("all", "masked", "committed", "last")),
        probes.SinkMask(SinkRule(epsilon=0.3)),
        *overlap,
        probes.AttentionEntropy(queries=hidden(dlm)),
        probes.MassOn([0, 2], queries="committed"),
        probes.Contribution(Scope(heads=[0, 3])),
        probes.Pattern(),
        probes.KeyNorm(),
        probes.QKDecomposition(),
    ]


def direction(dlm: HookedDLM) -> Direction:
    """A random one of a model."""
    vectors = torch.randn(dlm.n_layers, int(dlm.cfg.d_model), generator=torch.Generator().manual_seed(0))
    norms = (1.0,) * dlm.n_layers
    return Direction(vectors, tuple(range(dlm.n_layers)), "hook_out", norms, "all", ModelId.of(dlm), {})


def edits(record: Any, dlm: HookedDLM) -> dict[str, Any]:
    """Every operator, selector and control: those that know their keys before the forward, and those that preview."""
    before, same = partial(PreviousStep, top_k=2), partial(SameStep, top_k=2)
    return {
        "mask": MaskSinks(before(), diagonal=False),
        "open": MaskSinks(SameStep(top_k=2, loop="open")),
        "open before": MaskSinks(before(loop="open"), where=Scope(steps=[1, 4])),
        "last": MaskSinks(LastQuery(top_k=2)),
        "bias": BiasSinks(-1.5, before(), queries=hidden(dlm)),
        "zero": ZeroSinks(before(), where=Scope(heads=1)),
        "scale": ScaleSinks(0.3, before(), renormalise=True),
        "proportional": Redistribute("proportional", before()),
        "uniform": Redistribute("uniform", before(), share=0.6),
        "self": Redistribute("self", before()),
        "position": Redistribute(1, before()),
        "swap": Swap(before()),
        "zero value": ZeroValue(before()),
        "mean value": MeanValue(before(), where=Scope(layers=0)),
        "noise value": NoiseValue(None, before()),
        "null key": NullKey(0.5, queries=hidden(dlm)),
        "sink token": SinkToken(3),
        "keep norm": KeepKeys(0.5, "key_norm"),
        "keep random": KeepKeys(3, "random"),
        "keep hidden": KeepKeys(2, "hidden_norm"),  # more would choose among mask tokens, all alike, by rounding
        "fixed": MaskSinks(Fixed([0, 3])),
        "token": MaskSinks(ByToken([9, 62])),
        "norm": MaskSinks(ByKeyNorm(2)),
        "record": MaskSinks(FromRecord(record, SinkRule(None, top_k=1))),
        "pin": Pin(record),
        "no-op": NoOp(before()),
        "splice": Splice(by_chance(json.loads(record.attrs["provenance"])["model"]), queries=hidden(dlm)),
        "feature": Feature(by_chance(json.loads(record.attrs["provenance"])["model"]), [0, 5], boost=0.5),
        "in order": InOrder(
            MaskSinks(PreviousStep(top_k=1)), ScaleSinks(0.5, Fixed(1)), ZeroValue(Fixed(2)), NullKey(-1.0)
        ),
        "side by side": SideBySide([MaskSinks(before()), ZeroSinks(Fixed(1))], 1),
        "same": MaskSinks(same()),
        "same, some": MaskSinks(same(), where=Scope(heads=[0, 2]), queries=hidden(dlm), diagonal=False),
        "same zero": ZeroSinks(SameStep(SinkRule(epsilon=0.3))),
        "same share": ZeroSinks(SameStep(SinkRule(epsilon=0.3, units="share"))),
        "same value": ZeroValue(same()),
        "first": BiasSinks(2.0, before(first="same")),
        "keep received": KeepKeys(0.5, "received"),
        "two that preview": InOrder(ZeroSinks(same()), MaskSinks(same()), ScaleSinks(2.0, same(), renormalise=True)),
        "preview amid others": InOrder(
            BiasSinks(-1.0, before()), MaskSinks(same()), SinkToken(3), ZeroSinks(same()), NoiseValue(None, same())
        ),
        "side by side, previewing": SideBySide([ZeroSinks(same()), control(MaskSinks(before()), seed=3)], 1),
        "side by side, two that preview": SideBySide(
            [InOrder(ZeroSinks(SameStep(top_k=1)), ZeroSinks(SameStep(top_k=1))), ZeroSinks(same())], 1
        ),
        "steer": InOrder(Steer(direction(dlm), 3.0, positions="response", schedule="linear"), MaskSinks(same())),
        "steer at random": control(Steer(direction(dlm), 3.0, positions="committed"), "random_direction", seed=5),
        **{f"control {name}": control(MaskSinks(before()), name, seed=5) for name in (*CONTROLS, "noop")},
    }


NAMES = [
    "mask", "open", "open before", "last", "bias", "zero", "scale", "proportional", "uniform", "self", "position",
    "swap", "zero value", "mean value", "noise value", "null key", "sink token", "keep norm", "keep random",
    "keep hidden", "fixed", "token", "norm", "record", "pin", "no-op", "splice", "feature", "in order", "side by side",
    "same", "same, some", "same zero", "same share", "same value", "first", "keep received", "two that preview",
    "preview amid others", "steer", "steer at random", "side by side, previewing", "side by side, two that preview",
    "control random", "control same_mass", "control bottom", "control same_class", "control shifted", "control noop",
]  # fmt: skip


def run(dlm: HookedDLM, edit: Any, path: str, **options: Any) -> Any:
    """One run by one path."""
    plan = PLAN.for_causal() if dlm.is_causal else PLAN
    dlm.attention = path
    try:
        return denoise(
            dlm,
            PROMPTS,
            plan,
            interventions=[] if edit is None else [edit],
            probes=every_probe(dlm),
            seed=[3, 8],
            progress=False,
            **options,
        )
    finally:
        dlm.attention = "auto"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three queries at a time: every canvas here has several blocks, the last one shorter."""
    monkeypatch.setattr(attention_blocks, "rows_at_once", lambda *_: 3)


@lru_cache
def recorded(dlm: HookedDLM) -> Any:
    """A clean record with patterns."""
    plan = PLAN.for_causal() if dlm.is_causal else PLAN
    measured = [probes.ReceivedAttention(), probes.Pattern()]
    return denoise(dlm, PROMPTS, plan, probes=measured, seed=[3, 8], progress=False).record


# Every stock class, both directions, shifted and not: other families are these classes with other config.json files.
MATRIX = [
    "LLaDA", "Dream", "CoDA", "LLaDA-MoE", "RND1", "Llama", "Qwen3", "BERT", "RoBERTa", "ModernBERT", "ESM-2", "GPT-2",
    "DiffuGPT", "MDLM", "LLaDA2",
]  # fmt: skip


def test_every_stock_class_is_in_the_matrix() -> None:
    assert {named(name).model_class for name in MATRIX} == {family.model_class for family in FAMILIES}


@pytest.mark.parametrize("name", ["nothing", *NAMES])
@pytest.mark.parametrize("family", MATRIX)
def test_blocks_give_the_numbers_of_whole_patterns(model: Any, family: str, name: str) -> None:
    """Padded rows, grouped-query heads, bidirectional and causal: same tokens, same measurements, same counts."""
    dlm = model(family)
    edit = None if name == "nothing" else edits(recorded(dlm), dlm)[name]
    if "SinkToken" in repr(edit) and (dlm.family.closes or dlm.family.positions != "rotary"):
        with pytest.raises(ScopeError, match="no position before the first"):
            run(dlm, edit, "blocks")
        return
    whole, blocks = (run(dlm, edit, path) for path in ("pattern", "blocks"))
    assert torch.equal(whole.tokens, blocks.tokens)
    assert torch.equal(whole.commit_step, blocks.commit_step)
    assert whole.fired == blocks.fired
    for variable in whole.record.data_vars:
        if whole.record[variable].dtype.kind == "f":
            np.testing.assert_allclose(
                blocks.record[variable], whole.record[variable], atol=3e-4, rtol=1e-4, err_msg=str(variable)
            )
    if name != "nothing":
        ours, theirs = (each.memories[0].counts() for each in (blocks, whole))
        assert set(NAMES) == set(edits(recorded(dlm), dlm))
        assert ours.keys() == theirs.keys()
        for count, amount in theirs.items():
            assert ours[count] == pytest.approx(amount, rel=1e-4, abs=1e-4), count


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["pattern", "blocks"])
def test_statistics_are_those_of_float64_in_every_dtype(tiny_model: Any, dtype: torch.dtype, path: str) -> None:
    """Received attention of the queries and keys that the model has, however coarse its own arithmetic is."""
    dlm, kept, seen, probe = tiny_model("LLaDA").to(dtype), {}, {}, probes.ReceivedAttention()
    for block in dlm.blocks:  # sharp attention, where rounded scores would show
        block.attn.original_component.q_proj.weight.data.mul_(8)

    def keep(tensor: torch.Tensor, *, hook: Any) -> None:
        kept[hook.name] = tensor.double().transpose(1, 2)  # [batch, head, pos, d_head]

    dlm.attention = path
    names = [f"blocks.{layer}.attn.hook_rot_{which}" for layer in range(dlm.n_layers) for which in "qk"]
    with torch.no_grad(), dlm.hooks(fwd_hooks=[*probe.fwd_hooks(dlm, seen=seen), *((name, keep) for name in names)]):
        dlm(torch.tensor([PROMPTS[0]]))
    for layer, received in enumerate(probe.values(seen)[0]):
        q, k = (kept[f"blocks.{layer}.attn.hook_rot_{which}"][0] for which in "qk")
        scores = q @ k.repeat_interleave(len(q) // len(k), 0).mT / q.shape[-1] ** 0.5
        assert float(scores.abs().max()) > 5
        torch.testing.assert_close(received.double(), scores.softmax(-1).sum(-2), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_no_more_than_a_block_is_ever_formed(model: Any, family: str) -> None:
    dlm, sizes = model(family), []

    def look(tensor: torch.Tensor, *, hook: Any) -> None:
        sizes.append((tensor.shape[-2], hook.ctx["queries"].start, hook.ctx["queries"].stop))

    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), dlm.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", by_query(look))]):
        dlm(tokens)
    assert sizes == [(3, 0, 3), (3, 3, 6), (1, 6, 7)]


def test_a_hook_that_needs_the_whole_gets_the_whole(model: Any) -> None:
    dlm, sizes = model("LLaDA"), []
    tokens = torch.tensor([PROMPTS[0]])
    probe = probes.ReceivedAttention()

    def look(tensor: torch.Tensor, *, hook: Any) -> None:
        sizes.append(tensor.shape[-2])

    with torch.no_grad(), dlm.hooks(fwd_hooks=[*probe.fwd_hooks(dlm), ("blocks.0.attn.hook_pattern", look)]):
        dlm(tokens)
    assert sizes == [7]
    dlm.attention = "blocks"
    try:
        with (
            pytest.raises(ScopeError, match=r"blocks\.0\.attn\.hook_pattern: a hook needs the whole pattern"),
            torch.no_grad(),
            dlm.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", look)]),
        ):
            dlm(tokens)
    finally:
        dlm.attention = "auto"
    with pytest.raises(ValueError, match="attention='fast' is unknown; choose auto, pattern, blocks"):
        dlm.attention = "fast"


def test_gradients_run_through_whole_patterns(model: Any) -> None:
    dlm, sizes = model("LLaDA"), []

    def look(tensor: torch.Tensor, *, hook: Any) -> None:
        sizes.append((tensor.shape[-2], tensor.requires_grad))

    with dlm.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", by_query(look))]):
        dlm(torch.tensor([PROMPTS[0]]))
    assert sizes == [(7, True)]


def test_only_an_edit_that_needs_its_own_forward_previews_it(model: Model) -> None:
    dlm, canvas = model("LLaDA"), Canvas.plain(torch.ones(1, 7, dtype=torch.bool))
    for selector, rounds in ((SameStep(top_k=1), 1), (PreviousStep(top_k=1, first="same"), 1), (Fixed(0), 0)):
        hooks: list[Any] = MaskSinks(selector).fwd_hooks(dlm, canvas)
        assert [function.rounds for _, function in hooks] == [rounds] * 2, selector
        assert all(function.preview is not None for _, function in hooks)


def test_beside_a_hook_without_a_preview_an_edit_that_previews_gets_the_whole(model: Model) -> None:
    dlm, sizes = model("LLaDA"), []

    def note(tensor: torch.Tensor, *, hook: Any) -> None:
        sizes.append(tensor.shape[-2])

    for noting, expected in ((by_query(note), [7]), (watching(note), [3, 3, 1])):
        sizes.clear()
        hooks = [("blocks.0.attn.hook_attn_scores", noting), *MaskSinks(SameStep(top_k=1)).fwd_hooks(dlm)]
        with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
            dlm(torch.tensor([PROMPTS[0]]))
        assert sizes == expected


@pytest.mark.parametrize("path", ["auto", "pattern"])
@pytest.mark.parametrize("family", ["LLaDA", "Llama", "Dream", "GPT-2", "DiffuGPT"])
def test_hook_received_is_the_column_sum_over_real_queries(model: Any, family: str, path: str) -> None:
    dlm, kept = model(family), {}
    width = len(PROMPTS[0])
    tokens = torch.tensor([PROMPTS[0], [1] * (width - 3) + PROMPTS[1]])
    valid = torch.tensor([[True] * width, [False] * (width - 3) + [True] * 3])

    def keep(name: str, tensor: torch.Tensor, *, hook: Any) -> None:
        kept[name] = tensor.clone()

    hooks = [(f"blocks.1.attn.hook_{name}", partial(keep, name)) for name in ("received", "pattern")]
    with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        dlm(tokens, attention_mask=valid)
    expected = received_attention(kept["pattern"], valid[:, None])
    dlm.attention = path
    try:
        with torch.no_grad(), dlm.hooks(fwd_hooks=hooks[:1]):
            logits = dlm(tokens, attention_mask=valid)
    finally:
        dlm.attention = "auto"
    torch.testing.assert_close(kept["received"], expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(logits[valid], dlm(tokens, attention_mask=valid)[valid], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_softmax_over_its_own_scores_is_the_softmax_bit_for_bit(dtype: torch.dtype) -> None:
    """What blocks rely on where nobody hooks the scores: rows long and short, hidden keys, rows of nothing else."""
    generator = torch.Generator().manual_seed(0)
    for keys in (1, 2, 7, 64, 1000, 4097):
        scores = torch.randn(2, 3, 5, keys, generator=generator, dtype=dtype) * 10
        scores[0, :, :, keys // 2 + 1 :] = float("-inf")
        scores[1, 0, 0] = float("-inf")
        expected = scores.softmax(-1)
        torch.softmax(scores, -1, out=scores)
        assert torch.equal(scores.nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_hooks_that_an_error_interrupted_start_anew(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an edit previewed in a forward that ended early is not taken for the next one's."""
    dlm, point = model("LLaDA"), "blocks.0.attn.hook_pattern"

    def fail(tensor: torch.Tensor, *, hook: Any) -> None:
        raise RuntimeError("enough")

    hooks = MaskSinks(SameStep(top_k=2), where=Scope(layers=0)).fwd_hooks(dlm)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="enough"),
        dlm.hooks(fwd_hooks=[*hooks, (point, watching(fail))]),
    ):
        dlm(torch.tensor([PROMPTS[0]]))
    monkeypatch.setattr(attention_blocks, "rows_at_once", lambda *_: 99)
    found = []
    for used in (hooks, MaskSinks(SameStep(top_k=2), where=Scope(layers=0)).fwd_hooks(dlm)):
        with torch.no_grad(), dlm.hooks(fwd_hooks=used):
            found.append(dlm(torch.tensor([PROMPTS[0][::-1]])))
    assert torch.equal(found[0], found[1])
