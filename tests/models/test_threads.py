"""Two threads on one model take turns: what one hooks, the other's forwards never meet."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM, Plan
from sinklens.models.special_ids import SpecialIds

TEXTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [12]]
IDS = SpecialIds(mask=62, eos=(1,), bos=0, pad=1)
EDITS = ["mask:same/top3", "scale=0.1:same/top2", "zero_value:same/top1"]


def job(dlm: HookedDLM, number: int) -> tuple[Any, Any]:
    """One of a few different runs: tokens, and what each key received."""
    edit = EDITS[number % 4 - 1] if number % 4 else None
    run = sl.denoise(
        dlm,
        TEXTS[number % len(TEXTS)],
        Plan(new_tokens=6),
        probes=[sl.probes.ReceivedAttention()] if number % 3 else [],
        interventions=[sl.interventions.parse(edit)] if edit else [],
        progress=False,
    )
    return run.tokens.numpy(), run.record.get("received")


def test_runs_in_threads_are_what_they_are_alone(tiny_model: Callable[..., HookedDLM]) -> None:
    dlm = tiny_model("LLaDA")
    alone = [job(dlm, number) for number in range(12)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda number: job(dlm, number % 12), range(60)))
    for number, (tokens, received) in enumerate(together):
        np.testing.assert_array_equal(tokens, alone[number % 12][0])
        if received is not None:
            np.testing.assert_array_equal(received, alone[number % 12][1])
    assert not dlm.hooked


def test_two_wraps_of_one_model_in_threads(tiny_stock: Callable[..., Any]) -> None:
    stock = tiny_stock("Llama")
    first, second = (HookedDLM.from_transformers(stock, None, "LLaDA", ids=IDS) for _ in range(2))
    alone = [job(first, number) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: job((first, second)[number % 2], number % 12), range(24)))
    for number, (tokens, _) in enumerate(together):
        np.testing.assert_array_equal(tokens, alone[number % 12][0])


def test_a_context_of_hooks_holds_other_threads_back(tiny_model: Callable[..., HookedDLM]) -> None:
    """While one thread's hooks destroy the model, another thread's forward waits, and is then the clean one."""
    dlm, tokens, started, out = tiny_model("LLaDA"), torch.tensor([[3, 4, 5, 6]]), threading.Event(), []
    clean = dlm(tokens)

    def other() -> None:
        started.set()
        out.append(dlm(tokens))

    with dlm.hooks(fwd_hooks=[("blocks.0.hook_out", lambda tensor, hook: tensor * 0)]):
        thread = threading.Thread(target=other)
        thread.start()
        started.wait()
        thread.join(0.2)
        assert not out
        assert not torch.equal(dlm(tokens), clean)
    thread.join()
    assert torch.equal(out[0], clean)


def test_a_call_of_the_wrapped_model_waits_for_a_hooked_forward(tiny_model: Callable[..., HookedDLM]) -> None:
    """While components and hooks of one thread's forward are in place, `dlm.original_model(...)` elsewhere waits."""
    dlm, tokens, out, early = tiny_model("LLaDA"), torch.tensor([[3, 4, 5, 6]]), [], []
    clean = dlm(tokens)
    threads = [threading.Thread(target=lambda: out.append(dlm.original_model(tokens).logits)) for _ in range(2)]

    def zero(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        threads[0].start()
        threads[0].join(0.2)
        early.extend(out)
        return tensor * 0

    dlm.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_out", zero)])
    threads[0].join()
    with dlm.hooks(fwd_hooks=[("blocks.0.hook_out", lambda tensor, hook: tensor * 0)]):
        threads[1].start()
        threads[1].join(0.2)
        early.extend(out[1:])
        dlm(tokens)
    threads[1].join()
    assert not early
    assert [torch.equal(each, clean) for each in out] == [True, True]


def test_a_hooked_forward_waits_for_a_call_of_the_wrapped_model(tiny_model: Callable[..., HookedDLM]) -> None:
    """Else its components would come into the middle of the plain forward."""
    dlm, tokens, out, early = tiny_model("LLaDA"), torch.tensor([[3, 4, 5, 6]]), [], []
    clean = dlm(tokens)
    zero = [("blocks.1.hook_out", lambda tensor, hook: tensor * 0)]
    thread = threading.Thread(target=lambda: out.append(dlm.run_with_hooks(tokens, fwd_hooks=zero)))

    def begin(*_: Any) -> None:
        thread.start()
        thread.join(0.2)
        early.extend(out)

    handle = dlm.original_model.model.layers[0].register_forward_pre_hook(begin)
    plain = dlm.original_model(tokens).logits
    handle.remove()
    thread.join()
    assert not early
    assert torch.equal(plain, clean)
    assert not torch.equal(out[0], clean)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_call_that_fails_lets_others_go_on(tiny_model: Callable[..., HookedDLM], error: type[BaseException]) -> None:
    dlm, tokens, out = tiny_model("LLaDA"), torch.tensor([[3, 4, 5, 6]]), []

    def fail(*_: Any) -> None:
        raise error

    handle = dlm.original_model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(error):
        dlm.original_model(tokens)
    handle.remove()
    thread = threading.Thread(target=lambda: out.append(dlm(tokens)), daemon=True)
    thread.start()
    thread.join(20)
    assert len(out) == 1


def test_copies_are_calls_of_their_own(tiny_model: Callable[..., HookedDLM]) -> None:
    """A copy of the wrapped model does not wait for the original, as replicas of DataParallel must not, either."""
    dlm, tokens, out = tiny_model("LLaDA"), torch.tensor([[3, 4, 5, 6]]), []
    copies = [copy.deepcopy(dlm.original_model), pickle.loads(pickle.dumps(dlm.original_model))]
    expected = dlm(tokens)
    with dlm.wiring.lock:
        for each in copies:
            thread = threading.Thread(target=lambda model=each: out.append(model(tokens).logits), daemon=True)
            thread.start()
            thread.join(20)
    assert [torch.equal(each, expected) for each in out] == [True, True]


def test_tools_of_transformer_lens_in_threads(tiny_model: Callable[..., HookedDLM]) -> None:
    dlm, tokens = tiny_model("Llama"), torch.tensor([[3, 4, 5, 6]])
    zero = [("blocks.0.hook_out", lambda tensor, hook: tensor * 0)]
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: dlm(tokens),
        lambda: dlm.run_with_hooks(tokens, fwd_hooks=zero),
        lambda: dlm.run_with_cache(tokens)[1]["blocks.1.attn.hook_pattern"],
    ]
    alone = [way() for way in ways]
    with torch.no_grad(), ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda number: ways[number % 3](), range(60)))
    for number, found in enumerate(together):
        torch.testing.assert_close(found, alone[number % 3], atol=1e-5, rtol=0)
