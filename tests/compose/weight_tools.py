"""Weights: matrices by name, factored matrices, singular vectors, compatibility mode and folding, training, saving."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from compose.cases import Case, close, folded
from compose.table import Told, tool
from torch import Tensor
from transformer_lens import SVDInterpreter
from transformer_lens.tools.training import TrainConfig, train

ROOM = "Weights"
ROWS = (0, 1)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"no_processing": True},
    {"fold_ln": False},
    {"center_writing_weights": False},
    {"center_unembed": False},
    {"fold_value_biases": False},
)


def head(case: Case, layer: int, name: str, index: int, *, query: bool = True) -> Tensor:
    """A head's projection [d_model, d_head] out of the plain weights; `query`: the index counts query heads."""
    size, weight = case.dlm.cfg.d_head, case.parts(layer)[name].weight
    if name == "o":
        return weight[:, index * size : (index + 1) * size].T  # d_head, d_model
    groups = case.plain.config.num_attention_heads * size // weight.shape[0] if query else 1
    index //= groups
    return weight[index * size : (index + 1) * size].T


def circuits(case: Case, layer: int, index: int) -> tuple[Tensor, Tensor]:
    """QK and OV of a head, multiplied out."""
    query, key, value, out = (head(case, layer, name, index) for name in "qkvo")
    return query @ key.T, value @ out


@tool(
    ROOM, "W_Q", "every matrix and bias: the plain module's, cut into heads", "W_K", "W_V", "W_O", "W_in", "W_gate",
    "W_out", "W_E", "W_U", "W_pos", "W_E_pos", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U", "stack_params_for",
    "tl_parameters", "tl_named_parameters", "get_params", "n_params_total", "blocks_with",
)  # fmt: skip
@torch.no_grad()
def matrices(case: Case) -> None:
    dlm = case.dlm
    kv = case.parts(0)["k"].weight.shape[0] // dlm.cfg.d_head
    params, named = dlm.tl_parameters(), dict(dlm.tl_named_parameters())
    assert set(params) == set(named) == set(dlm.get_params())
    for layer in (0, 1):
        for name in "qkvo":
            stacked = getattr(dlm, f"W_{name.upper()}")[layer]
            count = dlm.n_heads if name in "qo" else kv
            truth = torch.stack([head(case, layer, name, h, query=False) for h in range(count)])
            close(stacked, truth)
            each = torch.stack(
                [head(case, layer, name, h) for h in range(dlm.n_heads)]
            )  # a key head for each query head
            close(params[f"blocks.{layer}.attn.W_{name.upper()}"], each)
            bias = case.parts(layer)[name].bias
            if bias is not None:
                close(getattr(dlm, f"b_{name.upper()}")[layer].flatten(), bias)
        close(dlm.W_out[layer], case.parts(layer)["down"].weight.T)
    ups = [case.parts(i)["up"] if case.encoder else case.layers[i].mlp.up_proj for i in (0, 1)]
    close(dlm.W_in, torch.stack([up.weight.T for up in ups]))
    close(dlm.W_E, case.plain.get_input_embeddings().weight)
    close(dlm.W_U, case.plain.get_output_embeddings().weight.T)
    bias = case.plain.get_output_embeddings().bias
    close(dlm.b_U, torch.zeros(dlm.cfg.d_vocab) if bias is None else bias)
    if case.encoder:
        close(dlm.W_pos, case.plain.bert.embeddings.position_embeddings.weight)
        close(dlm.W_E_pos, torch.cat([dlm.W_E, dlm.W_pos]))
        close(dlm.b_in[1], case.parts(1)["up"].bias)
        close(dlm.b_out[1], case.parts(1)["down"].bias)
    _, stacked = dlm.stack_params_for("attn", "attn.W_O")
    close(stacked, dlm.W_O)
    if not case.encoder:
        close(dlm.W_gate[1], case.layers[1].mlp.gate_proj.weight.T)
    assert dlm.n_params_total == sum(each.numel() for each in case.plain.parameters())
    assert [index for index, _ in dlm.blocks_with("attn")] == [0, 1]


@tool(
    ROOM, "FactoredMatrix", "products of plain heads, their singular values and eigenvalues by torch.linalg",
    "QK", "OV", "QK_for_attn_layers", "OV_for_attn_layers",
)  # fmt: skip
@torch.no_grad()
def factored(case: Case) -> None:
    qk, ov = circuits(case, 1, 3)
    for ours, truth in ((case.dlm.QK[1, 3], qk), (case.dlm.OV[1, 3], ov)):
        close(ours.AB, truth)
        close(ours.S, torch.linalg.svdvals(truth)[: len(ours.S)])
        close(ours.norm(), truth.norm())
        close(ours.T.AB, truth.T)
        big = torch.linalg.eigvals(truth).abs().sort(descending=True)[0][: ours.mdim]
        close(ours.eigenvalues.abs().sort(descending=True)[0], big)
    layers, both = case.dlm.OV_for_attn_layers()
    assert layers == case.dlm.QK_for_attn_layers()[0] == [0, 1]
    close(both[1, 3].AB, ov)


@tool(
    ROOM, "all_composition_scores", "Frobenius norms of plain products of heads", "attn_head_labels", "all_head_labels"
)
@torch.no_grad()
def composition(case: Case) -> None:
    early, (qk, late) = circuits(case, 0, 1)[1], circuits(case, 1, 2)
    for mode, right in (("Q", qk), ("K", qk.T), ("V", late)):
        score = case.dlm.all_composition_scores(mode).scores[0, 1, 1, 2]
        close(score, (early @ right).norm() / early.norm() / right.norm())
    assert case.dlm.attn_head_labels[5] == case.dlm.all_head_labels[5] == "L1H1"


@tool(ROOM, "SVDInterpreter", "plain singular vectors read by the plain unembedding, up to their sign")
@torch.no_grad()
def singular(case: Case) -> None:
    found: Any = SVDInterpreter(case.dlm)
    unembed = case.plain.get_output_embeddings().weight
    for index in (1, 3):
        first = found.get_singular_vectors("OV", 1, 1, head_index=index)[:, 0]
        close(first.abs(), (unembed @ torch.linalg.svd(circuits(case, 1, index)[1])[2][:1].T).abs())
    down = case.parts(1)["down"].weight.T
    into = case.layers[1].mlp.up_proj.weight * case.parts(1)["ln2"].weight
    for name, matrix in (("w_out", down), ("w_in", into)):
        first = found.get_singular_vectors(name, 1, 1)[:, 0]
        close(first.abs(), (unembed @ torch.linalg.svd(matrix)[2][:1].T).abs())


def same_distribution(case: Case, dlm: Any) -> None:
    """Log probabilities of the plain model, with hooks and without."""
    truth = case.logits(case.tokens).log_softmax(-1)
    close(dlm(case.tokens).log_softmax(-1), truth)
    close(dlm.run_with_cache(case.tokens)[0].log_softmax(-1), truth)


@tool(
    ROOM, "enable_compatibility_mode", "log probabilities of the plain model, by every option; edits reach the logits"
)
@torch.no_grad()
def compatibility(case: Case) -> None:
    for options in OPTIONS:
        same_distribution(case, folded(case.fresh(), **options))
    dlm = case.folded
    patterns = [(f"blocks.{layer}.attn.hook_pattern", lambda p, *, hook: p.roll(1, -1)) for layer in ROWS]
    assert float((dlm.run_with_hooks(case.tokens, fwd_hooks=patterns) - dlm(case.tokens)).abs().max()) > 1e-2
    close(dlm.run_with_cache(case.tokens)[1]["pattern", 1], case.watch(case.tokens)["attn"][1])


@tool(
    ROOM, "enable_compatibility_mode(refactor_factored_attn_matrices=True)", "refused, and the model computes as before"
)
@torch.no_grad()
def refactored(case: Case) -> None:
    dlm = case.fresh()
    try:
        folded(dlm, refactor_factored_attn_matrices=True)
    except AssertionError as error:
        same_distribution(case, dlm)
        raise Told(error) from error
    same_distribution(case, dlm)


@tool(ROOM, "process_weights", "the same without the old names: folded norms are 1, unembedding and writes are centred")
@torch.no_grad()
def processed(case: Case) -> None:
    dlm = case.fresh()
    dlm.process_weights(fold_ln=True, center_writing_weights=True, center_unembed=True, fold_value_biases=True)
    same_distribution(case, dlm)
    close(dlm.ln_final.weight, torch.ones(case.plain.config.hidden_size))
    close(dlm.W_U.mean(-1), torch.zeros(case.plain.config.hidden_size))


@tool(
    ROOM,
    "compatibility mode: ActivationCache",
    "parts sum to the stream, attributions to the logit of the folded model",
)
@torch.no_grad()
def folded_cache(case: Case) -> None:
    dlm = case.folded
    logits, cache = dlm.run_with_cache(case.tokens)
    final = cache["resid_post", 1]
    close(cache.decompose_resid().sum(0), final)
    close(cache.get_full_resid_decomposition().sum(0), final)
    close(cache.stack_head_results(incl_remainder=True).sum(0), final)
    normed = cache.accumulated_resid(apply_ln=True)[-1] @ dlm.W_U + dlm.b_U
    aligned = torch.cat([normed[:, :1], normed[:, :-1]], 1) if case.shifted else normed
    close(aligned.log_softmax(-1), logits.log_softmax(-1))
    close(cache.logit_attrs(cache.decompose_resid(), 7).sum(0) + dlm.b_U[7], logits[..., 7])


@tool(ROOM, "train", "two steps of SGD on the next-token loss: torch.optim on the plain model")
def trained(case: Case) -> None:
    rows: Any = [{"tokens": case.tokens[0]}, {"tokens": case.other[0]}]
    config = TrainConfig(num_epochs=1, batch_size=2, lr=0.01, optimizer_name="SGD", device="cpu", print_every=None)
    dlm = case.fresh()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(dlm, config, rows)
    other = case.fresh().original_model
    batch = torch.cat([case.tokens, case.other])
    other(batch, labels=batch).loss.backward()
    with torch.no_grad():
        for (name, ours), theirs in zip(dlm.original_model.named_parameters(), other.parameters(), strict=True):
            assert theirs.grad is not None
            torch.testing.assert_close(ours, theirs - 0.01 * theirs.grad, atol=1e-5, rtol=0, msg=name)


@tool(ROOM, "load_state_dict", "weights out and in again: the plain model's logits", "state_dict")
@torch.no_grad()
def saved(case: Case) -> None:
    dlm, kept = case.fresh(), {name: each.clone() for name, each in case.dlm.state_dict().items()}
    for parameter in dlm.parameters():
        parameter.mul_(0.5)
    dlm.load_state_dict(kept)
    close(dlm(case.tokens), case.logits(case.tokens))
