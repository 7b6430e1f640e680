"""Continuations of many contexts, in batches: what a request asks for as a plan, and texts cut at their stops."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs

from sinklens.decoding.fold import Trajectory, completion
from sinklens.decoding.loop import check_parts, steps_from
from sinklens.decoding.plan import Plan
from sinklens.decoding.plan_rules import ANY_STEPS
from sinklens.decoding.prompts import prepare_rows
from sinklens.errors import PlanError
from sinklens.harness.arguments import Setting
from sinklens.harness.met import Met
from sinklens.harness.scoring import chunked
from sinklens.models.hooked_dlm import HookedDLM

LOG = logging.getLogger("lm_eval.sinklens")
MAX_GEN_TOKS = 256  # the harness's own, where neither the task nor the plan says a length


class Wish(NamedTuple):
    """How a request is to be continued, and the texts at which its continuation ends."""

    plan: Plan
    until: tuple[str, ...]


class Asked(NamedTuple):
    """A context as token ids, what is wished for it, and the seed of what is drawn."""

    context: list[int]
    wish: Wish
    seed: int


def wish_of(given: Mapping[str, Any], setting: Setting) -> Wish:
    """What a request's generation arguments come to; what `plan=` says of length and sampling wins, which is logged.

    Raises:
        PlanError: an argument that sinklens has no use for; sampling without a temperature.
    """
    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), MAX_GEN_TOKS))
    until, sample = asked.pop("until"), asked.pop("do_sample")
    options = {"new_tokens": asked.pop("max_gen_toks"), "temperature": float(asked.pop("temperature", 0.0))}
    nucleus = {name: asked.pop(name) for name in ("top_p", "top_k") if name in asked}
    if asked:
        raise PlanError(f"generation argument {next(iter(asked))!r} of the task has no meaning here; leave it out")
    if sample and not options["temperature"] and "temperature" not in setting.said:
        raise PlanError("do_sample=true needs a temperature above 0")
    options |= nucleus if sample else {}
    for name, value in options.items():
        own, whose = getattr(setting.plan, name), "max_gen_toks" if name == "new_tokens" else name
        if name in setting.said and value != own and whose in given:
            LOG.warning("plan=%s=%s is used, and not %s=%s of the task", name, own, whose, value)
    return Wish(
        replace(setting.plan, **{name: value for name, value in options.items() if name not in setting.said}),
        tuple(stop for stop in until if stop),
    )


def draws(plan: Plan) -> bool:
    """Whether a plan, defaults filled in, draws anything: then two runs of other seeds differ."""
    chance = plan.remasking in ("random", "origin") or plan.sampler in ANY_STEPS
    return bool(plan.temperature or plan.alg_temp or chance)


def check(dlm: HookedDLM, asked: Sequence[Asked], setting: Setting) -> None:
    """Raise for what cannot be continued, before any forward.

    Raises:
        PlanError: a plan that the model cannot carry out, a context that does not fit.
        ScopeError: edits that cannot act.
    """
    for wish in dict.fromkeys(each.wish for each in asked):
        longest = max((each.context for each in asked if each.wish == wish), key=len)
        check_parts(dlm, prepare_rows(dlm, [longest], wish.plan, setting.seed), (), setting.edits)


def generated(
    dlm: HookedDLM, asked: Sequence[Asked], setting: Setting, batch_size: int, met: Met
) -> Iterator[dict[int, str]]:
    """Continuations by the index of their request, as soon as each batch is finished; the longest contexts first.

    A continuation ends at its first EOS token, at the first special token that is a stop, and before the first stop in
    its text, in which special tokens do not show.
    """
    for wish in dict.fromkeys(each.wish for each in asked):
        order = [index for index, each in enumerate(asked) if each.wish == wish]
        for chunk in chunked(sorted(order, key=lambda index: -len(asked[index].context)), batch_size):
            yield dict(zip(chunk, _batch(dlm, asked, chunk, setting, met), strict=True))


def _batch(dlm: HookedDLM, asked: Sequence[Asked], chunk: Sequence[int], setting: Setting, met: Met) -> list[str]:
    wish = asked[chunk[0]].wish
    start = prepare_rows(
        dlm, [asked[index].context for index in chunk], wish.plan, [asked[index].seed for index in chunk]
    )
    run, ended, memories = Trajectory.of(start.canvas), [False] * len(chunk), ()
    with closing(steps_from(dlm, start, interventions=setting.edits, every_row=False)) as steps:
        for step in steps:
            run.add(step)
            memories = step.memories
            if dlm.is_causal:  # nothing to the right changes what is there: as soon as all have ended, it is done
                ended = [done or _said(dlm, run, row, wish)[1] for row, done in enumerate(ended)]
                if all(ended):
                    break
    met.add(chunk, memories)
    return [_said(dlm, run, row, wish)[0] for row in range(len(chunk))]


def _said(dlm: HookedDLM, run: Trajectory, row: int, wish: Wish) -> tuple[str, bool]:
    """What was committed behind a context, up to its end; and whether a stop ended it."""
    own = zip(dlm.tokenizer.all_special_tokens, dlm.tokenizer.all_special_ids, strict=True)
    stops = [number for token, number in own if token in wish.until]  # no text shows these
    ids = run.tokens[row][run.committed[row]].tolist()
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text = completion(dlm, wish.plan, ids[:end])
    ends = [place for stop in wish.until if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))], bool(ends) or end < len(ids)
