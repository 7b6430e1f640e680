"""SmolLM2-135M-Instruct, a real model, against the ways one would do the same without sinklens.

    python benchmarks/real_models.py [--parts decoding table1 memory] [--dtypes float32 bfloat16] [--prompts 32]

It needs the model: `sinklens models get smollm2-135m`. In each dtype:

decoding  64 tokens, greedy: transformers' own `generate` without a cache; sl.denoise without probes; sl.denoise with
          the probe ReceivedAttention in all layers, heads and steps (target 1.25 x generate). Another text than
          generate's is an error. The prompt counts, so that rounding decides nothing.
table1    accuracy on the task "facts", unmasked, without the top 1, 5 and 10 keys of the last query in every layer and
          head, and without as many random keys (7 conditions): by hand, one prompt and condition at a time, a forward
          of TransformerLens's stock bridge for each new token, whose hooks find the keys and mask them; and by
          sl.ablate (target 5 x faster). Another accuracy than by hand is an error, random keys aside.
          The straightforward way is measured on the first `--by-hand` prompts and scaled to all of them.
memory    peak resident size of sl.denoise with ReceivedAttention over a text of 1024 tokens (4 of them new), beyond
          that of the model after a forward of 2 tokens (target 300 MB), and beyond one plain forward of the
          transformers model over all of them; each in a fresh process.

Time: medians of interleaved runs after a warm-up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM

import sinklens as sl
from sinklens.models import packages

MODEL, TEXT = "smollm2-135m", "1, 2, 3, 4, 5, 6, 7, 8,"
NEW, LONG, TRACED = 64, 1024, 4  # tokens: of a text, of a long one, and how many of these are new
KS = (1, 5, 10)
Right = dict[str, list[float]]  # by condition, of each prompt


class Disagreement(Exception):
    """Two ways that should compute the same do not."""


def stock(folder: Path | str, dtype: torch.dtype) -> Any:
    """The checkpoint as transformers has it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# Decoding.


def generated(model: Any, tokens: torch.Tensor, new: int) -> torch.Tensor:
    """What transformers writes, greedily, running the whole text at every step."""
    options = {"use_cache": False, "do_sample": False, "max_new_tokens": new}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)


def denoised(dlm: sl.HookedDLM, tokens: torch.Tensor, new: int, probes: Sequence[sl.Probe] = ()) -> torch.Tensor:
    """What sinklens writes."""
    return sl.denoise(dlm, list(tokens), sl.Plan(new_tokens=new), probes=probes, progress=False).tokens


def decoding(dlm: sl.HookedDLM, model: Any, tokens: torch.Tensor, new: int) -> dict[str, common.Job]:
    """The ways to write a text."""
    return {
        "generate": partial(generated, model, tokens, new),
        "no probes": partial(denoised, dlm, tokens, new),
        "received": partial(denoised, dlm, tokens, new, [sl.probes.ReceivedAttention()]),
    }


def agree(texts: dict[str, torch.Tensor], size: int) -> None:
    """Raise unless all ways wrote the same text of so many tokens.

    Raises:
        Disagreement: naming the way.
    """
    first = next(iter(texts.values()))
    for name, text in texts.items():
        if text.shape[1] != size or not torch.equal(text, first):
            raise Disagreement(f"{name} wrote {text.tolist()}, and {next(iter(texts))} {first.tolist()}")


def measure_decoding(dlm: sl.HookedDLM, model: Any, seconds: float) -> None:
    """Its table."""
    tokens, texts = torch.tensor([dlm.encode(TEXT)]), {}
    jobs = decoding(dlm, model, tokens, NEW)
    kept = {name: partial(keep, texts, name, job) for name, job in jobs.items()}
    took, rounds = common.medians(kept, seconds, warm=decoding(dlm, model, tokens, 2))
    agree(texts, tokens.shape[1] + NEW)
    print(f"\ndecoding, {dlm.dtype}: {tokens.shape[1]} + {NEW} tokens, {rounds} runs each, the same tokens\n")
    common.heading("run", "seconds", "x generate", "target")
    for name, spent in took.items():
        target = "1.25" if name == "received" else ""
        common.row(name, f"{spent:.2f}", f"{spent / took['generate']:.2f}", target)


def keep(results: dict[str, Any], name: str, job: common.Job) -> None:
    """What a job gives, by its name."""
    results[name] = job()


# Table 1.


def conditions(ks: Sequence[int] = KS) -> dict[str, tuple[int, bool]]:
    """How many keys are masked in each condition, and whether random ones."""
    sinks = {f"top-{k}": (k, False) for k in ks}
    return {"unmasked": (0, False), **sinks, **{f"random {k}": (k, True) for k in ks}}


def hook_by_hand(scores: torch.Tensor, *, hook: Any, k: int, random: bool) -> torch.Tensor:
    """Scores without the k keys that the last query looks at most, or without as many others.

    A query that has no other key keeps its largest.
    """
    keys = scores[..., -1:, :].topk(k).indices
    if random:
        draws = torch.rand_like(scores[..., -1:, :]).scatter(-1, keys, -1.0)
        keys = draws.topk(min(k, scores.shape[-1] - k)).indices
    lowest = torch.finfo(scores.dtype).min
    masked = scores.scatter(-1, keys.expand(*scores.shape[:-1], -1), lowest)
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.argmax(-1, keepdim=True), True)
    lost = masked.amax(-1, keepdim=True) <= lowest / 2
    return torch.where(lost & best, scores, masked)


def by_hand(bridge: Any, dlm: sl.HookedDLM, task: sl.tasks.Jsonl, new: int, ks: Sequence[int] = KS) -> Right:
    """Accuracies by a loop of one's own over prompts and conditions, each step a `run_with_hooks` of a bridge."""
    found: Right = {name: [] for name in conditions(ks)}
    for index in range(len(task)):
        for name, (k, random) in conditions(ks).items():
            points = [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(dlm.n_layers) if k]
            hooks = [(point, partial(hook_by_hand, k=k, random=random)) for point in points]
            tokens, said = torch.tensor([dlm.encode(task[index].prompt)]), []
            for _ in range(new):
                said.append(int(bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].argmax()))
                if said[-1] in dlm.ids.eos:
                    said.pop()
                    break
                tokens = torch.cat([tokens, torch.tensor([said[-1:]])], 1)
            found[name].append(task.score(task[index], dlm.decode(said)).accuracy)
    return found


def together(dlm: sl.HookedDLM, task: sl.tasks.Jsonl, new: int, ks: Sequence[int] = KS) -> Right:
    """The same by `ablate`."""
    edits = {f"top-{k}": sl.MaskSinks(sl.SameStep(top_k=k)) for k in ks}
    result = sl.ablate(dlm, task, edits, sl.Plan(new_tokens=new), metrics=["accuracy"], progress=False)
    found: Right = {name: [] for name in conditions(ks)}
    for score in result.scores:
        name = score["condition"] if score["kind"] != "random" else score["condition"].replace("top-", "random ")
        found[name].append(score["value"])
    return found


def same_accuracies(hand: Right, ours: Right) -> None:
    """Raise unless both ways score each prompt alike, random keys aside; one may have more prompts.

    Raises:
        Disagreement: naming condition and prompt.
    """
    for name in (name for name in hand if not name.startswith("random")):
        pairs = list(zip(hand[name], ours[name], strict=False))
        wrong = [index for index, pair in enumerate(pairs) if len(set(map(str, pair))) > 1]  # "nan" is "nan"
        if wrong or not pairs:
            raise Disagreement(f"{name}: prompts {wrong} are scored otherwise by hand and by sl.ablate")


def measure_table1(dlm: sl.HookedDLM, model: Any, prompts: int, first: int, new: int, seconds: float) -> None:
    """Its table."""
    bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    task, some, one = (sl.tasks.facts(limit) for limit in (prompts, first, 1))
    found: dict[str, Right] = {}
    jobs = {
        "together": partial(keep, found, "together", partial(together, dlm, task, new)),
        "by hand": partial(keep, found, "by hand", partial(by_hand, bridge, dlm, some, new)),
    }
    warm = {"together": partial(together, dlm, one, 1), "by hand": partial(by_hand, bridge, dlm, one, 1)}
    took, rounds = common.medians(jobs, seconds, warm=warm)
    same_accuracies(found["by hand"], found["together"])
    slow = took["by hand"] * prompts / first
    print(f"\ntable 1, {dlm.dtype}: {prompts} prompts x {len(conditions())} conditions, {new} new tokens")
    print(f"{rounds} runs each; by hand on {first} prompts; accuracies of these are equal prompt by prompt\n")
    common.heading("run", "seconds", "x together", "target", *conditions())
    for name, spent in (("by hand", slow), ("together", took["together"])):
        means = [f"{sum(each) / len(each):.2f}" for each in found[name].values()]
        common.row(name, f"{spent:.1f}", f"{spent / took['together']:.1f}", "5" if name == "by hand" else "", *means)


# Memory.


def long_text(dlm: sl.HookedDLM, size: int) -> torch.Tensor:
    """Facts behind each other."""
    task = sl.tasks.facts()
    ids = [token for index in range(len(task)) for token in dlm.encode(f"{task[index].prompt} {task[index].answer}\n")]
    return torch.tensor([ids[:size]])


def one_run(name: str, folder: str, dtype: torch.dtype, size: int) -> common.Job:
    """For a fresh process: a job whose peak is counted from when the model was loaded."""
    dlm = sl.HookedDLM.from_pretrained(folder, dtype=dtype)
    tokens = long_text(dlm, size)
    jobs: dict[str, common.Job] = {
        "weights": lambda: dlm.original_model(tokens[:, :2], use_cache=False),
        "plain": lambda: dlm.original_model(tokens, use_cache=False),
        "trace": partial(denoised, dlm, tokens[:, :-TRACED], TRACED, [sl.probes.ReceivedAttention()]),
    }
    jobs["weights"]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here (Linux)
    return jobs[name]


def measure_memory(folder: str, dtype: torch.dtype) -> None:
    """Its lines."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):  # `make bench-real` keeps freed memory: not here
        os.environ.pop(name, None)
    peak = {name: common.fresh_peak(one_run, name, folder, dtype, LONG) for name in ("weights", "plain", "trace")}
    print(f"\nmemory, {dtype}: {LONG} tokens, peak resident size, MB\n")
    common.heading("run", "peak", "beyond the weights", "beyond the plain forward", "target")
    for name, size in peak.items():
        beyond = [f"{size - peak[other]:+.0f}" for other in ("weights", "plain")]
        common.row(name, f"{size:.0f}", *beyond, "300" if name == "trace" else "")


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    options = common.parser(__doc__)
    parts, dtypes = ("decoding", "table1", "memory"), ("float32", "bfloat16")
    options.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options.add_argument("--dtypes", nargs="+", choices=dtypes, default=list(dtypes))
    options.add_argument("--prompts", type=int, default=32, help="of table 1")
    options.add_argument("--by-hand", type=int, default=8, help="how many of them by hand")
    options.add_argument("--new-tokens", type=int, default=1, help="of table 1")
    options.add_argument("--seconds", type=float, default=30.0, help="for the repeats; at least 2 are made")
    asked = options.parse_args()
    print(common.header())
    folder = str(packages.find(MODEL))
    for dtype in (getattr(torch, name) for name in asked.dtypes):
        if "memory" in asked.parts:
            measure_memory(folder, dtype)
        if asked.parts == ["memory"]:
            continue
        dlm, model = sl.HookedDLM.from_pretrained(MODEL, dtype=dtype), stock(folder, dtype)
        if "decoding" in asked.parts:
            measure_decoding(dlm, model, asked.seconds)
        if "table1" in asked.parts:
            measure_table1(dlm, model, asked.prompts, asked.by_hand, asked.new_tokens, asked.seconds)


if __name__ == "__main__":
    main()
