"""What is claimed of the bundled checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sinklens
from sinklens import HookedDLM, Plan, denoise
from sinklens.errors import CheckpointError
from sinklens.tasks import Echo

PACKAGE = Path(sinklens.__file__).parent
TWINS = PACKAGE / "twins"
NAMES = ("tiny-dlm", "tiny-bdlm", "tiny-arm")
STEPS = ["step-0", "step-50", "step-150", "step-400", "step-1000", "step-2000"]
MEGABYTE = 1e6


@pytest.fixture(scope="module")
def models() -> dict[str, HookedDLM]:
    """All of them."""
    return {name: HookedDLM.from_pretrained(name) for name in NAMES}


@pytest.fixture(scope="module")
def task() -> Echo:
    """Held-out texts."""
    return Echo(32, seed=123)


def size(files: Any) -> int:
    """Bytes of files."""
    return sum(file.stat().st_size for file in files if file.is_file())


def test_the_models_and_their_checkpoints_are_small() -> None:
    checkpoints = [file for name in NAMES for file in (TWINS / name / "checkpoints").rglob("*")]
    every = [file for name in NAMES for file in (TWINS / name).rglob("*")]
    models = set(every) - set(checkpoints)
    assert 0 < size(models) <= len(NAMES) * 4 * MEGABYTE
    assert 0 < size(checkpoints) <= len(NAMES) * 4 * MEGABYTE


def test_no_pickle_is_shipped() -> None:
    suffixes = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"}
    assert not [file for file in PACKAGE.rglob("*") if file.suffix.lower() in suffixes]
    weights = [*TWINS.rglob("*.safetensors")]
    assert len(weights) == len(NAMES) * (1 + len(STEPS))
    for file in TWINS.rglob("*"):
        assert file.is_dir() or file.suffix in (".safetensors", ".json", ".jsonl", ".md"), file


def test_all_are_one_architecture(models: dict[str, HookedDLM]) -> None:
    """The same weights, of the same shapes, under whatever names the two families use; only the mask differs."""
    shapes = {
        name: {key: tuple(weight.shape) for key, weight in dlm.named_parameters()} for name, dlm in models.items()
    }
    assert shapes["tiny-dlm"] == shapes["tiny-bdlm"] == shapes["tiny-arm"]
    stored = []
    for name in NAMES:
        with safe_open(TWINS / name / "model.safetensors", "pt") as file:
            stored.append(sorted(tuple(file.get_slice(key).get_shape()) for key in file.keys()))  # noqa: SIM118
    assert stored[0] == stored[1]
    assert not models["tiny-dlm"].is_causal
    assert models["tiny-arm"].is_causal
    assert models["tiny-dlm"].ids == models["tiny-arm"].ids
    assert models["tiny-dlm"].tokenizer.get_vocab() == models["tiny-arm"].tokenizer.get_vocab()


def decided_by_hand(task: Echo, ids: list[int]) -> list[int]:
    """Positions behind a trigger with enough words before it; the word there is the rule's."""
    grammar, words, out = task.grammar, [], []
    for at, token in enumerate(ids):
        text = grammar.tokens[token]
        if text in grammar.triggers:
            back = 1 if text[0] == "x" else 2
            if len(words) >= back and at + 1 < len(ids):
                out.append(at + 1)
                assert ids[at + 1] == words[-back]
        elif token >= grammar.first_word:
            words.append(token)
    return out


@torch.no_grad()
def test_the_baseline_knows_the_rule(models: dict[str, HookedDLM], task: Echo) -> None:
    texts = torch.from_numpy(task.texts)
    said = models["tiny-arm"](texts).argmax(-1)
    right = [
        int(said[row, at - 1]) == ids[at] for row, ids in enumerate(texts.tolist()) for at in decided_by_hand(task, ids)
    ]
    assert len(right) > 300
    assert np.mean(right) >= 0.95


@torch.no_grad()
def test_the_baselines_sink_is_bos(models: dict[str, HookedDLM], task: Echo) -> None:
    """In at least a quarter of its heads, the idle later queries give BOS at least half of their attention."""
    dlm, grammar, texts = models["tiny-arm"], task.grammar, torch.from_numpy(task.texts)
    _, cache = dlm.run_with_cache(texts)
    idle = [
        (row, at)
        for row, ids in enumerate(texts.tolist())
        for at, token in enumerate(ids)
        if at >= 16 and token != grammar.eos and grammar.tokens[token] not in grammar.triggers
    ]
    assert len(idle) > 300
    shares = []
    for layer in range(dlm.n_layers):
        pattern = cache["pattern", layer]
        for head in range(dlm.n_heads):
            shares.append(float(np.mean([float(pattern[row, head, at, 0]) for row, at in idle])))
    assert sum(share >= 0.5 for share in shares) >= len(shares) / 4
    uniform = np.mean([1 / (at + 1) for _, at in idle])
    assert uniform < 0.05  # so that one half is far from what even attention gives


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-bdlm"])
def test_the_diffusion_twins_write_what_the_rule_demands(models: dict[str, HookedDLM], task: Echo, name: str) -> None:
    prompts = [task[i].prompt for i in range(32)]
    run = denoise(models[name], prompts, Plan(new_tokens=32, temperature=1.0), seed=list(range(32)), progress=False)
    scores = [task.score(task[i], completion) for i, completion in enumerate(run.completions)]
    total = sum(score.total for score in scores)
    assert total > 200
    assert sum(score.correct for score in scores) / total >= 0.95
    assert len(set(run.completions)) == 32


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_along_the_training_load(models: dict[str, HookedDLM], name: str) -> None:
    tokens, seen = torch.arange(8)[None], [models[name]]
    for step in STEPS:
        dlm = HookedDLM.from_pretrained(name, revision=step)
        assert (dlm.revision, dlm.is_causal) == (step, name == "tiny-arm")
        with torch.no_grad():
            assert not any(torch.allclose(dlm(tokens), other(tokens), atol=1e-2) for other in seen)
        seen.append(dlm)


@pytest.mark.parametrize("revision", ["step-7", "main", "../tiny-arm"])
def test_an_unknown_revision_lists_the_known_ones(revision: str) -> None:
    with pytest.raises(CheckpointError, match=f"has no revision '{revision}'.*{', '.join(STEPS)}"):
        HookedDLM.from_pretrained("tiny-dlm", revision=revision)


@pytest.mark.parametrize("name", NAMES)
def test_the_training_log_parses_and_tells_of_learning(name: str) -> None:
    rows = [json.loads(line) for line in (TWINS / name / "training.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert {int(step.removeprefix("step-")) for step in STEPS} <= set(steps)
    for row in rows:
        for key, value in row.items():
            if key.startswith("mask_"):
                assert 0 <= value["accuracy"] <= 1
                assert len(value["sinks_per_layer"]) == 2
                assert sum(value["sinks_on"].values()) == pytest.approx(1, abs=0.01) or not any(
                    value["sinks_per_layer"]
                )
    first, last = ({k: v["accuracy"] for k, v in row.items() if k.startswith("mask_")} for row in (rows[0], rows[-1]))
    lightest = min(first)
    assert first[lightest] < 0.1
    assert last[lightest] > 0.9
