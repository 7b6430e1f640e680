"""transformer_lens.tools.analysis, the head detector and the logit tools, against plain modules and torch.autograd."""

from __future__ import annotations

import sys
import types
from typing import Any
from unittest import mock

import torch
from compose.cases import Case, close
from compose.patch_tools import metric
from compose.table import told, tool
from torch import Tensor
from transformer_lens import head_detector
from transformer_lens.tools import analysis

from sinklens.plots.attention import circuitsvis

ROOM = "Analyses (transformer_lens.tools.analysis, head_detector)"
TEXT = "dolko xe dolko xo dolko talma"


ANEW = "copy.deepcopy(dlm), then original_model.init_weights() of the copy"
LENS = "use sinklens.probes.LogitLens, which runs the head"


@tool(ROOM, "direct_logit_attribution", "in compatibility mode: components and heads sum to the model's logit")
@torch.no_grad()
def dla(case: Case) -> None:
    dlm = case.folded
    logits = dlm(case.tokens)
    close(logits.log_softmax(-1), case.logits(case.tokens).log_softmax(-1))
    bias = dlm.b_U[7]
    for unit in ("component", "head"):
        found = analysis.direct_logit_attribution(dlm, case.tokens, answer_tokens=7, unit=unit, pos=3)
        close(found.attribution.sum() + bias, logits[0, 3, 7])
    layers = analysis.direct_logit_attribution(dlm, case.tokens, answer_tokens=7, unit="layer", pos=3)
    close(layers.attribution[-1, 0] + bias, logits[0, 3, 7])
    both = analysis.direct_logit_attribution(dlm, case.tokens, answer_tokens=7, incorrect_tokens=9, pos=3)
    plain = case.logits(case.tokens)[0, 3]
    close(both.attribution.sum() + bias - dlm.b_U[9], plain[7] - plain[9])


@tool(ROOM, "logit_lens", "plain norm and unembedding of every layer's input; ranks and probabilities of a token")
@torch.no_grad()
def lens(case: Case) -> None:
    try:
        result = analysis.logit_lens(case.dlm, case.tokens, positions=None, targets=7, return_type="probs")
    except ValueError as error:
        raise told(error, "mlm_head", instead=LENS) from error
    found = case.watch(case.tokens)
    streams = torch.stack([found[0, "block"][0], found[1, "block"][0], found[1, "block"][1]])
    logits = case.plain.lm_head(case.plain.model.norm(streams))
    close(result.values[..., 0], logits.softmax(-1)[..., 7])
    ranks = (logits > logits[..., 7:8]).sum(-1)
    assert torch.equal(result.rank_trajectory(7), ranks)


@tool(ROOM, "logit_readout", "plain norm and unembedding of a vector of one's own")
@torch.no_grad()
def readout(case: Case) -> None:
    vector = torch.linspace(-1, 1, case.plain.config.hidden_size)[None]
    try:
        values = analysis.logit_readout(case.dlm, vector).values
    except ValueError as error:
        raise told(error, "mlm_head", instead=LENS) from error
    close(values, case.plain.lm_head(case.plain.model.norm(vector)))


@tool(
    ROOM,
    "JacobianLens",
    "fitted matrix: torch.autograd's Jacobian of the plain second layer, summed over later targets",
)
def jacobian(case: Case) -> None:
    prompt, skip = TEXT, 1
    try:
        fitted = analysis.JacobianLens.fit(
            case.dlm, [prompt], corpus="one", skip_first_positions=skip, show_progress=False
        )
    except ValueError as error:
        raise told(error, "causal", instead="sinklens.probes.LogitLens reads every layer of every model") from error
    tokens = case.dlm.to_tokens(prompt)
    stream = case.watch(tokens)[1, "block"][0]
    places = torch.arange(tokens.shape[1])
    rope = case.plain.model.rotary_emb(stream, places[None])

    def layer(x: Tensor) -> Tensor:
        causal = torch.full((len(places), len(places)), -torch.inf).triu(1)[None, None]
        return case.layers[1](x[None], attention_mask=causal, position_embeddings=rope)[0]

    slopes: Any = torch.autograd.functional.jacobian(layer, stream[0])  # target, out, source, in
    kept = slice(skip, len(places) - 1)
    truth = slopes[kept][:, :, kept].sum(0).mean(1)
    close(fitted.jacobians[0], truth)
    read: Any = fitted.readout(case.dlm, prompt, return_full_logits=True)
    close(read.lens_logits[0], case.plain.lm_head(case.plain.model.norm(stream[0] @ truth.T)).detach())
    close(fitted.lens_vectors(case.dlm, [7], 0)[0], (truth.T @ case.plain.lm_head.weight[7]).detach())


def effect(case: Case) -> tuple[dict[Any, Tensor], dict[Any, Tensor], dict[Any, Tensor]]:
    """Of the plain model: clean and other outputs of MLPs and inputs of output projections, and the metric's slopes."""
    clean, other = case.watch(case.tokens), case.watch(case.other)
    kept: dict[Any, Tensor] = {}
    handles = []
    for layer in (0, 1):

        def out(_: Any, __: Any, out: Tensor, layer: int = layer) -> None:
            kept[layer, "mlp_out"] = out
            out.retain_grad()

        def into(_: Any, args: Any, layer: int = layer) -> None:
            kept[layer, "o"] = args[0]
            args[0].retain_grad()

        handles += [case.parts(layer)["mlp_out"].register_forward_hook(out)]
        handles += [case.parts(layer)["o"].register_forward_pre_hook(into)]
    with torch.enable_grad():
        raw = case.plain(case.other, attention_mask=case.mask(case.other)).logits
        metric(case)(torch.cat([raw[:, :1], raw[:, :-1]], 1) if case.shifted else raw).backward()
    for handle in handles:
        handle.remove()
    case.plain.zero_grad()
    keys = list(kept)
    pick = {"mlp_out": 1, "o": 0}
    slopes = {key: tensor.grad for key, tensor in kept.items() if tensor.grad is not None}
    return {k: clean[k][pick[k[1]]] for k in keys}, {k: other[k][pick[k[1]]] for k in keys}, slopes


@tool(
    ROOM,
    "attribution_patch",
    "scores of nodes: (clean - corrupted) times torch.autograd's slope in the plain model",
    "Node",
)
def attribution_nodes(case: Case) -> None:
    found = analysis.attribution_patch(case.dlm, case.tokens, case.other, metric(case)).node_scores
    clean, other, slopes = effect(case)
    size = case.dlm.cfg.d_head
    for layer in (0, 1):
        change = (clean[layer, "mlp_out"] - other[layer, "mlp_out"]) * slopes[layer, "mlp_out"]
        heads = (clean[layer, "o"] - other[layer, "o"]) * slopes[layer, "o"]
        for place in (3, 5):
            truth = change[0, place].sum()
            close(torch.tensor(found[analysis.Node("mlp_out", place, layer)]), truth)
            ours = found[analysis.Node("attn_head_out", place, layer, 2)]
            close(torch.tensor(ours), heads[0, place, 2 * size : 3 * size].sum())


@tool(
    ROOM, "EdgeAttributionConfig", "edges of a writer sum to its node's score; all edges recover all, none nothing",
    "faithfulness",
)  # fmt: skip
def attribution_edges(case: Case) -> None:
    config = analysis.EdgeAttributionConfig(granularity="edge")
    try:
        result = analysis.attribution_patch(case.dlm, case.tokens, case.other, metric(case), config)
    except ValueError as error:
        raise told(error, "GQA") from error
    clean, other, slopes = effect(case)
    size = case.dlm.cfg.d_head
    heads = (clean[0, "o"] - other[0, "o"]) * slopes[0, "o"]
    ours = result.node_scores[analysis.Node("attn_head_out", 3, 0, 1)]
    close(torch.tensor(ours), heads[0, 3, size : 2 * size].sum())
    edges = list(result.edge_scores or ())
    whole = analysis.faithfulness(case.dlm, case.tokens, case.other, metric(case), edges)
    assert abs(whole.recovered - 1) < 1e-4
    close(torch.tensor(whole.full_metric), metric(case)(case.logits(case.tokens)))
    nothing = analysis.faithfulness(case.dlm, case.tokens, case.other, metric(case), [])
    close(torch.tensor(nothing.corrupt_metric), metric(case)(case.logits(case.other)))
    assert abs(nothing.recovered) < 1e-4


@tool(
    ROOM, "run_with_intervention", "a subspace of the stream exchanged: a torch hook does it in the plain model",
    "collect_activations", "intervened_logits", "SubspaceInterchange", "random_basis", "fit_das",
)  # fmt: skip
def interchange(case: Case) -> None:
    dlm, width = case.dlm, case.plain.config.hidden_size
    name, place = "blocks.0.hook_resid_post", torch.tensor([3])

    def run(inputs: Tensor) -> Tensor:
        return dlm(inputs)[:, 5]

    source = analysis.collect_activations(dlm, name, case.tokens, run, positions=place)
    plain = case.watch(case.tokens)[0, "block"][1][:, 3]
    close(source, plain)
    basis = analysis.random_basis(width, 3, seed=0)

    def change(_: Any, __: Any, out: Any) -> Any:
        stream = (out[0] if isinstance(out, tuple) else out).clone()
        now = stream[:, 3]
        stream[:, 3] = now + (plain - now) @ basis @ basis.T
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    handle = case.parts(0)["block"].register_forward_hook(change)
    truth = case.logits(case.other)[:, 5]
    handle.remove()
    swap = analysis.SubspaceInterchange(basis)
    with torch.no_grad():
        close(analysis.run_with_intervention(dlm, name, swap, case.other, source, run, positions=place), truth)
    close(analysis.intervened_logits(dlm, name, swap, case.other, source, run, positions=place), truth)
    learned = analysis.fit_das(
        dlm, name, case.other, case.tokens, torch.tensor([7]), run, rank=1, epochs=2,
        base_positions=place, source_positions=place,
    )  # fmt: skip
    assert learned.basis.shape == (width, 1)
    assert all(parameter.requires_grad for parameter in dlm.parameters())


@tool(ROOM, "reinitialized", "the control without training: parameters drawn anew")
def fresh(case: Case) -> None:
    try:
        other: Any = analysis.reinitialized(case.dlm, seed=0)
    except ValueError as error:
        raise told(error, "reset_parameters", instead=ANEW) from error
    same = dict(case.dlm.original_model.named_parameters())
    assert type(other) is type(case.dlm)
    for name, parameter in other.original_model.named_parameters():
        assert parameter.ndim < 2 or not torch.equal(parameter, same[name]), name
    close(case.dlm(case.tokens), case.logits(case.tokens))


@tool(ROOM, "attention_head_subspace_affinity", "projection kernels of plain output and query weights, by torch.linalg")
@torch.no_grad()
def affinity(case: Case) -> None:
    found = analysis.attention_head_subspace_affinity(case.dlm, target_role="Q", rank=3)
    size = case.dlm.cfg.d_head

    def span(matrix: Tensor) -> Tensor:
        return torch.linalg.svd(matrix, full_matrices=False)[0][:, :3]

    out = case.parts(0)["o"].weight[:, size : 2 * size]  # d_model, d_head
    query = case.parts(1)["q"].weight[2 * size : 3 * size].T
    close(found.scores[0, 1, 1, 2], (span(out).T @ span(query)).square().sum())


@tool(ROOM, "detect_head", "share of a head's attention on the previous position: sums over plain patterns")
@torch.no_grad()
def detector(case: Case) -> None:
    tokens = case.dlm.to_tokens(TEXT)
    patterns = case.watch(tokens)["attn"]
    scores = head_detector.detect_head(case.dlm, TEXT, "previous_token_head")
    for layer in (0, 1):
        truth = patterns[layer][0].diagonal(-1, 1, 2).sum(-1) / patterns[layer][0].sum((1, 2))
        close(scores[layer], truth)


@tool(ROOM, "detect_head(error_measure='abs')", "mean absolute difference to the named pattern, over plain patterns")
@torch.no_grad()
def detector_abs(case: Case) -> None:
    tokens = case.dlm.to_tokens(TEXT)
    size = tokens.shape[1]
    scores = head_detector.detect_head(case.dlm, TEXT, "previous_token_head", error_measure="abs")
    wanted = torch.zeros(size, size)
    wanted[torch.arange(1, size), torch.arange(size - 1)] = 1
    pattern = case.watch(tokens)["attn"][1][0, 2]
    truth = 1 - round(float((pattern - wanted).abs().mean() * size), 3)
    assert abs(float(scores[1, 2]) - truth) < 2e-3


@tool(ROOM, "circuitsvis.attention_heads", "the arrays that CircuitsVis gets: plain patterns, both triangles")
@torch.no_grad()
def views(case: Case) -> None:
    shown: dict[str, Any] = {}
    module = types.ModuleType("circuitsvis.attention")
    module.__dict__["attention_heads"] = shown.update
    with mock.patch.dict(
        sys.modules, {"circuitsvis": types.ModuleType("circuitsvis"), "circuitsvis.attention": module}
    ):
        circuitsvis(case.dlm.run_with_cache(case.tokens)[1]["pattern", 1][0], list("abcdefg"))
    close(torch.as_tensor(shown["attention"]), case.watch(case.tokens)["attn"][1][0])
    assert shown["mask_upper_tri"] is False
