"""ActivationCache and its methods, against what goes in and out of a plain model's modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compose.cases import Case, close
from compose.table import Told, tool
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.slice import Slice

from sinklens.errors import Unsupported

ROOM = "ActivationCache"


def cache_of(case: Case, tokens: Tensor | None = None, **options: Any) -> Any:
    """A full cache."""
    return case.dlm.run_with_cache(case.tokens if tokens is None else tokens, **options)[1]


def scaled(case: Case, stack: Tensor, stream: Tensor) -> Tensor:
    """A stack divided by what a root-mean-square norm divides its input by."""
    eps = case.plain.config.rms_norm_eps
    return stack / (stream.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def heads(case: Case, found: dict[Any, Any], layer: int) -> Tensor:
    """What each head adds [head, batch, pos, d_model], from the plain output projection and what goes into it."""
    z, weight, count = found[layer, "o"][0], case.parts(layer)["o"].weight, case.dlm.n_heads
    per_head, columns = z.unflatten(-1, (count, -1)), weight.unflatten(1, (count, -1))
    return torch.stack([per_head[:, :, h] @ columns[:, h].T for h in range(count)])


def neurons(case: Case, found: dict[Any, Any], layer: int) -> Tensor:
    """What each neuron adds [neuron, batch, pos, d_model]."""
    post, weight = found[layer, "down"][0], case.parts(layer)["down"].weight
    return torch.stack([post[..., n, None] * weight[:, n] for n in range(weight.shape[1])])


@tool(
    ROOM, "keys", "dictionary of the plain modules' outputs, by full and short names", "values", "items", "to",
    "toggle_autodiff", "ActivationCache",
)  # fmt: skip
@torch.no_grad()
def dictionary(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    assert isinstance(cache, ActivationCache)
    assert set(cache) == set(cache.keys()) == {name for name, _ in cache.items()}
    assert len(cache) == len(list(cache.values()))
    for layer in (0, 1):
        close(cache["resid_pre", layer], found[layer, "block"][0])
        close(cache["resid_post", layer], found[layer, "block"][1])
        close(cache["attn_out", layer - 2], found[layer, "attn_out"][1])
        close(cache[f"blocks.{layer}.hook_mlp_out"], found[layer, "mlp_out"][1])
        close(cache["z", layer].flatten(2), found[layer, "o"][0])
        close(cache["pattern", layer], found["attn"][layer])
        close(cache["post", layer], found[layer, "down"][0])
    moved = cache.to("cpu")
    assert moved["resid_pre", 0].device.type == "cpu"
    before = torch.is_grad_enabled()
    cache.toggle_autodiff(True)
    assert torch.is_grad_enabled()
    cache.toggle_autodiff(before)
    if case.encoder:
        close(cache["resid_mid", 0], found[0, "mid"][1])
    else:
        close(cache["resid_mid", 0], found[0, "ln2"][0])


@tool(ROOM, "apply_slice_to_batch_dim", "a batch of two, one taken out: plain outputs of that one", "remove_batch_dim")
@torch.no_grad()
def batches(case: Case) -> None:
    both = cache_of(case, torch.cat([case.tokens, case.other]))
    found = case.watch(case.other)
    for one in (both.apply_slice_to_batch_dim(1), both.apply_slice_to_batch_dim([1]).remove_batch_dim()):
        assert not one.has_batch_dim
        close(one["pattern", 1], found["attn"][1][0])
        close(one["resid_post", 0], found[0, "block"][1][0])
    if case.encoder:  # what is refused of the whole is refused of a part
        with pytest.raises(Unsupported):
            both.apply_slice_to_batch_dim(1).decompose_resid()
    else:
        total = both.apply_slice_to_batch_dim(1).decompose_resid().sum(0)
        close(total, found[1, "block"][1][0])
        close(both.apply_slice_to_batch_dim([1]).remove_batch_dim().decompose_resid().sum(0), total)


@tool(ROOM, "accumulated_resid", "inputs of plain layers and norms; apply_ln: the plain final norm of each")
@torch.no_grad()
def accumulated(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "final_post"]
    streams = [found[0, "block"][0], found[1, "block"][0], found[1, "block"][1]]
    close(stack, torch.stack(streams))
    if case.encoder:
        close(cache.accumulated_resid(incl_mid=True)[1], found[0, "mid"][1])
        cache.accumulated_resid(apply_ln=True)
    close(cache.accumulated_resid(apply_ln=True), torch.stack([case.plain.model.norm(each) for each in streams]))
    mids = cache.accumulated_resid(layer=1, incl_mid=True, mlp_input=True, pos_slice=3)
    close(mids, torch.stack([streams[0], found[0, "ln2"][0], streams[1], found[1, "ln2"][0]])[:, :, 3])
    at = cache.accumulated_resid(layer=1, apply_ln=True)
    close(at, scaled(case, torch.stack(streams[:2]), streams[1]))


@tool(ROOM, "decompose_resid", "each part a plain module's output, their sum the input of the plain layer or norm")
@torch.no_grad()
def decomposed(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    stack, labels = cache.decompose_resid(return_labels=True)
    assert labels == ["embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    parts = [found[None, "embed"][1], *(found[i, part][1] for i in (0, 1) for part in ("attn_out", "mlp_out"))]
    close(stack, torch.stack(parts))
    close(stack.sum(0), found[1, "block"][1])
    close(cache.decompose_resid(1, mlp_input=True, mode="attn").sum(0), parts[0] + parts[1] + parts[3])
    close(cache.decompose_resid(1).sum(0), found[1, "block"][0])
    close(cache.decompose_resid(apply_ln=True, pos_slice=2).sum(0), scaled(case, *[found[1, "block"][1]] * 2)[:, 2])
    into = found[1, "ln2"][0]
    close(cache.decompose_resid(1, mlp_input=True, apply_ln=True).sum(0), scaled(case, into, into))


@tool(ROOM, "compute_head_results", "what each head adds: plain output projection, head by head", "stack_activation")
@torch.no_grad()
def head_results(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    cache.compute_head_results()
    for layer in (0, 1):
        close(cache["result", layer].movedim(2, 0), heads(case, found, layer))
    close(cache.stack_activation("pattern"), torch.stack(found["attn"]))
    close(cache.stack_activation("z", layer=1)[0].flatten(2), found[0, "o"][0])


@tool(ROOM, "stack_head_results", "the same, stacked; with the remainder their sum is the stream")
@torch.no_grad()
def stacked_heads(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    truth = torch.cat([heads(case, found, layer) for layer in (0, 1)])
    close(cache.stack_head_results(), truth)
    close(cache.stack_head_results(1, pos_slice=-1), truth[:4, :, -1])
    close(cache.stack_head_results(incl_remainder=True).sum(0), found[1, "block"][1])
    close(cache.stack_head_results(apply_ln=True), scaled(case, truth, found[1, "block"][1]))


@tool(ROOM, "get_neuron_results", "what a neuron adds: plain down projection, column by column")
@torch.no_grad()
def neuron(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    truth = neurons(case, found, 1)
    close(cache.get_neuron_results(1), truth.movedim(0, 2))
    close(cache.get_neuron_results(1, neuron_slice=[3, 5], pos_slice=2), truth[[3, 5], :, 2].movedim(0, 1))
    way = torch.linspace(-1, 1, truth.shape[-1])
    close(cache.get_neuron_results(1, project_output_onto=way), (truth @ way).movedim(0, 2))


@tool(ROOM, "stack_neuron_results", "the same, stacked; with the remainder their sum is the stream")
@torch.no_grad()
def stacked_neurons(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    truth = torch.cat([neurons(case, found, layer) for layer in (0, 1)])
    close(cache.stack_neuron_results(2), truth)
    close(cache.stack_neuron_results(2, incl_remainder=True).sum(0), found[1, "block"][1])
    way = torch.linspace(-1, 1, truth.shape[-1])
    final = found[1, "block"][1]
    ours = cache.stack_neuron_results(2, apply_ln=True, project_output_onto=way, incl_remainder=True)
    close(ours.sum(0), scaled(case, final, final) @ way)


@tool(ROOM, "apply_ln_to_stack", "divided by the plain norm's root mean square; the weighted sum is that norm's output")
@torch.no_grad()
def normalised(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    stack = cache.accumulated_resid()
    if case.encoder:
        cache.apply_ln_to_stack(stack)
    for layer, name in ((1, "ln1"), (1, "ln2"), (2, "norm")):
        into, out = found[None if name == "norm" else layer, name]
        norm = case.plain.model.norm if name == "norm" else case.parts(layer)[name]
        ours = cache.apply_ln_to_stack(into[None], layer, mlp_input=name == "ln2")[0]
        close(ours * norm.weight, out)
    one = Slice(2)
    close(cache.apply_ln_to_stack(stack[:, :, 2], pos_slice=one), scaled(case, stack, found[1, "block"][1])[:, :, 2])


@tool(
    ROOM,
    "get_full_resid_decomposition",
    "heads, neurons, embedding and biases sum to the plain stream",
    "accumulated_bias",
)
@torch.no_grad()
def full(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    final, way = found[1, "block"][1], torch.linspace(-1, 1, case.plain.config.hidden_size)
    case.dlm.accumulated_bias(2)
    stack, labels = cache.get_full_resid_decomposition(return_labels=True)
    close(stack.sum(0), final)
    close(stack[labels.index("L1H2")], heads(case, found, 1)[2])
    close(stack[labels.index("L0N5")], neurons(case, found, 0)[5])
    close(cache.get_full_resid_decomposition(1).sum(0), found[1, "block"][0])
    close(cache.get_full_resid_decomposition(1, mlp_input=True, expand_neurons=False).sum(0), found[1, "ln2"][0])
    normed = cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=way, pos_slice=4)
    close(normed.sum(0), (scaled(case, final, final) @ way)[:, 4])


@tool(ROOM, "logit_attrs", "attributions of all parts sum to the plain logit", "tokens_to_residual_directions")
@torch.no_grad()
def attributed(case: Case) -> None:
    cache, logits = cache_of(case), case.logits(case.tokens)
    stack = cache.accumulated_resid() if case.encoder else cache.decompose_resid()
    close(cache.logit_attrs(stack, 7).sum(0), logits[..., 7])
    close(cache.logit_attrs(stack, 7, 9).sum(0), logits[..., 7] - logits[..., 9])
    each = torch.arange(3, 10)
    close(cache.logit_attrs(stack, each[None]).sum(0)[0], logits[0, range(7), each])
    close(cache.logit_attrs(stack[:, :, 2], 7, pos_slice=2).sum(0), logits[:, 2, 7])


@tool(ROOM, "logit_lens", "plain norm and unembedding of every layer's input; the last are the plain logits")
@torch.no_grad()
def lens(case: Case) -> None:
    cache, found = cache_of(case), case.watch(case.tokens)
    values = cache.logit_lens(positions=None).values
    streams = [found[0, "block"][0], found[1, "block"][0], found[1, "block"][1]]
    close(values, torch.stack([case.plain.lm_head(case.plain.model.norm(each)) for each in streams]))
    close(values[-1], case.logits(case.tokens))


@tool(
    ROOM, "compute_ssm_state", "no model here has a state-space mixer", "compute_ssm_effective_attention", "ssm_layers"
)
@torch.no_grad()
def state_space(case: Case) -> None:
    cache = cache_of(case)
    assert cache.ssm_layers() == []
    for method in (cache.compute_ssm_state, cache.compute_ssm_effective_attention):
        try:
            method()
        except RuntimeError as error:
            told = error
        else:
            raise AssertionError("a state of a mixer that is not there")
    raise Told(told)
