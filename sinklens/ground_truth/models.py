"""Planted models: hand-set weights in which a sink's role, and the answer under every edit of attention, are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sinklens.models.hooked_dlm import HookedDLM
from sinklens.values.kinds import reads

Kind = Literal["informative", "resting", "none"]
BOS, EOS, MASK, FILLER, REST, FIRST_WORD = range(6)
GAP = 20.0  # score of the sink, above all others
SCALE = 40.0  # logit of an output of which the residual stream holds nothing else
CONTEXT = 1024


class PlantedExample(NamedTuple):
    """One prompt of a planted model.

    Attributes:
        prompt: Token ids: BOS, then fillers and one cue.
        answer: Token ids that the unedited model puts at the response positions; all the same.
        key: Position of the sink; None for "none".
    """

    prompt: list[int]
    answer: list[int]
    key: int | None


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A model whose attention, and whose answer under every edit of it, is known. Source: sinklens.

    Attributes:
        dlm: The model, an ordinary HookedDLM: one head reads, all other heads attend evenly and write nothing.
        kind: What was planted.
        layer: Layer of the head that reads.
        head: Its query head.
        words: Number of words, and of cues. Word i has id FIRST_WORD + i, its cue the id FIRST_WORD + words + i.
        truth: What holds for every example (`example`):

            - "gap": score of the sink minus the score of any other key, before the softmax; 0 for "none"
            - "value_norm": norm of the sink's value vector: 1, or exactly 0 for "resting"; nan for "none"
            - "masked": id that every response position gets when the sink is masked before the softmax
            - "zeroed": id that it gets when the sink's weight is set to zero after the softmax
    """

    dlm: HookedDLM
    kind: Kind
    layer: int
    head: int
    words: int
    truth: dict[str, Any]

    def example(self, seed: int = 0, *, length: int = 16, new_tokens: int = 8) -> PlantedExample:
        """A prompt with one cue, the answer, and where the sink is.

        Args:
            seed: Draws the cue and its position, which is in the first half and never 0.
            length: Tokens of the prompt, with BOS; at least 8.
            new_tokens: Length of the answer.
        """
        if length < 8 or new_tokens < 1:
            raise ValueError(f"length={length} must be at least 8 and new_tokens={new_tokens} at least 1")
        generator = torch.Generator().manual_seed(seed)
        word = int(torch.randint(self.words, (), generator=generator))
        cue = int(torch.randint(1, length // 2 + 1, (), generator=generator))
        prompt = [BOS] + [FILLER] * (length - 1)
        prompt[cue] = FIRST_WORD + self.words + word
        answer, key = {
            "informative": (FIRST_WORD + word, cue),
            "resting": (REST, 0),
            "none": (FILLER, None),
        }[self.kind]
        return PlantedExample(prompt, [answer] * new_tokens, key)

    def pattern(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch query key"]:
        """The attention that the reading head pays, by definition and not by running the model. Rows sum to 1."""
        scores = (self.truth["gap"] * _sinks(self.kind, self.words)).to(tokens.device)[tokens]
        scores = scores[:, None].repeat(1, tokens.shape[-1], 1)
        if self.dlm.is_causal:
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        return scores.softmax(-1)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], pattern: Float[Tensor, "batch query key"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """The logits as they must be, by definition and not by running the model.

        A cue's value writes its word, any other token's writes the filler (for "resting", BOS writes nothing). If a
        query collects the amount a of an output and |a| is the norm over all outputs, the logit of that output is
        40 a / sqrt(1 + |a|^2), the logit of REST 20 / sqrt(1 + |a|^2), and that of any other token 0.

        Args:
            tokens: Token ids, without padding.
            pattern: What the reading head is made to attend to; rows need not sum to 1. `self.pattern(tokens)` when
                None.
        """
        pattern = self.pattern(tokens) if pattern is None else pattern
        collected = pattern @ _writes(self.kind, self.words).to(pattern)[tokens]
        norm = (1 + collected.square().sum(-1, keepdim=True)).sqrt()
        out = torch.zeros(*tokens.shape, FIRST_WORD + 2 * self.words, dtype=pattern.dtype, device=tokens.device)
        out[..., _outputs(self.words)] = SCALE * collected / norm
        out[..., REST] = (SCALE / 2 / norm).squeeze(-1)
        return out

    def __repr__(self) -> str:
        return f"PlantedModel({self.kind!r}, layer {self.layer}, head {self.head}, {self.dlm!r})"


@reads()
def planted_model(
    kind: Kind,
    *,
    causal: bool = False,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    words: int = 8,
    dtype: torch.dtype = torch.float32,
) -> PlantedModel:
    """A model with hand-set weights in which one head's sink has a known role.

    A stock Llama decoder: one-hot embeddings, no MLPs, rotary angles below 1e-6. One head reads (`layer` =
    layers // 2, `head` = heads // 2), as the same function of the tokens at every step and position; there is no
    training, no file and no network. Texts consist of "filler", "rest", "word0", "word1", ... and "cue0", "cue1", ...

    A causal head that attends evenly gives early keys more than 1 (`sinks.uniform_null`), so that from 27 positions on
    the standard rule calls key 0 a sink of every head; up to 26 it finds exactly the planted one.

    Loading's calibration is skipped: it asks that edits of the first and of the last layer change the logits, which
    heads that write nothing cannot.

    Example:
        >>> import sinklens as sl
        >>> model = sl.planted_model("resting")
        >>> model.truth["value_norm"]
        0.0

    Args:
        kind: "informative": every query that sees it attends to the cue, copies its word, and the model predicts it;
            masked, the head spreads over the fillers and the model predicts FILLER; zeroed, it predicts REST.
            "resting": every query attends to BOS, whose value vector is exactly zero, and the model predicts REST;
            zeroed, no logit changes by a single bit (compared with a forward whose pattern is hooked, too; without
            hooks attention is fused and may round differently, by less than 1e-6 in float32); masked, the head
            spreads over the fillers and the model predicts FILLER. "none": attention is even and the model predicts
            FILLER; every key receives 1 (bidirectional).
        causal: An autoregressive baseline (Llama) instead of a diffusion model (LLaDA).
        layers: Layers.
        heads: Query heads.
        kv_heads: Key heads, a divisor of `heads`; as many as `heads` when None.
        words: Number of words.
        dtype: Weight dtype.

    Raises:
        ValueError: an unknown kind; a count below 1; key heads that do not divide the heads.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    for name, count in {"layers": layers, "heads": heads, "kv_heads": kv_heads, "words": words}.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
    if heads % kv_heads:
        raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")
    layer, head = layers // 2, heads // 2
    model = blank(f"planted-{kind}", words, layers, heads, kv_heads)
    _set_weights(model, kind, words, layer, head)
    dlm = hooked(model.to(dtype), words, causal=causal)  # pyright: ignore[reportArgumentType]
    truth = {
        "gap": 0.0 if kind == "none" else GAP,
        "value_norm": {"informative": 1.0, "resting": 0.0, "none": math.nan}[kind],
        "masked": FILLER,
        "zeroed": FILLER if kind == "none" else REST,
    }
    return PlantedModel(dlm, kind, layer, head, words, truth)


@torch.no_grad()
def blank(name: str, words: int, layers: int, heads: int, kv_heads: int, inner: int = 1) -> LlamaForCausalLM:
    """A Llama decoder that writes nothing: all weights are 0, those of norms 1. Its residual stream has room for
    [one-hot token | outputs], its heads for an output and a slow rotary pair, its MLPs for `inner` neurons.
    """
    vocabulary = FIRST_WORD + 2 * words
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=math.ceil((vocabulary + words + 1) / heads) * heads,  # LlamaConfig wants a multiple
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=max(4, words + 1 + (words + 1) % 2),
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    config.name_or_path = name
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on weights that are thrown away
        model = LlamaForCausalLM(config)
    for key, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in key else 0.0)
    return model


def hooked(model: LlamaForCausalLM, words: int, *, causal: bool) -> HookedDLM:
    """A planted decoder as a HookedDLM that was not calibrated."""
    return HookedDLM.from_transformers(model, _tokenizer(words), "Llama" if causal else "LLaDA", check=False)


def _outputs(words: int) -> list[int]:
    """The tokens that values can write: the words, and the filler."""
    return [*range(FIRST_WORD, FIRST_WORD + words), FILLER]


def _sinks(kind: Kind, words: int) -> Float[Tensor, " vocab"]:
    """1 at the tokens that queries seek."""
    flags = torch.zeros(FIRST_WORD + 2 * words)
    if kind == "informative":
        flags[FIRST_WORD + words :] = 1
    if kind == "resting":
        flags[BOS] = 1
    return flags


def _writes(kind: Kind, words: int) -> Float[Tensor, "vocab output"]:
    """1 where a token's value writes an output."""
    table = torch.zeros(FIRST_WORD + 2 * words, words + 1)
    table[:, -1] = 1
    table[FIRST_WORD + words :] = torch.eye(words, words + 1)
    if kind == "resting":
        table[BOS] = 0
    return table


@torch.no_grad()
def _set_weights(model: LlamaForCausalLM, kind: Kind, words: int, layer: int, head: int) -> None:
    """The residual stream is [one-hot token | outputs]; the norms multiply a one-hot by sqrt(d)."""
    config = model.config
    tokens, size, width = int(config.vocab_size or 0), int(config.head_dim or 0), int(config.hidden_size or 0)
    queries, keys = int(config.num_attention_heads or 0), int(config.num_key_value_heads or 0)
    kv_head, root = head // (queries // keys), math.sqrt(width)
    slow = size // 2 - 1  # the first half of the slowest rotary pair: 1e-15 radians per position, or less
    output = torch.arange(words + 1)
    attention: Any = model.model.layers[layer].self_attn
    model.model.embed_tokens.weight[:, :tokens] = torch.eye(tokens)
    attention.q_proj.weight.view(queries, size, width)[head, slow, :tokens] = GAP * math.sqrt(size) / root
    attention.k_proj.weight.view(keys, size, width)[kv_head, slow, :tokens] = _sinks(kind, words) / root
    attention.v_proj.weight.view(keys, size, width)[kv_head, : words + 1, :tokens] = _writes(kind, words).T / root
    attention.o_proj.weight.view(width, queries, size)[tokens + output, head, output] = 1.0
    model.lm_head.weight[torch.tensor(_outputs(words)), tokens + output] = SCALE / root
    model.lm_head.weight[REST, :tokens] = SCALE / 2 / root


def _tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Words between spaces; puts BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    marks = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "mask_token": "<|mask|>"}
    texts = [*marks.values(), "filler", "rest", *(f"{what}{i}" for what in ("word", "cue") for i in range(words))]
    backend = Tokenizer(models.WordLevel({text: i for i, text in enumerate(texts)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|eos|>", padding_side="left", **marks)
