"""KeyboardInterrupt anywhere: the model is clean, what was finished is kept, and going on gives the same result."""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import sinklens as sl
from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, ZeroSinks, denoise
from sinklens.experiments.ablation import ablate
from sinklens.experiments.results import AblationResult
from sinklens.interrupts import again, surely
from sinklens.models.driver import FORWARD
from sinklens.models.wiring import wrapped
from sinklens.probes import ReceivedAttention
from sinklens.tasks import Echo

TOKENS = torch.tensor([[5, 6, 7, 8]])
PROMPTS = ["dolko xe dolko xo", "gake xe"]
EDITS = [MaskSinks(PreviousStep(top_k=1, first="same"), where=sl.Scope(layers=0)), ZeroSinks(where=sl.Scope(layers=1))]
OTHERS = ("transformer_lens/hook_points.py", "torch/utils/hooks.py", "torch/autograd/grad_mode.py", "contextlib.py")


class Interrupts:
    """Raises KeyboardInterrupt at one of the places that a call comes by: lines, or bytecodes, of sinklens and what it
    attaches hooks with.

    Args:
        at: Which place, counted from 0; None to count them.
        opcodes: Whether bytecodes are places, or lines.
    """

    def __init__(self, at: int | None = None, opcodes: bool = False) -> None:
        self.at, self.opcodes, self.seen, self.where = at, opcodes, 0, ""

    def __enter__(self) -> Interrupts:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not ("/sinklens/" in name and "/tests/" not in name) and not name.endswith(OTHERS):
            return None
        if self.opcodes:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == ("opcode" if self.opcodes else "line"):
            if self.seen == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
                self.seen += 1
                sys.settrace(None)
                raise KeyboardInterrupt
            self.seen += 1
        return self._step


def places(call: Callable[[], Any], opcodes: bool = False) -> int:
    """How many places a call comes by."""
    with Interrupts(opcodes=opcodes) as counted:
        call()
    return counted.seen


class Ran(NamedTuple):
    """What became of an interrupted call: what it returned, or what it raised."""

    returned: Any
    raised: KeyboardInterrupt | None
    where: str


def interrupted(call: Callable[[], Any], at: int, opcodes: bool = False) -> Ran:
    interrupts = Interrupts(at, opcodes)
    try:
        with interrupts:
            return Ran(call(), None, interrupts.where)
    except KeyboardInterrupt as stop:
        return Ran(None, stop, interrupts.where)


@pytest.fixture(scope="module")
def dlm() -> HookedDLM:
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture(scope="module")
def clean(dlm: HookedDLM) -> torch.Tensor:
    with torch.no_grad():
        return dlm(TOKENS)


def is_clean(dlm: HookedDLM, clean: torch.Tensor, where: str) -> None:
    """No hook, no component, no lock, no forward is left, and the model computes what it did, bit for bit."""
    for name, point in dlm.points.items():
        assert not point.fwd_hooks, (where, name)
        assert not point._forward_hooks, (where, name)
        assert not {"queries", "sight"} & set(point.ctx), (where, name)
    assert not dlm.hooked, where
    assert wrapped(dlm.original_model) is None, where
    now = FORWARD.get()
    assert (dict(now.serving), now.tokens, now.valid) == ({}, None, None), where
    assert torch.is_grad_enabled(), where
    free = []

    def ask() -> None:
        if free_lock := dlm.wiring._turn.lock.acquire(blocking=False):
            dlm.wiring._turn.lock.release()
        free.append(free_lock)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert free == [True], where
    assert dlm.wiring._turn.owner is None, where
    with torch.no_grad():
        assert torch.equal(dlm(TOKENS), clean), where


def sample(count: int, few: int, seed: int = 0) -> list[int]:
    """Places spread evenly, each anywhere in its part."""
    rng = random.Random(seed)
    edges = np.linspace(0, count, min(few, count) + 1).astype(int)
    return [rng.randrange(a, b) for a, b in itertools.pairwise(edges)]


def made(run: sl.Run) -> dict[str, Any]:
    return json.loads(run.record.attrs["provenance"])


FEW_AND_MANY = [150, pytest.param(3000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("opcodes", [False, True], ids=["lines", "bytecodes"])
@pytest.mark.parametrize("few", FEW_AND_MANY)
def test_denoise(dlm: HookedDLM, clean: torch.Tensor, tmp_path: Path, few: int, opcodes: bool) -> None:
    """Whatever was finished is returned or on the interrupt, and is what the whole run has of these steps."""
    path = tmp_path / "run.nc"
    options: dict[str, Any] = {"probes": [ReceivedAttention()], "interventions": EDITS, "progress": False}

    def run() -> sl.Run:
        return denoise(dlm, PROMPTS, Plan(new_tokens=2), save_to=path, **options)

    whole = run()
    kept = 0
    for at in sample(places(run, opcodes), few):
        path.unlink(missing_ok=True)
        part, stop, where = interrupted(run, at, opcodes)
        if part is None:
            part = getattr(stop, "run", None)
        is_clean(dlm, clean, where)
        if path.exists():
            saved = sl.open(path)
            assert part is not None, where
            np.testing.assert_array_equal(saved["canvas"], part.record["canvas"], err_msg=where)
        assert sorted(each.name for each in tmp_path.iterdir()) in ([], ["run.nc"]), where
        if part is None:
            continue
        kept += 1
        steps = part.record.sizes["step"]
        assert steps == 2 if part.finished else 0 < steps <= 2, where
        for name in ("canvas", "masked", "received"):
            np.testing.assert_array_equal(part.record[name], whole.record[name].isel(step=slice(0, steps)), where)
        commits = whole.record["commit_step"].to_numpy()
        np.testing.assert_array_equal(part.record["commit_step"], np.where(commits < steps, commits, -1), where)
        if steps == 2:
            assert torch.equal(part.tokens, whole.tokens), where
            assert part.fired == whole.fired, where
            assert made(part) | {"finished": True} == made(whole), where
    assert kept > few / 5
    assert torch.equal(run().tokens, whole.tokens)


@pytest.mark.parametrize("few", FEW_AND_MANY)
def test_attaching(dlm: HookedDLM, clean: torch.Tensor, few: int) -> None:
    """Each place of one forward with an edit, where most of the state is."""
    from sinklens.decoding.forwards import forward
    from sinklens.decoding.prompts import prepare

    canvas = prepare(dlm, PROMPTS, Plan(new_tokens=2)).canvas

    @torch.no_grad()
    def run() -> torch.Tensor:
        return forward(dlm, canvas, EDITS, [edit.memory() for edit in EDITS])

    right = run()
    for opcodes in (False, True):
        for at in sample(places(run, opcodes), few, seed=1):
            where = interrupted(run, at, opcodes).where
            torch.set_grad_enabled(True)  # of torch's own decorator around this test's function
            is_clean(dlm, clean, where)
    assert torch.equal(run(), right)


@pytest.mark.parametrize("opcodes", [False, True], ids=["lines", "bytecodes"])
def test_calls_of_the_wrapped_model(dlm: HookedDLM, clean: torch.Tensor, opcodes: bool) -> None:
    """Every place of a call of the transformers model itself."""

    def run() -> torch.Tensor:
        return dlm.original_model(TOKENS).logits

    count = places(run, opcodes)
    assert count > 20
    for at in range(count):
        where = interrupted(run, at, opcodes).where
        torch.set_grad_enabled(True)  # of transformers' own decorator around its rotary embedding
        is_clean(dlm, clean, where)


@pytest.mark.parametrize("few", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_ablate(dlm: HookedDLM, clean: torch.Tensor, tmp_path: Path, few: int) -> None:
    """Whatever is interrupted goes on to the result of an uninterrupted ablation, and loses no finished batch."""
    task, edits = Echo(3, seed=3, prompt_tokens=8, answer_tokens=4), {"top-1": EDITS[0]}

    def run(path: Path | None = None) -> AblationResult:
        metrics = ("forced_accuracy", "agreement")
        plan = Plan(new_tokens=4, steps=2)
        return ablate(dlm, task, edits, plan, metrics=metrics, batch_size=3, save_to=path, progress=False)

    whole = run()
    lost = 0
    for number, at in enumerate(sample(places(lambda: run(tmp_path / "counted")), few)):
        path = tmp_path / f"{number}.jsonl"
        part, stop, where = interrupted(lambda p=path: run(p), at)
        if part is None:
            part = getattr(stop, "result", None)
        is_clean(dlm, clean, where)
        if part is None:
            lost += 1
        else:
            assert set(map(repr, part.scores)) <= set(map(repr, whole.scores)), where
            assert part.finished == (len(part.scores) == len(whole.scores)) or not part.finished, where
        assert not list(tmp_path.glob("*.partial")), where
        assert repr(run(path).scores) == repr(whole.scores), where
        assert path.read_text().count("\n") == 1 + 3 * 2, where  # nothing was run twice, nothing was lost
    assert lost < few / 2


def test_surely_undoes_all_of_it() -> None:
    """An interrupt at any line of the body or of the undoing."""
    state: list[int] = []

    def body() -> str:
        for number in range(3):
            state.append(number)
        return "done"

    def undo() -> None:
        while state:
            state.pop()

    def run() -> str:
        return surely(body, undo)

    for opcodes in (False, True):
        with Traced(opcodes) as counted:
            assert run() == "done"
        assert counted.seen > 20
        for at in range(counted.seen):
            with suppress(KeyboardInterrupt), Traced(opcodes, at):
                run()
            assert state == [], at


class Traced(Interrupts):
    """Everything in this file, and in `interrupts`."""

    def __init__(self, opcodes: bool, at: int | None = None) -> None:
        super().__init__(at, opcodes)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name not in ("surely", "body", "undo"):
            return None
        if self.opcodes:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step


def test_what_is_put_together_is_put_together_again() -> None:
    tries = []

    def make() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise KeyboardInterrupt
        return "whole"

    assert again(make) == "whole"
    assert len(tries) == 4
