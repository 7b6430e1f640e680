"""The one attention function: fused when nobody looks, scores and weights in the open when somebody does.

It stands behind transformers' own interface, so it sees rotated queries and keys, values, mask and scaling of every
stock model, whatever the family does before and after. The bridge's attention component delegates to it.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinklens.interrupts import surely
from sinklens.models import blocks, dropping
from sinklens.models.driver import FORWARD, Forward, running
from sinklens.sinks import Sight

NAME = "sinklens"  # of this function, in transformers
ROTATED = ("hook_rot_q", "hook_rot_k")  # of every model, also where nothing is rotated
RECEIVED = ("hook_received", "hook_received_masked", "hook_received_committed", "hook_received_last")
MEANING = {  # of a layer's hook points, by what follows "blocks.{i}."
    "hook_in": "residual stream before the layer",
    "hook_out": "residual stream after it",
    "attn.v.hook_out": "values",
    "attn.hook_rot_q": "queries as attention uses them (after RoPE, if the model has it)",
    "attn.hook_rot_k": "keys, likewise",
    "attn.hook_attn_scores": "scores before the softmax, -inf where the model does not look; float32",
    "attn.hook_pattern": "attention weights, rows sum to 1; float32",
    "attn.hook_received": "what each key receives from all real queries; shown only",
    "attn.hook_received_masked": "from queries that hold the mask token; shown only",
    "attn.hook_received_committed": "from queries that do not; shown only",
    "attn.hook_received_last": "from each row's last query; shown only",
    "attn.o.hook_in": "mixed values of each head, before the output projection",
    "attn.hook_out": "what attention adds to the residual stream",
    "mlp.hook_out": "what the MLP adds",
}


class Points:
    """The hook points of one layer that the attention function serves.

    Args:
        scores: Gets the scores before the softmax.
        pattern: Gets the weights after it.
        rotated: Those of the queries and of the keys that attention multiplies.
        received: By the names of RECEIVED.
    """

    def __init__(
        self, scores: HookPoint, pattern: HookPoint, rotated: tuple[HookPoint, HookPoint], received: list[HookPoint]
    ) -> None:
        self.weights, self.rotated = (scores, pattern), rotated
        self.received = dict(zip(RECEIVED, received, strict=True))
        self.opening = (*self.weights, *received)
        self.all = (*self.opening, *rotated)

    @property
    def is_open(self) -> bool:
        """Whether somebody hooks the scores, the pattern or received attention: then scores are formed in the open."""
        return any(point._forward_hooks or point._backward_hooks for point in self.opening)


class OpenAttention(PositionEmbeddingsAttentionBridge):
    """Attention of a bridge with live hook points, on every family; the wrapped module computes.

    `hook_attn_scores` [batch, head, query, key] carries the scores before the softmax and after the mask (-inf
    where the model does not look), `hook_pattern` the weights after it; an edit of either reaches the output.
    While neither has a hook the layer runs fused attention and never forms the pattern.

    A hook that treats every query by itself (`hooks.by_query`) gets both a block of queries at a time;
    `hook.ctx["queries"]` is the slice of them. If all hooks do, and no gradient is wanted, the whole pattern is never
    formed and memory grows with S, not with S squared. Probes and edits of sinklens do. All paths are exact; they
    differ by float rounding. `hook_received` [batch, head, key] carries what each key received over all real queries,
    as the model used it; `hook_received_masked`, `_committed` and `_last` over those that hold the mask token, those
    that do not, and each row's last. They only show: an edit of them changes nothing.
    """

    below: ClassVar[str] = ""  # the module that calls the attention function, as an attribute of the wrapped one

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (*RECEIVED, *(name for name in ROTATED if name not in self._modules)):
            setattr(self, name, HookPoint())
        rotated, received = (self.hook_rot_q, self.hook_rot_k), [getattr(self, name) for name in RECEIVED]
        # Past the bridge component's own attribute logic, which looks at the wrapped module first.
        self.__dict__["served"] = Points(self.hook_attn_scores, self.hook_pattern, rotated, received)

    def caller(self, module: torch.nn.Module) -> torch.nn.Module:
        """Which module it is that calls the attention function, if the component wraps this one."""
        return getattr(module, self.below) if self.below else module

    @property
    def scaling(self) -> float:
        """What the products of queries and keys are multiplied by."""
        caller: Any = self.caller(cast(torch.nn.Module, self.original_component))
        known = getattr(caller, "scaling", None)
        return float(caller.head_dim**-0.5 if known is None else known)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attention output [batch, pos, d_model] as the wrapped module gives it, hooked before and after."""
        if any(getattr(self.config, flag, False) for flag in ("use_attn_result", "use_split_qkv_input", "use_attn_in")):
            # TransformerLens's own reconstruction has these points; whether it is causal is the wrapped module's word.
            self.__dict__["is_causal"] = bool(getattr(self.original_component, "is_causal", True))
            return super().forward(*args, **kwargs)
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = self._apply_position_embedding_hooks(kwargs["position_embeddings"])
        now, inner = FORWARD.get(), self.caller(cast(torch.nn.Module, self.original_component))
        if inner in now.serving or not any(point.has_hooks() for point in self.served.all):
            return GeneralizedComponent.forward(self, *args, **kwargs)
        alone = Forward(serving={inner: self.served}, mask_token=now.mask_token, path=now.path)
        return running(alone, lambda: GeneralizedComponent.forward(self, *args, **kwargs))  # by itself, of no model


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers asks for it: sdpa, and with a component's hook points where one of them is hooked.

    Args:
        module: The attention module that runs.
        query: After RoPE, [batch, head, query, d_head].
        key: [batch, key head, key, d_head].
        value: Likewise.
        attention_mask: As `sdpa_mask` makes it; None for none, or for causal.
        **kwargs: `scaling`, `is_causal`, `dropout`, ...

    Returns:
        Mixed values [batch, query, head, d_head], and the pattern if it was formed as a whole.
    """
    now = FORWARD.get()
    points = now.serving.get(module)
    if now.cached:
        attention_mask = behind_cache(query.shape[-2], key.shape[-2], query.device)
    if points is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    hooked = [point for point in points.rotated if point._forward_hooks or point._backward_hooks]
    opened = points.is_open or now.path != "auto"
    if not hooked and not opened:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", False)) if causal is None else bool(causal)
    sight = Sight.from_mask(
        attention_mask,
        batch=len(query),
        queries=query.shape[-2],
        keys=key.shape[-2],
        direction="causal" if causal else "bidirectional",
        device=query.device,
    )

    def rotate() -> list[Tensor]:
        for point in hooked:  # a hook there wants to know who sees whom as much as one on the scores
            point.ctx["sight"] = sight
        return [blocks.through(point, each) for point, each in zip(points.rotated, (query, key), strict=True)]

    query, key = surely(rotate, lambda: blocks.forget(hooked))
    if not opened:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scores, *others = points.opening
    if now.path == "auto" and dropping.only_hidden(scores, tuple(others)):
        kept = dropping.visible(scores, sight, len(query))
        return dropping.attend(module, query, key, value, sight, kept, **kwargs), None
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    shown = _received(points, sight, now)
    mixed, pattern = blocks.attend(points.weights, shown, query, key, value, sight, scaling, path=now.path)
    return mixed.transpose(1, 2), pattern


def behind_cache(queries: int, keys: int, device: torch.device) -> Tensor:
    """Who sees whom behind a cache: all that it holds, and causally what is new [1, 1, query, key]."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]


def _received(points: Points, sight: Sight, now: Forward) -> list[tuple[HookPoint, Tensor | None]]:
    """The points for received attention that are hooked, each with the queries that count [batch or 1, 1, query]."""
    wanted = {name: point for name, point in points.received.items() if point._forward_hooks}
    if not wanted:
        return []
    real, tokens = sight.real, now.tokens
    sets: dict[str, Tensor | None] = {"hook_received": None if sight.whole else real}
    if tokens is not None and tokens.shape[-1] == sight.count:  # with embeddings as input nobody holds a token
        masked = tokens.to(real.device) == (-1 if now.mask_token is None else now.mask_token)
        place = torch.arange(sight.count, device=real.device)
        last = real & (place == torch.where(real, place, -1).amax(-1, keepdim=True))
        for name, queries in zip(RECEIVED[1:], (masked, ~masked, last), strict=True):
            sets[name] = queries & real
    shown = [(point, sets[name]) for name, point in wanted.items() if name in sets]
    return [(point, None if queries is None else queries[:, None]) for point, queries in shown]


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
