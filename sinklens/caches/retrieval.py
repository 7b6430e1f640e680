"""Retrieval: something is hidden in a long text, and asked for behind it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sinklens.errors import TaskError
from sinklens.values.content import Value
from sinklens.values.kinds import Count, Seed, Share

Kind = Literal["passkey", "needle"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILLER = ("The meadow is wide.", "The river is slow.", "The clouds are high.", "We walk on.", "Then we rest again.")
OPENING = "There is an important number hidden in a long and dull text. Find it and remember it.\n"
WHO = ("clockmaker", "gardener", "sailor", "baker", "painter", "postman", "teacher", "weaver", "fisherman", "miller")
WHAT = ("red", "blue", "green", "yellow", "purple", "orange", "black", "white", "brown", "pink")


PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,.'\"();:-]{30,250}[.]")


def sentences(text: str) -> list[str]:
    """The plain sentences of a text, in order: words, numbers and ordinary marks, none of them twice."""
    every = (re.sub(r"\s+", " ", each).strip() for each in re.split(r"(?<=[.])\s+", text))
    return list(dict.fromkeys(each for each in every if PLAIN.fullmatch(each)))


@dataclass(frozen=True)
class Retrieval(Value):
    """One text in which something is hidden, and the question behind it.

    "passkey": a number of five digits in a text of a few dull sentences that repeat (as in arXiv 2305.16300, in our own
    words). "needle": somebody's favourite colour in a text that says something. A context is made of whole sentences
    and is as long as `tokens` allows, by the tokens of the model that reads it.

    Args:
        kind: "passkey" or "needle".
        tokens: How long the context may be.
        depth: Where it is hidden: 0 at the beginning, 1 at the end.
        seed: What is hidden.

    Raises:
        ContentError: an unknown kind, less than one token, a depth outside [0, 1].
    """

    kind: Kind
    tokens: Count
    depth: Share
    seed: Seed = 0

    @property
    def answer(self) -> str:
        """The right answer."""
        draw = random.Random(f"{self.kind} {self.seed}")
        return str(draw.randint(10000, 99999)) if self.kind == "passkey" else draw.choice(WHAT)

    @property
    def who(self) -> str:
        """Of whom a needle tells."""
        return random.Random(f"who {self.seed}").choice(WHO)

    @property
    def hidden(self) -> str:
        """The sentence that is hidden."""
        if self.kind == "passkey":
            return f"The pass key is {self.answer}. Remember it. {self.answer} is the pass key."
        return f"The favourite colour of the old {self.who} is {self.answer}."

    @property
    def question(self) -> str:
        """What stands behind the context, up to where the answer begins."""
        if self.kind == "passkey":
            return "\nWhat is the pass key? The pass key is"
        asked = f"the favourite colour of the old {self.who}"
        return f"\nWhat is {asked}? T{asked[1:]} is"

    def context(self, encode: Callable[[str], Sequence[int]], haystack: Sequence[str] = ()) -> list[int]:
        """The context as token ids: as many whole sentences around the hidden one as fit.

        Args:
            encode: From a text to token ids.
            haystack: The sentences of a needle's text, at least enough to fill it; they begin at a place that the seed
                says.

        Raises:
            TaskError: a context that is too short for what is hidden, or a haystack too short for the context.
        """
        if self.kind == "passkey":
            opening, sentences = OPENING, FILLER * (self.tokens // 20 + 1)
        else:
            start = random.Random(f"where {self.seed}").randrange(max(1, len(haystack)))
            opening, sentences = "", (*haystack[start:], *haystack[:start])
        low, high = 0, len(sentences)
        if len(encode(self._text(opening, []))) > self.tokens:
            raise TaskError(f"tokens={self.tokens} is too short for {self._text(opening, [])!r}; give more")
        if len(encode(self._text(opening, sentences))) <= self.tokens and self.kind == "needle":
            raise TaskError(f"the haystack's {len(sentences)} sentences do not fill {self.tokens} tokens; give more")
        while low < high:  # the most sentences that fit
            middle = (low + high + 1) // 2
            fits = len(encode(self._text(opening, sentences[:middle]))) <= self.tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        return list(encode(self._text(opening, sentences[:low])))

    def _text(self, opening: str, sentences: Sequence[str]) -> str:
        at = round(self.depth * len(sentences))
        return opening + " ".join([*sentences[:at], self.hidden, *sentences[at:]])
