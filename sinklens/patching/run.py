"""Patching one run into another, at every place and step: patch()."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from sinklens.decoding.plan import Plan
from sinklens.decoding.prompts import prepare_rows
from sinklens.errors import CheckFailed, PatchError, ScopeError
from sinklens.experiments.scores import ScoreStore
from sinklens.hooks import Scope, chosen
from sinklens.interrupts import again
from sinklens.models.calibration import TOLERANCE
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.prompts import Given
from sinklens.patching.forwards import RowPatch, Taken, logits_of, onward, repeated, take
from sinklens.patching.metrics import measure
from sinklens.patching.pairs import Asked, Pair, decode, read_pairs
from sinklens.patching.patches import Patches, Row
from sinklens.patching.record import Measured, record_of
from sinklens.progress import hidden
from sinklens.records import provenance
from sinklens.values.content import Named, digest
from sinklens.values.kinds import Count, Seed, reads
from sinklens.version import __version__


class Work(NamedTuple):
    """Patches of one forward."""

    pair: int
    step: int
    layer: int
    rows: tuple[Row, ...]


@reads("clean", "corrupt", "answers")
def patch(
    dlm: HookedDLM,
    clean: Given,
    corrupt: Given,
    plan: Plan | None = None,
    patches: Patches | None = None,
    *,
    answers: tuple[Given, Given] | None = None,
    seed: Seed = 0,
    batch_size: Count = 32,
    save_to: str | Path | None = None,
    progress: bool | str = True,
) -> xr.Dataset:
    """The effect of each patch: one run's activation put into the other, at every place, layer and step.

    Both prompts of a pair are decoded with the same plan and seed. At step t their canvases have as many masks (which
    is checked), at the same positions only where `patches.commits` says whose commits both follow. A patch at step t
    is a forward of the corrupt run's canvas before that step, in which one place of one layer is what the clean run's
    forward of step t has there ("noising": the other way round). What is asked of it:

    - `outcome="step"`, the effect within the step: the metric on the logits of the patched forward, over those
      positions of the answer that are masked in both runs before the step. Clean and corrupt values are those of the
      runs' own forwards of step t.
    - `outcome="end"`, the effect through the rest of the run: the step commits what the patched forward says, and the
      loop goes on from there unpatched, with the draws that the corrupt run had. The metric is on the logits by which
      each position of the answer was decided (committed, for the last time), whatever step that was; what was decided
      before step t is as it was. This is an indirect effect along the trajectory, as in the tracing of TimeROME-DLM
      (arXiv 2606.12841), which asks for the prediction at later steps; its exact score is not reproduced here.

    The effect is (patched - corrupt) / (clean - corrupt): 0 if the patch changes nothing, 1 if it restores the clean
    value; outside [0, 1] where it does more. In "noising" it is (patched - clean) / (corrupt - clean), so that 1 is
    the corrupt value. A baseline decides one position per step, and sees nothing behind it: a step is asked about that.

    Every forward holds one row that is not patched, and fails unless it says what the unpatched run said.

    Example:
        >>> import sinklens as sl
        >>> dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
        >>> record = sl.patch(dlm, "pante dolko xe", "pante dolko wi", sl.Plan(new_tokens=8), sl.Patches("mlp"))
        >>> record["effect"].dims
        ('prompt', 'step', 'layer', 'position')

    Source: activation patching as in arXiv 2309.16042 (direction, metrics); causal tracing, arXiv 2202.05262; by
    position, layer and step of a diffusion model: sinklens.

    Args:
        dlm: The model. In bfloat16 and float16 rounding depends on the batch, and counts as an effect.
        clean: One prompt or several.
        corrupt: As many, each with as many tokens as its clean one.
        plan: How to decode; `Plan()` when None.
        patches: What is patched and asked; `Patches()` when None.
        answers: The clean and the corrupt answer, for several prompts a list of each: texts or token ids, which stand
            at the first positions that are filled. The metric looks where they differ. None: what both runs write.
        seed: Of both runs.
        batch_size: Patches in one forward.
        save_to: A file of finished forwards, as of `ablate`: an interrupted call goes on where it was, to the same
            bits; with another batch size, or anything else that numbers depend on, it begins anew.
        progress: Whether to show a progress bar, or its label.

    Returns:
        A record: "effect" and "patched" [prompt, step, layer, and head or position or both], "clean", "corrupt" and
        "places" (how many positions of the answer are asked) [prompt, step], and the canvases. nan is what was not
        asked. An error or an interrupt carries what was finished as its attribute `record`.

    Raises:
        PromptError: prompts of other lengths, or answers that do not fit, before any forward.
        ScopeError, PlanError: as in `Patches` and `denoise`; runs with other numbers of masks.
        PatchError: both runs write the same, or a step at which the metric of both differs by less than
            `patches.least`, before any patch.
        CheckFailed: the row that is not patched says something else than the unpatched run.
    """
    sweep = Sweep(dlm, clean, corrupt, plan or Plan(), patches or Patches(), answers, seed, batch_size)
    store = ScoreStore(save_to)
    label = progress if isinstance(progress, str) else "patching"
    with torch.no_grad():
        sweep.prepare()
        try:
            for work in tqdm(list(sweep.work()), label, disable=hidden(progress), unit="forward", leave=False):
                sweep.do(work, store)
            return sweep.record(finished=True)
        except BaseException as error:
            error.record = again(lambda: sweep.record(finished=False))  # pyright: ignore[reportAttributeAccessIssue]
            raise


@dataclass
class Sweep:
    """All patches of a call: what they are, what they depend on, and what they came to."""

    dlm: HookedDLM
    clean: Given
    corrupt: Given
    plan: Plan
    patches: Patches
    answers: tuple[Given, Given] | None
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        self.asked: list[Asked] = read_pairs(self.dlm, self.clean, self.corrupt, self.plan, self.answers, self.seed)
        self.layers = self.patches.at_layers(self.dlm)
        self.patches.at_heads(self.dlm)  # raises
        for asked in self.asked:
            self.patches.at_positions(asked.clean.canvas.tokens.shape[1])
        self.pairs: list[Pair] = []
        self.steps: list[list[int]] = []  # at which something is asked, of each pair
        self.measured = Measured()
        self._taken: tuple[tuple[int, int], Taken] | None = None

    def prepare(self) -> None:
        """Decode all pairs, and measure both runs of each, before any patch."""
        for index, asked in enumerate(self.asked):
            self.pairs.append(decode(self.dlm, index, asked, self.patches))
            self.steps.append(self._steps(index))
            for step in self.steps[index]:
                self.measured.ends[index, step] = self._ends(index, step)
            self._check_apart(index)
        about = {"sinklens": __version__, "model": self.dlm.fingerprint(), "device": self.dlm.device.type}
        plan, patches = self.asked[0].clean.plan.to_dict(), self.patches.to_dict()
        for where in ("layers", "positions", "heads", "steps", "least"):  # what is patched stands beside it
            patches.pop(where)
        self._identity = digest({**about, "plan": plan, "patches": patches, "seed": self.seed})

    def _steps(self, index: int) -> list[int]:
        pair, causal = self.pairs[index], self.dlm.is_causal
        every = isinstance(self.patches.metric, Named)
        known = [step for step in range(pair.steps) if every or pair.asked_at(step, self.patches, causal)]
        named = chosen(self.patches.steps, pair.steps, "step")
        if self.patches.steps is None or isinstance(self.patches.steps, slice):
            named = [step for step in named if step in known]
        missing = [step for step in named if step not in known]
        if missing or not named:
            at = f"step {missing[0]}" if missing else "any of these steps"
            raise ScopeError(
                f"pair {index}: no position of the answer (at {[place.position for place in pair.places]}) is to be "
                f"decided in both runs at {at}; there is at the steps {known}"
            )
        return named

    def _ends(self, index: int, step: int) -> tuple[float, float, int]:
        """The metric in the clean and in the corrupt run, and the number of places that are asked."""
        pair = self.pairs[index]
        places = pair.asked_at(step, self.patches, self.dlm.is_causal)
        found = []
        for side in (pair.clean, pair.corrupt):
            if self.patches.outcome == "end":
                found.append(float(measure(self.patches.metric, side.decided(), pair.places, side.after)))
            else:
                canvas = side.canvases[step]
                found.append(float(measure(self.patches.metric, logits_of(self.dlm, canvas), places, canvas)))
        return found[0], found[1], len(pair.places if self.patches.outcome == "end" else places)

    def _check_apart(self, index: int) -> None:
        gaps = {step: abs(found[0] - found[1]) for (pair, step), found in self.measured.ends.items() if pair == index}
        close = [step for step, gap in gaps.items() if gap < self.patches.least]
        if close:
            apart = [step for step in gaps if step not in close]
            raise PatchError(
                f"pair {index}: at the steps {close} the metric differs by less than least={self.patches.least:g} "
                f"between the clean and the corrupt run (at step {close[0]}: {gaps[close[0]]:.3g}), and an effect is a "
                f"share of that. "
                + (
                    f"Say Patches(steps={apart}), of sinklens patch --at {','.join(map(str, apart))}"
                    if apart
                    else "Give other prompts, answers or another metric"
                )
            )

    def work(self) -> Iterator[Work]:
        """The forwards, in order."""
        for index, pair in enumerate(self.pairs):
            width = pair.clean.start.canvas.tokens.shape[1]
            for step in self.steps[index]:
                rows = self.patches.rows(self.dlm, width, pair.clean.canvases[step].tokens.shape[1])
                for layer in self.layers:
                    for first in range(0, len(rows), self.batch_size):
                        yield Work(index, step, layer, tuple(rows[first : first + self.batch_size]))

    def do(self, work: Work, store: ScoreStore) -> None:
        """Run one forward, unless it is stored already."""
        content = {"pair": self.asked[work.pair].content, "step": work.step, "layer": work.layer, "rows": work.rows}
        key = digest({"identity": self._identity, **content})
        if key not in store.scores:
            store.add({key: {"values": self._run(work)}})
        self.measured.patched[work] = store.scores[key]["values"]

    def _run(self, work: Work) -> list[float]:
        pair, patches = self.pairs[work.pair], self.patches
        into, (clean, corrupt, _) = pair.into(patches), self.measured.ends[work.pair, work.step]
        taken = self._take(work.pair, work.step)[work.layer]
        edit = RowPatch.of(patches.site, work.layer, work.rows, taken, Scope(steps=(work.step,)))
        if patches.outcome == "end":
            prompt = into.start.canvas.tokens[0, : into.start.canvas.tokens.shape[1] - into.start.plan.new_tokens]
            start = prepare_rows(self.dlm, [prompt.tolist()] * edit.size, self.plan, self.seed)
            before = into.decided(work.step)
            logits, canvas = onward(self.dlm, start, into.moments[work.step], edit, before, into.ever)
            values = measure(patches.metric, logits, pair.places, canvas)
        else:
            canvas = into.canvases[work.step]
            hooks = edit.hooks(self.dlm, None, edit.memory())
            logits = logits_of(self.dlm, canvas, hooks, repr(edit), edit.size)
            places = pair.asked_at(work.step, patches, self.dlm.is_causal)
            values = measure(patches.metric, logits, places, repeated(canvas, edit.size))
        self._check_unpatched(work, float(values[0]), corrupt if patches.direction == "denoising" else clean, logits)
        return values[1:].tolist()

    def _take(self, index: int, step: int) -> Taken:
        if self._taken is None or self._taken[0] != (index, step):
            canvas = self.pairs[index].out_of(self.patches).canvases[step]
            self._taken = (index, step), take(self.dlm, canvas, self.patches.site, self.layers)
        return self._taken[1]

    def _check_unpatched(self, work: Work, found: float, expected: float, logits: Tensor) -> None:
        scale = max(1.0, abs(expected), float(logits[0].abs().amax()))
        if abs(found - expected) > TOLERANCE.get(self.dlm.dtype, 2e-1) * scale:
            raise CheckFailed(
                f"step {work.step}, layer {work.layer}: the row that was not patched gives {found:.6g}, and the run "
                f"itself {expected:.6g}; so patched rows would differ from it by more than their patches. In bfloat16 "
                "and float16 a batch may round to other tokens: use float32, or outcome='step'"
            )

    def record(self, *, finished: bool) -> xr.Dataset:
        """What was measured so far."""
        origin = provenance(
            self.dlm,
            plan=self.asked[0].clean.plan.to_dict(),
            seed=self.seed,
            patches=self.patches.to_dict(),
            pairs=[asked.content for asked in self.asked],
            read_as={"plan": repr(self.asked[0].clean.plan), "patches": repr(self.patches)},
            finished=finished,
        )
        return record_of(self.dlm, self.patches, self.pairs, self.steps, self.measured, origin)
