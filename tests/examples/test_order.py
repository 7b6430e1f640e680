"""examples/smollm2_order.py measures orders of commits, and the middle of rows, as it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinklens as sl
from sinklens.models import files
from sinklens.models.special_ids import SpecialIds

EXAMPLES = Path(__file__).parents[2] / "examples"
VOCABULARY, MASK = 40, 16


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; examples import each other by their names."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import smollm2_order

    return smollm2_order


@pytest.fixture
def dlm() -> sl.HookedDLM:
    """A random model that sees both ways."""
    return random_model("SmolLM2-diffusion")


def random_model(family: str) -> sl.HookedDLM:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, initializer_range=0.3, **sizes)
    ids = SpecialIds(mask=MASK if family != "Llama" else None, eos=(2, 0), bos=None, pad=2, eot=None)
    return sl.HookedDLM.from_transformers(LlamaForCausalLM(config).eval(), None, family, ids=ids)


def rows_of(count: int, length: int) -> torch.Tensor:
    """Random tokens that are no special ones."""
    return torch.randint(17, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def test_figures_of_an_order_against_their_definitions(example: ModuleType) -> None:
    n = 12
    for seed in range(20):
        steps = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        hits = 0
        for step in range(n):
            left = [place for place in range(n) if steps[place] >= step]  # still to be written
            hits += int(steps[min(left)] == step)
        apart = sum((place - int(steps[place])) ** 2 for place in range(n))
        assert float(example.leftmost(steps[None])) == pytest.approx(hits / n)
        assert float(example.rank_correlation(steps[None])) == pytest.approx(1 - 6 * apart / (n * (n * n - 1)))
    back = torch.arange(n).flip(0)[None]
    assert (float(example.rank_correlation(back)), float(example.leftmost(back))) == pytest.approx((-1, 1 / n))


def test_the_order_of_a_run_left_to_right_is_one(example: ModuleType, dlm: sl.HookedDLM) -> None:
    prompts = rows_of(6, 10).tolist()
    _, steps = example.written(dlm, prompts, example.plan("left to right", 16))
    assert example.rank_correlation(steps).tolist() == pytest.approx([1] * 6)
    assert example.leftmost(steps).tolist() == [1] * 6


def test_the_order_of_random_runs_is_none_and_every_row_has_its_own(example: ModuleType, dlm: sl.HookedDLM) -> None:
    """Spearman's correlation of n places has the variance 1 / (n - 1); the leftmost is hit H_n / n times.

    Its number of hits is a sum of independent ones with chances 1/k: variance (1/k)(1 - 1/k) each.
    """
    n, rows = 16, 60
    _, steps = example.written(dlm, rows_of(rows, 10).tolist(), example.plan("random", n))
    assert len({tuple(row) for row in steps.tolist()}) == rows
    assert abs(float(example.rank_correlation(steps).mean())) < 4 / ((n - 1) * rows) ** 0.5
    chances = [1 / k for k in range(1, n + 1)]
    apart = (sum(p * (1 - p) for p in chances) / n**2 / rows) ** 0.5
    assert abs(float(example.leftmost(steps).mean()) - sum(chances) / n) < 4 * apart


def test_an_order_with_two_tokens_in_one_step_is_refused(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="not every step committed one token"):
        example.leftmost(torch.tensor([[0, 1, 1, 2]]))


def test_the_order_itself_is_reported(example: ModuleType, dlm: sl.HookedDLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "PROMPT", 8)
    monkeypatch.setattr(example, "NEW", 6)
    rows = rows_of(3, 20)
    confident, fixed = example.commit_order(dlm, rows)
    assert (confident["same"]["mean"], fixed["rank_correlation"]["mean"], fixed["leftmost"]["mean"]) == (1, 1, 1)
    plans = [sl.Plan(new_tokens=6, sampler="llada", block_length=length) for length in (6, 1)]
    first, second = (sl.denoise(dlm, rows[:, :8].tolist(), each, progress=False) for each in plans)
    same = (first.tokens[:, 8:] == second.tokens[:, 8:]).float().mean()
    assert fixed["same"]["mean"] == pytest.approx(float(same), abs=6e-4)
    expected = [sl.experiments.outcomes.order(torch.arange(6), row[8:]) for row in first.commit_step]
    assert confident["rank_correlation"]["mean"] == pytest.approx(sum(expected) / 3, abs=6e-4)


def test_the_middle_is_written_from_what_each_sees(
    example: ModuleType, dlm: sl.HookedDLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true token is what a plain forward says: of both sides in six rows, of the left in three, EOS in one."""
    monkeypatch.setattr(example, "ROW", 21)
    base, rows, place = random_model("Llama"), rows_of(10, 30), 10
    banned = [0, 2, MASK]

    def likeliest(model: sl.HookedDLM, row: list[int], at: int) -> int:
        logits = model.by_position(model(torch.tensor([row]))) if not model.is_causal else model(torch.tensor([row]))
        logits[..., banned if not model.is_causal else banned[:2]] = float("-inf")
        return int(logits[0, at].argmax())

    said: dict[str, list[int]] = {"both sides": [], "left side": [], "autoregressive base": []}
    for row in rows[:, :21].tolist():
        gap = [*row[:place], MASK, *row[place + 1 :]]
        said["both sides"].append(likeliest(dlm, gap, place))
        said["left side"].append(likeliest(dlm, gap[: place + 1], place))
        said["autoregressive base"].append(likeliest(base, row[:place], place - 1))
    truth = said["both sides"][:6] + said["left side"][6:9] + [2]
    rows[:, place] = torch.tensor(truth)
    found = {line["sees"]: line for line in example.middle(dlm, base, rows, 1)}
    for name, tokens in said.items():
        right = sum(token == true for token, true in zip(tokens[:9], truth[:9], strict=True))
        assert found[name]["accuracy"]["mean"] == pytest.approx(right / 9, abs=6e-4), name
        assert found[name]["rows"] == 9
    both, left = (found[name]["accuracy"]["mean"] for name in ("both sides", "left side"))
    assert both > left
    assert found["left side"]["difference"]["mean"] == pytest.approx(both - left, abs=1.1e-3)


def test_rows_that_may_have_been_learned_are_refused(example: ModuleType, tmp_path: Path) -> None:
    texts = tmp_path / "own.jsonl"
    texts.write_text("".join(json.dumps({"ids": [n + 20] * 95}) + "\n" for n in range(70)))
    recipe = {"length": 96, "texts": "own.jsonl", "rows": 6}
    assert example.held_out(texts, recipe)[:, 0].tolist() == list(range(26, 90))
    for wrong in ({"rows": 7}, {"texts": "other.jsonl"}):
        with pytest.raises(ValueError, match="give those texts"):
            example.held_out(texts, recipe | wrong)
    with pytest.raises(ValueError, match="rows of 80 tokens, and 96 are needed"):
        example.held_out(texts, recipe | {"length": 80})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_a_run_is_loaded_as_it_was_trained(example: ModuleType, tmp_path: Path) -> None:
    import adapt_smollm2 as adapt

    base = str(files.TWINS / "tiny-arm")
    trained, tokenizer = adapt.start(base, adapt.Recipe(rank=2))
    untouched = adapt.start(base, adapt.Recipe(rank=2))[0]
    generator = torch.Generator().manual_seed(1)
    for value in trained.parameters():
        if value.requires_grad:
            value.data.copy_(0.3 * torch.randn(value.shape, generator=generator).bfloat16())
    adapt.save(tmp_path / "state.safetensors", 1, trained)
    (tmp_path / "recipe.json").write_text(json.dumps({"shift": True}))
    (tmp_path / "log.jsonl").write_text("")
    rows = torch.randint(17, 30, (2, 20), generator=generator)
    rows[:, 4:12] = adapt.MASK
    both = [
        sl.HookedDLM.from_transformers(model.float().base_model.model, tokenizer, adapt.family(True), ids=adapt.IDS)
        for model in (trained, untouched)
    ]
    dlm = adapt.loaded(base, tmp_path)
    with torch.no_grad():
        expected, before, found = (model(rows).float() for model in (*both, dlm))
    assert not dlm.is_causal
    assert float((found - expected).norm() / expected.norm()) < 0.02  # weights and sums in bfloat16
    assert float((before - expected).norm() / expected.norm()) > 0.3
