"""Keys left out of attention: the numbers of scores of minus infinity, and no scores."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sinklens as sl
from sinklens.hooks import by_query, watching
from sinklens.interventions import LearnedSelection
from sinklens.models import blocks, dropping
from sinklens.selection.gate import Gate, Shape
from sinklens.sinks import Sight

FAMILIES = ["LLaDA", "Llama", "Dream", "BERT", "ModernBERT", "GPT-2", "MDLM"]


@pytest.fixture(scope="module")
def model(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random models of a family, each with a gate."""

    @lru_cache
    def make(family: str) -> tuple[Any, str]:
        dlm = tiny_model(family, layers=3)
        folder = tmp_path_factory.mktemp("gates") / family
        return dlm, str(Gate.fresh(Shape(first=0), dlm, seed=4).save(folder))

    return make


def sights(keys: int, queries: int, kind: str, generator: torch.Generator) -> Sight:
    valid = torch.ones(2, keys, dtype=torch.bool)
    match kind:
        case "open":
            return Sight(valid, queries=queries)
        case "causal":
            return Sight(valid, "causal", queries=queries)
        case "left padding":
            return Sight(torch.arange(keys) >= torch.tensor([[0], [keys // 2]]), queries=queries)
        case "causal, padding":
            return Sight(torch.arange(keys) >= torch.tensor([[keys // 3], [0]]), "causal", queries=queries)
        case "window":
            return Sight(valid, window=3, queries=queries)
    mask = torch.rand(2, queries, keys, generator=generator) < 0.5  # any relation, queries that see nothing too
    return Sight(valid, mask=mask, queries=queries)


@given(
    seed=st.integers(0, 10**6),
    keys=st.integers(1, 12),
    cached=st.integers(0, 4),
    groups=st.sampled_from([1, 2]),
    kind=st.sampled_from(["open", "causal", "left padding", "causal, padding", "window", "mask"]),
    share=st.floats(0, 1),
)
def test_it_is_attention_with_scores_of_minus_infinity(
    seed: int, keys: int, cached: int, groups: int, kind: str, share: float
) -> None:
    """Against a loop in float64: every query by itself, over the kept keys that it sees, or its largest."""
    generator = torch.Generator().manual_seed(seed)
    queries = max(1, keys - cached)
    sight = sights(keys, queries, kind, generator)
    q, k, v = (
        torch.randn(2, heads, size, 4, generator=generator)
        for heads, size in ((2 * groups, queries), (2, keys), (2, keys))
    )
    kept = (torch.rand(2, keys, generator=generator) < share) & sight.valid

    class Module(torch.nn.Module):
        num_key_value_groups = groups

    with torch.no_grad():
        out = dropping.attend(Module(), q, k, v, sight, kept, scaling=0.5)
    sees = sight.rows(slice(0, queries)).expand(2, queries, keys)
    blind = sight.blind(kept).expand(2, queries)
    for row in range(2):
        for query in range(queries):
            seen = [j for j in range(keys) if sees[row, query, j]]
            left = [j for j in seen if kept[row, j]]
            assert bool(blind[row, query]) == bool(seen and not left)
            for head in range(2 * groups):
                scores = {
                    j: 0.5 * float(q[row, head, query].double() @ k[row, head // groups, j].double()) for j in seen
                }
                used = left or ([max(scores, key=lambda j: scores[j])] if seen else [])
                if not used:
                    continue  # a query that sees nothing is padding
                total = sum(math.exp(scores[j]) for j in used)
                expected = sum(math.exp(scores[j]) / total * v[row, head // groups, j].double() for j in used)
                torch.testing.assert_close(out[row, query, head].double(), expected, atol=1e-5, rtol=1e-4)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_a_model_gives_the_same_by_both_ways(model: Any, family: str, padding: str, rate: float) -> None:
    dlm, folder = model(family)
    tokens = torch.randint(3, 60, (3, 13), generator=torch.Generator().manual_seed(7))
    places = torch.arange(13)
    valid = {
        "none": torch.ones(3, 13, dtype=torch.bool),
        "left": places >= torch.tensor([[0], [4], [9]]),
        "right": places < torch.tensor([[13], [9], [5]]),
    }[padding]
    canvas, edit = sl.Canvas(tokens, valid, valid & False, valid), LearnedSelection(folder, rate=rate)
    found: dict[str, tuple[torch.Tensor, dict[str, float]]] = {}
    for path in ("auto", "pattern"):
        memory = edit.memory()
        dlm.attention = path
        try:
            with torch.no_grad(), dlm.hooks(fwd_hooks=edit.fwd_hooks(dlm, canvas, memory)):
                found[path] = dlm(tokens, attention_mask=valid)[valid], memory.counts()
        finally:
            dlm.attention = "auto"
    (logits, counts), (others, theirs) = found.values()
    torch.testing.assert_close(logits, others, atol=2e-3, rtol=1e-3)
    assert math.isnan(counts.pop("mass"))
    assert theirs.pop("mass") > 0 or rate > 0.5  # an untrained gate may keep everything then
    assert counts == theirs
    assert 0 < counts["kept"] < counts["eligible"] or rate > 0.5


def test_scores_are_not_formed_unless_somebody_looks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm, folder = model("Llama")
    tokens, edit = torch.tensor([[5, 17, 9, 33, 8, 21, 50]]), LearnedSelection(folder, rate=0.4)
    calls: list[str] = []
    fast, whole = dropping.attend, blocks.attend
    monkeypatch.setattr(dropping, "attend", lambda *args, **more: (calls.append("fast"), fast(*args, **more))[1])
    monkeypatch.setattr(
        "sinklens.models.blocks.attend", lambda *args, **more: (calls.append("open"), whole(*args, **more))[1]
    )

    def run(*hooks: Any, grad: bool = False) -> tuple[torch.Tensor, list[str]]:
        calls.clear()
        with torch.set_grad_enabled(grad), dlm.hooks(fwd_hooks=[*edit.fwd_hooks(dlm), *hooks]):
            return dlm(tokens).detach(), list(calls)

    logits, used = run()
    assert used == ["fast"] * 3

    def look(tensor: torch.Tensor, *, hook: Any) -> None:
        return None

    for point in ("hook_pattern", "hook_attn_scores", "hook_received"):
        for hook in (look, watching(look), by_query(look)):
            others, used = run((f"blocks.1.attn.{point}", hook))
            assert used == ["fast", "open", "fast"]
            torch.testing.assert_close(logits, others, atol=1e-3, rtol=1e-3)
    others, used = run(grad=True)
    assert used == ["open"] * 3
    torch.testing.assert_close(logits, others, atol=1e-3, rtol=1e-3)
    others, used = run(("blocks.1.attn.hook_rot_k", look))
    assert used == ["fast"] * 3
    for narrower in ({"queries": "last"}, {"where": sl.Scope(heads=0)}, {"diagonal": False}):
        with torch.no_grad():
            calls.clear()
            with dlm.hooks(fwd_hooks=LearnedSelection(folder, rate=0.4, **narrower).fwd_hooks(dlm)):  # pyright: ignore[reportArgumentType]
                dlm(tokens)
            assert calls == ["open"] * 3


def test_a_run_is_the_same_by_both_ways(model: Any) -> None:
    """In the loop, where rows that an edit changes are noted and hooks are counted."""
    dlm, folder = model("LLaDA")
    runs = []
    for path in ("auto", "pattern"):
        dlm.attention = path
        try:
            edit = LearnedSelection(folder, rate=0.4, where=sl.Scope(steps=[1, 2]))
            prompts = [[5, 17, 9, 33, 8, 21, 50], [12, 40, 7]]
            runs.append(sl.denoise(dlm, prompts, sl.Plan(new_tokens=5), interventions=[edit], progress=False))
        finally:
            dlm.attention = "auto"
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    assert runs[0].fired == runs[1].fired
    counts = [run.memories[0].counts() | {"mass": 0.0} for run in runs]
    assert counts[0] == counts[1]
    assert runs[0].memories[0].forwards.tolist() == runs[1].memories[0].forwards.tolist() == [2, 2]
