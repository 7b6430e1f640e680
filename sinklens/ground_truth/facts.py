"""Planted facts: a model of which it is known where, in which layer and in which component, an answer comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import LlamaForCausalLM

from sinklens.ground_truth.models import BOS, FILLER, FIRST_WORD, MASK, REST, SCALE, blank, hooked
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.values.kinds import Count, Index, reads

STORED, READ = 0, 1  # layers: whose MLP knows the fact, whose attention fetches it
GAP = 40.0  # score of the cue, above all others, of queries that are no cue
GATE = 40.0  # so far above 0 that silu is the identity in float32


class PlantedPair(NamedTuple):
    """Two prompts that have other answers.

    Attributes:
        clean: Token ids.
        corrupt: As many.
        answers: The word that either model run fills in everywhere.
        places: Where the prompts differ.
    """

    clean: list[int]
    corrupt: list[int]
    answers: tuple[int, int]
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PlantedFact:
    """A model that answers in two hops, each in one component. Source: sinklens.

    The MLP of layer 0 writes, at the position of word i and of cue i, word i into the residual stream: the fact. One
    head of layer 1 looks at the cue from every position and copies what stands there; the model predicts that word.
    All other heads, MLPs and layers write nothing. So of a pair whose prompts have another cue at one place, the
    answer is: before layer 1 in the residual stream at that place; what the MLP of layer 0 adds there; the head's value
    there; and from then on at each asked position itself, in the head's mixed value, in what attention adds, in the
    residual stream. Its patterns are the same in both. Of a pair whose prompts have the same two words at two places,
    and the cue at the other one ("moved"), values and MLPs are the same in both, and the head's pattern has it all.

    Attributes:
        dlm: The model.
        layers: Layers.
        head: The query head that fetches, in layer 1.
        kv_head: Its key head.
        words: Number of words, and of cues, with ids as in `PlantedModel`.
    """

    dlm: HookedDLM
    layers: int
    head: int
    kv_head: int
    words: int

    @reads()
    def pair(self, seed: Index = 0, *, length: Count = 10, moved: bool = False) -> PlantedPair:
        """Two prompts of `length` tokens with other answers.

        Args:
            seed: Draws words and places.
            length: Tokens, with BOS; at least 4.
            moved: The same words at the same places, and the cue at the other one.

        Raises:
            ValueError: too short.
        """
        if length < 4:
            raise ValueError(f"length={length} must be at least 4")
        generator = torch.Generator().manual_seed(seed)
        one, two = torch.randperm(self.words, generator=generator)[:2].tolist()
        here, there = (1 + torch.randperm(length - 1, generator=generator)[:2]).tolist()
        clean, corrupt = ([BOS] + [FILLER] * (length - 1) for _ in range(2))
        cue = FIRST_WORD + self.words
        clean[here], corrupt[here] = cue + one, cue + two
        if moved:
            corrupt[here] = FIRST_WORD + one
            clean[there], corrupt[there] = FIRST_WORD + two, cue + two
        places = tuple(sorted((here, there))) if moved else (here,)
        return PlantedPair(clean, corrupt, (FIRST_WORD + one, FIRST_WORD + two), places)

    def __repr__(self) -> str:
        return f"PlantedFact(head {self.head} of layer {READ}, {self.dlm!r})"


@reads()
def planted_fact(
    *, causal: bool = False, layers: Count = 3, heads: Count = 2, kv_heads: Count | None = None, words: Count = 8
) -> PlantedFact:
    """A model of which it is known where an answer comes from; `PlantedFact` says where.

    A stock Llama decoder as that of `planted_model`, with an MLP: no training, no file, no network.

    Args:
        causal: An autoregressive baseline (Llama) instead of a diffusion model (LLaDA).
        layers: Layers; at least 2.
        heads: Query heads.
        kv_heads: Key heads, a divisor of `heads`; as many when None.
        words: Number of words; at least 2.

    Raises:
        ValueError: fewer layers or words, or key heads that do not divide the heads.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if layers < 2 or words < 2 or heads % kv_heads:
        raise ValueError(
            f"layers={layers} and words={words} must be at least 2, and kv_heads={kv_heads} must divide heads={heads}"
        )
    model = blank("planted-fact", words, layers, heads, kv_heads, inner=words)
    head = heads // 2
    kv_head = head // (heads // kv_heads)
    _set_weights(model, words, head, kv_head)
    return PlantedFact(hooked(model, words, causal=causal), layers, head, kv_head, words)


@torch.no_grad()
def _set_weights(model: LlamaForCausalLM, words: int, head: int, kv_head: int) -> None:
    """The residual stream is [one-hot token | words]. A norm multiplies one entry alone by sqrt(d), each of two by
    sqrt(d / 2): so stand the token and its fact behind layer 0, and MASK and the answer in the end.
    """
    config = model.config
    tokens, size, width = int(config.vocab_size or 0), int(config.head_dim or 0), int(config.hidden_size or 0)
    heads, keys = int(config.num_attention_heads or 0), int(config.num_key_value_heads or 0)
    root, both, slow = math.sqrt(width), math.sqrt(width / 2), size // 2 - 1
    each, word, cue = torch.arange(words), FIRST_WORD + torch.arange(words), FIRST_WORD + words + torch.arange(words)
    model.model.embed_tokens.weight[:, :tokens] = torch.eye(tokens)
    mlp: Any = model.model.layers[STORED].mlp
    mlp.gate_proj.weight[:, :tokens] = GATE / root
    for known in (word, cue):
        mlp.up_proj.weight[each, known] = 1 / root
    mlp.down_proj.weight[tokens + each, each] = 1 / GATE
    attention: Any = model.model.layers[READ].self_attn
    attention.q_proj.weight.view(heads, size, width)[head, slow, :tokens] = GAP * math.sqrt(size) / root
    attention.k_proj.weight.view(keys, size, width)[kv_head, slow, cue] = 1 / both
    attention.v_proj.weight.view(keys, size, width)[kv_head, each, tokens + each] = 1 / both
    attention.o_proj.weight.view(width, heads, size)[tokens + each, head, each] = 1.0
    model.lm_head.weight[word, tokens + each] = SCALE / both
    model.lm_head.weight[REST, MASK] = SCALE / 2 / both
