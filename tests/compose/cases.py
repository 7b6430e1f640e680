"""The models of docs/compose.md, each beside a plain transformers model with the same weights that nobody wrapped."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch
import transformers
from tokenizers import processors
from torch import Tensor, nn

from sinklens import HookedDLM
from sinklens.models.special_ids import SpecialIds

COLUMNS = ("tiny-dlm", "tiny-arm", "Llama", "Dream", "BERT")
IDS = SpecialIds(mask=2, eos=(1,), bos=0, pad=1)
SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),  # SmolLM2's layout
    "Dream": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "BERT": ("Bert", {"hidden_act": "gelu", "type_vocab_size": 2}),
}


class Case:
    """One column: a HookedDLM, and the same weights in transformers' own class with eager attention.

    Attributes:
        name: The column.
        dlm: The HookedDLM as it was loaded; shared, so no tool may leave anything behind.
        plain: The transformers model, never wrapped.
        tokens, other: Two rows of token ids [1, pos].
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dlm: Any = self.fresh()
        original: Any = self.dlm.original_model
        self.plain: Any = (
            _class(original)._from_config(copy.deepcopy(original.config), attn_implementation="eager").eval()
        )
        self.plain.load_state_dict(original.state_dict())
        self.encoder = name == "BERT"
        self.causal = self.dlm.is_causal
        self.shifted = self.dlm.family.shift
        self.tokens = torch.randint(3, 60, (1, 7), generator=torch.Generator().manual_seed(1))
        self.other = self.tokens.clone()
        self.other[0, 3] = self.tokens[0, 3] % 50 + 7

    def fresh(self) -> Any:
        """A HookedDLM of its own, for tools that change the model."""
        if self.name.startswith("tiny"):
            return HookedDLM.from_pretrained(self.name)
        kind, more = STOCK[self.name]
        config = getattr(transformers, f"{kind}Config")(**SIZES, **more)
        made = getattr(transformers, "BertForMaskedLM" if kind == "Bert" else f"{kind}ForCausalLM")(config).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # large enough weights that every layer matters
            for parameter, value in made.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                norm = "norm" in parameter.lower() and parameter.endswith("weight")
                value.copy_(1 + 0.3 * noise if norm else 0.4 * noise)
        return HookedDLM.from_transformers(made, tokenizer(around=kind == "Bert"), self.name, ids=IDS)

    @cached_property
    def folded(self) -> Any:
        """One in TransformerLens's compatibility mode; shared."""
        return folded(self.fresh())

    def mask(self, tokens: Tensor) -> Tensor | None:
        """The additive mask that lets every position see all; None for the causal model."""
        size = tokens.shape[1]
        return None if self.causal else torch.zeros((len(tokens), 1, size, size))

    @torch.no_grad()
    def raw(self, tokens: Tensor, model: Any = None) -> Tensor:
        """Logits of the plain model, rows as transformers gives them."""
        return (model or self.plain)(tokens, attention_mask=self.mask(tokens)).logits

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits of the plain model, rows as a HookedDLM has them."""
        found = self.raw(tokens)
        return torch.cat([found[:, :1], found[:, :-1]], 1) if self.shifted else found

    @property
    def layers(self) -> Any:
        """The plain model's layers."""
        return self.plain.bert.encoder.layer if self.encoder else self.plain.model.layers

    def parts(self, layer: int) -> dict[str, Any]:
        """The plain modules of a layer, by what they are."""
        block = self.layers[layer]
        if self.encoder:
            return {
                "block": block, "attn_out": block.attention.output.dense, "o": block.attention.output.dense,
                "q": block.attention.self.query, "k": block.attention.self.key, "v": block.attention.self.value,
                "mlp_out": block.output.dense, "down": block.output.dense, "up": block.intermediate.dense,
                "mid": block.attention.output,
            }  # fmt: skip
        return {
            "block": block, "attn_out": block.self_attn, "o": block.self_attn.o_proj, "q": block.self_attn.q_proj,
            "k": block.self_attn.k_proj, "v": block.self_attn.v_proj, "mlp_out": block.mlp,
            "down": block.mlp.down_proj, "ln1": block.input_layernorm, "ln2": block.post_attention_layernorm,
        }  # fmt: skip

    def watch(self, tokens: Tensor, wanted: Callable[[int], dict[str, nn.Module]] | None = None) -> dict[Any, Any]:
        """What goes in and comes out of every plain module: {(layer, part): (input, output)}; and "attn", "logits"."""
        found: dict[Any, Any] = {}
        handles = []
        ends = {"embed": self.plain.get_input_embeddings()} | ({} if self.encoder else {"norm": self.plain.model.norm})
        watched = {(None, name): module for name, module in ends.items()}
        for layer in range(len(self.layers)):
            watched |= {(layer, name): module for name, module in (wanted or self.parts)(layer).items()}
        for key, module in watched.items():

            def keep(_: Any, args: Any, kwargs: Any, out: Any, key: Any = key) -> None:
                into = args[0] if args else kwargs["hidden_states"]
                found[key] = (into, out[0] if isinstance(out, tuple) else out)

            handles.append(module.register_forward_hook(keep, with_kwargs=True))
        try:
            with torch.no_grad():
                out = self.plain(tokens, attention_mask=self.mask(tokens), output_attentions=True)
        finally:
            for handle in handles:
                handle.remove()
        found["attn"], found["logits"] = out.attentions, out.logits
        return found


def tokenizer(*, around: bool) -> Any:
    """The twins' words; `around`: a text is whole, between the two marks, as encoders have it."""
    own: Any = HookedDLM.from_pretrained("tiny-dlm").tokenizer
    if around:
        marks = [("<|bos|>", 0), ("<|eos|>", 1)]
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A <|eos|>", pair="<|bos|> $A <|eos|> $B:1 <|eos|>:1", special_tokens=marks
        )
    return own


def _class(model: Any) -> Any:
    """The stock class: what a HookedDLM holds is a subclass of it with the same name."""
    return getattr(transformers, type(model).__name__)


def folded(dlm: HookedDLM, **options: Any) -> HookedDLM:
    """In compatibility mode, quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dlm.enable_compatibility_mode(disable_warnings=True, **options)
    return dlm


@lru_cache
def case(name: str) -> Case:
    """A column, made once."""
    return Case(name)


def close(found: Any, expected: Any) -> None:
    """Fails unless equal within float32 rounding of what several layers computed."""
    scale = float(expected.detach().abs().max().clamp(min=1))
    torch.testing.assert_close(found.float(), expected.float(), atol=2e-5 * scale, rtol=0)
