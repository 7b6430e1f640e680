"""The attention bridge: fused attention when nobody looks, an editable pattern when somebody does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen2 import Qwen2ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3 import Qwen3ArchitectureAdapter
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sinklens.errors import ScopeError
from sinklens.sinks import received_attention

ROWS = 128  # queries in a block at most, and fewer where the block's scores would pass this many numbers
BLOCK = 2**21


def _masked(scores: Tensor, mask: Tensor | None, rows: slice = slice(None), *, causal: bool) -> Tensor:
    """Scores of some rows with -inf where the model does not look. A 4D mask from transformers is authoritative."""
    if mask is None:
        if not causal:
            return scores
        place = torch.arange(scores.shape[-1], device=scores.device)
        mask = place <= place[rows, None]
    else:
        mask = mask[..., rows, :] if mask.shape[-2] > 1 else mask
        if mask.dtype != torch.bool:
            mask = mask > torch.finfo(mask.dtype).min / 2
    return scores.masked_fill(~mask, float("-inf"))


class SinkAttentionBridge(PositionEmbeddingsAttentionBridge):
    """Rotary attention with live hook points on every family.

    `hook_attn_scores` [batch, head, query, key] carries the scores before the softmax and after the mask (-inf
    where the model does not look), `hook_pattern` the weights after it; an edit of either reaches the output.
    While neither has a hook the layer runs fused attention and never forms the pattern.

    A hook that says of itself that it works row by row (attribute `rowwise`, see `hooks.rowwise`) gets both a block of
    queries at a time; `hook.ctx["rows"]` is the slice of them. If all hooks do, and no gradient is wanted, the whole
    pattern is never formed and memory grows with S, not with S squared. Probes and edits of sinklens do wherever they
    can. All paths are exact; they differ by float rounding. `hook_received` [batch, head, key] carries what each key
    received over all real queries, as the model used it; it only shows, an edit of it changes nothing.
    """

    @property
    def path(self) -> str:
        """How attention is computed: "auto", or "pattern" (whole patterns only), or "streaming" (blocks only)."""
        return self.__dict__.get("_path", "auto")

    def streams(self) -> bool:
        """Whether every hook works row by row.

        Raises:
            ScopeError: the path is "streaming" and a hook needs the whole pattern.
        """
        points = (self.hook_attn_scores, self.hook_pattern)
        able = not torch.is_grad_enabled() and all(
            len(point._forward_hooks) == len(point.fwd_hooks)
            and not point._backward_hooks
            and all(getattr(handle.user_hook, "rowwise", False) for handle in point.fwd_hooks)
            for point in points
        )
        if self.path == "streaming" and not able:
            raise ScopeError(
                f"{self.hook_pattern.name}: a hook needs the whole pattern (or a gradient is wanted), and attention is "
                "set to 'streaming'; say dlm.attention = 'auto'"
            )
        return able and self.path != "pattern"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_received = HookPoint()

    def wants_pattern(self) -> bool:
        """Whether somebody hooks the scores, the pattern or received attention."""
        points = (self.hook_attn_scores, self.hook_pattern, self.hook_received)
        return any(point._forward_hooks or point._backward_hooks for point in points)

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
    ) -> tuple[Tensor, Tensor | None]:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        queries, points = q.shape[-2], (self.hook_attn_scores, self.hook_pattern)
        size = queries
        if self.streams():
            size = min(ROWS, max(32, BLOCK // (q.shape[0] * q.shape[1] * k.shape[-2])))
        mixed, pattern, received = [], None, None
        # The last query sees every real key, and real keys are the real queries.
        real = None
        if mask is not None:
            real = mask[:, :, -1] if mask.dtype == torch.bool else mask[:, :, -1] > torch.finfo(mask.dtype).min / 2
        try:
            for start in range(0, queries, size):
                rows = slice(start, min(start + size, queries))
                for point in points:
                    point.ctx["rows"] = rows
                scores = _masked(q[:, :, rows] @ k.transpose(-2, -1) * scale, mask, rows, causal=self.is_causal)
                # A padding query of a causal model sees no key at all; its row is zero, not nan.
                blind = None if mask is None else torch.isneginf(scores).all(-1, keepdim=True)
                pattern = self.hook_attn_scores(scores).float().softmax(-1).to(q.dtype)
                pattern = self.hook_pattern(pattern if blind is None else pattern.masked_fill(blind, 0.0))
                mixed.append(pattern @ v)
                if self.hook_received._forward_hooks:
                    part = received_attention(pattern, None if real is None else real[..., rows])
                    received = part if received is None else received + part
        finally:
            for point in points:
                point.ctx.pop("rows", None)
        if received is not None:
            self.hook_received(received)
        return (mixed[0], pattern) if len(mixed) == 1 else (torch.cat(mixed, 2), None)


class SinklensLlamaAdapter(LlamaArchitectureAdapter):
    """Llama decoders, bidirectional or causal as the wrapped model says."""

    _attention_bridge_cls = SinkAttentionBridge


class SinklensQwen2Adapter(Qwen2ArchitectureAdapter):
    """Qwen2 decoders (Dream), bidirectional or causal."""

    _attention_bridge_cls = SinkAttentionBridge


class SinklensQwen3Adapter(Qwen3ArchitectureAdapter):
    """Qwen3 decoders (A2D), bidirectional or causal."""

    _attention_bridge_cls = SinkAttentionBridge
