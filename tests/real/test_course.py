"""The exercises of the course that ask AntiBERTy and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens.course.chapter4 import arms

pytestmark = pytest.mark.real


def test_the_effect_of_the_sinks_is_beyond_that_of_random_keys() -> None:
    found = arms()
    assert found["unmasked"].mean() > 0.8
    assert sl.course.check("4.1", np.mean(found["sinks"]) - np.mean(found["random"]))


def test_edits_that_never_act_change_nothing_beside_a_hook_that_only_looks() -> None:
    """Chapter 4's colleagues A and B; beside no hook A would seem to act, for fused attention rounds otherwise."""
    smollm = sl.HookedDLM.from_pretrained("smollm2-135m")
    tokens = smollm.to_tokens(sl.tasks.facts(1)[0].prompt)

    def answered(hook: Callable) -> torch.Tensor:
        hooks = [(f"blocks.{layer}.attn.hook_pattern", hook) for layer in range(smollm.cfg.n_layers)]
        with torch.no_grad():
            return smollm.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].float()

    source = next(path for path in sl.course.chapters() if path.stem == "04_needed").read_text(encoding="utf-8")
    cell = next(each for each in source.split("# %%") if "def colleague_a" in each)
    scope: dict[str, Callable] = {}
    exec(cell[cell.index("def untouched") : cell.index("def answer")], scope)
    reference = answered(scope["untouched"])
    assert torch.equal(answered(scope["colleague_a"]), reference)
    torch.testing.assert_close(answered(scope["colleague_b"]), reference, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda found: np.mean(found["random"]) - np.mean(found["sinks"]), "the sign is not"),
        (lambda found: np.mean(found["sinks"]) - np.mean(found["unmasked"]), "against unmasked"),
        (lambda found: np.mean(found["random"]) - np.mean(found["unmasked"]), "the control does by itself"),
        (lambda found: np.mean(found["sinks"]), "the accuracy itself"),
        (lambda found: [0.1, 0.2], "expected one number"),
    ],
    ids=["sign", "unmasked", "control", "accuracy", "two"],
)
def test_a_mistake_is_named(answer: Callable, says: str) -> None:
    verdict = sl.course.check("4.1", answer(arms()))
    assert not verdict
    assert says in verdict.says
