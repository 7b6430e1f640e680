"""Operators, against naive ones: the pattern and the attention output recomputed head by head, in float64 loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens import Canvas, HookedDLM, Plan, Scope, SinkRule, denoise, named
from sinklens.errors import NotFinite, RecordError, ScopeError
from sinklens.ground_truth.models import FILLER, REST, PlantedModel, planted_model
from sinklens.hooks import Hook, Memory
from sinklens.interventions import (
    BiasSinks,
    Fixed,
    InOrder,
    KeepKeys,
    MaskSinks,
    MeanValue,
    NoiseValue,
    NoOp,
    NullKey,
    Pin,
    Redistribute,
    SameStep,
    ScaleSinks,
    SinkEdit,
    SinkToken,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
)
from sinklens.probes import Pattern

INF = float("inf")
MODELS = [
    ("LLaDA", 2), ("Dream", 1), ("A2D-Qwen3", 4), ("LLaDA-MoE", 2), ("Llama", 2), ("Qwen3", 1), ("GPT-2", 4),
    ("DiffuGPT", 4), ("MDLM", 4),
]  # fmt: skip
models = pytest.mark.parametrize(("family", "kv_heads"), MODELS)
Make = Callable[..., HookedDLM]


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Make:
    """A random model, made once: 4 query heads, and 1, 2 or 4 key heads."""
    return lru_cache(lambda family, kv_heads=2: tiny_model(family, kv_heads=kv_heads))


# Canvases.

TOKENS = [[5, 17, 9, 33, 8, 62, 21, 61, 50], [12, 40, 7, 62, 61, 11]]
PROMPT = 3  # tokens of each row


def canvas_for(rows: list[list[int]] | None = None, *, seeds: tuple[int, ...] = (3, 8), step: int = 2) -> Canvas:
    """A left-padded canvas; 60 and above are masked (all different, for equal tokens have equal key norms)."""
    rows = TOKENS if rows is None else rows
    width = max(map(len, rows))
    tokens = torch.tensor([[1] * (width - len(row)) + row for row in rows])
    valid = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    prompt = valid & (valid.long().cumsum(-1) <= PROMPT)
    return Canvas(tokens, valid, valid & (tokens >= 60), prompt, step, seeds)


def places(canvas: Canvas, row: int, kind: str) -> list[int]:
    """Positions of a kind, by its definition."""
    real = [i for i in range(canvas.tokens.shape[1]) if canvas.valid[row, i]]
    return {
        "all": real,
        "masked": [i for i in real if canvas.masked[row, i]],
        "committed": [i for i in real if not canvas.masked[row, i]],
        "prompt": [i for i in real if canvas.prompt[row, i]],
        "response": [i for i in real if not canvas.prompt[row, i]],
        "last": real[-1:],
    }[kind]


# The hash, in Python integers.

WORD = (1 << 64) - 1


def mix(x: int) -> int:
    """splitmix64's finaliser."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def state(*parts: int) -> int:
    """One number of seed, row seed, step, layer, head, place."""
    x = 0
    for part in parts:
        x = mix((x + part + 0x1E3779B97F4A7C15) & WORD)
    return x


def unit(x: int) -> float:
    """In [0, 1), as float32."""
    return float(torch.tensor((x >> 11) / (1 << 53)).float())


def gauss(x: int, element: int) -> float:
    """Box and Muller."""
    one, two = (unit(mix((x + 2 * element + part + 0x1E3779B97F4A7C15) & WORD)) for part in (0, 1))
    return math.sqrt(-2 * math.log(max(1 - one, 2.0**-53))) * math.cos(2 * math.pi * two)


# One head by hand.


@dataclass
class Head:
    """What a naive operator may know: one row, layer and head of one forward, in float64."""

    scores: Tensor  # -inf where the model does not look
    values: Tensor
    norms: list[float]
    real: list[int]
    rows: list[int]  # queries in scope; none if the head is not
    eligible: list[int]
    diagonal: bool
    hash_at: Callable[[int, int], int]  # (seed, place) -> state

    def __post_init__(self) -> None:
        self.n = len(self.scores)
        self.pattern = self.scores.softmax(-1).nan_to_num(0.0)
        sums = self.pattern[self.real].sum(0).tolist()
        received = {j: sums[j] for j in self.eligible}
        self.looks = (self.scores > -INF).tolist()
        self.received = received
        self.sinks = sorted(sorted(self.eligible, key=lambda j: -received[j])[:2])

    def touched(self, i: int) -> list[int]:
        """Sinks that query i is edited at."""
        return [j for j in self.sinks if self.diagonal or i != j] if i in self.rows else []

    def seen(self, i: int) -> list[int]:
        """Keys that query i may look at."""
        return [j for j in range(self.n) if self.looks[i][j]]

    def others(self, i: int) -> list[int]:
        """Those that are not edited."""
        return [j for j in self.seen(i) if j not in self.touched(i)]


Naive = Callable[[Head], tuple[Tensor, Tensor]]  # the pattern as later hooks see it, and what attention gives


def by_rows(row: Callable[[Head, int, Tensor], None]) -> Naive:
    """A naive operator on the pattern, one query after the other; `row` changes the row in place."""

    def run(head: Head) -> tuple[Tensor, Tensor]:
        pattern = head.pattern.clone()
        for i in range(head.n):
            if head.touched(i):
                row(head, i, pattern[i])
        return pattern, pattern @ head.values

    return run


def mask_row(head: Head, i: int, row: Tensor) -> None:
    kept = head.others(i) or [max(head.seen(i), key=lambda j: float(head.scores[i, j]))]
    exps = {j: math.exp(float(head.scores[i, j] - head.scores[i, kept].max())) for j in kept}
    row[:] = 0.0
    for j in kept:
        row[j] = exps[j] / sum(exps.values())


def bias_row(bias: float) -> Callable:
    def run(head: Head, i: int, row: Tensor) -> None:
        scores = head.scores[i].clone()
        for j in head.touched(i):
            scores[j] += bias
        row[:] = scores.softmax(-1)

    return run


def zero_row(head: Head, i: int, row: Tensor) -> None:
    row[head.touched(i)] = 0.0


def scale_row(factor: float, renormalise: bool) -> Callable:
    def run(head: Head, i: int, row: Tensor) -> None:
        old = [float(x) for x in row]
        mass, rest = sum(old[j] for j in head.touched(i)), sum(old[j] for j in head.others(i))
        if renormalise and (rest == 0 or rest + (1 - factor) * mass < 0):
            return
        for j in head.seen(i):
            if j in head.touched(i):
                row[j] = old[j] * factor
            elif renormalise:
                row[j] = old[j] * (rest + (1 - factor) * mass) / rest

    return run


def give_row(to: Any, share: float) -> Callable:
    def run(head: Head, i: int, row: Tensor) -> None:
        old = [float(x) for x in row]
        if to == "proportional":
            weights = {j: old[j] for j in head.others(i)}
        elif to == "uniform":
            weights = dict.fromkeys(head.others(i), 1.0)
        elif to == "self":
            weights = {i: 1.0} if i in head.others(i) else {}  # a touched key gets nothing
        elif to == "later":
            weights = {j: float(1 + j - head.real[0]) for j in head.seen(i)}
        else:
            weights = {j: 1.0 for j in [head.real[0] + to] if j in head.others(i)}
        total = sum(weights.values())
        if total == 0:
            return
        moved = sum(share * old[j] for j in head.touched(i))
        for j in head.touched(i):
            row[j] -= share * old[j]
        for j, weight in weights.items():
            row[j] += moved * weight / total

    return run


def swap_all(seed: int) -> Naive:
    def run(head: Head) -> tuple[Tensor, Tensor]:
        free = [j for j in head.real if j not in head.sinks]
        free.sort(key=lambda j: -unit(head.hash_at(seed, j)))
        pairs = list(zip(head.sinks, free, strict=False))
        pattern = head.pattern.clone()
        for i in head.rows:
            for j, k in pairs:
                # Without the diagonal, a query that is a sink keeps what it gives itself.
                if j in head.touched(i) and j in head.seen(i) and k in head.seen(i):
                    pattern[i, j], pattern[i, k] = head.pattern[i, k], head.pattern[i, j]
        return pattern, pattern @ head.values

    return run


def values_of(replacement: Callable[[Head, int], Tensor]) -> Naive:
    def run(head: Head) -> tuple[Tensor, Tensor]:
        instead = {j: replacement(head, j) for j in head.sinks}
        rows = []
        for i in range(head.n):
            says = [instead[j] if j in head.touched(i) else head.values[j] for j in range(head.n)]
            rows.append(head.pattern[i] @ torch.stack(says))
        return head.pattern, torch.stack(rows)

    return run


def noise_of(std: float | None, seed: int) -> Callable[[Head, int], Tensor]:
    def run(head: Head, j: int) -> Tensor:
        loud = float(head.values[head.real].std(correction=0)) if std is None else std
        drawn = [gauss(head.hash_at(seed, j), element) for element in range(head.values.shape[1])]
        return loud * torch.tensor(drawn, dtype=torch.float64)

    return run


def null_key(logit: float) -> Naive:
    def run(head: Head) -> tuple[Tensor, Tensor]:
        pattern = head.pattern.clone()
        for i in head.rows:
            pattern[i] = torch.cat([head.scores[i], torch.tensor([logit]).double()]).softmax(-1)[:-1]
        return pattern, pattern @ head.values

    return run


def keep(budget: float, by: str, seed: int = 0) -> Naive:
    def run(head: Head) -> tuple[Tensor, Tensor]:
        score = {
            "received": lambda j: head.received[j],
            "key_norm": lambda j: -head.norms[j],
            "random": lambda j: unit(head.hash_at(seed, j)),
            "recency": lambda j: j,
        }[by]
        number = math.ceil(Fraction(str(budget)) * len(head.eligible)) if isinstance(budget, float) else budget
        kept = sorted(head.eligible, key=lambda j: -score(j))[:number]
        head.sinks = [j for j in head.eligible if j not in kept]
        return by_rows(mask_row)(head)

    return run


def later(pattern: Tensor, at: Any) -> Tensor:
    """To all visible keys, those further right more, counted from the row's start."""
    place = at.canvas.valid.long().cumsum(-1)[:, None, None, :]
    weights = (place * at.visible).float().expand(pattern.shape)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


EVERYWHERE = Scope()


@dataclass(frozen=True)
class Reach:
    """What an edit may touch."""

    where: Scope = EVERYWHERE
    queries: Any = "all"
    diagonal: bool = True
    keys: Any = "all"

    def of(self, *names: str) -> dict[str, Any]:
        """As arguments of an edit."""
        return {name: getattr(self, name) for name in ("where", "queries", *names)}


ALL = Reach()


def top(reach: Reach = ALL, k: int = 2) -> SameStep:
    """The k keys that receive most from all queries, in any model."""
    return SameStep(SinkRule(None, top_k=k, keys=reach.keys))


def sinks(make: Any, *first: Any, **options: Any) -> Callable[[Reach], Any]:
    """An edit of those keys, its own arguments first."""
    return lambda reach: make(*first, top(reach), **reach.of("diagonal"), **options)


def kept(*first: Any, **options: Any) -> Callable[[Reach], Any]:
    return lambda reach: KeepKeys(*first, **reach.of("diagonal", "keys"), **options)


LATER = named("later", later)
OPERATORS: dict[str, tuple[Callable[[Reach], Any], Naive]] = {
    "noop": (sinks(NoOp), lambda head: (head.pattern, head.pattern @ head.values)),
    "mask": (sinks(MaskSinks), by_rows(mask_row)),
    "bias -2": (sinks(BiasSinks, -2), by_rows(bias_row(-2))),
    "bias 1.5": (sinks(BiasSinks, 1.5), by_rows(bias_row(1.5))),
    "zero": (sinks(ZeroSinks), by_rows(zero_row)),
    "scale 0.1": (sinks(ScaleSinks, 0.1), by_rows(scale_row(0.1, False))),
    "scale 3": (sinks(ScaleSinks, 3), by_rows(scale_row(3, False))),
    "rescale 0.1": (sinks(ScaleSinks, 0.1, renormalise=True), by_rows(scale_row(0.1, True))),
    "rescale 1.3": (sinks(ScaleSinks, 1.3, renormalise=True), by_rows(scale_row(1.3, True))),
    "proportional": (sinks(Redistribute, "proportional"), by_rows(give_row("proportional", 1.0))),
    "proportional 0.6": (sinks(Redistribute, "proportional", share=0.6), by_rows(give_row("proportional", 0.6))),
    "uniform": (sinks(Redistribute, "uniform"), by_rows(give_row("uniform", 1.0))),
    "self 0.5": (sinks(Redistribute, "self", share=0.5), by_rows(give_row("self", 0.5))),
    "position 4": (sinks(Redistribute, 4), by_rows(give_row(4, 1.0))),
    "function 0.9": (sinks(Redistribute, LATER, share=0.9), by_rows(give_row("later", 0.9))),
    "swap": (sinks(Swap, seed=5), swap_all(5)),
    "zero value": (sinks(ZeroValue), values_of(lambda head, j: 0 * head.values[j])),
    "mean value": (sinks(MeanValue), values_of(lambda head, j: head.values[head.real].mean(0))),
    "noise": (sinks(NoiseValue, None, seed=4), values_of(noise_of(None, 4))),
    "noise 0.3": (sinks(NoiseValue, 0.3), values_of(noise_of(0.3, 0))),
    "null key 0": (lambda reach: NullKey(0.0, **reach.of()), null_key(0.0)),
    "null key 3": (lambda reach: NullKey(3.0, **reach.of()), null_key(3.0)),
    "keep 0.5": (kept(0.5), keep(0.5, "received")),
    "keep 3 norm": (kept(3, "key_norm"), keep(3, "key_norm")),
    "keep 0.3 random": (kept(0.3, "random", seed=9), keep(0.3, "random", 9)),
    "keep 4 recency": (kept(4, "recency"), keep(4, "recency")),
}
REACHES = {
    "everything": ALL,
    "layer 1, heads 0 and 3": Reach(Scope(layers=[1], heads=[0, -1])),
    "masked queries, prompt keys": Reach(queries="masked", keys="prompt"),
    "response queries, no diagonal": Reach(queries="response", diagonal=False),
    "committed keys": Reach(Scope(heads=slice(1, 3)), keys="committed", diagonal=False),
}
POINTS = {"q": "hook_rot_q", "k": "hook_rot_k", "v": "v.hook_out", "pattern": "hook_pattern", "z": "o.hook_in"}


@torch.no_grad()
def edited(
    dlm: HookedDLM, edit: Any, canvas: Canvas, before: list[Hook] | None = None, memory: Memory | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of one edited forward, and what hooks that come after the edit see."""
    seen: dict[str, Tensor] = {}

    def look(name: str, tensor: Tensor, *, hook: Any) -> None:
        seen[name] = tensor.detach().clone()

    names = [(f"{n}{layer}", f"blocks.{layer}.attn.{point}") for layer in range(2) for n, point in POINTS.items()]
    hooks = [] if edit is None else edit.fwd_hooks(dlm, canvas, memory)
    with dlm.hooks(fwd_hooks=[*(before or []), *hooks, *((point, partial(look, n)) for n, point in names)]):
        return dlm(canvas.tokens, attention_mask=canvas.valid), seen


def heads_of(dlm: HookedDLM, canvas: Canvas, seen: dict[str, Tensor], reach: Reach, layer: int) -> list[list[Head]]:
    """All heads of a layer, [row][head], from queries, keys and values alone."""
    q, k, v = (seen[f"{name}{layer}"].double() for name in "qkv")
    where = reach.where
    inside = where.layers is None or layer in where.layers
    out = []
    for b in range(len(q)):
        real = places(canvas, b, "all")
        row = []
        for h in range(4):
            group = h // (4 // k.shape[2])
            scores = q[b, :, h] @ k[b, :, group].T / math.sqrt(8)
            scores[:, ~canvas.valid[b]] = -INF
            if dlm.is_causal:
                scores[torch.ones_like(scores).triu(1) > 0] = -INF
            heads = [0, 1, 2, 3] if where.heads is None else [0, 3] if where.heads == (0, -1) else [1, 2]
            rows = places(canvas, b, reach.queries) if inside and h in heads else []
            place = dict(zip(real, range(len(real)), strict=True))
            hash_at = lambda seed, j, b=b, h=h, place=place: state(  # noqa: E731
                seed, canvas.seeds[b], canvas.step, layer, h, place[j]
            )
            norms = k[b, :, group].norm(dim=-1).tolist()
            eligible = places(canvas, b, reach.keys)
            row.append(Head(scores, v[b, :, group], norms, real, rows, eligible, reach.diagonal, hash_at))
        out.append(row)
    return out


@pytest.mark.parametrize("name", OPERATORS)
@models
def test_an_operator_does_what_its_naive_form_does(model: Make, family: str, kv_heads: int, name: str) -> None:
    """Pattern and output of every head; then a forward without the edit into which the naive output is written."""
    dlm, canvas = model(family, kv_heads), canvas_for()
    make, naive = OPERATORS[name]
    for label, reach in REACHES.items():
        if label != "everything" and family in ("A2D-Qwen3", "Qwen3"):
            continue  # saves time
        if name == "swap" and not reach.diagonal:
            continue  # see test_swap_spares_the_diagonal
        logits, seen = edited(dlm, make(reach), canvas)
        put: list[Hook] = []
        for layer in range(2):
            z = torch.zeros(seen[f"z{layer}"].shape, dtype=torch.float64)
            for b, row in enumerate(heads_of(dlm, canvas, seen, reach, layer)):
                real = row[0].real
                for h, head in enumerate(row):
                    pattern, z[b, :, h] = naive(head)
                    at = f"{label}, layer {layer}, row {b}, head {h}"
                    ours = seen[f"pattern{layer}"][b, h].double()
                    torch.testing.assert_close(
                        ours[real], pattern[real], atol=2e-5, rtol=0, msg=lambda m, at=at: f"{at}\n{m}"
                    )
                    ours = seen[f"z{layer}"][b, real, h].double()
                    torch.testing.assert_close(
                        ours, z[b, real, h], atol=1e-4, rtol=1e-5, msg=lambda m, at=at: f"{at}\n{m}"
                    )

            def write(tensor: Tensor, *, hook: Any, z: Tensor = z) -> Tensor:
                return z.reshape(tensor.shape).to(tensor.dtype)

            put.append((f"blocks.{layer}.attn.o.hook_in", write))
        expected, _ = edited(dlm, None, canvas, put)
        torch.testing.assert_close(logits[canvas.valid], expected[canvas.valid], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "noop"])
def test_every_operator_changes_the_logits(model: Make, name: str) -> None:
    """Otherwise the comparison above would compare nothing."""
    dlm, canvas = model("LLaDA", 2), canvas_for()
    plain, _ = edited(dlm, None, canvas)
    logits, _ = edited(dlm, OPERATORS[name][0](ALL), canvas)
    assert (logits - plain)[canvas.valid].abs().max() > 0.05


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_alone_or_in_a_padded_batch_it_is_the_same(model: Make, family: str, name: str) -> None:
    dlm, edit = model(family, 2), OPERATORS[name][0](ALL)
    both, seen = edited(dlm, edit, canvas_for())
    for b, seed in ((0, 3), (1, 8)):
        logits, one = edited(dlm, edit, canvas_for([TOKENS[b]], seeds=(seed,)))
        start = 9 - len(TOKENS[b])
        torch.testing.assert_close(both[b, start:], logits[0], atol=2e-3, rtol=1e-4)
        for layer in range(2):
            ours = seen[f"pattern{layer}"][b, :, start:, start:]
            torch.testing.assert_close(ours, one[f"pattern{layer}"][0], atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_rows_that_are_done_are_left_alone(model: Make, name: str) -> None:
    dlm = model("LLaDA", 2)
    canvas = replace(canvas_for(), active=torch.tensor([True, False]))
    edit = OPERATORS[name][0](ALL)
    memory = edit.memory()
    logits, seen = edited(dlm, edit, canvas, memory=memory)
    plain, before = edited(dlm, NoOp(top()), canvas)
    assert torch.equal(logits[1], plain[1])
    assert torch.equal(seen["pattern1"][1], before["pattern1"][1])
    assert name == "noop" or not torch.equal(logits[0], plain[0])
    counts = [memory.per_row(count)[1] for count in ("keys", "mass") if memory.per_row(count)]
    assert not any(counts)
    assert counts


# The extra token.


@torch.no_grad()
def with_a_real_token(dlm: HookedDLM, canvas: Canvas, token: int) -> tuple[Tensor, dict[int, Tensor]]:
    """Raw logits at the canvas's positions with `token` before each row's first; and the mass that it takes."""
    width = canvas.tokens.shape[1]
    tokens = torch.cat([torch.ones(len(canvas.tokens), 1, dtype=torch.long), canvas.tokens], 1)
    valid = torch.cat([torch.zeros(len(canvas.tokens), 1, dtype=torch.bool), canvas.valid], 1)
    front = []
    for b in range(len(tokens)):
        at = width - int(canvas.valid[b].sum())
        front.append(at)
        tokens[b, at], valid[b, at] = token, True
    mass: dict[int, Tensor] = {}

    def alone(scores: Tensor, *, hook: Any) -> Tensor:
        scores = scores.clone()
        for b, at in enumerate(front):
            scores[b, :, at, [j for j in range(width + 1) if j != at]] = -INF
        return scores

    def look(pattern: Tensor, *, hook: Any) -> None:
        taken = [pattern[b, :, at + 1 :, at].sum() for b, at in enumerate(front)]
        mass[int(hook.name.split(".")[1])] = torch.stack(taken)

    hooks: list[Hook] = [(f"blocks.{layer}.attn.hook_attn_scores", alone) for layer in range(2)]
    hooks += [(f"blocks.{layer}.attn.hook_pattern", look) for layer in range(2)]
    with dlm.hooks(fwd_hooks=hooks):
        return dlm(tokens, attention_mask=valid)[:, 1:], mass


@models
def test_the_sink_token_is_a_token_that_sees_only_itself(model: Make, family: str, kv_heads: int) -> None:
    dlm, canvas = model(family, kv_heads), canvas_for()
    edit = SinkToken(token=44)
    if dlm.family.positions != "rotary":
        with pytest.raises(ScopeError, match="no position before the first"):
            edited(dlm, edit, canvas)
        return
    memory = edit.memory()
    ours, _ = edited(dlm, edit, canvas, memory=memory)
    theirs, mass = with_a_real_token(dlm, canvas, 44)
    compared = canvas.valid & (canvas.valid.long().cumsum(-1) > (1 if dlm.family.shift else 0))
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours[compared] / scale, theirs[compared] / scale, atol=1e-4, rtol=0)
    plain, _ = edited(dlm, None, canvas)
    assert (ours - plain)[compared].abs().max() > 0.1
    torch.testing.assert_close(torch.tensor(memory.per_row("mass")), mass[0] + mass[1], atol=1e-3, rtol=1e-4)
    assert memory.per_row("rows") == [9 * 4 * 2, 6 * 4 * 2]


def test_the_sink_token_is_bos_unless_said_otherwise(model: Make) -> None:
    dlm, canvas = model("LLaDA", 2), canvas_for()
    assert torch.equal(edited(dlm, SinkToken(), canvas)[0], edited(dlm, SinkToken(token=0), canvas)[0])
    with pytest.raises(ScopeError, match="token id 64 is outside the vocabulary of 64"):
        denoise(dlm, [5, 6], Plan(new_tokens=2), interventions=[SinkToken(64)], progress=False)
    bare = SimpleNamespace(cfg=dlm.cfg, ids=SimpleNamespace(bos=None))
    with pytest.raises(ScopeError, match=r"SinkToken\(token=0\)"):
        SinkToken().check(bare, canvas)


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_the_sink_token_keeps_to_its_scope(model: Make, family: str) -> None:
    """Rows in scope sum to less than 1, rows out of scope are what they were, bit for bit."""
    dlm, canvas = model(family, 2), canvas_for()
    where = Scope(layers=[0], heads=[1, 2])
    _, seen = edited(dlm, SinkToken(44, where=where, queries="masked"), canvas)
    _, plain = edited(dlm, NoOp(top()), canvas)
    smallest = 1.0
    for b in range(2):
        for h in range(4):
            for i in places(canvas, b, "all"):
                ours, was = seen["pattern0"][b, h, i], plain["pattern0"][b, h, i]
                if h in (1, 2) and i in places(canvas, b, "masked"):
                    smallest = min(smallest, float(ours.sum()))
                    torch.testing.assert_close(ours / ours.sum(), was, atol=1e-6, rtol=1e-5)
                else:
                    assert torch.equal(ours, was)
    assert smallest < 0.9


# Pinning.


@pytest.mark.parametrize("reach", [ALL, Reach(Scope(layers=[1], heads=[0, 2]), queries="masked")])
@models
def test_pinned_queries_are_those_of_the_record(model: Make, family: str, kv_heads: int, reach: Reach) -> None:
    """The record comes from the same prompts in another batch order with other tokens committed (another seed)."""
    dlm = model(family, kv_heads)
    prompts = [[5, 17, 9, 33], [12, 40]]
    plan = Plan(new_tokens=3, temperature=5.0, suppress_eos="logits")
    if dlm.is_causal and reach != ALL:  # a baseline has no masked queries
        reach = replace(reach, queries="prompt")
    if family in ("DiffuGPT", "MDLM"):  # whose own samplers end by chance
        plan = replace(plan, sampler="llada", remasking="low_confidence")
    record = denoise(dlm, prompts[::-1], plan, probes=[Pattern()], seed=[5, 4], progress=False).record
    edit, where = Pin(record, **reach.of()), reach.where
    edited_run = denoise(dlm, prompts, plan, probes=[Pattern()], interventions=[edit], seed=[6, 7], progress=False)
    run, memory = edited_run.record, edited_run.memories[0]
    old, new = (
        each["pattern"].transpose("prompt", "step", "layer", "head", "query", "key").to_numpy()
        for each in (record, run)
    )
    pinned = others = 0
    for b in range(2):
        for s in range(3):
            length = int((run["masked"][b, s] >= 0).sum())
            for layer in range(2):
                for h in range(4):
                    inside = (where.layers is None or layer in where.layers) and (where.heads is None or h in (0, 2))
                    for i in range(length):
                        masked = int(run["masked"][b, s, i]) == 1
                        same = (new[b, s, layer, h, i, :length] == old[1 - b, s, layer, h, i, :length]).all()
                        own = i < len(prompts[b]) if dlm.is_causal else masked
                        if inside and (reach.queries == "all" or own):
                            assert same
                            pinned += 1
                        elif i > 0:
                            others += not same
    assert sum(memory.per_row("rows")) == pinned
    assert sum(memory.per_row("rows_left")) == 0
    assert reach == ALL or others > 0  # out of scope this run's own tokens decide
    assert pinned


@models
def test_pinning_a_run_to_itself_reproduces_it(model: Make, family: str, kv_heads: int) -> None:
    dlm = model(family, kv_heads)
    prompts, plan = [[5, 17, 9, 33], [12, 40]], Plan(new_tokens=3, suppress_eos="logits")
    clean = denoise(dlm, prompts, plan, probes=[Pattern()], progress=False)
    pinned = denoise(dlm, prompts, plan, probes=[Pattern()], interventions=[Pin(clean.record)], progress=False)
    assert torch.equal(clean.tokens, pinned.tokens)
    assert clean.record["pattern"].equals(pinned.record["pattern"])
    # The edited run, pinned to the clean one, has the clean one's patterns and so its tokens.
    both = InOrder(MaskSinks(SameStep(top_k=2)), Pin(clean.record))
    again = denoise(dlm, prompts, plan, probes=[Pattern()], interventions=[both], progress=False)
    assert torch.equal(clean.tokens, again.tokens)


def test_pin_leaves_and_counts_what_the_record_does_not_have(model: Make) -> None:
    """Two recorded steps of three; the queries that were not kept are nan there."""
    dlm, plan = model("LLaDA", 2), Plan(new_tokens=3)
    keep_some = Pattern(Scope(steps=[0, 1]), queries="masked")
    record = denoise(dlm, [5, 17, 9], plan, probes=[keep_some], progress=False).record
    edit = Pin(record)
    run = denoise(dlm, [5, 17, 9], plan, interventions=[edit], progress=False)
    assert run.memories[0].counts() == {"rows": (3 + 2) * 8, "rows_left": (3 + 4 + 6) * 8}
    assert torch.equal(run.tokens, denoise(dlm, [5, 17, 9], plan, progress=False).tokens)


def test_pin_refuses_before_any_forward_what_it_cannot_do(model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dlm, plan = model("LLaDA", 2), Plan(new_tokens=2)
    record = denoise(dlm, [5, 17], plan, probes=[Pattern(Scope(layers=[1]))], progress=False).record
    with pytest.raises(RecordError, match="no pattern to pin"):
        Pin(record.drop_vars("pattern"))
    with pytest.raises(ScopeError, match="needs to know the prompts"):
        Pin(record).fwd_hooks(dlm)

    def forward(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward was run")

    monkeypatch.setattr(HookedDLM, "__call__", forward)
    with pytest.raises(ScopeError, match="no patterns of layer 0; it has"):
        denoise(dlm, [5, 17], plan, interventions=[Pin(record)], progress=False)
    with pytest.raises(RecordError, match="is not in the record"):
        denoise(dlm, [5, 18], plan, interventions=[Pin(record, where=Scope(layers=[1]))], progress=False)


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_pin_works_where_gaps_are_filled(model: Make, family: str) -> None:
    """In a baseline, what stands right of the next gap is not seen yet, but the prompt is the same prompt."""
    dlm = model(family, 2)
    prompts, plan = [[5, 17, 62, 33, 62, 8], [9, 62, 7, 50, 62]], Plan(new_tokens=0)
    clean = denoise(dlm, prompts, plan, probes=[Pattern()], progress=False)
    edit = Pin(clean.record)
    pinned = denoise(dlm, prompts, plan, interventions=[edit], progress=False)
    assert torch.equal(clean.tokens, pinned.tokens)
    assert pinned.memories[0].counts()["rows_left"] == 0


# One hook call on random tensors.

HEADS = 3
shapes = {"batch": st.integers(1, 3), "length": st.integers(3, 8), "seed": st.integers(0, 10_000)}


def fake(*, causal: bool = False) -> Any:
    """As much of a model as fwd_hooks asks for."""
    return SimpleNamespace(cfg=SimpleNamespace(n_layers=1), is_causal=causal)


def random_canvas(batch: int, length: int, seed: int) -> Canvas:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, length - 2, (batch, 1), generator=generator)
    valid = torch.arange(length) >= start
    masked = valid & (torch.rand(batch, length, generator=generator) < 0.4)
    tokens = torch.randint(0, 60, (batch, length), generator=generator)
    return Canvas(tokens, valid, masked, valid & ~masked, 0, tuple(range(batch)))


def random_scores(canvas: Canvas, seed: int, *, causal: bool) -> Tensor:
    batch, length = canvas.tokens.shape
    scores = 3 * torch.randn(batch, HEADS, length, length, generator=torch.Generator().manual_seed(seed + 1))
    scores = scores.masked_fill(~canvas.valid[:, None, None], -INF)
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -INF) if causal else scores


def after(edit: Any, canvas: Canvas, scores: Tensor, *, causal: bool, memory: Memory | None = None) -> Tensor:
    """The pattern after an edit of scores or pattern; neither input changes in place."""
    hooks = edit.fwd_hooks(fake(causal=causal), canvas, memory)
    kept = scores.clone()
    for name, function in hooks:
        if name.endswith("hook_attn_scores"):
            out = function(scores, hook=None)
            assert torch.equal(scores, kept)
            scores = kept = scores if out is None else out
    pattern = scores.softmax(-1).nan_to_num(0.0)
    before = pattern.clone()
    for name, function in hooks:
        if name.endswith("hook_pattern"):
            out = function(pattern, hook=None)
            assert torch.equal(pattern, before)
            pattern = before = pattern if out is None else out
    return pattern


def everyone() -> SameStep:
    """Every key of every row."""
    return top(k=50)


@settings(max_examples=40)
@given(
    **shapes,
    k=st.integers(1, 9),
    causal=st.booleans(),
    diagonal=st.booleans(),
    which=st.sampled_from(
        [
            "mask",
            "bias -2",
            "bias 1.5",
            "proportional 0.6",
            "uniform",
            "self 0.5",
            "position 4",
            "swap",
            "rescale 1.3",
            "rescale 0.1",
            "function 0.9",
            "keep 0.5",
            "keep 0.3 random",
            "proportional",
        ]
    ),
)
def test_rows_still_sum_to_one_and_nothing_moves_to_the_right(
    batch: int, length: int, seed: int, k: int, causal: bool, diagonal: bool, which: str
) -> None:
    """Also where every key is touched."""
    canvas = random_canvas(batch, length, seed)
    scores = random_scores(canvas, seed, causal=causal)
    edit = OPERATORS[which][0](Reach(diagonal=diagonal))
    if not isinstance(edit, KeepKeys):
        edit = replace(edit, selector=top(k=k))
    out = after(edit, canvas, scores, causal=causal)
    assert not out.isnan().any()
    assert (out >= 0).all()
    real = canvas.valid[:, None].expand(out.shape[:-1])
    torch.testing.assert_close(out.sum(-1)[real], torch.ones(int(real.sum())), atol=1e-5, rtol=0)
    assert (out[scores == -INF] == 0).all()  # padding, and keys to the right


@given(**shapes, k=st.integers(1, 9), causal=st.booleans())
def test_the_ways_to_take_a_sink_agree(batch: int, length: int, seed: int, k: int, causal: bool) -> None:
    canvas = random_canvas(batch, length, seed)
    scores = random_scores(canvas, seed, causal=causal)
    see = partial(after, canvas=canvas, scores=scores, causal=causal)
    find = partial(top, k=k)
    plain = see(NoOp(find()))
    assert torch.equal(plain, scores.softmax(-1).nan_to_num(0.0))
    for identity in (
        BiasSinks(0, find()),
        ScaleSinks(1, find()),
        ScaleSinks(1, find(), renormalise=True),
        Redistribute("proportional", find(), share=0),
        Redistribute("uniform", find(), share=0),
        Redistribute("self", find(), share=0),
        Redistribute(1, find(), share=0),
        NullKey(-INF),
    ):
        assert torch.equal(see(identity), plain), identity
    assert torch.equal(see(ScaleSinks(0, find())), see(ZeroSinks(find())))
    memories = [Memory() for _ in range(4)]
    mask, zero, give, scale = memories
    masked, zeroed = see(MaskSinks(find()), memory=mask), see(ZeroSinks(find()), memory=zero)
    lost = plain.sum(-1) - zeroed.sum(-1)
    torch.testing.assert_close(lost.sum((1, 2)), torch.tensor(zero.per_row("mass")), atol=1e-4, rtol=0)
    assert torch.equal(zeroed[zeroed > 0], plain[zeroed > 0])
    given_ = see(Redistribute("proportional", find()), memory=give)
    scaled = see(ScaleSinks(0, find(), renormalise=True), memory=scale)
    some = (zeroed.sum(-1) > 0) | ~canvas.valid[:, None]
    torch.testing.assert_close(given_[some], masked[some], atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled[some], masked[some], atol=1e-5, rtol=0)
    # A row that would lose every key: masking keeps its largest, the other two leave it.
    assert torch.equal(given_[~some], plain[~some])
    assert torch.equal(scaled[~some], plain[~some])
    left = int((~some).sum())
    assert sum(mask.per_row("rows_that_kept_one_key")) == left
    assert give.counts()["rows_left"] == scale.counts()["rows_left"] == left


@given(**shapes, k=st.integers(1, 9), causal=st.booleans())
def test_swap_keeps_the_weights_of_each_row(batch: int, length: int, seed: int, k: int, causal: bool) -> None:
    canvas = random_canvas(batch, length, seed)
    scores = random_scores(canvas, seed, causal=causal)
    memory = Memory()
    out = after(Swap(top(k=k), seed=seed), canvas, scores, causal=causal, memory=memory)
    plain = scores.softmax(-1).nan_to_num(0.0)
    assert torch.equal(out.sort(-1).values, plain.sort(-1).values)
    sizes = canvas.valid.sum(-1)
    alone = sum(HEADS * max(0, 2 * min(k, int(n)) - int(n)) for n in sizes)
    assert memory.counts()["keys_without_partner"] == alone
    if alone == 0 and not causal:
        received = (plain * canvas.valid[:, None, :, None]).sum(-2)
        chosen = top(k=k).rule(received, canvas.valid[:, None].expand(received.shape))
        changed = ((out != plain) & canvas.valid[:, None, :, None]).any(-2)
        assert (changed | ~chosen).all()  # every sink was exchanged
        assert int(changed.sum()) == 2 * k * HEADS * batch


@given(**shapes, causal=st.booleans(), factor=st.floats(0, 50))
def test_a_factor_that_the_others_cannot_pay_leaves_the_row(
    batch: int, length: int, seed: int, causal: bool, factor: float
) -> None:
    canvas = random_canvas(batch, length, seed)
    scores = random_scores(canvas, seed, causal=causal)
    memory = Memory()
    out = after(ScaleSinks(factor, top(k=1), renormalise=True), canvas, scores, causal=causal, memory=memory)
    plain = scores.softmax(-1).nan_to_num(0.0)
    left = 0
    for b in range(batch):
        real = places(canvas, b, "all")
        for h in range(HEADS):
            received = {j: float(plain[b, h, real, j].sum()) for j in real}
            sink = max(real, key=lambda j, received=received: received[j])
            for i in real:
                row = plain[b, h, i].double()
                rest = sum(float(row[j]) for j in real if j != sink)
                pays = rest - (factor - 1) * float(row[sink])
                if abs(pays) < 1e-6:
                    continue  # rounding decides
                expected = row.clone()
                if rest > 0 and pays >= 0:
                    expected *= pays / rest
                    expected[sink] = row[sink] * factor
                else:
                    left += 1
                torch.testing.assert_close(out[b, h, i].double(), expected, atol=1e-5, rtol=1e-4)
    assert memory.counts()["rows_left"] >= left


def test_zero_value_and_zero_weight_give_the_same_logits(model: Make) -> None:
    for family, kv_heads in MODELS:
        dlm, canvas = model(family, kv_heads), canvas_for()
        for reach in REACHES.values():
            value, seen = edited(dlm, sinks(ZeroValue)(reach), canvas)
            weight, _ = edited(dlm, sinks(ZeroSinks)(reach), canvas)
            torch.testing.assert_close(value[canvas.valid], weight[canvas.valid], atol=2e-3, rtol=1e-4)
            rows = seen["pattern1"].sum(-1)[canvas.valid[:, None].expand(-1, 4, -1)]
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)  # the pattern stays


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_identities_hold_bit_for_bit_in_the_logits(model: Make, family: str) -> None:
    dlm, canvas = model(family, 2), canvas_for()
    plain, _ = edited(dlm, NoOp(top()), canvas)
    for edit in (
        NullKey(-INF),
        BiasSinks(0, top()),
        ScaleSinks(1, top()),
        ScaleSinks(1, top(), renormalise=True),
        Redistribute("uniform", top(), share=0),
        KeepKeys(1.0),
    ):
        assert torch.equal(edited(dlm, edit, canvas)[0], plain), edit


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "Qwen3"])
def test_nothing_is_nan_when_every_key_is_touched(model: Make, family: str) -> None:
    """Also in a padded batch, in every step of a run."""
    dlm = model(family, 2)
    edits: list[SinkEdit] = [
        MaskSinks(everyone()),
        BiasSinks(-80, everyone()),
        BiasSinks(80, everyone()),
        ZeroSinks(everyone()),
        ScaleSinks(0, everyone(), renormalise=True),
        ScaleSinks(9, everyone(), renormalise=True),
        Redistribute("proportional", everyone()),
        Redistribute("uniform", everyone()),
        Swap(everyone()),
        ZeroValue(everyone()),
        MeanValue(everyone()),
        NoiseValue(None, everyone()),
    ]
    for edit in [*edits, NullKey(60.0), NullKey(-60.0)]:
        logits, seen = edited(dlm, edit, canvas_for())
        assert not logits[canvas_for().valid].isnan().any(), edit
        assert not seen["pattern1"].isnan().any(), edit


# What was asked for and cannot be.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: BiasSinks(-INF), r"bias=-inf"),
        (lambda: BiasSinks(math.nan), r"bias=nan"),
        (lambda: ScaleSinks(-0.1), r"factor=-0\.1"),
        (lambda: ScaleSinks(INF), r"factor=inf"),
        (lambda: ScaleSinks(math.nan), r"factor=nan"),
        (lambda: Redistribute("nobody"), r"to='nobody'"),  # pyright: ignore[reportArgumentType]
        (lambda: Redistribute(-1), r"to=-1"),
        (lambda: Redistribute(share=1.1), r"share=1\.1"),
        (lambda: Redistribute(share=-0.1), r"share=-0\.1"),
        (lambda: Redistribute(share=math.nan), r"share=nan"),
        (lambda: NoiseValue(-1.0), r"std=-1\.0"),
        (lambda: NoiseValue(math.nan), r"std=nan"),
        (lambda: NullKey(INF), r"logit=inf"),
        (lambda: NullKey(math.nan), r"logit=nan"),
        (lambda: KeepKeys(0), r"budget=0"),
        (lambda: KeepKeys(0.0), r"budget=0\.0"),
        (lambda: KeepKeys(1.5), r"budget=1\.5"),
        (lambda: KeepKeys(-3), r"budget=-3"),
        (lambda: KeepKeys(0.5, by="luck"), r"by='luck'"),  # pyright: ignore[reportArgumentType]
        (lambda: KeepKeys(math.nan), r"budget=nan"),
        (lambda: KeepKeys(True), r"budget=True"),
        (lambda: KeepKeys(1.5, unit="keys"), r"budget=1\.5"),
        (lambda: KeepKeys(2, unit="share"), r"budget=2"),
        (lambda: KeepKeys(2, unit="rows"), r"unit='rows'"),  # pyright: ignore[reportArgumentType]
        (lambda: NoiseValue(INF), r"std=inf"),
        (lambda: Redistribute(1.5), r"to=1\.5"),  # pyright: ignore[reportArgumentType]
        (lambda: SinkToken(-1), r"token=-1"),
        (lambda: MaskSinks(queries="some"), r"queries='some'"),  # pyright: ignore[reportArgumentType]
        (lambda: KeepKeys(3, keys="some"), r"keys='some'"),  # pyright: ignore[reportArgumentType]
        (lambda: MaskSinks(Scope(layers=[0])), r"selector=Scope\(layers=\(0,\)\) must be a Selector"),  # pyright: ignore
        (lambda: MaskSinks(where=[0]), r"where=\[0\] must be a Scope"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_bad_argument_is_refused_and_quoted(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.usefixtures("no_forward")
def test_a_budget_that_keeps_every_key_is_refused_before_any_forward(model: Make) -> None:
    with pytest.raises(ScopeError, match=r"KeepKeys\(4\) keeps every key: the shortest row has 4"):
        denoise(model("LLaDA", 2), [[5, 6], [5, 6, 7]], Plan(new_tokens=2), interventions=[KeepKeys(4)], progress=False)


def test_a_function_must_give_shares(model: Make) -> None:
    dlm, canvas = model("LLaDA", 2), canvas_for()
    for wrong in (lambda pattern, at: pattern * 0.5, lambda pattern, at: pattern * 3 - 2 / pattern.shape[-1]):
        with pytest.raises(NotFinite, match="at least 0 and sum to 1"):
            edited(dlm, Redistribute(wrong, top()), canvas)


# Single claims of the docstrings.


def only_call(edit: Any, scores: Tensor, memory: Memory | None = None) -> Tensor:
    """The pattern after an edit of one row without padding."""
    n = scores.shape[-1]
    on = torch.ones(1, n, dtype=torch.bool)
    canvas = Canvas(torch.zeros(1, n, dtype=torch.long), on, ~on, on, 0, (0,))
    return after(edit, canvas, scores, causal=False, memory=memory)


def test_nothing_is_given_to_a_key_that_is_touched_itself() -> None:
    """Redistribute: "a key to give to (one that may be seen, and is not touched)", else the row is left and counted."""
    scores = torch.zeros(1, 1, 4, 4)
    for to in (0, "self"):
        memory = Memory()
        out = only_call(Redistribute(to, Fixed([0, 1])), scores, memory)

        assert out[0, 0, 0].tolist() == [0.25, 0.25, 0.25, 0.25], to
        assert memory.counts()["rows_left"] == (4 if to == 0 else 2)


def test_swap_spares_the_diagonal() -> None:
    """Two sinks: query 0, itself a sink, is edited at the other one and keeps what it gives itself."""
    scores = torch.tensor([[4.0, 3.0, 0.0, 0.5, 1.0]]).expand(1, 1, 5, 5)
    edit = Swap(Fixed([0, 1]), diagonal=False)
    out, plain = only_call(edit, scores), scores.softmax(-1)
    assert not torch.equal(out, plain)

    for sink in (0, 1):
        assert out[0, 0, sink, sink] == plain[0, 0, sink, sink]


@pytest.mark.parametrize(("budget", "keys", "kept"), [(0.15, 100, 15), (0.15, 200, 30), (0.35, 20, 7), (0.34, 20, 7)])
def test_a_share_of_keys_is_rounded_up_exactly(budget: float, keys: int, kept: int) -> None:
    """15 % of 100 keys are 15."""
    scores = torch.randn(1, 1, keys, keys, generator=torch.Generator().manual_seed(0))
    memory = Memory()
    out = only_call(KeepKeys(budget), scores, memory)

    assert int((out[0, 0, 0] > 0).sum()) == kept
    assert memory.counts()["keys"] == keys - kept


def test_a_position_that_no_row_has_is_counted() -> None:
    edit, memory = Redistribute(9, Fixed(0)), Memory()
    scores = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(only_call(edit, scores, memory), scores.softmax(-1))
    assert memory.counts()["rows_left"] == 4


def test_an_edit_outside_its_steps_makes_no_hooks(model: Make) -> None:
    dlm, canvas = model("LLaDA", 2), canvas_for(step=1)
    first = Scope(steps=[0])
    for edit in (NullKey(0.0, where=first), SinkToken(5, where=first), MaskSinks(top(), where=first)):
        memory = edit.memory(3)
        for ask in (edit.hooks, edit.at_step):
            assert ask(dlm, canvas, memory) == []
            assert ask(dlm, replace(canvas, step=0), memory)
        with pytest.raises(ScopeError, match="names steps, and a forward outside the denoising loop has none"):
            edit.fwd_hooks(dlm)


# Planted truth.

make_planted: Callable[..., PlantedModel] = lru_cache(planted_model)
either_way = pytest.mark.parametrize("causal", [False, True])


def planted_run(
    planted: PlantedModel, edit: Any | None, prompt: list[int], follow: Any = None, probes: Any = ()
) -> tuple[list[int], Any]:
    plan = Plan(new_tokens=4)
    plan = plan.for_causal() if planted.dlm.is_causal else plan
    edits = [] if edit is None else [edit]
    run = denoise(planted.dlm, prompt, plan, interventions=edits, probes=probes, progress=False, follow=follow)
    return run.tokens[0, run.filled[0]].tolist(), run


@torch.no_grad()
def planted_logits(planted: PlantedModel, edit: Any, tokens: Tensor) -> Tensor:
    on = torch.ones_like(tokens, dtype=torch.bool)
    canvas = Canvas(tokens, on, ~on, on, 0, (0,) * len(tokens))
    with planted.dlm.hooks(fwd_hooks=edit.fwd_hooks(planted.dlm, canvas)):
        return planted.dlm(tokens)


@either_way
def test_a_resting_place_can_be_zeroed_but_not_masked(causal: bool) -> None:
    planted = make_planted("resting", causal=causal)
    example = planted.example(seed=3, new_tokens=4)
    tokens = torch.tensor([example.prompt + example.answer])
    find = partial(Fixed, [0])
    where = Scope(layers=[planted.layer], heads=[planted.head])
    plain = planted_logits(planted, NoOp(find(), where=where), tokens)
    assert torch.equal(planted_logits(planted, ZeroSinks(find(), where=where), tokens), plain)
    assert torch.equal(planted_logits(planted, ZeroValue(find(), where=where), tokens), plain)
    assert torch.equal(planted_logits(planted, ScaleSinks(0.3, find(), where=where), tokens), plain)
    assert planted_run(planted, ZeroValue(find(), where=where), example.prompt)[0] == [REST] * 4
    for edit in (MaskSinks(find(), where=where), Redistribute("proportional", find(), where=where)):
        assert planted_run(planted, edit, example.prompt)[0] == [FILLER] * 4


@either_way
@pytest.mark.parametrize("kind", ["informative", "resting"])
def test_operators_give_the_logits_of_the_naively_edited_oracle(kind: Any, causal: bool) -> None:
    """The reading head alone writes: the answer is a function of its edited pattern, which is edited here."""
    planted = make_planted(kind, causal=causal, layers=3, heads=4, kv_heads=2)
    example = planted.example(seed=1, new_tokens=4)
    assert example.key is not None
    tokens = torch.tensor([example.prompt + example.answer])
    n, key = tokens.shape[1], example.key
    find, clean = partial(Fixed, [key]), planted.pattern(tokens)
    sees = torch.ones(n, n).tril() if causal else torch.ones(n, n)
    rest = sees.clone()
    rest[:, key] = 0
    others = clean[0] * rest
    zeroed = others.clone()
    given_ = torch.where(others.sum(-1, keepdim=True) > 1e-30, others / others.sum(-1, keepdim=True), clean[0])
    uniform = torch.where(rest.sum(-1, keepdim=True) > 0, rest / rest.sum(-1, keepdim=True), clean[0])
    eye = torch.eye(n)
    alone = torch.where((clean[0, :, [key]] > 0), zeroed + clean[0, :, [key]] * eye, clean[0])
    null = clean[0] * torch.sigmoid(_lse(planted, tokens)[0] - 12.0)
    cases = {
        ZeroSinks(find()): zeroed,
        MaskSinks(find()): given_,
        Redistribute("proportional", find()): given_,
        ScaleSinks(0, find(), renormalise=True): given_,
        Redistribute("uniform", find()): uniform,
        Redistribute("self", find()): alone,
        ScaleSinks(0.25, find()): zeroed + 0.25 * (clean[0] - zeroed),
        NullKey(12.0): null,
        NullKey(-INF): clean[0],
    }
    for edit, pattern in cases.items():
        ours = planted_logits(planted, edit, tokens)
        torch.testing.assert_close(
            ours, planted.logits(tokens, pattern[None]), atol=2e-3, rtol=1e-4, msg=lambda m, e=edit: f"{e}: {m}"
        )


def _lse(planted: PlantedModel, tokens: Tensor) -> Tensor:
    """Log of the sum of the reading head's exponentials, [1, query, 1], by definition: 20 at sinks, else 0."""
    n = tokens.shape[1]
    informative = planted.kind == "informative"
    sink = tokens >= 6 + planted.words if informative else tokens == 0
    scores = (20.0 * sink)[:, None].expand(1, n, n)
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1) & torch.tensor(planted.dlm.is_causal)
    return scores.masked_fill(hidden, -INF).logsumexp(-1, keepdim=True)


@either_way
def test_a_large_null_key_starves_the_head(causal: bool) -> None:
    planted = make_planted("informative", causal=causal)
    example = planted.example(seed=2, new_tokens=4)
    assert planted_run(planted, NullKey(-INF), example.prompt)[0] == example.answer
    assert planted_run(planted, NullKey(0.0), example.prompt)[0] == example.answer
    said, run = planted_run(planted, NullKey(60.0), example.prompt)
    assert said == [REST] * 4
    counts = run.memories[0].counts()
    assert counts["mass"] == pytest.approx(counts["rows"], rel=1e-6)


@either_way
def test_masking_the_informative_key_destroys_the_answer_and_controls_do_not(causal: bool) -> None:
    planted = make_planted("informative", causal=causal)
    where = Scope(layers=[planted.layer], heads=[planted.head])
    for seed in range(3):
        example = planted.example(seed=seed, new_tokens=4)
        edit = MaskSinks(top(k=1), where=where)
        assert planted_run(planted, edit, example.prompt)[0] == [FILLER] * 4
        zero = ZeroSinks(top(k=1), where=where)
        assert planted_run(planted, zero, example.prompt)[0] == [REST] * 4
        for name in ("random", "bottom", "shifted", "noop"):
            said, run = planted_run(planted, control(edit, name), example.prompt)
            assert said == example.answer, name
            assert name == "noop" or run.memories[0].counts()["keys"] > 0


def test_another_kinds_pattern_pinned_gives_what_the_oracle_says() -> None:
    """The weights of "informative" reading with the pattern of "resting": everybody looks at BOS, a filler to it."""
    reader, rester = make_planted("informative"), make_planted("resting")
    example = reader.example(seed=4, new_tokens=4)
    record = planted_run(rester, None, example.prompt, probes=[Pattern()])[1].record
    seen: list[Tensor] = []
    edit = Pin(record, where=Scope(layers=[reader.layer], heads=[reader.head]))
    said, run = planted_run(reader, edit, example.prompt)
    tokens = torch.tensor([example.prompt + [2] * 4])
    expected = reader.logits(tokens, rester.pattern(tokens))
    assert expected[0, -1].argmax() == FILLER
    assert said == [FILLER] * 4
    assert run.finished
    on = torch.ones_like(tokens, dtype=torch.bool)
    given_ = on.clone()
    given_[:, -4:] = False
    canvas = Canvas(tokens, on, ~given_, given_, 0, (0,))
    with torch.no_grad(), reader.dlm.hooks(fwd_hooks=edit.fwd_hooks(reader.dlm, canvas)):
        seen.append(reader.dlm(tokens))
    torch.testing.assert_close(seen[0], expected, atol=2e-3, rtol=1e-4)


def test_two_memories_of_one_edit_count_apart(model: Make) -> None:
    """Whoever runs an edit holds its memory: a second run of the same edit must not add to the first."""
    dlm, canvas, edit = model("LLaDA"), canvas_for(), ZeroSinks(top())
    one, other = edit.memory(3), edit.memory(3)
    edited(dlm, edit, canvas, memory=one)
    before = one.counts()
    assert before["keys"] > 0
    edited(dlm, edit, canvas, memory=other)
    assert one.counts() == before == other.counts()
