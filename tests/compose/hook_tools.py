"""Contexts of hooks: what reaches hook points, and what an edit there does, against torch's hooks on plain modules."""

from __future__ import annotations

from typing import Any

import torch
from compose.cases import Case, close
from compose.table import tool
from torch import Tensor

ROOM = "Hooks and caches of a forward"
LAST = 1  # layer


def halve(tensor: Tensor, *, hook: Any) -> Tensor:
    """An edit."""
    return tensor / 2


def expected(case: Case, layers: tuple[int, ...] = (LAST,), by: float = 0.5) -> Tensor:
    """Logits of the plain model with its layers' MLP outputs scaled."""
    handles = [
        case.parts(layer)["mlp_out"].register_forward_hook(lambda _, __, out: out * by) for layer in layers
    ]  # fmt: skip
    try:
        return case.logits(case.tokens)
    finally:
        for handle in handles:
            handle.remove()


def clean(case: Case) -> None:
    """Nothing is left behind."""
    assert not case.dlm.hooked
    close(case.dlm(case.tokens), case.logits(case.tokens))


@tool(ROOM, "run_with_hooks", "plain model, MLP output halved by a torch hook; nothing stays behind", "forward")
@torch.no_grad()
def run_with_hooks(case: Case) -> None:
    edit = [(f"blocks.{LAST}.hook_mlp_out", halve)]
    close(case.dlm.run_with_hooks(case.tokens, fwd_hooks=edit), expected(case))
    clean(case)
    close(case.dlm.run_with_hooks(case.tokens, fwd_hooks=edit, reset_hooks_end=False), expected(case))
    close(case.dlm(case.tokens), expected(case))  # the hook is still there
    case.dlm.reset_hooks()
    clean(case)


@tool(ROOM, "hooks", "two nested contexts, each halves another MLP; the inner one is over first", "reset_hooks")
@torch.no_grad()
def nested(case: Case) -> None:
    with case.dlm.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", halve)]):
        with case.dlm.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", halve)], clear_contexts=True):
            close(case.dlm(case.tokens), expected(case, (0, 1)))
        close(case.dlm(case.tokens), expected(case, (0,)))
    clean(case)


@tool(
    ROOM, "add_hook", "added by name and by predicate; a permanent one outlives reset_hooks() alone",
    "add_perma_hook", "remove_all_hook_fns", "check_hooks_to_add", "clear_contexts", "add_hook",
)  # fmt: skip
@torch.no_grad()
def added(case: Case) -> None:
    case.dlm.add_hook(lambda name: name.endswith("hook_mlp_out"), halve)
    close(case.dlm(case.tokens), expected(case, (0, 1)))
    case.dlm.reset_hooks()
    case.dlm.add_perma_hook(f"blocks.{LAST}.hook_mlp_out", halve)
    case.dlm.reset_hooks()
    close(case.dlm(case.tokens), expected(case))
    case.dlm.remove_all_hook_fns(including_permanent=True)
    case.dlm.clear_contexts()
    clean(case)


@tool(
    ROOM, "run_with_cache", "by name, list and predicate, pos_slice, remove_batch_dim: plain modules' outputs",
    "add_caching_hooks", "get_caching_hooks", "cache_all", "cache_some", "get_hook_point", "hook_points", "hook_dict",
)  # fmt: skip
@torch.no_grad()
def cached(case: Case) -> None:
    found, name = case.watch(case.tokens), "blocks.1.hook_resid_pre"
    stream = found[1, "block"][0]
    logits, cache = case.dlm.run_with_cache(case.tokens, names_filter=name)
    close(logits, case.logits(case.tokens))
    assert set(cache) == {name, case.dlm.get_hook_point(name).name}
    close(cache[name], stream)
    close(case.dlm.run_with_cache(case.tokens, names_filter=[name], pos_slice=(1, 4))[1][name], stream[:, 1:4])
    alone = case.dlm.run_with_cache(case.tokens, names_filter=lambda n: n == name, remove_batch_dim=True)[1]
    close(alone[name], stream[0])
    close(case.dlm.run_with_cache(case.tokens, pos_slice=-1)[1]["pattern", 0], found["attn"][0][:, :, -1:])
    store: dict[str, Tensor] = {}
    case.dlm.cache_some(store, lambda n: n == name)
    case.dlm.cache_all(store)
    case.dlm.add_caching_hooks(name, cache=store)
    case.dlm(case.tokens)
    case.dlm.reset_hooks()
    close(store[case.dlm.get_hook_point(name).name], stream)
    close(store["blocks.0.attn.hook_pattern"], found["attn"][0])
    made, forward, _ = case.dlm.get_caching_hooks(name)
    case.dlm.run_with_hooks(case.tokens, fwd_hooks=forward)
    close(made[name], stream)
    assert case.dlm.hook_dict[name] in list(case.dlm.hook_points())
    clean(case)


@tool(ROOM, "stop_at_layer", "the stream there, and logits from it: plain layers", "start_at_layer", "input_to_embed")
@torch.no_grad()
def stopped(case: Case) -> None:
    found = case.watch(case.tokens)
    stream = found[1, "block"][0]
    close(case.dlm(case.tokens, stop_at_layer=1), stream)
    close(case.dlm.run_with_hooks(case.tokens, stop_at_layer=1, fwd_hooks=[("blocks.1.hook_mlp_out", halve)]), stream)
    close(case.dlm.run_with_cache(case.tokens, stop_at_layer=-1)[0], stream)
    close(case.dlm(stream, start_at_layer=1), case.logits(case.tokens))
    close(case.dlm.input_to_embed(case.tokens)[0], found[0, "block"][0])
    close(case.dlm(case.dlm.input_to_embed(case.tokens)[0], start_at_layer=0), case.logits(case.tokens))
    clean(case)


def gradients(case: Case, row: int, token: int) -> dict[str, Tensor]:
    """Of one logit of the plain model, in the rows that a HookedDLM has, by torch's own graph."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            kept[name] = out
            out.retain_grad()

        return hook

    handles = [case.parts(i)["mlp_out"].register_forward_hook(keep(f"blocks.{i}.hook_mlp_out")) for i in (0, 1)]
    with torch.enable_grad():
        out = case.plain(case.tokens, attention_mask=case.mask(case.tokens)).logits
        out[0, max(row - 1, 0) if case.shifted else row, token].backward()
    for handle in handles:
        handle.remove()
    case.plain.zero_grad()
    return {name: tensor.grad for name, tensor in kept.items() if tensor.grad is not None}


@tool(ROOM, "bwd_hooks", "gradients of one logit at two MLPs: torch.autograd on the plain model", "incl_bwd")
def backward(case: Case) -> None:
    row, token, found = 4, 7, {}
    truth = gradients(case, row, token)

    def keep(grad: Tensor, *, hook: Any) -> None:
        found[hook.name] = grad.clone()

    names = list(truth)
    points = [case.dlm.get_hook_point(name).name for name in names]
    with torch.enable_grad(), case.dlm.hooks(bwd_hooks=[(name, keep) for name in names]):
        case.dlm(case.tokens)[0, row, token].backward()
    for name, point in zip(names, points, strict=True):
        close(found[point], truth[name])
    case.dlm.zero_grad()
    out, cache = None, None
    with torch.enable_grad():
        cache, forward, bwd = case.dlm.get_caching_hooks(lambda name: name in names, incl_bwd=True)
        with case.dlm.hooks(fwd_hooks=forward, bwd_hooks=bwd):
            out = case.dlm(case.tokens)
            out[0, row, token].backward()
    for name in names:
        close(cache[f"{name}_grad"], truth[name])
    case.dlm.zero_grad()
    clean(case)


@tool(
    ROOM, "set_use_attn_result", "logits stay, and the heads' results sum to what attention adds",
    "set_use_attn_in", "set_use_split_qkv_input", "set_use_hook_mlp_in",
)  # fmt: skip
@torch.no_grad()
def switches(case: Case) -> None:
    dlm = case.fresh()
    found = case.watch(case.tokens)
    for switch in (dlm.set_use_attn_in, dlm.set_use_hook_mlp_in, dlm.set_use_split_qkv_input):
        switch(True)
        close(dlm(case.tokens), case.logits(case.tokens))
        switch(False)
    dlm.set_use_attn_result(True)
    logits, cache = dlm.run_with_cache(case.tokens)
    close(logits, case.logits(case.tokens))
    bias = case.parts(0)["o"].bias
    close(cache["result", 0].sum(2) + (0 if bias is None else bias), found[0, "attn_out"][1])
