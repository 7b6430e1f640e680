"""Activation and path patching of transformer_lens.patching, against patches that torch's hooks do in a plain model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as remembered
from typing import Any

import torch
from compose.cases import Case, close
from compose.table import tool
from torch import Tensor
from transformer_lens import patching
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

ROOM = "Patching (transformer_lens.patching)"
CHANGED: dict[int, Callable[[Tensor], Tensor]] = {}  # what the plain attention does to the pattern of a layer


def _attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> tuple[Tensor, Tensor]:
    """Attention spelt out, whose pattern a test can change."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * scaling
    pattern = (scores if mask is None else scores + mask[..., : k.shape[2]]).softmax(-1)
    pattern = CHANGED.get(int(module.layer_idx), lambda same: same)(pattern)
    return (pattern @ v).transpose(1, 2).contiguous(), pattern


AttentionInterface.register("spelt_out", _attend)
AttentionMaskInterface.register("spelt_out", eager_mask)


def metric(case: Case) -> Callable[[Tensor], Tensor]:
    """The logit of one token in one row that the changed token reaches in every model."""
    return lambda logits: logits[0, 5, 7] - logits[0, 5, 11]


def patched(case: Case, layer: int, what: str, put: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The metric of the plain model on the other tokens, with a part of the clean run put into one activation.

    Args:
        layer: Its layer.
        what: "resid_pre", "resid_mid", "attn_out", "mlp_out", "q", "k", "v", "z" or "pattern".
        put: From the activation there and that of the clean run to what stands there then.
    """
    found, part = case.watch(case.tokens), case.parts(layer)
    heads = case.plain.config.num_attention_heads
    handle: Any = None
    if what == "pattern":
        CHANGED[layer] = lambda pattern: put(pattern.clone(), found["attn"][layer])
    elif what in ("resid_pre", "z"):
        key = "block" if what == "resid_pre" else "o"
        clean = found[layer, key][0]

        def before(_: Any, args: Any, kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            shape = (heads, -1) if what == "z" else None
            now, truth = (given, clean) if shape is None else (given.unflatten(2, shape), clean.unflatten(2, shape))
            new = put(now.clone(), truth)
            new = new if shape is None else new.flatten(2)
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        handle = part[key].register_forward_pre_hook(before, with_kwargs=True)
    elif what == "resid_mid" and not case.encoder:  # the stream after attention is read by a norm and by the MLP's sum
        clean = found[layer, "ln2"][0]

        def after(_: Any, __: Any, out: Any) -> Any:
            stream = case_stream[0]
            new = put((stream + out[0]).clone(), clean) - stream
            return (new, *out[1:])

        case_stream: list[Tensor] = []
        keep = part["block"].register_forward_pre_hook(lambda _, args: case_stream.append(args[0]))
        handle = part["attn_out"].register_forward_hook(after)
    else:
        key = {"resid_mid": "mid"}.get(what, what)
        clean, size = found[layer, key][1], case.dlm.cfg.d_head if what in "qkv" else None

        def change(_: Any, __: Any, out: Any) -> Any:
            given = out[0] if isinstance(out, tuple) else out
            now, truth = given, clean
            if size is not None:
                now, truth = given.unflatten(2, (-1, size)), clean.unflatten(2, (-1, size))
            new = put(now.clone(), truth)
            new = new if size is None else new.flatten(2)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        handle = part[key].register_forward_hook(change)
    before_them = case.plain.config._attn_implementation
    case.plain.set_attn_implementation("spelt_out")
    try:
        return metric(case)(case.logits(case.other))
    finally:
        case.plain.set_attn_implementation(before_them)
        CHANGED.clear()
        for each in (handle, locals().get("keep")):
            if each is not None:
                each.remove()


@remembered
def clean_cache(case: Case) -> Any:
    """Of the clean tokens."""
    with torch.no_grad():
        return case.dlm.run_with_cache(case.tokens)[1]


def sweep(case: Case, function: Any, **options: Any) -> Any:
    """One of TransformerLens's sweeps, without its progress bar."""
    return function(case.dlm, case.other, clean_cache(case), metric(case), **options)


def at(*index: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Put the clean values into these places."""

    def put(now: Tensor, truth: Tensor) -> Tensor:
        now[(slice(None), *index)] = truth[(slice(None), *index)]
        return now

    return put


ALL = slice(None)
PLACES: dict[str, tuple[str, list[tuple[int, ...]], Callable[..., tuple[Any, ...]]]] = {
    # what is patched, cells of the sweep that are compared, and where that is in the activation
    "resid_pre": ("resid_pre", [(0, 3), (1, 3), (1, 5)], lambda pos: (pos,)),
    "resid_mid": ("resid_mid", [(0, 3), (1, 3), (1, 5)], lambda pos: (pos,)),
    "attn_out": ("attn_out", [(0, 3), (1, 5), (1, 4)], lambda pos: (pos,)),
    "mlp_out": ("mlp_out", [(0, 3), (1, 5), (1, 4)], lambda pos: (pos,)),
    "attn_head_out_by_pos": ("z", [(0, 3, 1), (1, 5, 2), (1, 4, 0)], lambda pos, head: (pos, head)),
    "attn_head_q_by_pos": ("q", [(0, 3, 1), (1, 5, 2), (1, 4, 0)], lambda pos, head: (pos, head)),
    "attn_head_k_by_pos": ("k", [(0, 3, 1), (1, 3, 0), (1, 5, 1)], lambda pos, head: (pos, head)),
    "attn_head_v_by_pos": ("v", [(0, 3, 1), (1, 3, 0), (1, 5, 1)], lambda pos, head: (pos, head)),
    "attn_head_pattern_by_pos": ("pattern", [(0, 1, 3), (1, 2, 5), (1, 0, 4)], lambda head, pos: (head, pos)),
    "attn_head_pattern_dest_src_pos": ("pattern", [(0, 1, 3, 2), (1, 2, 5, 3)], lambda *places: places),
    "attn_head_out_all_pos": ("z", [(0, 1), (1, 2)], lambda head: (ALL, head)),
    "attn_head_q_all_pos": ("q", [(0, 1), (1, 2)], lambda head: (ALL, head)),
    "attn_head_k_all_pos": ("k", [(0, 1), (1, 0)], lambda head: (ALL, head)),
    "attn_head_v_all_pos": ("v", [(0, 1), (1, 0)], lambda head: (ALL, head)),
    "attn_head_pattern_all_pos": ("pattern", [(0, 1), (1, 2)], lambda head: (head,)),
}


def register(name: str) -> None:
    """A row for one sweep."""
    what, cells, where = PLACES[name]

    @tool(ROOM, f"get_act_patch_{name}", f"cells of the sweep: the plain model with that {what} put in by a torch hook")
    @torch.no_grad()
    def check(case: Case) -> None:
        function = getattr(patching, f"get_act_patch_{name}")
        if len(where.__code__.co_varnames) > 2 or name.endswith("dest_src_pos"):
            import pandas as pd

            names = ("layer", "head_index", "dest_pos", "src_pos")
            table = pd.DataFrame(cells, columns=list(names))
            found = list(sweep(case, function, index_axis_names=None, index_df=table))
        else:
            result = sweep(case, function)
            found = [result[cell] for cell in cells]
        close(torch.stack(found), torch.stack([patched(case, cell[0], what, at(*where(*cell[1:]))) for cell in cells]))


for _name in PLACES:
    register(_name)


@tool(
    ROOM, "get_act_patch_block_every", "cells of the stacked sweeps: the plain model, likewise",
    "get_act_patch_attn_head_all_pos_every", "get_act_patch_attn_head_by_pos_every", "generic_activation_patch",
)  # fmt: skip
@torch.no_grad()
def every(case: Case) -> None:
    blocks = sweep(case, patching.get_act_patch_block_every)
    for index, what in enumerate(("resid_pre", "attn_out", "mlp_out")):
        close(blocks[index, 1, 3], patched(case, 1, what, at(3)))
    heads = sweep(case, patching.get_act_patch_attn_head_all_pos_every)
    for index, what in enumerate(("z", "q", "k", "v", "pattern")):
        put = at(1) if what == "pattern" else at(ALL, 1)
        close(heads[index, 1, 1], patched(case, 1, what, put))
    places = sweep(case, patching.get_act_patch_attn_head_by_pos_every)
    for index, what in enumerate(("z", "q", "k", "v", "pattern")):
        close(places[index, 1, 3, 1], patched(case, 1, what, at(1, 3) if what == "pattern" else at(3, 1)))
    arguments = {"patch_setter": patching.layer_pos_patch_setter, "activation_name": "mlp_out", "reduce": "mean"}
    own = patching.generic_activation_patch(
        case.dlm, case.other, clean_cache(case), lambda logits: metric(case)(logits)[None],
        index_axis_names=("layer", "pos"), baseline=True, **arguments,
    )  # fmt: skip
    close(own.baseline, metric(case)(case.logits(case.other)))
    close(own.values[1, 3], patched(case, 1, "mlp_out", at(3)))


@tool(
    ROOM, "get_act_patch_direct_path", "one head's write into another's query input alone: queries of the plain layer",
    "get_act_patch_direct_path_all_sources",
)  # fmt: skip
@torch.no_grad()
def direct(case: Case) -> None:
    """Head 1 of layer 0 into the queries of head 2 of layer 1: q = W_q norm(stream + clean write - corrupted write)."""
    corrupt = case.dlm.run_with_cache(case.other)[1]
    options = {"src_layer": 0, "src_head": 1, "verbose": False}
    arguments = (case.dlm, case.other, clean_cache(case), corrupt, metric(case))
    if not case.encoder:
        clean, other = case.watch(case.tokens), case.watch(case.other)
        size, weight = case.dlm.cfg.d_head, case.parts(0)["o"].weight
        columns = slice(size, 2 * size)
        delta = (clean[0, "o"][0] - other[0, "o"][0])[..., columns] @ weight[:, columns].T
        queries = case.parts(1)["q"](case.parts(1)["ln1"](other[1, "block"][0] + delta))

        def change(_: Any, __: Any, out: Tensor) -> Tensor:
            out = out.clone()
            out[..., 2 * size : 3 * size] = queries[..., 2 * size : 3 * size]
            return out

        handle = case.parts(1)["q"].register_forward_hook(change)
        truth = metric(case)(case.logits(case.other))
        handle.remove()
        close(patching.get_act_patch_direct_path(*arguments, **options)[1, 2], truth)
        everywhere = patching.get_act_patch_direct_path_all_sources(*arguments, verbose=False)
        close(everywhere[0, 1, 1, 2], truth)
        assert not case.dlm.cfg.use_split_qkv_input
        return
    patching.get_act_patch_direct_path(*arguments, **options)
