"""Twins with other tokenizers: with or without BOS and EOS by themselves, with a pad of their own, with a template."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from tokenizers import processors

from sinklens import HookedDLM
from sinklens.models import loading
from sinklens.tasks import BOS, EOS, EchoGrammar

GRAMMAR = EchoGrammar()
WORDS = GRAMMAR.words
PAD = WORDS[-1]  # of a tokenizer with a pad of its own; no text here holds it
TEMPLATE = (
    BOS
    + "{% for m in messages %}{{ {'system': 'xa', 'user': 'xe', 'assistant': 'xi'}[m['role']] }} {{ m['content'] }} "
    ".{% endfor %}{% if add_generation_prompt %} xi{% endif %}"
)


@lru_cache
def twin(
    name: str = "tiny-dlm", *, before: bool = True, after: bool = False, pad: str = EOS, bos: bool = True
) -> HookedDLM:
    """A twin whose tokenizer puts BOS `before` and EOS `after` a text, pads with `pad`, and has a chat template.

    Args:
        name: The twin.
        before: Whether the tokenizer puts BOS in front.
        after: Whether it puts EOS behind.
        pad: Its pad token.
        bos: Whether the checkpoint has a BOS at all.
    """
    checkpoint = loading.load(name, dtype=None, device=None, device_map=None, revision=None)
    own: Any = checkpoint.tokenizer
    layout = f"{BOS} $A" if before else "$A"
    special = [(BOS, GRAMMAR.bos), (EOS, GRAMMAR.eos)]
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=layout + (f" {EOS}" if after else ""), special_tokens=special
    )
    own.pad_token, own.chat_template = pad, TEMPLATE
    if not bos:
        own.bos_token = None
    ids = replace(checkpoint.ids, pad=own.pad_token_id, bos=checkpoint.ids.bos if bos else None)
    return HookedDLM(replace(checkpoint, ids=ids), check=False)


SPACED = [f"w{number}" for number in range(20)]
OTHERS = ["\n", " ", "<user>", "A:", " A:", "ab", "abc", "w1w2"]
VOCABULARY = ["<bos>", "<eos>", *SPACED, *(f" {word}" for word in SPACED), *OTHERS]
CHAT = "{% for m in messages %}<user>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"


def spaced_tokenizer(*, before: bool = False) -> Any:
    """Words with a space in front are other tokens than those without, as in the models that people use."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate(VOCABULARY)} | {"<mask>": 62}
    backend = Tokenizer(models.WordLevel(ids))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), "isolated")
    backend.decoder = decoders.Fuse()
    if before:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    marks = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>", "mask_token": "<mask>"}
    own = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", additional_special_tokens=["<user>"], **marks
    )
    own.chat_template = CHAT
    return own


def ids_of(*tokens: str) -> list[int]:
    """Ids of tokens of the spaced vocabulary."""
    return [VOCABULARY.index(token) for token in tokens]
