"""Text in and out of a HookedDLM, where TransformerLens asks for it."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import PromptError, Unsupported
from sinklens.models.callers import LOOKS_BACK, called_by
from sinklens.models.padding import padded
from sinklens.models.reading import Reading


class Text(Reading, TransformerBridge):
    """TransformerLens's way from texts to tokens, by the rule of `Reading`; part of HookedDLM."""

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, a transformers one; None without."""
        return self.__dict__.get("_tokenizer")

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        # As it is: TransformerLens would load it once more, with BOS in front of every text.
        self.__dict__["_tokenizer"] = value
        if value is not None:
            added = value("")["input_ids"]
            self.cfg.tokenizer_prepends_bos = self.cfg.default_prepend_bos = self.prepends_bos
            self.cfg.tokenizer_appends_eos = bool(added) and added[-1] in self.ids.eos

    def to_tokens(  # pyright: ignore[reportIncompatibleMethodOverride] - None of truncate is new
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool | None = None,
    ) -> Int[Tensor, "batch pos"]:
        """TransformerLens's `to_tokens`, by the same rule as `encode`: the same ids.

        Args:
            input: One text or several.
            prepend_bos: Whether BOS stands in front; as `encode` does it when None.
            padding_side: Where rows are padded; as the tokenizer does when None.
            move_to_device: Put the tokens where the model is.
            truncate: Cut what exceeds the context; an error when None.

        Raises:
            PromptError: what is no text, or longer than the context.
            Unsupported: it is TransformerLens's head detector that asks, and attention here looks ahead, too.
        """
        if not self.is_causal and called_by(LOOKS_BACK):
            raise Unsupported(
                f"detect_head compares attention with lower triangles, and {self.name} looks ahead, too, so that a "
                "head that attends to the later copy of a token would count as none; sum cache['pattern', layer] over "
                "the places that you mean"
            )
        tokens, _ = self.padded_texts(input, prepend_bos, padding_side, truncate)
        return tokens.to(self.cfg.device) if move_to_device else tokens

    def padded_texts(
        self,
        texts: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        truncate: bool | None = None,
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Tokens of texts as one batch, and which of them are real."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        wrong = [each for each in listed if not isinstance(each, str)]
        if wrong or not listed:
            raise PromptError(f"{wrong[0] if wrong else texts!r} is no text")
        rows = [self._with_bos(text, prepend_bos) for text in listed]
        longest = max(map(len, rows))
        if longest > self.cfg.n_ctx and truncate is None:
            raise PromptError(
                f"a text of {longest} tokens exceeds the context of {self.cfg.n_ctx}; shorten it, or say truncate=True"
            )
        rows = [row[: self.cfg.n_ctx] for row in rows] if truncate else rows
        side = padding_side or getattr(self.tokenizer, "padding_side", "right")
        return padded(rows, self.ids.pad or 0, left=side == "left")

    def _with_bos(self, text: str, prepend: bool | None) -> list[int]:
        if prepend is None:
            return self._text(text)
        bare = self.encode_piece(text)
        if not prepend:
            return bare
        if self.ids.bos is None:
            raise PromptError(f"prepend_bos=True, and {self.name} has no BOS token")
        return bare if bare[:1] == [self.ids.bos] else [self.ids.bos, *bare]
