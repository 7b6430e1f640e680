"""Patches against one forward per patch, written down here with TransformerLens's own tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from parts import Acts
from torch import Tensor

import sinklens as sl
from sinklens.hooks import Scope

TEXTS = dict.fromkeys(("tiny-dlm", "tiny-bdlm", "tiny-arm"), ("pante dolko xy", "pante talma xy"))
IDS = ([0, 7, 9, 11, 20], [0, 7, 30, 11, 21])
GAPS = ([0, 7, 62, 9, 62, 11, 62, 20], [0, 30, 62, 9, 62, 12, 62, 20])
POINTS = {  # spelled out, so that a site cannot move by itself
    "attention": "attn.hook_out",
    "mlp": "mlp.hook_out",
    "values": "attn.v.hook_out",
    "mixed": "attn.o.hook_in",
    "pattern": "attn.hook_pattern",
}
POST_LN = {"attention": "attn.o.hook_out", "mlp": "mlp.out.hook_out"}
OTHERS = ["tiny-arm", "tiny-bdlm", "BERT", "ESM-2", "ModernBERT", "GPT-2", "MDLM", "LLaDA-MoE", "DiffuGPT"]

Naive = dict[tuple[int, int, int | None, int | None], float]  # by step, layer, head, position


@pytest.fixture
def made(tiny_model: Callable[..., sl.HookedDLM]) -> Callable[[str], tuple[sl.HookedDLM, Any, Any, sl.Plan]]:
    def make(name: str) -> tuple[sl.HookedDLM, Any, Any, sl.Plan]:
        dlm = sl.HookedDLM.from_pretrained(name) if name in TEXTS else tiny_model(name)
        encoder = name in ("BERT", "ESM-2", "ModernBERT")
        pair = TEXTS.get(name) or (GAPS if encoder else IDS)
        return dlm, *pair, sl.Plan(new_tokens=0 if encoder else 4 if name == "Dream" else 5)

    return make


def point_of(dlm: sl.HookedDLM, name: str, site: str, layer: int) -> str:
    if site == "residual":
        return f"blocks.{layer}.hook_in" if layer < dlm.n_layers else f"blocks.{layer - 1}.hook_out"
    points = POINTS | (POST_LN if name in ("BERT", "ESM-2") else {})
    return f"blocks.{layer}.{points[site]}"


def index(site: str, head: int | None, position: int | None) -> tuple[Any, ...]:
    """Where a patch is in the first row of what a hook point carries."""
    all_of = slice(None)
    at = all_of if position is None else position
    if head is None:
        return (0, all_of, at) if site == "pattern" else (0, at)
    return (0, head, at) if site == "pattern" else (0, at, head)


def rows_of(dlm: sl.HookedDLM, logits: Tensor) -> Tensor:
    """Row i for position i."""
    return torch.cat([logits[:, :1], logits], 1)[0] if dlm.is_causal else logits[0]


@torch.no_grad()
def naive(dlm: sl.HookedDLM, name: str, clean: Any, corrupt: Any, plan: sl.Plan, patches: sl.Patches) -> Naive:
    """The effect of every patch, each by a forward of its own."""
    runs = [list(sl.denoising_steps(dlm, prompt, plan)) for prompt in (clean, corrupt)]
    final = []
    for run in runs:
        chosen = torch.full_like(run[-1].tokens[0], -1)
        width = len(chosen)
        for step in run:
            chosen[step.committed[0, :width]] = step.predicted[0][step.committed[0]]
        final.append(chosen)
    asked = [p for p in range(len(final[0])) if min(final[0][p], final[1][p]) >= 0 and final[0][p] != final[1][p]]
    found: Naive = {}
    for number, pair in enumerate(zip(*runs, strict=False)):
        seen = [step.canvas for step in pair]
        width = seen[0].tokens.shape[1]
        if dlm.is_causal:
            places = [p for p in asked if p == width]
        else:
            places = [p for p in asked if p < width and all(canvas.masked[0, p] for canvas in seen)]
        if not places:
            continue

        def metric(logits: Tensor, places: list[int] = places) -> float:
            rows = rows_of(dlm, logits).double()
            return float(torch.stack([rows[p, final[0][p]] - rows[p, final[1][p]] for p in places]).mean())

        ends = [metric(dlm(canvas.tokens)) for canvas in seen]
        for layer in patches.at_layers(dlm):
            point = point_of(dlm, name, patches.site, layer)
            stored: list[Tensor] = []

            def keep(tensor: Tensor, *, hook: Any, stored: list[Tensor] = stored) -> None:
                stored.append(tensor.clone())

            dlm.run_with_hooks(seen[0].tokens, fwd_hooks=[(point, keep)])
            heads: list[int | None] = [None]
            if patches.by != "position":
                heads = [*range(stored[0].shape[1 if patches.site == "pattern" else 2])]
            spots: list[int | None] = [None] if patches.by == "head" else [*range(width)]
            for head in heads:
                for position in spots:
                    at = index(patches.site, head, position)

                    def put(tensor: Tensor, *, hook: Any, at: Any = at, stored: list[Tensor] = stored) -> Tensor:
                        out = tensor.clone()
                        out[at] = stored[0][at]
                        return out

                    patched = metric(dlm.run_with_hooks(seen[1].tokens, fwd_hooks=[(point, put)]))
                    found[number, layer, head, position] = (patched - ends[1]) / (ends[0] - ends[1])
    return found


def effects(record: Any, site: str) -> Naive:
    """The measured effects of a record's first pair."""
    effect = record["effect"].isel(prompt=0)
    head = "kv_head" if site == "values" else "head"
    found: Naive = {}
    for at in np.argwhere(np.isfinite(effect.to_numpy())):
        named = {dim: int(effect[dim][i]) for dim, i in zip(effect.dims, at, strict=True)}
        key = named["step"], named["layer"], named.get(head), named.get("position")
        found[key] = float(effect.to_numpy()[tuple(at)])
    return found


CASES = [("residual", "position"), ("attention", "position"), ("mlp", "position"), ("values", "both")]
CASES += [("mixed", "both"), ("pattern", "both"), ("values", "head"), ("pattern", "head"), ("mixed", "position")]
EVERY = [(name, *case) for name in ("tiny-dlm", "Dream") for case in CASES]
EVERY += [(name, site, "position") for name in OTHERS for site in ("residual", *POINTS)]
EVERY += [(name, site, "both") for name in ("tiny-arm", "BERT") for site in ("values", "pattern")]


@pytest.mark.parametrize(("name", "site", "by"), EVERY)
def test_each_patch_is_what_a_forward_of_its_own_gives(made: Any, name: str, site: Any, by: Any) -> None:
    dlm, clean, corrupt, plan = made(name)
    patches = sl.Patches(site, by)
    record = sl.patch(dlm, clean, corrupt, plan, patches, batch_size=7, progress=False)
    found, expected = effects(record, site), naive(dlm, name, clean, corrupt, plan, patches)
    assert found.keys() == expected.keys()
    assert max(abs(value) for value in expected.values()) > 0.01  # else nothing would be compared
    gaps = abs(record["clean"] - record["corrupt"]).isel(prompt=0)
    for key, value in expected.items():  # the metric to 1e-5; an effect is a share of what clean and corrupt differ by
        assert found[key] == pytest.approx(value, abs=1e-5 / float(gaps.sel(step=key[0]))), key


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-bdlm", "tiny-arm", "Dream"])
def test_the_end_is_that_of_a_whole_run_with_the_patch_in_it(made: Any, name: str) -> None:
    """With draws: the run goes on as if it had been patched in its own loop from the start."""
    dlm, clean, corrupt, plan = made(name)
    seed = 6 if name == "tiny-bdlm" else 5  # with which some patch changes what is written
    plan = sl.Plan(new_tokens=plan.new_tokens, temperature=0.8)
    patches = sl.Patches("mixed", "both", outcome="end", layers=[1], positions=[1, 2, -6, -4], heads=[0, 2])
    record = sl.patch(dlm, clean, corrupt, plan, patches, seed=seed, batch_size=4, progress=False)

    def decided(prompt: Any, edits: Any = ()) -> tuple[Tensor, Tensor]:
        rows = None
        for step in sl.denoising_steps(dlm, prompt, plan, seed=seed, interventions=edits):
            if rows is None:
                rows = torch.zeros(step.tokens.shape[1], step.logits.shape[-1])
            here = step.committed[0].nonzero()[:, 0]
            rows[here] = step.logits[0, here].float()
        assert rows is not None
        return rows, step.tokens[0]

    (sure, one), (unsure, two) = decided(clean), decided(corrupt)
    width = len(one)
    given = width - plan.new_tokens
    places = [p for p in range(given, width) if one[p] != two[p]]

    def metric(rows: Tensor) -> float:
        return float(torch.stack([(rows[p, one[p]] - rows[p, two[p]]).double() for p in places]).mean())

    effect, moved = record["effect"].isel(prompt=0), 0
    for number, step in enumerate(sl.denoising_steps(dlm, clean, plan, seed=seed)):
        if number not in effect["step"]:
            continue
        _, cache = dlm.run_with_cache(step.canvas.tokens)
        taken = cache["blocks.1.attn.o.hook_in"]
        for position in (1, 2, width - 6, width - 4):
            for head in (0, 2):
                if position >= step.canvas.tokens.shape[1]:
                    assert np.isnan(effect.sel(step=number, layer=1, head=head, position=position))
                    continue

                def put(tensor: Tensor, canvas: Any, at: Any = (0, position, head), taken: Tensor = taken) -> Tensor:
                    out = tensor.clone()
                    out[at] = taken[at]
                    return out

                edit = Acts(put, "blocks.1.attn.o.hook_in", Scope(steps=[number]))
                rows, tokens = decided(corrupt, [edit])
                moved += int(not torch.equal(tokens, two))
                expected = (metric(rows) - metric(unsure)) / (metric(sure) - metric(unsure))
                got = float(effect.sel(step=number, layer=1, head=head, position=position))
                gap = abs(metric(sure) - metric(unsure))
                assert got == pytest.approx(expected, abs=1e-5 / gap), (number, head, position)
    assert moved or name == "tiny-arm"  # some patch has changed what is written
