"""What autoencoders compute: against loops over single numbers, and what SAELens and SAE4DLM's class computed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_autoencoders import by_chance

from sinklens import Autoencoder
from sinklens.autoencoders import Formula
from sinklens.autoencoders.place import Place
from sinklens.errors import AutoencoderError

DATA = Path(__file__).parents[1] / "data" / "autoencoders"
RECORDED = sorted(path.parent for path in DATA.rglob("recorded.json"))
FORMULAS = [
    Formula("standard"),
    Formula("standard", centred=False, normalised="layer_norm"),
    Formula("gated"),
    Formula("gated", normalised="constant_norm_rescale"),
    Formula("jumprelu"),
    Formula("jumprelu", centred=False),
    Formula("topk", k=3),
    Formula("topk", k=24, centred=False),
    Formula("topk", k=4, by_norm=True, normalised="layer_norm"),
]


def naive(formula: Formula, weights: Any, x: list[float]) -> tuple[list[float], list[float]]:
    """Features and reconstruction of one activation, number by number, in float64."""
    w = {name: tensor.double().tolist() for name, tensor in weights.items()}
    d, n, mean, size, eps = len(x), len(w["W_dec"]), 0.0, 1.0, 0.0
    if formula.normalised == "layer_norm":
        mean = sum(x) / d
        size, eps = math.sqrt(sum((each - mean) ** 2 for each in x) / (d - 1)), 1e-5
    elif formula.normalised == "constant_norm_rescale":
        size = math.sqrt(sum(each**2 for each in x)) / math.sqrt(d)
    z = [(each - mean) / (size + eps) - (w["b_dec"][i] if formula.centred else 0) for i, each in enumerate(x)]
    f, before = [], [sum(z[i] * w["W_enc"][i][j] for i in range(d)) for j in range(n)]
    for j in range(n):
        if formula.architecture == "gated":
            open_, magnitude = before[j] + w["b_gate"][j] > 0, math.exp(w["r_mag"][j]) * before[j] + w["b_mag"][j]
            f.append(max(0.0, magnitude) if open_ else 0.0)
            continue
        value = before[j] + w["b_enc"][j]
        norm = math.sqrt(sum(each**2 for each in w["W_dec"][j]))
        value = value * norm if formula.by_norm else value
        f.append(value if formula.architecture != "jumprelu" or value > w["threshold"][j] else 0.0)
    kept = sorted(range(n), key=lambda j: -f[j])[: formula.k or n]
    f = [max(0.0, f[j]) if j in kept else 0.0 for j in range(n)]
    out = []
    for i in range(d):
        total = w["b_dec"][i]
        for j in range(n):
            norm = math.sqrt(sum(each**2 for each in w["W_dec"][j])) if formula.by_norm else 1.0
            total += f[j] / norm * w["W_dec"][j][i]
        out.append(total * size + mean)
    return f, out


@pytest.mark.parametrize("formula", FORMULAS, ids=repr)
def test_encoding_and_decoding_are_what_loops_give(formula: Formula) -> None:
    sae = by_chance("some model", formula=formula, seed=3)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(4)) + 0.4
    f = sae.encode(x)
    y, error = sae.decode(f, x), sae.error(x)
    active = 0
    for at in [(i, j) for i in range(2) for j in range(3)]:
        wanted, out = naive(formula, sae.weights, x[at].double().tolist())
        torch.testing.assert_close(f[at], torch.tensor(wanted), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(y[at], torch.tensor(out), atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(error[at], x[at] - torch.tensor(out), atol=5e-6, rtol=1e-5)
        active += sum(each > 0 for each in wanted)
    assert 0 < active < 6 * 24  # features on both sides of every threshold were met
    assert int((f > 0).sum()) == active


@pytest.mark.parametrize("folder", RECORDED, ids=lambda path: path.name)
def test_what_the_originals_computed(folder: Path) -> None:
    """SAELens 6.54.12 of its own files, and AutoEncoderTopK of SAE4DLM: numbers recorded from their code."""
    sae, said = Autoencoder.load(folder), json.loads((folder / "recorded.json").read_text(encoding="utf-8"))
    x, f, y = (torch.tensor(said[name]) for name in ("x", "features", "reconstruction"))
    torch.testing.assert_close(sae.encode(x), f, atol=2e-6, rtol=1e-5)
    assert torch.equal(sae.encode(x) > 0, f > 0)
    torch.testing.assert_close(sae.decode(f, x), y, atol=5e-6, rtol=1e-5)
    assert 0 < int((f > 0).sum()) < f.numel()


def test_every_architecture_was_recorded() -> None:
    assert len(RECORDED) == 14
    assert {Autoencoder.load(folder).formula.architecture for folder in RECORDED} == {
        "standard",
        "gated",
        "jumprelu",
        "topk",
    }


@given(st.sampled_from(FORMULAS), st.integers(0, 50), st.sampled_from([torch.float32, torch.bfloat16]))
def test_features_move_the_activation_by_what_they_write(formula: Formula, seed: int, dtype: torch.dtype) -> None:
    """`moved` is the difference of two reconstructions, and exactly 0 where nothing changes."""
    sae = by_chance("some model", formula=formula, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x, ids = torch.randn(4, 32, generator=generator).to(dtype), torch.tensor([2, 11])
    f, change = sae.encode(x), torch.randn(4, 2, generator=generator)
    change[1] = 0
    after = f.clone()
    after[:, ids] += change
    moved = sae.moved(change, x, ids)
    torch.testing.assert_close(moved, sae.decode(after, x) - sae.decode(f, x), atol=2e-5, rtol=1e-4)
    assert moved.dtype == f.dtype == torch.float32
    assert not moved[1].any()
    whole = torch.zeros_like(f)
    whole[:, ids] = change
    torch.testing.assert_close(sae.moved(whole, x), moved, atol=1e-5, rtol=1e-5)


def test_a_k_of_all_features_is_a_standard_autoencoder() -> None:
    every, standard = (by_chance("m", formula=each, seed=2) for each in (Formula("topk", k=24), Formula("standard")))
    x = torch.randn(5, 32)
    assert torch.equal(every.encode(x), standard.encode(x))


def test_an_autoencoder_is_its_content() -> None:
    sae = by_chance("some model")
    again = by_chance("some model")
    assert sae == again
    assert hash(sae) == hash(again)
    assert sae.digest == again.digest
    others = [by_chance("another"), by_chance("some model", "blocks.1.hook_out"), by_chance("some model", seed=1)]
    others += [by_chance("some model", formula=Formula("standard", centred=False))]
    assert len({sae.digest, *(each.digest for each in others)}) == 5
    assert all(sae != each for each in others)


def test_weights_that_are_changed_elsewhere_change_nothing() -> None:
    weights = {name: tensor.clone() for name, tensor in by_chance("m").weights.items()}
    sae = Autoencoder(Formula("standard"), Place("blocks.0.hook_out", "m"), weights)
    before = sae.digest, sae.encode(torch.ones(32))
    for tensor in weights.values():
        tensor.zero_()
    assert torch.equal(sae.encode(torch.ones(32)), before[1])
    assert sae == by_chance("m")


@pytest.mark.parametrize("made_so", [False, True], ids=["made", "made in inference mode"])
@pytest.mark.parametrize("changed_so", [False, True], ids=["changed", "changed in inference mode"])
def test_weights_that_are_changed_in_place_make_it_another(made_so: bool, changed_so: bool) -> None:
    with torch.inference_mode(made_so):
        sae = Autoencoder(Formula("standard"), Place("blocks.0.hook_out", "m"), by_chance("m").weights)
    assert sae.identity == by_chance("m").identity
    with torch.inference_mode(changed_so):
        sae.weights["W_dec"].mul_(2)
    doubled = dict(by_chance("m").weights) | {"W_dec": 2 * by_chance("m").weights["W_dec"]}
    other = Autoencoder(Formula("standard"), Place("blocks.0.hook_out", "m"), doubled)
    assert sae == other != by_chance("m")
    assert (sae.identity, hash(sae), sae.digest) == (other.identity, hash(other), other.digest)


def test_weights_that_are_replaced_make_it_another() -> None:
    sae = by_chance("m")
    before = sae.identity
    for _ in range(20):  # an allocator may hand out the place of the tensor before
        held: Any = sae.weights
        held["b_dec"] = held["b_dec"] + 1
        assert sae.identity != before
        before = sae.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.zeros(3)}, r"W_dec must be a matrix"),
        ({"b_enc": torch.zeros(5)}, r"b_enc is \(5,\), and must be \(24,\)"),
        ({"W_enc": torch.zeros(24, 32)}, r"W_enc is \(24, 32\), and must be \(32, 24\)"),
        ({"threshold": torch.zeros(24)}, r"threshold is \(24,\), and must be left out in a standard autoencoder"),
        ({"b_dec": torch.full((32,), float("nan"))}, r"b_dec holds nan or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(AutoencoderError, match=message):
        Autoencoder(Formula("standard"), Place("blocks.0.hook_out", "m"), {**by_chance("m").weights, **change})


def test_formulas_that_say_two_things_are_refused() -> None:
    with pytest.raises(AutoencoderError, match="'topk' needs one"):
        Formula("topk")
    with pytest.raises(AutoencoderError, match="'topk' needs one, and no other has it"):
        Formula("standard", k=3)
    with pytest.raises(AutoencoderError, match="by_norm is of 'topk' alone"):
        Formula("gated", by_norm=True)
    with pytest.raises(AutoencoderError, match="architecture='relu' is unknown; choose from 'standard'"):
        Formula("relu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(AutoencoderError, match="k=25 features are to be kept, and there are 24"):
        by_chance("m", formula=Formula("topk", k=25))
    with pytest.raises(AutoencoderError, match="undoes layer_norm when it decodes; give x"):
        by_chance("m", formula=Formula("standard", normalised="layer_norm")).decode(torch.zeros(24))
