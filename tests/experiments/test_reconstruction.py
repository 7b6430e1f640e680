"""Delta LM losses: against a loop over texts on the transformers model, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_autoencoders import by_chance, of_direction, perfect
from torch.nn import functional as F

from sinklens import HookedDLM, delta_loss
from sinklens.autoencoders import Formula
from sinklens.errors import AutoencoderError, PlanError, PromptError
from sinklens.experiments import reconstruction

TEXTS = [[5, 17, 9, 33, 8, 21, 4], [12, 40, 7, 22], [30, 31, 32, 33, 34, 35, 36, 37, 38]]


def drawn(text: list[int], index: int, seed: int, draw: int, least: float, most: float) -> tuple[float, np.ndarray]:
    """The share of a text and its masks, as the seed has them."""
    rng = np.random.default_rng([reconstruction.STREAM, seed, index, draw])
    share = rng.uniform(least, most)
    return float(np.float32(share)), rng.random(len(text))


def naive(
    dlm: HookedDLM, sae: Any, texts: list[list[int]], *, seed: int = 0, draws: int = 1, least=0.05, most=0.5
) -> Any:
    """Text by text, unpadded, with a plain hook on the layer: sums by kind of position."""
    found: dict[str, dict[str, Any]] = {}
    blocks = dict(dlm.original_model.named_modules())
    (layers,) = [each for name, each in blocks.items() if name.rpartition(".")[2] == "layers"]
    kept: dict[str, Any] = {}

    def keep(module: Any, args: Any, out: Any) -> None:
        kept["stream"] = (out[0] if isinstance(out, tuple) else out).detach().clone()

    def splice(module: Any, args: Any, out: Any) -> Any:
        stream = out[0] if isinstance(out, tuple) else out
        new = sae.decode(sae.encode(stream), stream)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    for index, text in enumerate(texts):
        for draw in range(draws):
            share, numbers = drawn(text, index, seed, draw, least, most)
            fixed = {0, 62}  # BOS and mask
            masked = [
                n < share and text[i] not in fixed and not (dlm.family.shift and i == 0) for i, n in enumerate(numbers)
            ]
            masked = [False] * len(text) if dlm.is_causal else masked
            tokens = torch.tensor([[62 if hidden else token for token, hidden in zip(text, masked, strict=True)]])
            losses = []
            for hook in (keep, splice):
                handle = layers[0].register_forward_hook(hook)
                with torch.no_grad():
                    logits = dlm(tokens)[0]
                handle.remove()
                if dlm.is_causal:
                    logits = torch.cat([logits[:1], logits[:-1]])
                losses.append(F.cross_entropy(logits, torch.tensor(text), reduction="none").tolist())
            for place in range(len(text)):
                if masked[place]:
                    kind, weight = "masked", 1 / share
                elif place == 0:
                    continue
                else:
                    kind, weight = ("all", 1.0) if dlm.is_causal else ("unmasked", 1 / (1 - share))
                sums = found.setdefault(kind, {"tokens": 0, "loss": 0.0, "spliced": 0.0, "weighted": 0.0, "x": []})
                sums["tokens"] += 1
                sums["loss"] += losses[0][place]
                sums["spliced"] += losses[1][place]
                sums["weighted"] += weight * (losses[1][place] - losses[0][place])
                sums["x"].append(kept["stream"][0, place])
    return found


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_losses_are_what_a_loop_over_texts_gives(tiny_model: Any, family: str) -> None:
    dlm = tiny_model(family)
    sae = by_chance(dlm, formula=Formula("topk", k=6))
    options = {"seed": 7, "draws": 3, "least": 0.2, "most": 0.7}
    table = delta_loss(dlm, sae, TEXTS, batch_size=2, progress=False, **options).set_index("positions")
    expected = naive(dlm, sae, TEXTS, **options)
    assert set(table.index) == set(expected) == ({"all"} if dlm.is_causal else {"masked", "unmasked"})
    for kind, sums in expected.items():
        line, n = table.loc[kind], sums["tokens"]
        assert line.tokens == n
        assert line.loss == pytest.approx(sums["loss"] / n, rel=1e-4)
        assert line.spliced == pytest.approx(sums["spliced"] / n, rel=1e-4)
        assert line.delta == pytest.approx((sums["spliced"] - sums["loss"]) / n, abs=2e-4)
        assert line.weighted_delta == pytest.approx(sums["weighted"] / n, abs=1e-3)
        x = torch.stack(sums["x"]).double()
        residue = (x - sae.decode(sae.encode(x.float()))).square().sum()
        assert line.unexplained == pytest.approx(float(residue / (x - x.mean(0)).square().sum()), rel=1e-4)
        assert line.l0 == pytest.approx(float((sae.encode(x.float()) > 0).sum()) / n, rel=1e-2)
        assert line.low <= line.delta <= line.high
        assert line.high > line.low


def test_the_batch_plays_no_part(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm)
    tables = [delta_loss(dlm, sae, TEXTS, batch_size=size, progress=False).set_index("positions") for size in (1, 2, 3)]
    for table in tables[1:]:
        np.testing.assert_allclose(table.to_numpy(float), tables[0].to_numpy(float), rtol=1e-4, atol=1e-5)
    other = delta_loss(dlm, sae, TEXTS, seed=1, progress=False).set_index("positions")
    assert other.loc["masked", "loss"] != pytest.approx(tables[0].loc["masked", "loss"], rel=1e-3)


def test_a_perfect_autoencoder_costs_nothing_and_one_of_nothing_leaves_all(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    table = delta_loss(dlm, perfect(dlm), TEXTS, draws=2, progress=False)
    assert table.delta.abs().max() == 0
    assert table.unexplained.max() == 0
    assert (table.l0 == 32).all()  # of each dimension its positive or its negative part
    mean = of_direction(dlm, torch.zeros(32))
    blank = delta_loss(dlm, mean, TEXTS, draws=2, progress=False)
    assert (blank.l0 == 0).all()
    assert (blank.unexplained >= 1).all()  # 0 in place of everything, which is worse than the mean


def test_where_it_is_spliced_in(tiny_model: Any) -> None:
    """Only at masked tokens: the others' own streams stay, and they change by what they look at alone."""
    dlm = tiny_model("LLaDA", layers=1)  # after the last layer nobody looks any more
    table = delta_loss(dlm, by_chance(dlm), TEXTS, queries="masked", progress=False).set_index("positions")
    assert table.loc["unmasked", "delta"] == pytest.approx(0, abs=1e-6)
    assert abs(table.loc["masked", "delta"]) > 1e-2


def test_a_folder_is_taken_and_another_models_is_not(tiny_model: Any, tmp_path: Any) -> None:
    dlm = tiny_model("LLaDA")
    folder = str(by_chance(dlm, formula=Formula("topk", k=3)).save(tmp_path))
    assert len(delta_loss(dlm, folder, TEXTS, progress=False)) == 2
    with pytest.raises(AutoencoderError, match="or other weights of that name"):
        delta_loss(tiny_model("LLaDA", seed=1), folder, TEXTS, progress=False)


def test_what_cannot_be_measured_is_refused(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm)
    with pytest.raises(PlanError, match="0 < least <= most < 1"):
        delta_loss(dlm, sae, TEXTS, least=0.6, most=0.5)
    with pytest.raises(PlanError, match="0 < least <= most < 1"):
        delta_loss(dlm, sae, TEXTS, most=1.0)
    with pytest.raises(PlanError, match="a text has 65 tokens, more than the context of 64"):
        delta_loss(dlm, sae, [[5] * 65])
    with pytest.raises(PromptError, match="texts is empty"):
        delta_loss(dlm, sae, [])
    with pytest.raises(PromptError, match="no masked token would be scored"):
        delta_loss(dlm, sae, [[0, 0]], progress=False)
    with pytest.raises(PlanError, match="tiny-bdlm sees block by block"):
        delta_loss(HookedDLM.from_pretrained("tiny-bdlm"), sae, TEXTS, progress=False)


def test_an_interrupt_carries_what_was_finished(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm, real, calls = tiny_model("LLaDA"), reconstruction._measured, []
    first = delta_loss(dlm, by_chance(dlm), TEXTS[:2], batch_size=1, progress=False)

    def measured(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(reconstruction, "_measured", measured)
    with pytest.raises(KeyboardInterrupt) as caught:
        delta_loss(dlm, by_chance(dlm), TEXTS, batch_size=1, progress=False)
    found: Any = caught.value
    assert found.found.equals(first)
