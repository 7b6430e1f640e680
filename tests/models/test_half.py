"""Which dtypes keep a run's bits: under probes by `dlm.attention`, in other batches in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import sinklens as sl
from sinklens.hooks import by_query

TASK = sl.tasks.Echo(n=64, seed=1)
PROMPTS = [TASK[index].prompt for index in range(64)]
HALF = [torch.bfloat16, torch.float16]


def tokens(dlm: sl.HookedDLM, prompts: Sequence[Any], *probes: sl.Probe) -> torch.Tensor:
    return sl.denoise(dlm, prompts, sl.Plan(new_tokens=16), probes=probes, progress=False).tokens[:, -16:]


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
@pytest.mark.parametrize("path", ["pattern", "blocks"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_with_attention_in_the_open_a_probe_changes_no_token_and_no_bit(
    name: str, path: str, dtype: torch.dtype
) -> None:
    dlm = sl.HookedDLM.from_pretrained(name, dtype=dtype)
    dlm.attention = path
    assert torch.equal(tokens(dlm, PROMPTS), tokens(dlm, PROMPTS, sl.probes.ReceivedAttention(), sl.probes.KeyNorm()))
    ids = torch.tensor([dlm.encode(PROMPTS[0])])
    seen = []
    shown = by_query(lambda pattern, hook: seen.append(hook.name))
    with torch.no_grad():  # under grad patterns are whole
        plain = dlm(ids)
        hooked = dlm.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_pattern", shown)])
    assert seen
    assert torch.equal(plain, hooked)


@pytest.mark.parametrize("dtype", HALF)
def test_in_half_precision_attention_by_need_rounds_otherwise_under_a_probe(dtype: torch.dtype) -> None:
    """Why `dlm.attention` says so: if this fails, the claim can be stronger."""
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm", dtype=dtype)
    assert not torch.equal(tokens(dlm, PROMPTS), tokens(dlm, PROMPTS, sl.probes.ReceivedAttention()))


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_in_float32_neither_batch_nor_probes_change_a_token(name: str) -> None:
    dlm = sl.HookedDLM.from_pretrained(name)
    together = tokens(dlm, PROMPTS)
    assert torch.equal(together, tokens(dlm, PROMPTS, sl.probes.ReceivedAttention()))
    for size in (1, 3):
        parts = [tokens(dlm, PROMPTS[first : first + size]) for first in range(0, 24, size)]
        assert torch.equal(together[:24], torch.cat(parts))
