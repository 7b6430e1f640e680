"""Prompts plus a checker, as values: the twins' own language, facts, antibodies, JSONL files, bare prompts.

How a model is run on them belongs to `decoding` and `experiments`.
"""

from sinklens.tasks.base import Example, Prompts, Score, Task
from sinklens.tasks.bundled import antibodies, facts
from sinklens.tasks.echo import BOS, EOS, MASK, NEWLINE, PUNCTUATION, Echo, EchoGrammar, echo_tokenizer
from sinklens.tasks.jsonl import Jsonl

__all__ = [
    "BOS",
    "EOS",
    "MASK",
    "NEWLINE",
    "PUNCTUATION",
    "Echo",
    "EchoGrammar",
    "Example",
    "Jsonl",
    "Prompts",
    "Score",
    "Task",
    "antibodies",
    "echo_tokenizer",
    "facts",
]
