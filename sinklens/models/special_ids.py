"""Special tokens: which ids a checkpoint names, in config.json, generation_config.json and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from sinklens.errors import CheckpointError
from sinklens.models.families import Family

END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|role_end|>")


@dataclass(frozen=True, init=False)
class SpecialIds:
    """Token ids that decoding needs; None where the checkpoint has none.

    Args:
        mask: The mask token.
        eos: The tokens that end a text; one id, several, or None.
        bos: The token that begins a text.
        pad: What stands where nothing is. It is masked out, so no number depends on it.
        eot: The end of a turn, by its name in the vocabulary (LLaDA's EoT). It ends a text only if `eos` has it, too.
    """

    mask: int | None
    eos: tuple[int, ...]
    bos: int | None
    pad: int | None
    eot: int | None

    def __init__(
        self,
        mask: int | None = None,
        eos: int | Iterable[int] | None = None,
        bos: int | None = None,
        pad: int | None = None,
        eot: int | None = None,
    ) -> None:
        several = () if eos is None else (eos,) if isinstance(eos, int) else tuple(dict.fromkeys(eos))
        fields: dict[str, Any] = {"mask": mask, "eos": several, "bos": bos, "pad": pad, "eot": eot}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def stock(self) -> dict[str, Any]:
        """The same as fields of a transformers config."""
        return {"bos_token_id": self.bos, "eos_token_id": list(self.eos) or None, "pad_token_id": self.pad}

    def within(self, vocabulary: int, name: str) -> SpecialIds:
        """The same for an embedding of `vocabulary` rows: a pad that it does not have is another, for none is read.

        Raises:
            CheckpointError: another id that the embedding does not have, or a mask token that is also an EOS.
        """
        named = [("mask", self.mask), ("bos", self.bos), ("eot", self.eot), *(("eos", number) for number in self.eos)]
        for kind, number in named:
            if number is not None and not 0 <= number < vocabulary:
                raise CheckpointError(
                    f"{name!r} names {number} as its {kind} token, which is outside its vocabulary of {vocabulary}"
                )
        if self.mask is not None and self.mask in self.eos:
            raise CheckpointError(
                f"{name!r} names {self.mask} as its mask token and as an EOS token ({list(self.eos)}): config.json and "
                "tokenizer disagree, or one of them is not the checkpoint's own"
            )
        pad = self.pad
        if pad is None or not 0 <= pad < vocabulary:
            pad = self.eos[0] if self.eos else self.bos or 0
        return SpecialIds(self.mask, self.eos, self.bos, pad, self.eot)


def special_ids(
    configs: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    family: Family,
    name: str,
    *,
    vocabulary: int,
    mask: int | None = None,
) -> SpecialIds:
    """Special-token ids of a checkpoint. The first source that names one decides; of EOS ids all count.

    Args:
        configs: config.json and generation_config.json, in this order; the tokenizer comes after them.
        tokenizer: The tokenizer, if there is one.
        family: Whose names of the mask token are looked up in the vocabulary last of all.
        name: Of the checkpoint, for errors.
        vocabulary: Rows of the embedding.
        mask: The mask token, where the checkpoint names none.

    Raises:
        CheckpointError: no mask token for a diffusion model, two of them, or an id that the embedding does not have.
    """

    def named(kind: str) -> list[int]:
        field = f"{kind}_token_id"
        values = [*(config.get(field) for config in configs), getattr(tokenizer, field, None)]
        return [number for value in values for number in _numbers(field, value)]

    known = tokenizer.get_vocab() if tokenizer is not None else {}
    given = _numbers("mask_token_id", mask)
    masks = list(dict.fromkeys([*given, *named("mask")]))
    masks = masks or [known[token] for token in family.mask_tokens if token in known][:1]
    masks = masks or [vocabulary - 1] * family.last_is_mask
    if len(masks) > 1:
        raise CheckpointError(
            f"{name!r} has several mask tokens, {', '.join(map(str, masks))}: mask_token_id, config.json and tokenizer "
            "disagree; only one can be right"
        )
    if not masks and not family.causal:
        raise CheckpointError(
            f"{name!r} names no mask token: neither mask_token_id in config.json nor "
            f"{' or '.join(family.mask_tokens)} in the tokenizer; give mask_token_id=, as the checkpoint's authors say"
        )
    bos, pad = (next(iter(named(kind)), None) for kind in ("bos", "pad"))
    eot = next((known[token] for token in END_OF_TURN if token in known), None)
    return SpecialIds(masks[0] if masks else None, named("eos"), bos, pad, eot).within(vocabulary, name)


def _numbers(field: str, value: Any) -> list[int]:
    """The ids in a field: none, one, or (of EOS) several."""
    several: list[Any] = [] if value is None else [value]
    if isinstance(value, list) and field == "eos_token_id":
        several = list(cast("list[Any]", value))
    for number in several:
        if not isinstance(number, int) or isinstance(number, bool):
            raise CheckpointError(
                f"{field}={value!r} is no token id; it is a whole number (of EOS also a list of them)"
            )
    return several
