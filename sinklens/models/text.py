"""Text in and out of a HookedDLM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


class Text(TransformerBridge):
    """Prompts to token ids, and back; part of HookedDLM."""

    name: str

    def encode(self, prompt: str | Sequence[int] | Tensor, *, chat: bool = False) -> list[int]:
        """Token ids of one prompt: text through the tokenizer, ids as they are.

        Args:
            prompt: Text, or token ids.
            chat: Put the text into the tokenizer's chat template as one user turn.
        """
        if isinstance(prompt, Tensor):
            prompt = prompt.tolist()
        if not isinstance(prompt, str):
            ids = [int(token) for token in prompt]
            wrong = [token for token in ids if not 0 <= token < self.cfg.d_vocab]
            if wrong:
                raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self.cfg.d_vocab}")
            return ids
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer; give prompts as token ids, not as text {prompt[:40]!r}")
        try:
            if chat:
                message = [{"role": "user", "content": prompt}]
                text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            return list(self.tokenizer(prompt)["input_ids"])
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"{self.name}'s tokenizer cannot read {prompt[:60]!r}: {error}") from error

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
