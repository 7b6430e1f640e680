"""Prompts and the answers behind them as token ids: encoded together, by one rule for the white space between them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sinklens.errors import PlanError, PromptError
from sinklens.models.outline import Sketched
from sinklens.models.prompts import Chat, Given, Prompt, Unpadded, read_prompts, rows_beside
from sinklens.values.kinds import shown


class Answered(NamedTuple):
    """Token ids of a prompt, and of an answer behind it."""

    prompt: list[int]
    answer: list[int]


def answered_rows(
    dlm: Sketched, prompts: Given, answers: Given, *, separator: str | None = " ", chat: bool = False
) -> list[Answered]:
    """Prompts and answers, each in any form, as token ids.

    An answer that is a text is encoded together with its prompt, as in lm-evaluation-harness: the tokens of both behind
    the prompt's own tokens are the answer. White space at the end of a prompt that is a text goes to the answer. Behind
    messages, a template, or a special token nothing is put in between. An answer that is token ids is taken as it is.

    White space: what is behind an answer does not count. In front of it stands the prompt's own, or else `separator`,
    so "Paris" and " Paris" are one answer.

    Args:
        dlm: The model, or its outline.
        prompts: One or several.
        answers: As many.
        separator: White space, or "" (languages without spaces). None: answers are put behind prompts as they are
            written (code, where an answer's first indentation counts).
        chat: Put prompts that are texts into the chat template.

    Raises:
        PlanError: no prompt, another number of answers, or an empty one.
        PromptError: an answer that begins with other white space than the separator, or with BOS, or behind which the
            prompt's tokens are others.
    """
    if separator is not None and separator.strip():
        raise PromptError(f"separator={separator!r} must be white space, empty, or None")
    asked, said = read_prompts(prompts), read_prompts(answers)
    if len(asked) != len(said):
        raise PlanError(f"{len(asked)} prompts need as many answers; there are {len(said)}")
    if not asked:
        raise PlanError("prompts is empty; give at least one (an empty prompt is '', or [[]])")
    besides = rows_beside(asked), rows_beside(said)
    return [
        _joined(dlm, prompt, answer, separator, chat, besides[0])
        if isinstance(answer, str)
        else _beside(dlm, dlm.encode(prompt, chat=chat, beside=besides[0]), _given(dlm, answer, besides[1]))
        for prompt, answer in zip(asked, said, strict=True)
    ]


def _joined(dlm: Sketched, prompt: Prompt, answer: str, separator: str | None, chat: bool, beside: int) -> Answered:
    said = answer_text(answer, separator)
    encode, between = dlm.encode_piece, ""
    if isinstance(prompt, str) and not chat:
        text = prompt.rstrip()
        ids, encode = dlm.encode(text), dlm.encode
        between = prompt[len(text) :] or _between(dlm, text, ids, separator)
    elif isinstance(prompt, str | Chat):
        messages = Chat((("user", prompt),)) if isinstance(prompt, str) else prompt
        text, ids = dlm.templated(messages), dlm.encode(messages)
    else:
        ids = dlm.encode(prompt, chat=chat, beside=beside)
        text = dlm.whole_text(ids)
        between = _between(dlm, text, ids, separator)
    if not text or dlm.closing == ids[-1:]:
        return _beside(dlm, ids, dlm.encode_piece(between + said))
    whole = encode(text + between + said)
    if whole[: len(ids)] != ids or len(whole) == len(ids):
        raise PromptError(
            f"the answer {shown(said)} behind {shown(text[-40:])} does not leave the prompt's tokens as they are: they "
            f"end in {ids[-4:]}, and of both together {whole[max(0, len(ids) - 4) : len(ids) + 1]} stand there; give "
            "another separator, or the answer as token ids"
        )
    return Answered(ids, whole[len(ids) :])


def answer_text(answer: str, separator: str | None) -> str:
    """An answer without the white space that does not count.

    Raises:
        PlanError: nothing else is left.
        PromptError: it begins with white space that is neither nothing nor the separator.
    """
    text = answer.rstrip()
    said = text if separator is None else text.lstrip()
    before = text[: len(text) - len(said)]
    if not said:
        raise PlanError(f"the answer {answer!r} is empty")
    if before not in ("", separator):
        raise PromptError(
            f"the answer {shown(answer)} begins with {before!r}, which does not count under separator={separator!r}; "
            "say separator=None (as-written) to take answers as they are written, or leave it out"
        )
    return said


def _beside(dlm: Sketched, prompt: list[int], answer: list[int]) -> Answered:
    """A prompt and an answer that is put behind it as it is.

    Raises:
        PromptError: a prompt that an encoder's tokenizer has closed: an answer is in it, not behind it.
    """
    if dlm.closing and prompt[-1:] == dlm.closing:
        raise PromptError(
            f"a text of {dlm.name} ends in {dlm.closing}, and no answer follows that; put mask tokens where the answer "
            "is and fill them, or give the prompt as token ids without that end"
        )
    return Answered(prompt, answer)


def _given(dlm: Sketched, answer: Any, beside: int) -> list[int]:
    if isinstance(answer, Chat):
        raise PromptError(f"the answer {shown(answer)} is messages; give its text")
    ids = dlm.encode(answer, beside=beside) if (answer.tokens if isinstance(answer, Unpadded) else answer) else []
    if not ids:
        raise PlanError("an answer is empty; answers have at least one token each")
    if ids[0] == dlm.ids.bos and dlm.ids.bos not in dlm.ids.eos:
        raise PromptError(
            f"the answer {shown(ids)} begins with BOS, which a tokenizer puts in front of a text; give the answer as "
            "text, or say add_special_tokens=False"
        )
    return ids


def _between(dlm: Sketched, text: str, ids: list[int], separator: str | None) -> str:
    """The separator, where a prompt has no white space at its end, and no special token behind which there is none."""
    return "" if not separator or not text or text[-1].isspace() or dlm.is_special(ids[-1]) else separator
