"""Is it a diffusion model, or does it write from left to right? Measured on SmolLM2, adapted by adapt_smollm2.py.

    python examples/smollm2_order.py runs/smollm2/short          # a run's folder; about ten minutes on one core
    python examples/smollm2_order.py smollm2-135m-diffusion      # or what from_pretrained loads
    python examples/smollm2_order.py runs/smollm2/short --rows 16 --facts 20 > order.jsonl

Logits that are shifted keep what an autoregressive model knows, and perhaps its habit of writing from left to right.
Three questions tell, each with its answer as JSON lines:

order   In which order does it commit 32 tokens behind 48, one per step, the most confident first?
        "rank_correlation" of position and step (Spearman): 1 is left to right, 0 what a random order gives, -1 right to
        left. "leftmost": how often the token that is committed is the leftmost mask; 1 from left to right, and in a
        random order (1 + 1/2 + ... + 1/32) / 32 = .127. Left to right (blocks of one token) is measured beside it;
        "same" is the share of its tokens that agree with those of the most confident first, place by place.
facts   Does what it knows depend on the order? Few-shot facts (`sinklens.tasks.facts`), four tokens, in each order, and
        by the autoregressive base.
middle  Does it use both sides? In rows of 96 tokens a span of 1 and of 8 tokens in the middle is written with both
        sides in sight, with the right side cut off, and by the autoregressive base, which sees the left. The right side
        is of use to a diffusion model only. "difference": paired, both sides minus this one. EOS cannot be chosen by
        any of them; rows whose span holds it are left out ("rows" says how many stay).

The rows are those that no training learns from (the last 64 of the texts). Texts that the base wrote by itself are easy
for the base: there it guesses its own choices. Every figure is a mean over rows with its 95 % interval (bootstrap over
rows; a share that is 0 or 1 in all rows has an exact one), a difference has a p-value too (sign flips). Greedy
throughout, in bfloat16, eight rows at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from adapt_smollm2 import HELD_OUT, RUNS, loaded, rows_of
from torch import Tensor
from tqdm import tqdm

import sinklens as sl
from sinklens.experiments.outcomes import order
from sinklens.experiments.statistics import mean_and_interval, permutation_p, rate_and_interval
from sinklens.models import adapted, packages

PROMPT, NEW, ROW = 48, 32, 96
SPANS = (1, 8)
CONFIDENT = "most confident first"
ORDERS: dict[str, dict[str, Any]] = {
    CONFIDENT: {"sampler": "llada", "remasking": "low_confidence"},
    "left to right": {"sampler": "llada", "remasking": "low_confidence", "block_length": 1},
    "random": {"sampler": "llada", "remasking": "random"},
}  # Dream's timesteps would not commit one token at every step


def plan(name: str, new_tokens: int, **more: Any) -> sl.Plan:
    """One token per step in one of the orders."""
    block = {} if "block_length" in ORDERS[name] or not new_tokens else {"block_length": new_tokens}
    return sl.Plan(new_tokens=new_tokens, **ORDERS[name] | block | more)


def decoded(dlm: sl.HookedDLM, prompts: Sequence[Any], how: sl.Plan, at_once: int = 8) -> Iterator[sl.Run]:
    """Runs of some prompts at a time. Every prompt draws its own order: with one seed all rows would share theirs."""
    for start in tqdm(range(0, len(prompts), at_once), desc=dlm.name, leave=False, file=sys.stderr):
        part = list(prompts[start : start + at_once])
        seeds = list(range(start, start + len(part)))
        yield sl.denoise(dlm, part, how, seed=seeds, progress=False)


def written(dlm: sl.HookedDLM, rows: Sequence[list[int]], how: sl.Plan) -> tuple[Tensor, Tensor]:
    """Tokens and the steps of their commits [row, new], -1 where none was committed. Every row has as many."""
    tokens, steps = [], []
    for run in decoded(dlm, rows, how):
        tokens += [row[here] for row, here in zip(run.tokens, run.filled, strict=True)]
        steps += [row[here] for row, here in zip(run.commit_step, run.filled, strict=True)]
    return torch.stack(tokens), torch.stack(steps)


def rank_correlation(steps: Tensor) -> Tensor:
    """Spearman's, of position and step of commit [row, new]: 1 is left to right [row]."""
    position = torch.arange(steps.shape[1])
    return torch.tensor([order(position, row) for row in steps])


def leftmost(steps: Tensor) -> Tensor:
    """Share of commits at the leftmost place that was still to be written [row], of steps [row, new].

    Raises:
        ValueError: a step that committed two tokens, or a token that no step committed.
    """
    if any(sorted(row.tolist()) != list(range(len(row))) for row in steps):
        raise ValueError("not every step committed one token, so there is no one order of commits")
    later_than_all_before = torch.cummax(steps, 1).values == steps
    return later_than_all_before.float().mean(1)


def figure(values: Tensor, *, share: bool = True) -> dict[str, float]:
    """Mean over rows and its interval."""
    mean, (low, high) = (rate_and_interval if share else mean_and_interval)(values.double())
    return {"mean": round(mean, 3), "low": round(low, 3), "high": round(high, 3)}


def difference(values: Tensor, others: Tensor) -> dict[str, float]:
    """Mean of paired differences, its interval, and its p-value."""
    paired = (values - others).double()
    return figure(paired, share=False) | {"p": round(permutation_p(paired), 4)}


def commit_order(dlm: sl.HookedDLM, rows: Tensor) -> Iterator[dict[str, Any]]:
    """In which order the tokens behind the beginnings of rows are committed, and whether the order changes them."""
    prompts, tokens = rows[:, :PROMPT].tolist(), {}
    for name in (CONFIDENT, "left to right"):
        tokens[name], steps = written(dlm, prompts, plan(name, NEW))
        found = {"rank_correlation": figure(rank_correlation(steps), share=False), "leftmost": figure(leftmost(steps))}
        same = (tokens[name] == tokens[CONFIDENT]).float().mean(1)
        yield {"measure": "order", "order": name, "rows": len(rows)} | found | {"same": figure(same)}


def facts(dlm: sl.HookedDLM, base: sl.HookedDLM, count: int) -> Iterator[dict[str, Any]]:
    """Accuracy of few-shot facts in each order, and of the base."""
    task, right = sl.tasks.facts(count), {}
    examples = [task[index] for index in range(len(task))]
    runs = {name: (dlm, plan(name, 4)) for name in ORDERS} | {"autoregressive base": (base, sl.Plan(new_tokens=4))}
    for name, (model, how) in runs.items():
        texts = [text for run in decoded(model, [each.prompt for each in examples], how) for text in run.completions]
        scores = [task.score(each, text).accuracy for each, text in zip(examples, texts, strict=True)]
        right[name] = torch.tensor(scores)
        line = {"measure": "facts", "order": name, "facts": len(examples), "accuracy": figure(right[name])}
        yield line | ({} if name == CONFIDENT else {"difference": difference(right[CONFIDENT], right[name])})


def middle(dlm: sl.HookedDLM, base: sl.HookedDLM, rows: Tensor, span: int) -> Iterator[dict[str, Any]]:
    """Accuracy of a span in the middle of rows: both sides in sight, the left side only, and the base."""
    first = (ROW - span) // 2
    ends = torch.tensor(dlm.ids.eos)
    rows = rows[~torch.isin(rows[:, first : first + span], ends).any(1), :ROW]
    truth, left = rows[:, first : first + span], rows[:, :first].tolist()
    gaps = rows.clone()
    gaps[:, first : first + span] = dlm.ids.mask
    quiet: dict[str, Any] = {"suppress_eos": "logits"}
    runs = {
        "both sides": (dlm, gaps.tolist(), plan(CONFIDENT, 0, **quiet)),
        "left side": (dlm, left, plan(CONFIDENT, span, **quiet)),
        "autoregressive base": (base, left, sl.Plan(new_tokens=span, **quiet)),
    }
    right: dict[str, Tensor] = {}
    for name, (model, prompts, how) in runs.items():
        right[name] = (written(model, prompts, how)[0] == truth).float().mean(1)
        line = {"measure": "middle", "span": span, "sees": name, "rows": len(rows), "accuracy": figure(right[name])}
        both = right["both sides"]
        yield line | ({} if name == "both sides" else {"difference": difference(both, right[name])})


def held_out(texts: Path, recipe: dict[str, Any]) -> Tensor:
    """The rows of the texts that a run did not learn from.

    Raises:
        ValueError: other texts than the recipe names, whose last rows it may have learned; or rows that are too short.
    """
    if recipe["length"] < ROW:
        raise ValueError(f"the model was trained on rows of {recipe['length']} tokens, and {ROW} are needed")
    rows = rows_of(texts, recipe["length"])
    if (texts.name, len(rows) - HELD_OUT) != (recipe["texts"], recipe["rows"]):
        raise ValueError(
            f"{texts} has {len(rows)} rows, and the model was trained on {recipe['rows']} rows of {recipe['texts']}, "
            f"{HELD_OUT} others held out; give those texts (--texts), or what it learned may be among what it is asked"
        )
    return rows[-HELD_OUT:]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-diffusion", help="a name, or a run's folder")
    parser.add_argument("--base", default="smollm2-135m", help="the autoregressive model that was adapted")
    parser.add_argument("--texts", type=Path, default=RUNS / "own.jsonl", help="what it was trained on")
    parser.add_argument("--rows", type=int, default=48, help=f"held-out rows, at most {HELD_OUT}")
    parser.add_argument("--facts", type=int, default=40, help="few-shot facts, at most 200")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    if not 2 <= given.rows <= HELD_OUT:
        parser.error(f"--rows {given.rows} must be from 2 to {HELD_OUT}: no other rows are held out")
    if not given.texts.is_file():
        parser.error(f"there are no texts {given.texts}; give the file that the model was trained on (--texts)")
    torch.set_num_threads(given.threads)
    homes = (Path(given.model), adapted.HOME / given.model)
    files = [home / "recipe.json" for home in homes if (home / "recipe.json").is_file()]
    if not files:
        parser.error(f"{given.model} has no recipe.json, which says what it was trained on; give a run's folder")
    try:
        rows = held_out(given.texts, json.loads(files[0].read_text()))[-given.rows :]
    except ValueError as error:
        parser.error(str(error))
    folder = str(packages.find(given.base)) if given.base in packages.PACKAGES else given.base
    base = sl.HookedDLM.from_pretrained(given.base)
    if given.model in adapted.ADAPTED:
        dlm = sl.HookedDLM.from_pretrained(given.model)
    else:
        dlm = loaded(folder, Path(given.model))
    for lines in (
        middle(dlm, base, rows, SPANS[0]),
        middle(dlm, base, rows, SPANS[1]),
        facts(dlm, base, given.facts),
        commit_order(dlm, rows),
    ):
        for line in lines:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
