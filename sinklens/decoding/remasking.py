"""Which positions a denoising step commits or masks again, and to which token. Pure torch, batched over rows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.decoding.draws import Draws

Logits = Float[Tensor, "*batch pos vocab"]
Mask = Bool[Tensor, "batch pos"]
Confidence = Float[Tensor, "batch pos"]


def even_split(masks: int, steps: int) -> list[int]:
    """How many tokens each step commits: an even split, the remainder to the first steps.

    Source: ML-GSAI/LLaDA generate.py, get_num_transfer_tokens.
    """
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def rounded_split(masks: int, steps: int) -> list[int]:
    """How many tokens each step commits: what is left times 1 - s/t, rounded, half to even; steps of none are left out.

    Source: ZHZisZZ/dllm core/samplers/utils.py, get_num_transfer_tokens with the linear schedule, in float32 as there.
    """
    counts, times = [], [torch.tensor(step / steps, dtype=torch.float32) for step in range(steps + 1)]
    for step in range(steps, 0, -1):
        left = masks - sum(counts)
        share = 1 - (1 - (1 - times[step - 1])) / (1 - (1 - times[step]))
        counts.append(min(int(torch.round(torch.tensor(left, dtype=torch.float64) * share)), left))
    return [count for count in counts if count]


def timestep_count(masks: int, step: int, steps: int, eps: float) -> int:
    """How many of `masks` tokens Dream commits at this step: int(masks (1 - s/t)), all at the last step.

    t and s are neighbours in linspace(1, eps, steps + 1). Source: Dream generation_utils, in float32 as there.
    """
    if step == steps - 1:
        return masks
    return int(torch.tensor(float(masks)) * reveal_probability(step, steps, eps))


def reveal_probability(step: int, steps: int, eps: float) -> Tensor:
    """Dream's 1 - s/t for this step (float32); 1 at the last step."""
    if step == steps - 1:
        return torch.tensor(1.0)
    times = torch.linspace(1, eps, steps + 1)
    return 1 - times[step + 1] / times[step]


def gumbel_argmax(
    logits: Logits, temperature: float, draws: Draws, block: Bool[Tensor, "batch pos"] | None = None
) -> Int[Tensor, "*batch pos"]:
    """LLaDA's draw: argmax of `exp(logits) / (-log U)^temperature` in float64; plain argmax at temperature 0.

    Computed as its logarithm, which orders the candidates alike and cannot overflow.
    """
    if temperature == 0:
        return logits.argmax(-1)
    uniform = draws.uniform(logits, torch.float64, block=block)
    return (logits.double() - temperature * torch.log(-torch.log(uniform))).argmax(-1)


def tempered(logits: Logits, temperature: float, top_p: float | None, top_k: int | None) -> Logits:
    """Dream's sampling distribution [batch, pos, vocab]: tempered, cut to the nucleus top_p, then to the top_k.

    Source: Dream generation_utils, sample_tokens (the token that crosses top_p stays).
    """
    if temperature > 0:
        logits = logits / temperature
    if top_p is not None and top_p < 1:
        logits = nucleus(logits, top_p)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), -1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)


def filtered(logits: Logits, temperature: float, top_k: int | None, top_p: float | None) -> Logits:
    """SDAR's sampling distribution [batch, pos, vocab]: tempered, cut to the top_k, then to the nucleus top_p of those.

    Source: JetAstra/SDAR generate.py, sample_with_temperature_topk_topp; at temperature 0 the plain softmax, as LLaDA2.
    """
    if temperature == 0:
        return logits.softmax(-1)
    logits = logits / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), -1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p is not None and top_p < 1:
        outside = nucleus(logits, top_p) == torch.finfo(logits.dtype).min
        logits = logits.masked_fill(outside, float("-inf"))
    return logits.softmax(-1)


def nucleus(logits: Logits, top_p: float) -> Logits:
    """Logits in which all tokens behind the one that crosses top_p are as low as the dtype goes."""
    ordered, index = logits.sort(descending=True, dim=-1)
    beyond = ordered.softmax(-1).cumsum(-1) > top_p
    beyond = torch.cat([torch.zeros_like(beyond[..., :1]), beyond[..., :-1]], -1)
    outside = torch.zeros_like(beyond).scatter(-1, index, beyond)
    return logits.masked_fill(outside, torch.finfo(logits.dtype).min)


def probability_of(tokens: Int[Tensor, "*batch pos"], probabilities: Logits) -> Float[Tensor, "*batch pos"]:
    """Confidence = probability of the chosen token, in [0, 1] (low_confidence, maskgit_plus)."""
    return probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def margin(probabilities: Logits) -> Float[Tensor, "*batch pos"]:
    """Confidence = gap between the two likeliest tokens, in [0, 1] (Dream's topk_margin)."""
    best = probabilities.topk(2, -1).values
    return best[..., 0] - best[..., 1]


def negative_entropy(probabilities: Logits) -> Float[Tensor, "*batch pos"]:
    """Confidence = sum p log p in nats, at most 0 = certain (Dream's entropy, with its 1e-10 guard)."""
    return (probabilities * torch.log(probabilities + 1e-10)).sum(-1)


def most_confident(confidence: Confidence, eligible: Mask, counts: Int[Tensor, " batch"]) -> Mask:
    """The `counts[row]` most confident eligible positions of each row (all when fewer); ties go to the left."""
    least = torch.finfo(confidence.dtype).min  # an eligible position stays ahead of every other
    order = (
        confidence.clamp(min=least).masked_fill(~eligible, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    )
    rank = torch.empty_like(order).scatter(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return (rank < counts.to(rank.device).unsqueeze(-1)) & eligible


def least_confident(confidence: Confidence, among: Mask, counts: Int[Tensor, " batch"]) -> Mask:
    """The `counts[row]` least confident of some positions of each row (all when fewer); ties go to the left.

    Source: pengzhangzhi/Open-dLLM generation_utils.py, alg "p2": what is masked after a step.
    """
    order = confidence.masked_fill(~among, float("inf")).argsort(dim=-1, stable=True)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter(-1, order, place)
    return (rank < counts.to(rank.device).unsqueeze(-1)) & among


def below_cutoff(confidence: Confidence, among: Mask, counts: Int[Tensor, " batch"]) -> Mask:
    """The positions that are less confident than the one with `counts[row]` below it; fewer than that at ties.

    Source: bytedance/dplm models/utils.py, topk_masking.
    """
    ordered = confidence.masked_fill(~among, float("inf")).sort(-1).values
    places = counts.to(ordered.device).clamp(max=ordered.shape[-1] - 1)
    return among & (confidence < ordered.gather(-1, places.unsqueeze(-1)))


def share_left(masks: int, step: int, steps: int) -> int:
    """How many of `masks` positions are masked after this step: int(masks (1 - (step + 1) / steps)), in float32.

    Source: pengzhangzhi/Open-dLLM generation_utils.py, alg "p2"; bytedance/dplm dplm.py, schedule "linear".
    """
    return int(torch.tensor([float(masks)]) * (1 - (step + 1) / steps)) if step < steps else 0


def above_threshold(confidence: Confidence, eligible: Mask, threshold: float) -> Mask:
    """Every eligible position with confidence >= threshold, and always the most confident one of a row.

    Source: NVlabs/Fast-dLLM llada/generate.py (parallel decoding, without its caches).
    """
    one = torch.ones(len(confidence), dtype=torch.long)
    return most_confident(confidence, eligible, one) | (eligible & (confidence >= threshold))
