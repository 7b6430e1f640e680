"""Reading prompts: texts, messages and ids into a checkpoint's token ids, and back. No weight is needed for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from sinklens.errors import PromptError
from sinklens.models.families import Family
from sinklens.models.padding import Pads
from sinklens.models.prompts import Chat, Given, Unpadded, read_prompts
from sinklens.models.special_ids import SpecialIds

T = TypeVar("T")


class Reading:
    """Prompts to token ids, and back; part of HookedDLM and of its outline, so that both read alike.

    One rule for special tokens, whoever asks: those that the checkpoint's own tokenizer puts in front of a text, and
    BOS where the family's official code puts it there. A text that begins with them (one out of a chat template) gets
    no second ones, and what a tokenizer puts behind a text (an EOS) is left off, for a prompt goes on; a text for an
    encoder is whole, and keeps it ([SEP]). An empty prompt is BOS, where there is one.

    Attributes:
        name: What the checkpoint is called.
        ids: Its special-token ids.
        tokenizer: Its tokenizer, a transformers one; None without.
        family: What kind of checkpoint it is.
        cfg: Its sizes (d_vocab, n_ctx, n_layers, n_heads), as TransformerLens calls them.
    """

    name: str
    ids: SpecialIds
    tokenizer: Any
    family: Family
    cfg: Any

    def __repr__(self) -> str:
        """How errors name a model, whether its weights are read yet or not."""
        return f"HookedDLM({self.name!r}, {self.family.name}, {self.cfg.n_layers} layers x {self.cfg.n_heads} heads)"

    __str__ = __repr__

    @property
    def prepends_bos(self) -> bool:
        """Whether BOS stands in front of a text."""
        if self.tokenizer is None or self.ids.bos is None:
            return False
        return self.family.begins or list(self.tokenizer("")["input_ids"])[:1] == [self.ids.bos]

    def encode(self, prompt: Given, *, chat: bool = False, beside: int = 1) -> list[int]:
        """Token ids of one prompt.

        Args:
            prompt: Text; token ids, as they are; an encoding (`tokenizer(...)`, `tokenizer.apply_chat_template(...)`),
                whose attention mask says which tokens are the prompt; or a list of messages, which go into the
                tokenizer's chat template with the prompt for the model's turn behind them.
            chat: Put a text into the chat template, too, as one user turn.
            beside: How many rows of one length it is one of: such rows may have been padded (`Pads.removed`).

        Raises:
            PromptError: anything else; ids under `chat`; pads that cannot be told from the prompt; text or messages
                that the tokenizer cannot read.
        """
        read = read_prompts(prompt) or [()]
        if len(read) > 1:
            raise PromptError(f"{len(read)} prompts were given where one is expected")
        match read[0]:
            case Chat() as messages:
                return self.encode_piece(self.templated(messages))
            case str() as text:
                return self.encode(Chat((("user", text),))) if chat else self._text(text)
            case Unpadded(tokens):
                ids = list(tokens)
            case tokens:
                ids = Pads.of(self).removed(tokens, beside)
        if chat:
            raise PromptError(
                f"chat=True puts texts into the chat template, and {ids!s:.60} are token ids; give text or "
                "messages, or leave chat out"
            )
        return self._known(ids) or self._empty()

    def templated(self, chat: Chat) -> str:
        """Messages in the tokenizer's chat template, up to where the model's turn begins."""
        messages = [{"role": role, "content": content} for role, content in chat.turns]
        return self._asked(
            messages, lambda own: own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def encode_piece(self, text: str) -> list[int]:
        """Token ids of a piece of text: nothing in front of it and nothing behind it."""
        return self._known(self._asked(text, lambda own: list(own(text, add_special_tokens=False)["input_ids"])))

    def whole_text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens and white space as they stand there."""
        wishes = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return self._asked(list(ids), lambda own: own.decode(list(ids), **wishes))

    def is_special(self, token: int) -> bool:
        """Whether a token is one of the tokenizer's special ones."""
        return self.tokenizer is not None and token in self.tokenizer.all_special_ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of token ids, special tokens left out."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True) if self.tokenizer is not None else str(ids)

    def token_strings(self, ids: Sequence[int] | Tensor) -> list[str]:
        """One readable string per token id."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.tokenizer is None:
            return [str(token) for token in ids]
        return [self.tokenizer.decode([token]) for token in ids]

    def _known(self, ids: list[int]) -> list[int]:
        """Token ids that the embedding has; a tokenizer may have more."""
        wrong = [token for token in ids if not 0 <= token < self.cfg.d_vocab]
        if wrong:
            raise PromptError(f"token id {wrong[0]} is outside the vocabulary of {self.cfg.d_vocab}")
        return ids

    def _text(self, text: str) -> list[int]:
        ids, bos = self._as_the_tokenizer(text), self.ids.bos
        return ids if not self.family.begins or bos is None or ids[:1] == [bos] else [bos, *ids]

    def _as_the_tokenizer(self, text: str) -> list[int]:
        own = self._asked(text, lambda tokenizer: list(tokenizer(text)["input_ids"]))
        bare = self.encode_piece(text)
        if not bare:
            return self._empty()
        self._refuse_unknown(text, bare)
        for start in range(len(own) - len(bare) + 1):
            if own[start : start + len(bare)] == bare:
                front, behind = own[:start], own[start + len(bare) :] if self.family.closes else []
                front = [] if bare[:start] == front else front
                return front + bare + ([] if behind and bare[-len(behind) :] == behind else behind)
        return self._known(own)  # the tokenizer reads a text by itself and a text with special tokens differently

    @property
    def closing(self) -> list[int]:
        """What stands at the end of every text of an encoder ([SEP]); nothing for other models."""
        return self._empty()[1:] if self.family.closes else []

    def _refuse_unknown(self, text: str, ids: list[int]) -> None:
        """Raise for a text of which an encoder's vocabulary of whole words, or of residues, has nothing at all."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if self.family.closes and set(ids) == {unknown}:
            raise PromptError(
                f"{text!r:.60} is nothing but unknown tokens to {self.name}; are its words (or residues) apart, and in "
                "the right case?"
            )

    def _empty(self) -> list[int]:
        """What stands before everything: what the tokenizer puts before a text, or else BOS if there is one."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return [] if self.ids.bos is None else [self.ids.bos]
        own = list(tokenizer("")["input_ids"])
        if self.family.closes:
            return own
        if own and own[-1] == tokenizer.eos_token_id != self.ids.bos:
            own = own[:-1]
        return own or ([] if self.ids.bos is None else [self.ids.bos])

    def _asked(self, what: Any, question: Callable[[Any], T]) -> T:
        """What the tokenizer answers.

        Raises:
            PromptError: there is none, or it cannot read what it is given.
        """
        if self.tokenizer is None:
            raise PromptError(f"{self.name} has no tokenizer; give token ids, not {what!r:.40}")
        try:
            return question(self.tokenizer)
        except Exception as error:  # tokenizers raises bare Exceptions, templates those of jinja
            raise PromptError(f"{self.name}'s tokenizer cannot read {what!r:.60}: {error}") from error
