"""Training: the planted key survives, the model stays as it is, and an interrupted training ends as any other."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens.errors import GateError
from sinklens.interventions import LearnedSelection
from sinklens.selection import training
from sinklens.selection.batches import Batch, batch_of
from sinklens.selection.gate import Gate, Shape
from sinklens.selection.measuring import calibrate
from sinklens.selection.recipe import Recipe
from sinklens.selection.selected import by_gate, selected
from sinklens.selection.texts import EchoTexts, Rows
from sinklens.selection.training import train

LENGTH = 16
QUICK = Recipe(Shape(hidden=4), updates=6, batch=3, length=20)


@pytest.fixture(scope="module")
def twin() -> Any:
    return sl.HookedDLM.from_pretrained("tiny-dlm")


def weights_of(dlm: Any) -> str:
    made = hashlib.sha256()
    for name, tensor in dlm.original_model.state_dict().items():
        made.update(name.encode() + tensor.numpy().tobytes())
    return made.hexdigest()


@pytest.fixture(scope="module")
def informative() -> Any:
    return sl.planted_model("informative")


@pytest.fixture(scope="module")
def gate_folder(informative: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gate of a planted model, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("gates") / "planted"
    examples = [informative.example(seed, length=LENGTH) for seed in range(200)]
    rows = Rows([[*each.prompt, *each.answer] for each in examples], "planted")
    train(informative.dlm, Recipe(updates=250, batch=16, length=24), rows, out=folder, progress=False)
    return folder


@pytest.mark.parametrize("rate", [1.3 / (LENGTH + 8), 0.1, 0.25, 0.5, 0.75, 0.95])
def test_the_key_that_holds_the_answer_stays_at_every_rate_that_allows_it(
    informative: Any, gate_folder: Path, rate: float
) -> None:
    """The cue is one of 24 tokens, its place drawn by chance; without it the answer is another (`truth["masked"]`)."""
    edit = LearnedSelection(str(gate_folder), rate=rate)
    examples = [informative.example(seed, length=LENGTH) for seed in range(1000, 1030)]
    run = sl.denoise(
        informative.dlm,
        [each.prompt for each in examples],
        sl.Plan(new_tokens=8),
        interventions=[edit],
        progress=False,
    )
    assert run.tokens[:, LENGTH:].tolist() == [each.answer for each in examples]
    gate = Gate.load(gate_folder, informative.dlm)
    for each in examples:
        tokens = torch.tensor([[*each.prompt, *[2] * 8]])
        with torch.no_grad():
            _, shown = selected(informative.dlm, tokens, tokens >= 0, by_gate(gate, rate, tokens >= 0), gate.source)
        kept = shown.kept[informative.layer][0]
        assert bool(kept[each.key])
        if rate <= 0.1:  # no room for what nobody needs (at higher rates fillers, all alike, stay or go together)
            assert int(kept.sum()) <= 4


def test_nothing_of_the_model_changes_and_gradients_reach_the_gate_alone(twin: Any) -> None:
    model = twin.original_model
    some = next(model.parameters()).requires_grad_(False)  # as somebody left it
    model.model.layers[0].train()
    try:
        before = weights_of(twin), [w.requires_grad for w in model.parameters()], [m.training for m in model.modules()]
        assert len(set(before[1])) == len(set(before[2])) == 2
        first = Gate.fresh(QUICK.shape, twin, QUICK.seed)
        gate = train(twin, QUICK, progress=False)
        after = weights_of(twin), [w.requires_grad for w in model.parameters()], [m.training for m in model.modules()]
        assert before == after
        assert all(weight.grad is None for weight in model.parameters())
        changed = [not torch.equal(first.weights[name], weight) for name, weight in gate.weights.items()]
        assert all(changed)
    finally:
        some.requires_grad_(True)
        model.eval()


def test_gradients_of_a_choice_are_those_of_renormalised_products(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's gate: by finite differences of the plain weights times m, the row renormalised (float64)."""
    monkeypatch.setattr("sinklens.selection.selected.LEAST", 1e-9)  # no query's gradients are bounded
    dlm = tiny_model("LLaDA").to(torch.float64)
    for block in dlm.blocks:  # even attention: far from a row of which nothing is left, where no difference is small
        block.attn.original_component.q_proj.weight.data.mul_(0.1)
    tokens, layer = torch.tensor([[5, 17, 9, 33, 8, 21]]), dlm.n_layers - 1
    valid, kept = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([[True, False, True, True, False, True]])
    scores = torch.tensor([[0.3, -0.2, 1.0, 2.0, -1.5, 0.1]], dtype=torch.float64, requires_grad=True)
    logits, _ = selected(dlm, tokens, valid, lambda _, at: (kept, scores), lambda at: at if at == layer else None)
    logits[..., 7].sum().backward()

    def product(m: torch.Tensor) -> float:
        def times(pattern: torch.Tensor, *, hook: Any) -> torch.Tensor:
            scaled = pattern * m[:, None, None]
            return scaled / scaled.sum(-1, keepdim=True)

        with torch.no_grad(), dlm.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", times)]):
            return float(dlm(tokens)[..., 7].sum())

    assert scores.grad is not None
    for place in range(6):
        step = torch.zeros_like(scores.detach())
        step[0, place] = 2e-3
        slope = (product(kept.double() + step) - product(kept.double() - step)) / 4e-3
        value = 1 / (1 + math.exp(-float(scores[0, place].detach())))
        assert float(scores.grad[0, place]) == pytest.approx(
            slope * value * (1 - value), rel=0.01, abs=1e-3
        )  # norms in float32


@pytest.mark.parametrize("family", ["LLaDA", "Llama", "Dream", "BERT"])
@pytest.mark.parametrize("scores", ["layer", "shared"])
def test_a_training_forward_is_the_edits_own_and_is_renormalised_weights(
    tiny_model: Any, tmp_path: Path, family: str, scores: Any
) -> None:
    dlm = tiny_model(family, layers=3)
    gate = Gate.fresh(Shape(scores=scores, first=1 if scores == "shared" else 0), dlm, seed=4)
    gate.save(tmp_path)
    tokens = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(11) >= torch.tensor([[0], [3]])
    tokens = tokens.masked_fill(~valid, 1)
    with torch.enable_grad():
        trained, shown = selected(dlm, tokens, valid, by_gate(gate, 0.4, valid), gate.source)
    assert trained.requires_grad
    assert 0 < sum(int(kept.sum()) for kept in shown.kept.values()) < 3 * int(valid.sum())
    canvas = sl.Canvas(tokens, valid, valid & False, valid)
    with torch.no_grad(), dlm.hooks(fwd_hooks=LearnedSelection(str(tmp_path), rate=0.4).fwd_hooks(dlm, canvas)):
        edited = dlm(tokens, attention_mask=valid)
    torch.testing.assert_close(trained[valid], edited[valid], atol=2e-5, rtol=1e-4)

    def renormalised(layer: int) -> Any:
        def hook_function(pattern: torch.Tensor, *, hook: Any) -> torch.Tensor:
            times = pattern * shown.kept.get(layer, valid)[:, None, None]
            largest = torch.nn.functional.one_hot(pattern.argmax(-1), 11) * (pattern.amax(-1, keepdim=True) > 0)
            total = times.sum(-1, keepdim=True)
            return torch.where(total > 0, times / total, largest.to(times))

        return f"blocks.{layer}.attn.hook_pattern", hook_function

    with torch.no_grad(), dlm.hooks(fwd_hooks=[renormalised(layer) for layer in range(3)]):
        by_hand = dlm(tokens, attention_mask=valid)
    torch.testing.assert_close(trained[valid], by_hand[valid], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("stopped_after", [1, 4])
def test_interrupted_and_gone_on_is_as_if_uninterrupted(
    twin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    whole = train(twin, QUICK, out=tmp_path / "whole", progress=False)
    calls, real = [], training._update

    def update(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == stopped_after + 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(training, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        train(twin, QUICK, out=tmp_path / "parts", progress=False)
    assert [path.name for path in (tmp_path / "parts").glob("*.safetensors")] == ["checkpoint.safetensors"]
    assert all(weight.requires_grad for weight in twin.original_model.parameters())
    with pytest.raises(GateError, match="is of another training"):
        train(twin, Recipe(Shape(hidden=5), updates=6, batch=3, length=20), out=tmp_path / "parts", progress=False)
    again = train(twin, QUICK, out=tmp_path / "parts", progress=False)
    assert len(calls) == 6 + 1
    assert again.digest == whole.digest
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["update"] for line in logs[0].splitlines()] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()
    assert Gate.load(tmp_path / "parts", twin).digest == whole.digest


def test_batches_are_masked_as_diffusion_is_trained(twin: Any) -> None:
    rng = np.random.default_rng(3)
    rows = EchoTexts().draw(twin)(rng, 400, 30)
    batch = batch_of(twin, rows, rng)
    whole, mask = torch.tensor(rows), twin.ids.mask
    assert torch.equal(batch.scored, batch.tokens == mask)
    assert torch.equal(batch.tokens[~batch.scored], whole[~batch.scored])
    assert torch.equal(batch.targets, whole)
    assert not bool(batch.scored[:, 0].any())  # BOS stays
    assert bool(batch.scored.any(-1).all())
    shares = batch.scored.float().mean(-1)
    assert 0.35 < float(shares.mean()) < 0.5  # t of .05 to 1, half of the rows behind a visible beginning
    behind = batch.scored[:, 15:].float().mean()
    assert behind > batch.scored[:, 1:15].float().mean() + 0.05


def test_a_row_of_a_block_model_ends_with_the_one_block_that_is_masked() -> None:
    """30 tokens, blocks of 4: masks stand in one block, the last that is seen, and what comes before is as it was."""
    bdlm = sl.HookedDLM.from_pretrained("tiny-bdlm")
    rng = np.random.default_rng(3)
    rows = EchoTexts().draw(bdlm)(rng, 400, 30)
    batch = batch_of(bdlm, [*rows, rows[0][:10]], rng)
    ends = batch.valid.sum(-1).tolist()
    assert set(ends[:-1]) == {4, 8, 12, 16, 20, 24, 28, 30}
    assert ends[-1] in (4, 8, 10)
    for end, valid, scored, tokens, row in zip(ends, batch.valid, batch.scored, batch.tokens, rows, strict=False):
        begin = (end - 1) // 4 * 4
        assert valid.tolist() == [place < end for place in range(30)]
        assert set(scored.nonzero()[:, 0].tolist()) <= set(range(begin, end))
        assert tokens[:begin].tolist() == row[:begin]
        assert torch.equal(tokens[:end] == bdlm.ids.mask, scored[:end])
    assert 0.5 < float(batch.scored.sum(-1).float().mean() / 4) < 0.65  # t of .05 to 1, and one mask at least


def test_an_autoregressive_row_is_scored_where_it_predicts() -> None:
    arm = sl.HookedDLM.from_pretrained("tiny-arm")
    batch = batch_of(arm, [[0, 30, 31, 32], [0, 40]], np.random.default_rng(0))
    assert batch.scored.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.targets[batch.scored].tolist() == [30, 31, 32, 40]
    gate = train(arm, QUICK, progress=False)
    assert gate.made["texts"] == {"type": "EchoTexts", "part": "train"}
    assert [row["rate"] for row in gate.made["reached"]] == list(training.REACHED)


def test_cross_entropy_and_the_mean_over_layers_are_other_losses(twin: Any) -> None:
    kinds = [QUICK, Recipe(QUICK.shape, 6, 3, 20, loss="ce"), Recipe(QUICK.shape, 6, 3, 20, per_layer=False)]
    kinds += [Recipe(QUICK.shape, 6, 3, 20, calibrated=False)]
    assert len({train(twin, recipe, progress=False).digest for recipe in kinds}) == 4


def test_bad_recipes_are_refused_before_anything_is_computed(twin: Any, no_forward: None) -> None:
    for fields, said in (
        ({"lowest": 1.0}, "lowest=1.0 must be below 1"),
        ({"lowest": 0}, "lowest=0 must be a number above 0 and at most 1"),
        ({"updates": 0}, "updates=0"),
        ({"loss": "mse"}, "loss='mse' is unknown"),
        ({"temperature": 0}, "temperature=0 must be a number above 0"),
    ):
        with pytest.raises(GateError, match=said):
            Recipe(**fields)
    with pytest.raises(GateError, match="length=100000: tiny-dlm knows"):
        train(twin, Recipe(length=100_000))


def test_calibration_meets_the_rate_in_every_layer_at_every_rate(tiny_model: Any) -> None:
    """Tokens of a random model, no two alike: as many are kept as were asked for, within one, also between the grid."""
    dlm = tiny_model("LLaDA", layers=3)
    gate = Gate.fresh(Shape(), dlm, seed=6)
    tokens = torch.randint(3, 60, (6, 20), generator=torch.Generator().manual_seed(1))
    valid = torch.arange(20) >= torch.tensor([[0], [0], [3], [0], [7], [0]])
    batch = Batch(tokens, valid, valid, tokens)

    def shares(rate: float) -> list[float]:
        with torch.no_grad():
            _, shown = selected(dlm, tokens, valid, by_gate(gate, rate, valid), gate.source)
        return [float(kept.sum()) / float(valid.sum()) for kept in shown.kept.values()]

    before = shares(0.3)
    calibrate(dlm, gate, batch)
    assert max(abs(share - 0.3) for share in before) > 0.1
    for rate in (0.1, 0.3, 0.5, 0.95):
        assert shares(rate) == pytest.approx([rate] * 2, abs=0.06)  # of six rows each keeps one at least
    assert shares(0.325) == pytest.approx([0.325] * 2, abs=0.05)
