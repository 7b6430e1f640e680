"""The tokenizer of a checkpoint, from its own files, and nothing else's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from sinklens.errors import CheckpointError
from sinklens.models import files
from sinklens.models.families import Family

WORDS = ("BertTokenizer", "EsmTokenizer")  # they read a vocab.txt


def read_tokenizer(folder: Path, family: Family) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer from its own files; None when it ships none."""
    vocabulary = ("vocab.txt",) if family.tokenizer in WORDS else ("vocab.json", "merges.txt")
    if files.present(folder / "tokenizer.json"):
        reader = transformers.PreTrainedTokenizerFast
    elif all(files.present(folder / name) for name in vocabulary):
        reader = getattr(transformers, family.tokenizer)
    else:
        return None
    said = files.read_json(folder / "tokenizer_config.json")
    declared = said.get("added_tokens_decoder", {})
    if not isinstance(declared, dict) or not all(_is_added(*entry) for entry in declared.items()):
        raise CheckpointError(
            f"tokenizer_config.json has added_tokens_decoder={str(declared)[:60]!r}; expected ids, tokens"
        )
    more: dict[str, Any] = _case(folder, family, said)
    try:
        tokenizer = reader.from_pretrained(folder, trust_remote_code=False, **more)
        tokenizer("")
    except Exception as error:  # tokenizers raises bare Exceptions, and transformers whatever a wrong type leads to
        raise CheckpointError(f"the tokenizer in {str(folder)!r} could not be read: {str(error)[:300]}") from error
    for number, token in declared.items():
        found = tokenizer.convert_tokens_to_ids(token["content"])
        if found != int(number):
            raise CheckpointError(
                f"the tokenizer reads {token['content']!r} as id {found}, and tokenizer_config.json says {number}; "
                "its vocabulary files are not the checkpoint's own"
            )
    return tokenizer


def _case(folder: Path, family: Family, said: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a bare vocab.txt is of lower-cased words, where nothing says so: it has no capitals then."""
    if family.tokenizer != "BertTokenizer" or "do_lower_case" in said or files.present(folder / "tokenizer.json"):
        return {}
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split()
    return {"do_lower_case": not any(token != token.lower() for token in tokens if token[0] != "[")}


def _is_added(number: str, token: Any) -> bool:
    return number.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
