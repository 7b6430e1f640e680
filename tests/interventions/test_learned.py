"""LearnedSelection: a gate's choice as an edit, the identity at a rate of 1, and an identity that its gate decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens.errors import ContentError, GateError, ScopeError
from sinklens.interventions import InOrder, KeepKeys, LearnedSelection, MaskSinks, SideBySide, parse, text_of
from sinklens.models import blocks as attention_blocks
from sinklens.models.outline import outline
from sinklens.selection.gate import Gate, Shape

PROMPTS = [[5, 17, 9, 33, 8, 21, 50], [12, 40, 7]]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    made = {name: tiny_model(name, layers=3) for name in ("LLaDA", "Llama", "BERT")}
    return lambda name: made[name]


def gate_of(dlm: Any, folder: Path, seed: int = 4, **shape: Any) -> str:
    return str(Gate.fresh(Shape(**shape), dlm, seed=seed).save(folder))


def run(dlm: Any, *edits: Any, probes: Any = (), **options: Any) -> Any:
    plan = sl.Plan(new_tokens=5)
    plan = plan.for_causal() if dlm.is_causal else plan
    return sl.denoise(dlm, PROMPTS, plan, interventions=edits, probes=probes, progress=False, **options)


def canvas_of(tokens: torch.Tensor, valid: torch.Tensor) -> sl.Canvas:
    return sl.Canvas(tokens, valid, valid & False, valid)


@pytest.mark.parametrize("family", ["LLaDA", "Llama", "BERT"])
def test_a_rate_of_1_is_the_identity_bit_for_bit_and_counts(model: Any, tmp_path: Path, family: str) -> None:
    dlm = model(family)
    edit = LearnedSelection(gate_of(dlm, tmp_path), rate=1)
    tokens = torch.tensor([PROMPTS[0], [1, 1, 1, 1, *PROMPTS[1]]])
    valid = torch.arange(7) >= torch.tensor([[0], [4]])
    memory = edit.memory()
    with torch.no_grad():
        plain = dlm(tokens, attention_mask=valid)
        with dlm.hooks(fwd_hooks=edit.fwd_hooks(dlm, canvas_of(tokens, valid), memory)):
            assert torch.equal(dlm(tokens, attention_mask=valid), plain)
    assert not edit.changes
    assert memory.counts()["kept"] == memory.counts()["eligible"] == 2 * (7 + 3)


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
@pytest.mark.parametrize("shape", [{}, {"scores": "shared", "first": 1}, {"first": 0}, {"kind": "threshold"}])
def test_in_a_forward_the_keys_that_are_not_kept_get_nothing(
    model: Any, tmp_path: Path, family: str, shape: dict[str, Any]
) -> None:
    """By hand: the gate on each layer's input of the same forward; attention of kept keys in the old proportions."""
    dlm, seen = model(family), {}
    folder = gate_of(dlm, tmp_path, **shape)
    gate, edit = Gate.load(folder, dlm), LearnedSelection(folder, rate=0.4)
    tokens = torch.tensor([PROMPTS[0], [1, 1, 1, 1, *PROMPTS[1]]])
    valid = torch.arange(7) >= torch.tensor([[0], [4]])
    memory = edit.memory()

    def keep(tensor: torch.Tensor, *, hook: Any) -> None:
        seen[hook.name] = tensor.clone()

    names = [f"blocks.{layer}.{point}" for layer in range(3) for point in ("hook_in", "attn.hook_pattern")]
    scores: dict[int, torch.Tensor] = {}

    def look(layer: int) -> Any:
        def note(tensor: torch.Tensor, *, hook: Any) -> None:
            scores[layer] = tensor.clone()

        return f"blocks.{layer}.attn.hook_attn_scores", note

    hooks = [look(layer) for layer in range(3)] + edit.fwd_hooks(dlm, canvas_of(tokens, valid), memory)
    with torch.no_grad(), dlm.hooks(fwd_hooks=[*hooks, *((name, keep) for name in names)]):
        dlm(tokens, attention_mask=valid)
    total = dropped = 0
    for layer in range(3):
        source = gate.source(layer)
        kept = valid
        if source is not None:
            kept = gate.keeps(seen[f"blocks.{source}.hook_in"], layer, 0.4, valid)
            total += int(kept.sum())
            dropped += int((valid & ~kept).sum())
        plain = scores[layer].softmax(-1).nan_to_num(0.0)
        expected = plain * kept[:, None, None]
        left = expected.sum(-1, keepdim=True)
        alone = torch.nn.functional.one_hot(plain.argmax(-1), 7).float()
        expected = torch.where(left > 0, expected / left, alone)
        real = valid[:, None, :, None]
        pattern = seen[f"blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(pattern * real, expected * real, atol=1e-5, rtol=1e-4)
    assert dropped > 0
    assert memory.counts()["kept"] == total
    assert memory.counts()["eligible"] == total + dropped


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_in_blocks_of_queries_it_is_the_same(
    model: Any, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_blocks, "rows_at_once", lambda *_: 3)
    dlm, runs = model(family), {}
    edit = LearnedSelection(gate_of(dlm, tmp_path), rate=0.4, queries="response" if dlm.is_causal else "masked")
    for path in ("pattern", "blocks"):
        dlm.attention = path
        try:
            runs[path] = run(dlm, edit, probes=[sl.probes.ReceivedAttention()])
        finally:
            dlm.attention = "auto"
    assert torch.equal(runs["pattern"].tokens, runs["blocks"].tokens)
    received = [each.record["received"].to_numpy() for each in runs.values()]
    np.testing.assert_allclose(*received, atol=3e-4, rtol=1e-4)
    counts = [each.memories[0].counts() for each in runs.values()]
    assert counts[0] == pytest.approx(counts[1], rel=1e-4, abs=1e-4)
    assert 0 < counts[0]["kept"] < counts[0]["eligible"]


def test_a_row_keeps_the_same_alone_and_among_others(model: Any, tmp_path: Path) -> None:
    dlm = model("LLaDA")
    folder = gate_of(dlm, tmp_path)
    edits = [LearnedSelection(folder, rate=0.5), None, KeepKeys(0.5, "random")]
    together = sl.denoise(
        dlm, [PROMPTS[0]] * 3, sl.Plan(new_tokens=5), interventions=[SideBySide(edits, 1)], progress=False, seed=[3] * 3
    )
    for index, edit in enumerate(edits):
        alone = sl.denoise(
            dlm, PROMPTS[:1], sl.Plan(new_tokens=5), interventions=[edit] if edit else [], progress=False, seed=3
        )
        assert alone.tokens[0].tolist() == together.tokens[index].tolist()
    counts = together.memories[0].parts[0].counts()
    assert 0 < counts["kept"] < counts["eligible"] == 5 * 12 * 2


def test_it_joins_other_edits_and_scopes(model: Any, tmp_path: Path) -> None:
    dlm = model("LLaDA")
    edit = LearnedSelection(gate_of(dlm, tmp_path), rate=0.5, queries="masked", where=sl.Scope(heads=[1], steps=[2]))
    counts = run(dlm, InOrder(edit, MaskSinks(sl.SameStep(top_k=1)))).memories[0].parts[0].counts()
    assert counts["eligible"] == 2 * (12 + 8)  # one step, two layers
    with pytest.raises(ScopeError, match="keeps everything in the layers before 1"):
        run(dlm, LearnedSelection(str(tmp_path), rate=0.5, where=sl.Scope(layers=0)))


def test_its_identity_is_its_gate(model: Any, tmp_path: Path) -> None:
    folder = gate_of(model("LLaDA"), tmp_path / "gate")
    edit = LearnedSelection(folder, rate=0.5)
    again = LearnedSelection(folder, rate=0.5)
    assert edit == again
    assert edit.digest == again.digest
    assert edit.digest != LearnedSelection(folder, rate=0.25).digest
    assert type(edit).from_dict(edit.to_dict()) == edit
    gate_of(model("LLaDA"), tmp_path / "gate", seed=9)
    anew = LearnedSelection(folder, rate=0.5)
    assert anew != edit
    assert anew.digest != edit.digest
    with pytest.raises(GateError, match="it is another gate now"):
        type(edit).from_dict(edit.to_dict())
    with pytest.raises(GateError, match="it is another gate now"):
        run(model("LLaDA"), edit)  # made with the gate that was there before: its scores would be stored under that


def test_texts(model: Any, tmp_path: Path) -> None:
    folder = gate_of(model("LLaDA"), tmp_path / "a gate=1")
    edit = parse(f"keep=0.5:learned@gate={folder}@keys=committed@layers=1-")
    assert edit == LearnedSelection(folder, rate=0.5, keys="committed", where=sl.Scope(layers=slice(1, None)))
    assert parse(text_of(edit)) == edit
    for text, said in (
        ("keep=0:learned", "rate=0.0 must be a number above 0 and at most 1"),
        ("keep=1.5:learned", "rate=1.5 must be"),
        ("keep=nan:learned", "rate=nan must be"),
        ("keep=x:learned", "'x' is no number"),
        ("keep:learned", "needs a share"),
        (f"keep=0.5:random@gate={folder}", "cannot honour gate="),
        ("keep=0.5:learned@seed=3", "cannot honour seed=3"),
        ("keep=0.5:learned@gate=nowhere/at/all", "is no folder, and no gate that comes with sinklens"),
    ):
        with pytest.raises(ScopeError, match=said):
            parse(text)


def test_what_cannot_be_is_refused_before_the_first_forward(model: Any, tmp_path: Path, no_forward: None) -> None:
    folder = gate_of(model("LLaDA"), tmp_path)
    with pytest.raises(ContentError, match="rate=True must be a number above 0"):
        LearnedSelection(folder, rate=True)
    with pytest.raises(GateError, match=r"was trained on|its gate is of"):
        run(model("BERT"), LearnedSelection(folder, rate=0.5))
    with pytest.raises(ScopeError, match="keeps less than one key: the shortest row has 8 positions"):
        run(model("LLaDA"), LearnedSelection(folder, rate=0.1))
    sketch, valid = outline("tiny-dlm"), torch.ones(1, 9, dtype=torch.bool)
    with pytest.raises(GateError, match=r"its gate is of .* \(LLaDA, 3 layers\), and the model is tiny-dlm"):
        LearnedSelection(folder, rate=0.5).check(sketch, canvas_of(valid.long(), valid))


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_hidden_norm_keeps_the_largest_inputs_of_each_layer(model: Any, family: str) -> None:
    dlm, seen = model(family), {}
    tokens = torch.tensor([PROMPTS[0], [1, 1, 1, 1, *PROMPTS[1]]])
    valid = torch.arange(7) >= torch.tensor([[0], [4]])

    def keep(tensor: torch.Tensor, *, hook: Any) -> None:
        seen[hook.name] = tensor.clone()

    names = [f"blocks.{layer}.{point}" for layer in range(3) for point in ("hook_in", "attn.hook_pattern")]
    hooks = [
        *KeepKeys(0.4, "hidden_norm").fwd_hooks(dlm, canvas_of(tokens, valid)),
        *((name, keep) for name in names),
    ]
    with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        dlm(tokens, attention_mask=valid)
    for layer in range(3):
        for row, budget in ((0, 3), (1, 2)):  # ceil(.4 x 7), ceil(.4 x 3)
            real = [place for place in range(7) if valid[row, place]]
            norms = {place: float(seen[f"blocks.{layer}.hook_in"][row, place].norm()) for place in real}
            kept = set(sorted(real, key=lambda place: -norms[place])[:budget])
            last = seen[f"blocks.{layer}.attn.hook_pattern"][row, :, -1]  # it sees every key
            assert {place for place in range(7) if bool((last[:, place] > 0).any())} == kept
