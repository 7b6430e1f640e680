"""Echo, the twins' own endless toy language: every word behind a trigger is decided by a rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from sinklens.tasks.base import Example, Score, Task
from sinklens.values.exact import Range
from sinklens.values.kinds import Seed, Share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PUNCTUATION = (".", ",", "?")
NEWLINE = "\n"
BOS, EOS, MASK = "<|bos|>", "<|eos|>", "<|mask|>"
_TOKEN = re.compile(r"<\|\w+\|>|\n|[.,?]|[a-z]+")


def _words(count: int) -> tuple[str, ...]:
    onsets, vowels, codas = (
        ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"],
        ["a", "e", "i", "o", "u"],
        ["", "l", "n", "r", "s"],
    )
    every = [o + v + c + o2 + v2 for o in onsets for v in vowels for c in codas for o2 in "kmt" for v2 in "aeo"]
    return tuple(sorted(str(w) for w in np.random.default_rng(7).choice(every, count, replace=False)))


class EchoGrammar:
    """The fixed grammar of Echo; every text of the language is drawn from it.

    Words and punctuation follow one bigram table. Twelve tokens are triggers: behind "xa, xe, ..." the next
    word repeats the last word ("mora xe mora"), behind "wa, we, ..." the last word but one ("mora kelta wu
    mora"); punctuation and triggers do not count as words. So every word behind a trigger is decided by a
    rule and can be checked, and attention heads that serve a rule have nothing to do elsewhere.
    """

    words = _words(48)
    triggers = tuple(letter + vowel for letter in "xw" for vowel in ("a", "e", "i", "o", "u", "y"))
    trigger_rate = 0.45
    successors = 24

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.tokens: tuple[str, ...] = (BOS, EOS, MASK, NEWLINE, *PUNCTUATION, *self.triggers, *self.words)
        self.id = {token: i for i, token in enumerate(self.tokens)}
        self.bos, self.eos, self.mask = self.id[BOS], self.id[EOS], self.id[MASK]
        self.first_word = self.id[self.words[0]]
        # Which rule a token triggers: 1 = repeat the last word, 2 = the last word but one, 0 = none.
        self.rule = np.array([" xw".find(token[0]) if token in self.triggers else 0 for token in self.tokens])
        size = len(self.tokens)
        content = np.arange(self.first_word, size)
        starters = rng.choice(content, 12, replace=False)
        table = np.zeros((size, size))
        for word in content:
            stop, plain = rng.uniform(0.01, 0.08), 1 - self.trigger_rate
            follow = rng.choice(content[content != word], self.successors, replace=False)
            table[word, follow] = plain * (1 - stop) * rng.dirichlet(np.full(self.successors, 0.7))
            table[word, self.id[rng.choice(PUNCTUATION)]] = plain * stop
            table[word, self.rule > 0] = self.trigger_rate * rng.dirichlet(np.full(len(self.triggers), 3.0))
        for token in (BOS, NEWLINE, *PUNCTUATION):
            table[self.id[token], starters] = 1 / len(starters)
        for mark in (".", "?"):
            table[self.id[mark]] *= 0.4
            table[self.id[mark], self.id[NEWLINE]] = 0.3
            table[self.id[mark], self.eos] = 0.3
        table[self.eos, self.eos] = 1
        self._cumulative = table.cumsum(1)

    def sample(self, n: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Token ids [n, length]: BOS and text; a text that ends early (at a "." or "?") is padded with EOS."""
        out = np.full((n, length), self.bos)
        last, last_but_one = np.zeros(n, int), np.zeros(n, int)
        for at in range(1, length):
            before = out[:, at - 1]
            drawn = (rng.random(n)[:, None] > self._cumulative[before]).sum(1).clip(max=len(self.tokens) - 1)
            out[:, at] = np.choose(self.rule[before], [drawn, last, last_but_one])
            word = out[:, at] >= self.first_word
            last_but_one = np.where(word, np.where(last > 0, last, out[:, at]), last_but_one)
            last = np.where(word, out[:, at], last)
        return out

    def decided(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which positions a rule decides, and the word it demands there (0 elsewhere). Both [..., length].

        A position is decided iff a trigger stands before it and enough words stand before the trigger.
        """
        demanded = np.zeros_like(ids)
        last, last_but_one = np.zeros_like(ids[..., 0]), np.zeros_like(ids[..., 0])
        for at in range(1, ids.shape[-1]):
            before = ids[..., at - 1]
            word = before >= self.first_word
            last_but_one, last = np.where(word, last, last_but_one), np.where(word, before, last)
            demanded[..., at] = np.choose(self.rule[before], [np.zeros_like(last), last, last_but_one])
        return demanded > 0, demanded

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, without BOS and EOS."""
        return " ".join(self.tokens[i] for i in ids if i not in (self.bos, self.eos))

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text; a word that is not Echo's raises."""
        pieces = _TOKEN.findall(text)
        unknown = [piece for piece in pieces if piece not in self.id]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no word of Echo; its words are {', '.join(self.words[:5])}, ...")
        return np.array([self.id[piece] for piece in pieces], dtype=np.int64)


@dataclass(frozen=True, repr=False)
class Echo(Task):
    """Held-out texts of the twins' toy language (`EchoGrammar`): seeded, endless, checkable by rule.

    Each example is the beginning of a text and its continuation. What counts is every word behind a trigger: a
    rule decides it, so a free continuation can be checked without a reference.

    Example:
        >>> import sinklens as sl
        >>> task = sl.tasks.Echo(n=2, seed=1)
        >>> task[0].prompt
        'molma xy molma boske terko zosma gake xu gake xe gake wu gake wy gake'

    Attributes:
        n: Number of examples, at most 100000: they are drawn at once.
        seed: Which examples; never the training texts.
        prompt_tokens: Length of the prompt, with BOS.
        answer_tokens: Length of the continuation.
        gaps: With a share in (0, 1] the task is filling in: the prompt is the whole text with this share of the
            rule-decided words masked, the answer those words.
        name: What results call it; says n, seed and gaps if empty.

    Raises:
        TaskError: no example, an empty prompt or answer, or a share that is none.
    """

    n: Annotated[int, Range(1, 100_000)] = 200
    seed: Seed = 0
    prompt_tokens: Annotated[int, Range(2, 10_000)] = field(default=16, kw_only=True)
    answer_tokens: Annotated[int, Range(1, 10_000)] = field(default=32, kw_only=True)
    gaps: Share = field(default=0.0, kw_only=True)
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        said = f"echo(n={self.n}, seed={self.seed}" + (f", gaps={self.gaps:g})" if self.gaps else ")")
        object.__setattr__(self, "name", self.name or said)

    @property
    def scoring(self) -> str:
        """Which words count."""
        return "every gap is compared with its word" if self.gaps else "every word that a rule decides is checked by it"

    @property
    def grammar(self) -> EchoGrammar:
        """The language."""
        return _grammar()

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The twins': only a model that knows it can be asked."""
        return self.grammar.id

    @property
    def texts(self) -> np.ndarray:
        """Token ids of the whole texts [n, prompt_tokens + answer_tokens]."""
        return self._drawn[0].copy()

    @property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        return _draw(self.n, self.seed, self.prompt_tokens + self.answer_tokens, self.gaps)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:
        """One example."""
        texts, gaps = self._drawn
        ids, gap, g = texts[index], gaps[index], self.grammar
        if self.gaps:
            return Example(g.text(np.where(gap, g.mask, ids)), g.text(ids[gap]), f"{self.name}[{index}]")
        cut = self.prompt_tokens
        return Example(g.text(ids[:cut]), g.text(ids[cut:]), f"{self.name}[{index}]")

    def score(self, example: Example, completion: str) -> Score:
        """Rule-decided words that are right. When filling in, all gaps are; otherwise the completion's."""
        if self.gaps:
            answer, given = example.answer.split(" "), completion.split(" ")
            return Score(sum(a == b for a, b in zip(answer, given, strict=False)), len(answer))
        prompt, new = self.grammar.encode(example.prompt), self.grammar.encode(completion)
        ids = np.concatenate([[self.grammar.bos], prompt, new])
        decided, demanded = self.grammar.decided(ids)
        places = np.flatnonzero(decided[len(prompt) + 1 :]) + len(prompt) + 1
        return Score(int((ids[places] == demanded[places]).sum()), len(places))

    def checkable(self, example: Example, answer: Sequence[int]) -> list[bool]:
        """The rule-decided words of the true continuation."""
        if self.gaps:
            return [True] * len(answer)
        prompt = self.grammar.encode(example.prompt)
        decided, _ = self.grammar.decided(np.concatenate([[self.grammar.bos], prompt, np.asarray(answer)]))
        return decided[len(prompt) + 1 :].tolist()

    def scored(self, example: Example, completion: Sequence[int]) -> list[bool]:
        """The rule-decided words of the completion; every gap."""
        if self.gaps:
            return [True] * len(completion)
        decided = self.checkable(example, completion)
        return [counts and token != self.grammar.eos for counts, token in zip(decided, completion, strict=True)]

    def checker(self) -> Any:
        """Whether gaps are filled or texts continued; the grammar is fixed."""
        return {"type": "Echo", "gaps": self.gaps > 0}


@lru_cache(maxsize=1)
def _grammar() -> EchoGrammar:
    return EchoGrammar()


@lru_cache(maxsize=16)
def _draw(n: int, seed: int, length: int, gaps: float) -> tuple[np.ndarray, np.ndarray]:
    """Texts and, for filling in, which of their words are masked, both [n, length] and not to be written to."""
    grammar = _grammar()
    # A stream of its own: training draws from [seed, step], two entries.
    rng, texts = np.random.default_rng([0xEC40, seed, 1]), np.zeros((0, length), int)
    while len(texts) < n:  # only texts that fill the window, so that every example has the same length
        batch = grammar.sample(2 * n, length, rng)
        whole = (batch[:, -1] != grammar.eos) & grammar.decided(batch)[0].any(-1)
        texts = np.concatenate([texts, batch[whole]])
    texts = texts[:n]
    decided, draw = grammar.decided(texts)[0], rng.random(texts.shape)
    lowest = np.where(decided, draw, 2.0).argmin(-1)  # every text gets one gap at least
    masked = decided & ((draw < gaps) | (np.arange(length) == lowest[:, None]))
    for drawn in (texts, masked):
        drawn.setflags(write=False)
    return texts, masked


def echo_tokenizer(grammar: EchoGrammar) -> PreTrainedTokenizerFast:
    """A word-level tokenizer for Echo that puts BOS in front; text joins tokens with single spaces."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(dict(grammar.id)))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[.,?]|[^\s.,?]+"), "removed", invert=True)
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, grammar.bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=EOS, mask_token=MASK, padding_side="left"
    )
