"""The attention bridge: fused attention when nobody looks, scores and weights in the open when somebody does."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen2 import Qwen2ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3 import Qwen3ArchitectureAdapter
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sinklens.models import blocks as streaming

PLAIN = "sinklens"  # the plain model's attention, by its name in transformers
RECEIVED = ("hook_received", "hook_received_masked", "hook_received_committed", "hook_received_last")
MEANING = {  # of a layer's hook points, by what follows "blocks.{i}."
    "hook_in": "residual stream before the layer",
    "hook_out": "residual stream after it",
    "attn.v.hook_out": "values",
    "attn.hook_rot_q": "queries as attention uses them (after RoPE)",
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


class SinkAttentionBridge(PositionEmbeddingsAttentionBridge):
    """Rotary attention with live hook points on every family.

    `hook_attn_scores` [batch, head, query, key] carries the scores before the softmax and after the mask (-inf
    where the model does not look), `hook_pattern` the weights after it; an edit of either reaches the output.
    While neither has a hook the layer runs fused attention and never forms the pattern.

    A hook that says of itself that it works row by row (`hooks.rowwise`) gets both a block of queries at a time;
    `hook.ctx["rows"]` is the slice of them. If all hooks do, and no gradient is wanted, the whole pattern is never
    formed and memory grows with S, not with S squared. Probes and edits of sinklens do. All paths are exact; they
    differ by float rounding. `hook_received` [batch, head, key] carries what each key received over all real queries,
    as the model used it; `hook_received_masked`, `_committed` and `_last` over those that hold the mask token, those
    that do not, and each row's last. They only show: an edit of them changes nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in RECEIVED:
            setattr(self, name, HookPoint())
        # Written to __dict__ because a bridge component passes attribute assignments on to the module that it wraps
        # (and looking an attribute up goes a long way).
        self.__dict__["path"] = "auto"  # or "pattern" (whole patterns only), or "streaming" (blocks only)
        self.__dict__["now"] = {}  # "tokens" of the forward that runs, and "mask", the mask token's id
        self.__dict__["received"] = {name: getattr(self, name) for name in RECEIVED}
        self.__dict__["opening"] = [self.hook_attn_scores, self.hook_pattern, *self.received.values()]

    def shown(self) -> list[HookPoint]:
        """The points that the plain model's attention can serve, too: what attention itself reads and makes."""
        return [*self.opening, self.hook_rot_q, self.hook_rot_k, self.v.hook_out, self.o.hook_in]

    def wants_pattern(self) -> bool:
        """Whether somebody hooks the scores, the pattern or received attention."""
        return any(point._forward_hooks or point._backward_hooks for point in self.opening)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention output [batch, pos, d_model], and the pattern when it was formed as a whole."""
        module: Any = self.original_component
        # The mask's direction is the wrapped module's, never a config's default.
        self.__dict__["is_causal"] = bool(module.is_causal)
        if any(getattr(self.config, flag, False) for flag in ("use_attn_result", "use_split_qkv_input", "use_attn_in")):
            return super().forward(hidden_states, *args, **kwargs)
        position_embeddings = self._apply_position_embedding_hooks(kwargs["position_embeddings"])
        hidden_states = self.hook_in(hidden_states)
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        q, k, v = (proj(hidden_states).view(shape).transpose(1, 2) for proj in (self.q, self.k, self.v))
        if "q_norm" in self.submodules:
            q, k = self.hook_q_normed(self.q_norm(q)), self.hook_k_normed(self.k_norm(k))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        mask, pattern = kwargs.get("attention_mask"), None
        if self.wants_pattern():
            z, pattern = self._pattern_path(q, k, v, mask, module.scaling)
        else:
            z = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=self.is_causal and mask is None and q.shape[-2] > 1,
                scale=module.scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        out = self.o(z.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1))
        return self.hook_out(out), pattern

    def _pattern_path(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        points, received = self.opening[:2], self._query_sets(mask, q.device)
        return streaming.attend(points, received, q, k, v, mask, scale, causal=self.is_causal, path=self.path)

    def _query_sets(self, mask: Tensor | None, device: torch.device) -> list[tuple[HookPoint, Tensor | None]]:
        """The points for received attention that are hooked, each with the queries that count."""
        wanted = {name: point for name, point in self.received.items() if point._forward_hooks}
        if not wanted:
            return []
        # The last query sees every real key, and real keys are the real queries.
        last = slice(-1, None)
        real = None if mask is None else streaming.visible(mask, last, mask.shape[-1], device, causal=False)
        real = None if real is None else real[:, :, 0]
        tokens = self.now.get("tokens")
        sets: dict[str, Tensor | None] = {"hook_received": real}
        if tokens is not None:  # not with inputs_embeds; then a set that needs tokens is not shown
            end = torch.arange(tokens.shape[-1], device=device) == tokens.shape[-1] - 1
            masked = torch.eq(tokens.to(device), -1 if self.now["mask"] is None else self.now["mask"])[:, None]
            for name, which in zip(RECEIVED[1:], (masked, ~masked, end[None, None]), strict=True):
                sets[name] = which if real is None else which & real
        return [(point, sets[name]) for name, point in wanted.items() if name in sets]


# The bridge's attention, and those of its points that can be shown, by the plain model's attention module.
_SHARED: WeakKeyDictionary[torch.nn.Module, tuple[SinkAttentionBridge, list[HookPoint]]] = WeakKeyDictionary()


def plain_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Attention of the plain transformers model: sdpa as ever, and with the bridge's hook points where one is hooked.

    So a forward in which only attention is hooked pays for that, and for nothing else of the bridge.
    """
    shared = _SHARED.get(module)
    if shared is None or not any(point._forward_hooks for point in shared[1]):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    points, (rot_q, rot_k, values, mixing) = shared[0], shared[1][-4:]
    points.__dict__["is_causal"] = bool(module.is_causal)
    query, key = streaming.through(rot_q, query), streaming.through(rot_k, key)
    if values._forward_hooks:
        apart = value.transpose(1, 2)
        value = values(apart.flatten(2)).view(apart.shape).transpose(1, 2)
    if points.wants_pattern():
        mixed, pattern = points._pattern_path(query, key, value, attention_mask, module.scaling)
        mixed = mixed.transpose(1, 2)
    else:
        mixed, pattern = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return streaming.through(mixing, mixed.flatten(2)), pattern


ALL_ATTENTION_FUNCTIONS.register(PLAIN, plain_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PLAIN, sdpa_mask)


def share_points(plain: PreTrainedModel, bridge: Any) -> None:
    """Let the plain model's attention serve the bridge's hook points (`plain_attention`)."""
    plain.set_attn_implementation(PLAIN)
    for layer, block in zip(plain.model.layers, bridge.blocks, strict=True):
        _SHARED[layer.self_attn] = block.attn, block.attn.shown()


class SinklensLlamaAdapter(LlamaArchitectureAdapter):
    """Llama decoders, bidirectional or causal as the wrapped model says."""

    _attention_bridge_cls = SinkAttentionBridge


class SinklensQwen2Adapter(Qwen2ArchitectureAdapter):
    """Qwen2 decoders (Dream), bidirectional or causal."""

    _attention_bridge_cls = SinkAttentionBridge


class SinklensQwen3Adapter(Qwen3ArchitectureAdapter):
    """Qwen3 decoders (A2D), bidirectional or causal."""

    _attention_bridge_cls = SinkAttentionBridge
