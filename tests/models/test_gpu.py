"""What must also hold on a GPU; without one everything here is skipped. Run with `pytest -m gpu tests/test_gpu.py`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sinklens import Canvas, HookedDLM, MaskSinks, Plan, SameStep, Scope, SinkRule, denoise, probes
from sinklens.interventions import NoOp
from sinklens.models import blocks as in_the_open
from sinklens.models.special_ids import SpecialIds
from sinklens.tasks import Echo

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
LENGTH, SHORT, ROWS = 250, 131, 48  # positions of the two rows; queries of a block, and the last block is shorter
RANKED = SinkRule(None, top_k=2)  # by all queries, in a baseline, too
# Of logits and of deeper layers' attention, relative: roundings of the dtype through four layers.
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@lru_cache
def mid_size(family: str, dtype: torch.dtype) -> HookedDLM:
    """A random Llama with grouped-query heads of 64, with attention far from uniform."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    stock: Any = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in stock.model.layers:
            layer.self_attn.q_proj.weight.mul_(4)
            layer.self_attn.k_proj.weight.mul_(4)
    stock = stock.to(DEVICE, dtype)
    return HookedDLM.from_transformers(stock, None, family, ids=SpecialIds(511, 1, 0, 1), check=False)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, which a GPU would otherwise need far longer rows for."""
    monkeypatch.setattr(in_the_open, "rows_at_once", lambda *_: ROWS)


def canvas() -> Canvas:
    """Two rows, the second one padded on the left; the last fifty positions are masked."""
    tokens = torch.randint(2, 500, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    place = torch.arange(LENGTH).expand(2, -1)
    valid, masked = place >= torch.tensor([[0], [LENGTH - SHORT]]), place >= LENGTH - 50
    tokens = tokens.masked_fill(masked, 511).masked_fill(~valid, 1)
    tokens, valid, masked = (tensor.to(DEVICE) for tensor in (tokens, valid, masked))
    return Canvas(tokens, valid, masked, valid & ~masked, seeds=(0, 1))


def forward(dlm: HookedDLM, edit: Any, path: str) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Received attention, the logits at real positions, and what the edit counted, by one path."""
    now, probe, memory = canvas(), probes.ReceivedAttention(), edit.memory()
    seen: dict[Any, Any] = {}
    hooks = [*edit.hooks(dlm, now, memory), *probe.hooks(dlm, now, seen)]
    dlm.attention = path
    try:
        with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
            logits = dlm(now.tokens, attention_mask=now.valid)
    finally:
        dlm.attention = "auto"
    return probe.values(seen), logits[now.valid], memory.counts()


def apart(one: Tensor, other: Tensor) -> float:
    """How far, relative to the size of the other."""
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
@pytest.mark.parametrize("edited", [False, True], ids=["received attention", "masked sinks"])
def test_blocks_and_whole_patterns_agree(family: str, dtype: torch.dtype, edited: bool) -> None:
    """The edit is in the first layer, whose input is the same by both paths: so it finds the same keys.

    There received attention differs by float32 roundings in every dtype; deeper layers by those of the dtype.
    """
    dlm, kind = mid_size(family, dtype), MaskSinks if edited else NoOp
    edit = kind(SameStep(RANKED), where=Scope(layers=0))
    received, logits, whole = forward(dlm, edit, "pattern")
    in_blocks, block_logits, blocks = forward(dlm, edit, "blocks")
    torch.testing.assert_close(in_blocks[:, 0], received[:, 0], rtol=1e-4, atol=1e-4)
    assert apart(in_blocks, received) < CLOSE[dtype]
    assert apart(block_logits, logits) < CLOSE[dtype]
    total = received.sum(-1)
    sizes = torch.tensor([LENGTH, SHORT], device=total.device)[:, None, None].expand(total.shape)
    torch.testing.assert_close(total, sizes.float(), rtol=1e-4, atol=0)
    assert blocks["keys"] == whole["keys"] == 2 * 2 * dlm.n_heads
    assert blocks["mass"] == pytest.approx(whole["mass"], rel=1e-4)


@pytest.mark.parametrize("path", ["pattern", "blocks"])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_looking_leaves_the_logits_of_fused_attention_and_masking_does_not(
    family: str, dtype: torch.dtype, path: str
) -> None:
    dlm, now = mid_size(family, dtype), canvas()
    with torch.no_grad():
        unhooked = dlm(now.tokens, attention_mask=now.valid)[now.valid]
    _, looked, _ = forward(dlm, NoOp(SameStep(RANKED)), path)
    _, masked, _ = forward(dlm, MaskSinks(SameStep(RANKED)), path)
    assert apart(looked, unhooked) < CLOSE[dtype]
    assert apart(masked, unhooked) > 2 * CLOSE[dtype]


@pytest.mark.parametrize("edited", [False, True], ids=["plain", "masked sinks"])
@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_a_twin_writes_the_same_on_cpu_and_gpu(name: str, edited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, token by token, each at its most likely."""
    monkeypatch.setattr(in_the_open, "rows_at_once", lambda *_: 10)
    texts, runs = [example.prompt for example in Echo(4, seed=123)], []
    for device in ("cpu", DEVICE):
        dlm = HookedDLM.from_pretrained(name, device=device, dtype=torch.float32)
        edit = [MaskSinks(SameStep(SinkRule(None, top_k=1)))] if edited else []
        plan = Plan(new_tokens=16)
        plan = plan.for_causal() if dlm.is_causal else plan
        measured = [probes.ReceivedAttention()]
        runs.append(denoise(dlm, texts, plan, interventions=edit, probes=measured, progress=False))
    assert torch.equal(runs[0].tokens, runs[1].tokens.cpu())
    assert torch.equal(runs[0].commit_step, runs[1].commit_step.cpu())
