"""TransformerLens adapters of stock encoders: hook points in their layers, and their heads, which are no projection."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import gelu
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.supported_architectures.bert import BertArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.roberta import RobertaArchitectureAdapter

from sinklens.models.adapters import Adapter
from sinklens.models.attention import OpenAttention
from sinklens.models.fused import FusedAttention

Step = str | Callable[[Tensor], Tensor]  # of a head: a module, by its path in the transformers model, or a function
POST_LN = {  # what the hook points of a layer carry that normalises after it has added
    "hook_in": "residual stream before the layer, normalised",
    "hook_out": "residual stream after it, normalised",
    "attn.hook_rot_q": "queries as attention uses them",
    "attn.hook_rot_k": "keys, likewise",
    "attn.hook_out": "residual stream after attention, normalised",
    "attn.o.hook_out": "what attention adds to the residual stream, before the normalisation",
    "mlp.hook_out": "what the MLP adds, before the normalisation",
    "mlp.out.hook_out": "what the MLP adds, before the normalisation",
}
POST_SUM = (
    "this encoder normalises the residual stream each time after it has added to it, so the stream is no sum of what "
    "its parts add, and no part goes through one norm alone"
)
PRE_LN = {"mlp.out.hook_out": "what the MLP adds"}
ALIASES = {"hook_mlp_out": "mlp.out.hook_out", "hook_attn_out": "attn.o.hook_out"}


class EncoderBlock(BlockBridge):
    """A layer of an encoder, whatever the list is called that it is in."""

    def _extract_layer_idx(self) -> int | None:
        found = re.search(r"\.(\d+)$", self.name or "")
        return int(found[1]) if found else None


class End(LinearBridge):
    """A projection at an end of an MLP that is no module: it fires that one's hook point, too.

    Args:
        name: As of every component.
        before: The MLP's hook points that its input goes through first.
        behind: Those that its output goes through last.
    """

    def __init__(self, name: str, before: tuple[Any, ...] = (), behind: tuple[Any, ...] = ()) -> None:
        super().__init__(name=name)
        self.__dict__.update(before=before, behind=behind, fires=before + behind)  # past torch's registration

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The projection's output, as all hook points leave it."""
        for point in self.__dict__["before"]:
            input = point(input)
        output = super().forward(input, *args, **kwargs)
        for point in self.__dict__["behind"]:
            output = point(output)
        return output


class SplitMLP(MLPBridge):
    """An MLP whose two projections the layer holds by itself: these fire its hook points, for nothing calls it.

    Args:
        config: As of every component.
        first: Path of the first projection in the layer.
        last: Path of the last one.
    """

    mirror_placeholder_hooks = False

    def __init__(self, config: Any, first: str, last: str) -> None:
        super().__init__(None, config, {})
        self.submodules = {"in": End(first, before=(self.hook_in,)), "out": End(last, behind=(self.hook_out,))}


class EncoderAttention(OpenAttention):
    """Attention whose projections are in a module of their own, below the one that the layer calls."""

    below = "self"


class Encoder(Adapter):
    """What encoders have in common: between residual stream and unembedding stands a head that is no projection."""

    plain = False
    head: ClassVar[tuple[Step, ...]] = ()

    def open(self, attention: type[OpenAttention]) -> None:
        """Put sinklens's attention and block into the stock adapter's layers."""
        mapping: Any = self.component_mapping
        old = mapping["blocks"]
        parts = dict(old.submodules)
        parts["attn"] = attention(name=parts["attn"].name, config=self.cfg, submodules=parts["attn"].submodules)
        parts["mlp"] = SplitMLP(self.cfg, *(parts["mlp"].submodules[name].name for name in ("in", "out")))
        aliases = ALIASES | {"hook_resid_mid": "ln1.hook_out"}
        mapping["blocks"] = EncoderBlock(name=old.name, submodules=parts, hook_alias_overrides=aliases)

    def read(self, model: Any, stream: Tensor) -> Tensor:
        """Logits of a residual stream: the head's own modules, one after the other, with no hook point fired."""
        for step in self.head:
            stream = (_plain(model.original_model, step) if isinstance(step, str) else step)(stream)
        return stream


def _plain(model: Any, path: str) -> Any:
    """A module of a transformers model, without the bridge's components that may stand in for it now."""
    for name in path.split("."):
        model = getattr(model, name)
        model = getattr(model, "original_component", model)
    return model


class SinklensBertAdapter(Encoder, BertArchitectureAdapter):
    """BERT encoders."""

    head = tuple(f"cls.predictions.{name}" for name in (
        "transform.dense", "transform.transform_act_fn", "transform.LayerNorm", "decoder"
    ))  # fmt: skip
    meaning, no_sum = POST_LN, POST_SUM

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.open(EncoderAttention)


class SinklensRobertaAdapter(Encoder, RobertaArchitectureAdapter):
    """RoBERTa encoders: BERT's layers, another head, positions counted from the pad's id + 1."""

    head = ("lm_head.dense", gelu, "lm_head.layer_norm", "lm_head.decoder")
    meaning, no_sum = POST_LN, POST_SUM

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.open(EncoderAttention)


class EsmUnembedding(UnembeddingBridge):
    """ESM's whole head: it adds its bias behind the matrix, and only it gives logits."""

    @property
    def W_U(self) -> Tensor:  # noqa: N802 - TransformerLens's name
        """The matrix [d_model, d_vocab]; in front of it stand a projection, an activation and a norm."""
        head: Any = self.original_component
        return head.decoder.weight.mT


class SinklensEsmAdapter(Encoder):
    """ESM-2 encoders (DPLM): BERT's projections in layers that normalise first, rotary positions."""

    head = ("esm.encoder.emb_layer_norm_after", "lm_head")
    no_sum = "this encoder scales its embeddings behind hook_embed, by how many of the tokens are masks"
    meaning = PRE_LN | {
        "attn.hook_rot_q": "queries as attention uses them (after RoPE), already divided by the root of d_head",
        "attn.hook_out": "residual stream after attention",
        "attn.o.hook_out": "what attention adds to the residual stream",
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        cfg.normalization_type, cfg.final_rms, cfg.gated_mlp, cfg.attn_only = "LN", False, False, False
        cfg.positional_embedding_type = "rotary"
        norm = partial(NormalizationBridge, config=cfg, use_native_layernorm_autograd=True)
        projections = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}
        parts: dict[str, Any] = {
            "ln1": norm(name="attention.LayerNorm"),
            "ln2": norm(name="LayerNorm"),
            "attn": EncoderAttention("attention", cfg, {n: LinearBridge(name=path) for n, path in projections.items()}),
            "mlp": SplitMLP(cfg, "intermediate.dense", "output.dense"),
        }
        self.component_mapping = {
            "embed": EmbeddingBridge(name="esm.embeddings.word_embeddings"),
            "blocks": EncoderBlock(
                name="esm.encoder.layer",
                submodules=parts,
                hook_alias_overrides=ALIASES | {"hook_resid_mid": "attn.hook_out", "hook_mlp_in": "mlp.in.hook_in"},
            ),
            "ln_final": norm(name="esm.encoder.emb_layer_norm_after"),
            "unembed": EsmUnembedding(name="lm_head", config=cfg),
        }


class SinklensModernBertAdapter(Encoder):
    """ModernBERT encoders: fused projections, gated MLPs, most layers local, no normalisation before the first."""

    head = ("model.final_norm", "head.dense", "head.act", "head.norm", "decoder")

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        cfg.normalization_type, cfg.final_rms, cfg.gated_mlp, cfg.attn_only = "LN", False, True, False
        cfg.positional_embedding_type = "rotary"
        norm = partial(NormalizationBridge, config=cfg, use_native_layernorm_autograd=True)
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embeddings.tok_embeddings"),
            "embed_ln": norm(name="model.embeddings.norm"),
            "blocks": EncoderBlock(
                name="model.layers",
                submodules={
                    "ln1": norm(name="attn_norm"),
                    "ln2": norm(name="mlp_norm"),
                    "attn": FusedAttention("attn", cfg, projection="Wqkv", output="Wo", rotates=True),
                    "mlp": MLPBridge(
                        name="mlp",
                        config=cfg,
                        submodules={"in": LinearBridge(name="Wi"), "out": LinearBridge(name="Wo")},
                    ),
                },
            ),
            "encoder_ln": norm(name="model.final_norm"),
            "mlm_head": LinearBridge(name="head.dense"),
            "ln_final": norm(name="head.norm"),
            "unembed": UnembeddingBridge(name="decoder", config=cfg),
        }


ENCODERS: dict[str, type[Adapter]] = {
    "Bert": SinklensBertAdapter,
    "Roberta": SinklensRobertaAdapter,
    "Esm": SinklensEsmAdapter,
    "ModernBert": SinklensModernBertAdapter,
}
