"""The attention bridge: fused attention when nobody looks, an editable pattern when somebody does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen2 import Qwen2ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3 import Qwen3ArchitectureAdapter
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def _masked(scores: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Scores with -inf where the model does not look. A 4D mask from transformers is authoritative."""
    if mask is None:
        if not causal:
            return scores
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    elif mask.dtype != torch.bool:
        mask = mask > torch.finfo(mask.dtype).min / 2
    return scores.masked_fill(~mask, float("-inf"))


class SinkAttentionBridge(PositionEmbeddingsAttentionBridge):
    """Rotary attention with live hook points on every family.

    `hook_attn_scores` [batch, head, query, key] carries the scores before the softmax and after the mask (-inf
    where the model does not look), `hook_pattern` the weights after it; an edit of either reaches the output.
    While neither has a hook the layer runs fused attention and never forms the pattern. Both are exact; they
    differ by float rounding.
    """

    def wants_pattern(self) -> bool:
        """Whether somebody hooks the scores or the pattern."""
        return bool(
            self.hook_attn_scores._forward_hooks
            or self.hook_pattern._forward_hooks
            or self.hook_attn_scores._backward_hooks
            or self.hook_pattern._backward_hooks
        )

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention output [batch, pos, d_model], and the pattern when it was formed."""
        module: Any = self.original_component
        # The mask's direction is the wrapped module's, never a config's default. Written to __dict__ because a
        # bridge component passes attribute assignments on to the module that it wraps.
        self.__dict__["is_causal"] = bool(module.is_causal)
        if any(getattr(self.config, flag, False) for flag in ("use_attn_result", "use_split_qkv_input", "use_attn_in")):
            return super().forward(hidden_states, *args, **kwargs)
        position_embeddings = self._apply_position_embedding_hooks(kwargs["position_embeddings"])
        mask = kwargs.get("attention_mask")
        hidden_states = self.hook_in(hidden_states)
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        q, k, v = (proj(hidden_states).view(shape).transpose(1, 2) for proj in (self.q, self.k, self.v))
        if "q_norm" in self.submodules:
            q, k = self.hook_q_normed(self.q_norm(q)), self.hook_k_normed(self.k_norm(k))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        pattern = None
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
    ) -> tuple[Tensor, Tensor]:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = _masked(q @ k.transpose(-2, -1) * scale, mask, causal=self.is_causal)
        # A padding query of a causal model sees no key at all; its row is zero, not nan.
        blind = None if mask is None else torch.isneginf(scores).all(-1, keepdim=True)
        pattern = self.hook_attn_scores(scores).float().softmax(-1).to(q.dtype)
        pattern = self.hook_pattern(pattern if blind is None else pattern.masked_fill(blind, 0.0))
        return pattern @ v, pattern


class SinklensLlamaAdapter(LlamaArchitectureAdapter):
    """Llama decoders, bidirectional or causal as the wrapped model says."""

    _attention_bridge_cls = SinkAttentionBridge


class SinklensQwen2Adapter(Qwen2ArchitectureAdapter):
    """Qwen2 decoders (Dream), bidirectional or causal."""

    _attention_bridge_cls = SinkAttentionBridge


class SinklensQwen3Adapter(Qwen3ArchitectureAdapter):
    """Qwen3 decoders (A2D), bidirectional or causal."""

    _attention_bridge_cls = SinkAttentionBridge
