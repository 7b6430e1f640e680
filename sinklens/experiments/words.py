"""Words of a task that the model's tokenizer does not know: what cannot be read is not scored."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from sinklens.errors import TaskError
from sinklens.models.outline import Sketched
from sinklens.tasks import Example, Task


def refuse_unknown(tokenizer: Any, examples: Sequence[Example], *, answers: bool) -> None:
    """Raise for a text of which the tokenizer drops something, or puts its token for unknown words.

    Args:
        tokenizer: A transformers tokenizer; None reads no texts.
        examples: Whose prompts are read, where they are texts.
        answers: Whether the model reads the answers, too; else they are only compared with what it writes.

    Raises:
        TaskError: naming the example and quoting the word.
    """
    marks = {} if tokenizer is None else _unknown_tokens(tokenizer)
    for example in examples if tokenizer is not None else ():
        for what in ("prompt", "answer") if answers else ("prompt",):
            text = getattr(example, what)
            unknown = _unknown(tokenizer, text, marks) if isinstance(text, str) and text else None
            if unknown is not None:
                raise TaskError(
                    f"{example.name}: the tokenizer does not know {unknown!r} in the {what} {text[:80]!r}, so the "
                    "model would be asked something else; is this task made for this model?"
                )


def refuse_other_vocabulary(dlm: Sketched, task: Task) -> None:
    """Raise for a task that means the token ids of another tokenizer than the model's.

    Raises:
        TaskError: naming both.
    """
    wanted = task.vocabulary
    if wanted is None or dlm.tokenizer is None:
        return
    has = dlm.tokenizer.get_vocab()
    other = [token for token, number in wanted.items() if has.get(token) != number]
    if other:
        raise TaskError(
            f"{task.name} asks in a language of its own, and {dlm.name} has another vocabulary: its tokenizer has no "
            f"token {other[-1]!r} with number {wanted[other[-1]]}. Choose a task for this model (facts, antibodies, "
            "Jsonl)"
        )


def _unknown(tokenizer: Any, text: str, marks: Mapping[str, int]) -> str | None:
    """What of a text is lost on the way to tokens; None if nothing is."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    try:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    except Exception as error:  # what the tokenizers library raises for a vocabulary without an unknown token
        return next((word for word in text.split() if not _readable(tokenizer, word)), str(error))
    ids, spans = read["input_ids"], read["offset_mapping"] if fast else []
    said = [] if not fast else [text[start:end] for start, end in spans]
    for unknown, number in marks.items():
        if ids.count(number) > text.count(unknown):
            wrong = [word for token, word in zip(ids, said, strict=False) if token == number]
            return next((word for word in wrong if word != unknown), text)
    covered = {place for start, end in spans for place in range(start, end)}
    lost = [char for place, char in enumerate(text) if place not in covered and unicodedata.category(char)[0] in "LNPS"]
    return lost[0] if fast and lost else None


def _unknown_tokens(tokenizer: Any) -> dict[str, int]:
    """What stands for unknown words, as transformers has it and as the vocabulary's own model has it, and its ids."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    of_model = getattr(tokenizer.backend_tokenizer.model, "unk_token", None) if fast else None
    known = tokenizer.get_vocab()
    return {token: known[token] for token in (tokenizer.unk_token, of_model) if token and token in known}


def _readable(tokenizer: Any, word: str) -> bool:
    try:
        tokenizer(word, add_special_tokens=False)
    except Exception:
        return False
    return True
