"""TransformerLens adapters of the stock decoders: the stock ones, with sinklens's attention and aligned unembedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import NormalizationBridge, UnembeddingBridge
from transformer_lens.model_bridge.supported_architectures.glm4_moe import Glm4MoeArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.gpt2 import GPT2ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen2 import Qwen2ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3 import Qwen3ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3_moe import Qwen3MoeArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.starcoder2 import Starcoder2ArchitectureAdapter

from sinklens.errors import Unsupported
from sinklens.models.attention import OpenAttention
from sinklens.models.driver import FORWARD
from sinklens.models.experts import OpenRouter
from sinklens.models.fused import FusedAttention


class AlignedUnembedding(UnembeddingBridge):
    """The unembedding of a family that predicts position i at i - 1: rows move one to the right before it.

    So `unembed.hook_in`, `unembed.hook_out` and the logits stand in the row of the position that they are about. A
    row's first real position has nothing before it and keeps its own.
    """

    always = True  # logits are aligned in every forward, hooked or not

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Logits [batch, pos, vocab], aligned with positions."""
        return super().forward(align(hidden_states, FORWARD.get().valid), *args, **kwargs)


HEADED = (
    "between the residual stream and the unembedding of an encoder stands a head that is no projection, so no "
    "direction of the stream is a token's; use sinklens.probes.LogitLens, which runs the head"
)


def read(model: Any, stream: Tensor) -> Tensor:
    """Logits of a residual stream: the final norm and the unembedding that a bridge wraps."""
    unembed = model.unembed.original_component
    return unembed(model.ln_final.original_component(stream.to(unembed.weight.device)))


def align(rows: Tensor, valid: Tensor | None) -> Tensor:
    """Rows [batch, pos, ...] moved one position to the right; each row's first real position keeps its own."""
    moved = torch.cat([rows[:, :1], rows[:, :-1]], 1)
    if valid is None:
        return moved
    first = valid & (valid.long().cumsum(-1) == 1)
    return torch.where(first[..., None].to(rows.device), rows, moved)


class Adapter(ArchitectureAdapter):
    """What sinklens changes of a stock adapter.

    Attributes:
        plain: Logits are the normalised residual stream times the unembedding, and the bridge's reconstructions of
            decoders hold.
        no_sum: Why the residual stream is no sum of what hook points show its parts to add; empty where it is one.
        fused: Queries, keys and values come out of one projection, which TransformerLens's reconstructions and folded
            weights would replace.
        meaning: What hook points of a layer carry where it is something else than in a decoder (`attention.MEANING`).
    """

    plain: ClassVar[bool] = True
    no_sum: ClassVar[str] = ""
    fused: ClassVar[bool] = False
    meaning: ClassVar[Mapping[str, str]] = {}
    _attention_bridge_cls = OpenAttention
    supports_hf_output_attentions = False  # patterns come from hook points

    def prepare_model(self, hf_model: Any) -> None:
        """Nothing: the model stays as it is, and keeps its attention function."""

    def limit(self, *, causal: bool, shifted: bool, first_position: int = 0) -> None:
        """Say of a model what TransformerLens's own tools must not do with it.

        Args:
            causal: An autoregressive baseline: everything is allowed.
            shifted: The family predicts position i at i - 1.
            first_position: What the first position is called; the table of positions has so many rows less to use.
        """
        self.cfg.n_ctx -= first_position
        for part in _parts(self.component_mapping):
            if isinstance(part, NormalizationBridge):
                part.use_native_layernorm_autograd = True  # the wrapped module computes, with its own epsilon
        self.cfg.attention_dir = "causal" if causal else "bidirectional"
        if not causal:
            self.supports_causal_loss = self.supports_generation = False
        if shifted:
            mapping: Any = self.component_mapping
            unembed = mapping["unembed"]
            mapping["unembed"] = AlignedUnembedding(name=unembed.name, config=unembed.config)
        self.shifted = shifted

    def read(self, model: Any, stream: Tensor) -> Tensor:
        """Logits of a residual stream after some layer, its rows as they are, with no hook point fired."""
        return read(model, stream)

    def apply_output_logits_transform(self, logits: Tensor) -> Tensor:
        """Nothing is done to logits after the unembedding; who asks has read them off the residual stream."""
        self.validate_output_logits_transform()
        return super().apply_output_logits_transform(logits)

    def validate_output_logits_transform(self) -> None:
        """Tools that read the stream at a row as the prediction of that row, by a projection, are wrong for some."""
        if not self.plain:
            raise Unsupported(HEADED)
        if getattr(self, "shifted", False):
            raise Unsupported(
                "this family predicts position i from the residual stream at i - 1, and this tool reads it at i; use "
                "sinklens.probes.LogitLens, which knows"
            )


def open_attention(mapping: Any) -> Any:
    """The components of a layer, with sinklens's attention in the place of the stock adapter's."""
    layer = mapping["blocks"].submodules
    attention = layer["attn"]
    layer["attn"] = OpenAttention(name=attention.name, config=attention.config, submodules=attention.submodules)
    return layer


def _parts(mapping: Any) -> Iterator[Any]:
    """All components of a mapping, also those inside others."""
    for part in mapping.values():
        yield part
        yield from _parts(part.submodules)


class SinklensLlamaAdapter(Adapter, LlamaArchitectureAdapter):
    """Llama decoders, bidirectional or causal as the wrapped model says."""


class SinklensQwen2Adapter(Adapter, Qwen2ArchitectureAdapter):
    """Qwen2 decoders (Dream), bidirectional or causal."""


class SinklensQwen3Adapter(Adapter, Qwen3ArchitectureAdapter):
    """Qwen3 decoders (A2D), bidirectional or causal."""


class SinklensQwen3MoeAdapter(Adapter, Qwen3MoeArchitectureAdapter):
    """Qwen3-MoE decoders (LLaDA-MoE, RND1), bidirectional or causal."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        layer = open_attention(self.component_mapping)
        layer["mlp"].submodules["gate"] = OpenRouter(name="gate")


class SinklensGlm4MoeAdapter(Adapter, Glm4MoeArchitectureAdapter):
    """GLM-4-MoE decoders (LLaDA2): experts in all but the first layers."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        open_attention(self.component_mapping)


class SinklensGPT2Adapter(Adapter, GPT2ArchitectureAdapter):
    """GPT-2 decoders, bidirectional (DiffuGPT) or causal: one projection for queries, keys and values."""

    fused = True

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        mapping: Any = self.component_mapping
        attention = FusedAttention("attn", self.cfg, projection="c_attn", output="c_proj")
        mapping["blocks"].submodules["attn"] = attention


class SinklensStarcoder2Adapter(Adapter, Starcoder2ArchitectureAdapter):
    """Starcoder2 decoders, bidirectional with a bias in the unembedding (MDLM)."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        open_attention(self.component_mapping)


DECODERS: dict[str, type[Adapter]] = {
    "Llama": SinklensLlamaAdapter,
    "Qwen2": SinklensQwen2Adapter,
    "Qwen3": SinklensQwen3Adapter,
    "Qwen3Moe": SinklensQwen3MoeAdapter,
    "Glm4Moe": SinklensGlm4MoeAdapter,
    "GPT2": SinklensGPT2Adapter,
    "Starcoder2": SinklensStarcoder2Adapter,
}


def register(adapters: Mapping[str, type[Adapter]]) -> None:
    """Register adapters, by what they are of, where the entry points are not seen (a source tree on the path)."""
    ArchitectureAdapterFactory.discover_entry_points()
    for layout, adapter in adapters.items():
        if f"Sinklens{layout}" not in ArchitectureAdapterFactory._adapters:
            ArchitectureAdapterFactory.register_adapter(f"Sinklens{layout}", adapter)
