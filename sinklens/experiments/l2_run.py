"""Running the key-norm protocol: every trial on one read context, kept as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from sinklens.analysis import ranks
from sinklens.caches.cut import Cache, Cut
from sinklens.caches.recomputed import answers_recomputed
from sinklens.caches.retrieval import Retrieval
from sinklens.caches.streaming import losses
from sinklens.experiments.l2 import L2, Trial, Window, asked
from sinklens.experiments.l2_result import WHOLE, L2Result
from sinklens.experiments.scores import ScoreStore
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.progress import hidden
from sinklens.values.content import digest
from sinklens.version import __version__

Values = dict[str, Any]  # what a part of a trial comes to, as plain data


def l2(
    dlm: HookedDLM, protocol: L2 | None = None, *, save_to: str | Path | None = None, progress: bool | str = True
) -> L2Result:
    """Run the protocol of arXiv 2406.11430 on an autoregressive model (`L2` says what it is).

    Args:
        dlm: The model.
        protocol: What is asked; `L2()` when None.
        save_to: A file of finished trials; an interrupted run goes on where it was.
        progress: Whether to show a progress bar, or its label.

    Raises:
        KeyboardInterrupt: with the result of what was finished as its `result`.
        Unsupported, TaskError, ScopeError: as in `L2.contexts`, before a forward.
        RecordError, SaveError: as in `experiments.scores.ScoreStore`.
    """
    protocol = protocol or L2()
    contexts, trials, store = protocol.contexts(dlm), protocol.trials, ScoreStore(save_to)
    about = {"sinklens": __version__, "model": dlm.fingerprint(), "device": dlm.device.type}
    result = L2Result(dlm.name, protocol, len(trials))
    label = progress if isinstance(progress, str) else "key norms"
    try:
        for trial, context in zip(tqdm(trials, label, disable=hidden(progress), smoothing=0), contexts, strict=True):
            for part, (depends, run) in _parts(dlm, protocol, trial, torch.tensor(context)).items():
                key = digest({**about, "part": part, "context": context, "asked": depends})
                if key not in store.scores:
                    store.add({key: run()})
                result.add(trial, part, store.scores[key])
            result.done += 1
    except KeyboardInterrupt as stop:
        stop.result = result  # type: ignore[attr-defined]
        raise
    return result


def _parts(
    dlm: HookedDLM, protocol: L2, trial: Trial, context: torch.Tensor
) -> dict[str, tuple[Any, Callable[[], Values]]]:
    """What is measured of a trial, by name: what it depends on beside model and context, and how it is done."""
    groups = {share: protocol.cuts(share) for share in protocol.shares}
    cuts = [each.to_dict() for group in groups.values() for each in group]
    if isinstance(trial, Window):
        parts: dict[str, tuple[Any, Callable[[], Values]]] = {}
        if "correlation" in protocol.outcomes:
            parts["correlation"] = (None, partial(_correlate, dlm, context))
        if "perplexity" in protocol.outcomes:
            limit = protocol.limit
            parts["perplexity"] = ([cuts, limit], partial(_perplexity, dlm, context, groups, limit))
        return parts
    question = [trial.to_dict(), *asked(dlm, trial)]
    parts = {"cache": ([cuts, *question], partial(_retrieve, dlm, trial, context, groups))}
    if len(context) <= protocol.recomputed:
        again = {share: protocol.cuts(share, recomputed=True) for share in protocol.shares}
        kept = [cut.to_dict() for group in again.values() for cut in group]
        parts["recomputed"] = ([kept, *question], partial(_recompute, dlm, trial, context, again))
    return parts


def _correlate(dlm: HookedDLM, context: torch.Tensor) -> Values:
    """Rank correlation of -norm with what a key received, [layer][key head], in four ways."""
    cache, _ = Cache(dlm).read(context[None], last=1)
    norms = np.stack([layer.keys[0].double().norm(dim=-1).cpu().numpy() for layer in cache.layers])
    received = np.stack([layer.received[0].double().cpu().numpy() for layer in cache.layers])
    places = np.arange(len(context))
    per_query = received / (len(context) - places)
    everywhere, behind = np.ones(len(context), bool), places > 0
    ascending = np.broadcast_to(places.astype(float), norms.shape)
    pairs = ((-norms, per_query), (-norms, ascending), (per_query, ascending))
    ways = {
        "received": ranks.spearman(-norms, received, everywhere),
        "per query": ranks.spearman(-norms, per_query, everywhere),
        "without the first": ranks.spearman(-norms, per_query, behind),
        "beyond position": ranks.partial(*(ranks.spearman(*pair, behind) for pair in pairs)),
    }
    return {name: [[None if np.isnan(x) else float(x) for x in row] for row in table] for name, table in ways.items()}


def _perplexity(dlm: HookedDLM, context: torch.Tensor, groups: dict[float, list[Cut]], limit: int) -> Values:
    """Nats per token behind the limit, by share and ranking."""
    whole = losses(dlm, context, [Cut(1.0, skip_layers=())], limit)
    found: Values = {WHOLE: float(whole.double().mean())}
    for share, cuts in groups.items():
        means = losses(dlm, context, cuts, limit).double().mean(-1).tolist()
        found[str(share)] = {cut.name: mean for cut, mean in zip(cuts, means, strict=True)}
    return found


def _retrieve(dlm: HookedDLM, trial: Retrieval, context: torch.Tensor, groups: dict[float, list[Cut]]) -> Values:
    """Whether the answer is right, by share and ranking, over the cache that is left."""
    cache, _ = Cache(dlm).read(context[None], last=1)
    question, answer = (torch.tensor(ids) for ids in asked(dlm, trial))
    found: Values = {WHOLE: float(cache.answers(question[None], answer)[0])}
    for share, cuts in groups.items():
        right, _ = cache.cut(cuts).answers(question.expand(len(cuts), -1), answer)
        found[str(share)] = _by_name(cuts, right)
    return found


def _recompute(dlm: HookedDLM, trial: Retrieval, context: torch.Tensor, groups: dict[float, list[Cut]]) -> Values:
    """The same with everything computed anew at every step."""
    question, answer = (torch.tensor(ids) for ids in asked(dlm, trial))
    every = {share: answers_recomputed(dlm, context, question, answer, cuts)[0] for share, cuts in groups.items()}
    return {str(share): _by_name(groups[share], right) for share, right in every.items()}


def _by_name(cuts: list[Cut], right: torch.Tensor) -> dict[str, float]:
    return dict(zip((cut.name for cut in cuts), right.float().tolist(), strict=True))
