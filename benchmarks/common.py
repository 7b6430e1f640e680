"""What the benchmarks share: random models, the ways to look at attention, interleaved timings, peak memory."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import sinklens as sl
from sinklens.models.special_ids import SpecialIds

Job = Callable[[], object]
MASK = 999


def random_dlm(
    size: int,
    d_model: int,
    layers: int,
    *,
    heads: int | None = None,
    inner: int | None = None,
    vocabulary: int = MASK + 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> sl.HookedDLM:
    """A bidirectional Llama with random weights, made in this dtype on this device; heads of 64 unless said."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=d_model, intermediate_size=inner or 4 * d_model, num_hidden_layers=layers,
        num_attention_heads=heads or d_model // 64, max_position_embeddings=size, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device(device):
        stock = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return sl.HookedDLM.from_transformers(stock, None, "LLaDA", ids=SpecialIds(MASK, 0, 1, 0), check=False)


def random_tokens(prompts: int, size: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """Ordinary tokens for `random_dlm`: no special ones."""
    return torch.randint(2, 900, (prompts, size), generator=torch.Generator().manual_seed(0)).to(device)


def received(dlm: sl.HookedDLM, tokens: torch.Tensor, path: str) -> torch.Tensor:
    """One forward with ReceivedAttention by a path: "blocks" or "pattern"."""
    dlm.attention = path
    probe, seen = sl.probes.ReceivedAttention(), {}
    with dlm.hooks(fwd_hooks=probe.fwd_hooks(dlm, seen=seen)):
        dlm(tokens)
    return probe.values(seen)


def medians(
    jobs: Mapping[str, Job], seconds: float, *, warm: Mapping[str, Job] | None = None, device: str = "cpu"
) -> tuple[dict[str, float], int]:
    """Median seconds of each job, and of how many runs.

    The jobs take turns. After one round of warm-up (by the jobs themselves, or by shorter ones) as many rounds follow
    as fit into `seconds`, judged by the first of them, but 2 to 9.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in (warm or jobs).values():
        job()
    rounds = 2
    while len(next(iter(times.values()))) < rounds:
        for name, job in jobs.items():
            _wait(device)
            started = time.perf_counter()
            job()
            _wait(device)
            times[name].append(time.perf_counter() - started)
        rounds = max(2, min(9, int(seconds / sum(spent[0] for spent in times.values()))))
    return {name: statistics.median(spent) for name, spent in times.items()}, rounds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peaks(jobs: Mapping[str, Job], make: Callable[..., Job], *arguments: Any, device: str = "cpu") -> dict[str, float]:
    """Peak megabytes of each job.

    On a GPU what torch allocates while the job runs. On a CPU the resident size of a fresh process that runs
    `make(name, *arguments)()` once: `fresh_peak`.
    """
    if not device.startswith("cuda"):
        return {name: fresh_peak(make, name, *arguments) for name in jobs}
    found = {}
    for name, job in jobs.items():
        torch.cuda.reset_peak_memory_stats(device)
        job()
        _wait(device)
        found[name] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def fresh_peak(make: Callable[..., Job], *arguments: Any) -> float:
    """Peak resident megabytes of a process that runs `make(*arguments)()` once.

    It is forked from a process that has imported everything and run nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "sinklens.cli.demo_job"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, make, arguments).result()


@torch.no_grad()
def _peak(make: Callable[..., Job], arguments: tuple[Any, ...]) -> float:
    make(*arguments)()
    # Linux's own counter, because ru_maxrss may start at the parent's peak.
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def free_megabytes(device: str = "cpu") -> float:
    """Memory that nobody uses yet."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] / 2**20
    info = Path("/proc/meminfo")
    if info.is_file() and (found := re.search(r"MemAvailable:\s+(\d+) kB", info.read_text())):
        return int(found[1]) / 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def header(device: str = "cpu") -> str:
    """Machine and versions."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    cpu = found[1] if found else platform.processor() or platform.machine()
    machine = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens", "sinklens")
    )
    return f"{machine}, {torch.get_num_threads()} threads; {versions}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a docstring as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def heading(*cells: object) -> None:
    """Print the first row of a Markdown table and the rule below it."""
    row(*cells)
    print("|" + "---|" * len(cells))
