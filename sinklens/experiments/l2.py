"""Key norms as a budget of a cache, as published: what a model still finds and predicts with some of its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sinklens.caches.cut import Cut
from sinklens.caches.retrieval import KINDS, Retrieval, sentences
from sinklens.caches.streaming import check_room
from sinklens.errors import ContentError, TaskError, Unsupported
from sinklens.models.outline import Sketched
from sinklens.selection.texts import python_reference
from sinklens.values.content import Value
from sinklens.values.kinds import Count, Index, Rate, Seed, Share

Outcome = Literal["correlation", "perplexity", "passkey", "needle"]
OUTCOMES: tuple[Outcome, ...] = ("correlation", "perplexity", "passkey", "needle")
RANKINGS = (
    *("low_norm", "high_norm", "attended", "attended_mean", "recent", "random"),
    *("low_norm - first", "high_norm + first", "random + first"),
)


@dataclass(frozen=True)
class Window(Value):
    """A window of held-out text.

    Args:
        index: Which one.
    """

    index: Index


Trial = Window | Retrieval


@dataclass(frozen=True)
class L2(Value):
    """The protocol of arXiv 2406.11430 on an autoregressive model, with the controls that it lacks.

    A context is read whole, its cache is cut, and the question is asked and answered over what is left: a key that was
    dropped stays dropped. Beside it stands the same with everything recomputed at every step, where a key that is gone
    is hidden from the context's own queries as well (`caches.recomputed`). Perplexity is that of a text that is read
    on while its cache is cut whenever it is full (`caches.streaming`).

    Args:
        shares: Of the keys that are kept, per key head, each below 1; the whole cache always stands beside them.
        rankings: By what: "low_norm" (published), "high_norm", "attended", "attended_mean", "recent", "random", each
            also with " + first" or " - first", by which the first position is kept or dropped whatever its rank.
        outcomes: "correlation", "perplexity", "passkey", "needle".
        skip_layers: Layers that keep everything (published: 0 and 1).
        lengths: Of the contexts, in tokens.
        depths: Where something is hidden in them.
        repeats: Texts of each length and depth.
        recomputed: The longest context that is also recomputed; 0 for none.
        texts: Windows of held-out text, for perplexity and correlation.
        window: How long they are, in tokens.
        limit: How many keys fill a cache, for perplexity.
        seed: Of everything.

    Raises:
        ContentError: a field of the wrong kind or range, an unknown ranking.
    """

    shares: tuple[Rate, ...] = (0.9, 0.75, 0.5, 0.25, 0.1)
    rankings: tuple[str, ...] = RANKINGS
    outcomes: tuple[Outcome, ...] = OUTCOMES
    skip_layers: tuple[Index, ...] = (0, 1)
    lengths: tuple[Count, ...] = (256, 512, 1024, 2048)
    depths: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    repeats: Count = 2
    recomputed: Index = 256
    texts: Count = 4
    window: Count = 1024
    limit: Count = 512
    seed: Seed = 0

    def __post_init__(self, *given: Any) -> None:
        super().__post_init__(*given)
        for name in ("shares", "rankings", "outcomes", "lengths", "depths"):
            held = getattr(self, name)
            if not held or len(set(held)) < len(held):
                raise ContentError(f"{name}={held} " + ("names one twice" if held else "is empty; name at least one"))
        if whole := [share for share in self.shares if share == 1]:
            raise ContentError(f"share {whole[0]} keeps everything; the whole cache is measured beside them anyway")
        self.cuts(self.shares[0])

    def cuts(self, share: float, *, recomputed: bool = False) -> list[Cut]:
        """The ways to keep a share, in the order of `rankings`; those that can be recomputed.

        Raises:
            ContentError: an unknown ranking.
        """
        made = [self._cut(share, name) for name in self.rankings]
        return [cut for cut in made if not recomputed or not cut.by.startswith("attended")]

    def _cut(self, share: float, name: str) -> Cut:
        by, sign, rest = name.partition(" + ") if " + " in name else name.partition(" - ")
        if (sign, rest) not in (("", ""), (" + ", "first"), (" - ", "first")):
            raise ContentError(f"ranking {name!r} is unknown; write low_norm, 'low_norm - first' or 'random + first'")
        options: Any = {"by": by, "first": {"": "ranked", " + ": "kept", " - ": "dropped"}[sign]}
        return Cut(share, **options, skip_layers=self.skip_layers, seed=self.seed)

    @property
    def trials(self) -> list[Trial]:
        """What is asked: windows of text, then texts in which something is hidden, short ones first."""
        windows = self.texts if {"correlation", "perplexity"} & set(self.outcomes) else 0
        every: list[Trial] = [Window(index) for index in range(windows)]
        seed = self.seed * 1_000_003
        for length in sorted(self.lengths):
            for depth in self.depths:
                for _ in range(self.repeats):
                    seed += 1
                    every += [Retrieval(kind, length, depth, seed) for kind in KINDS if kind in self.outcomes]
        return every

    def contexts(self, model: Sketched) -> list[list[int]]:
        """The token ids of every trial's context; whatever cannot be asked of the model is found here.

        Args:
            model: The model, or its outline.

        Raises:
            Unsupported: a model that sees both ways.
            TaskError: contexts longer than the model, or too short for what is hidden; too little text.
            ScopeError: layers that are not there, a share that leaves no room for a token.
        """
        self._check(model)
        text, stack = model.encode_piece(python_reference("test")), sentences(python_reference("test"))
        if (needed := self.texts * self.window) > len(text) and isinstance(self.trials[0], Window):
            raise TaskError(
                f"texts={self.texts} windows of {self.window} are {needed} tokens; the held-out text has {len(text)}"
            )
        for trial in self.trials:
            if isinstance(trial, Retrieval):
                asked(model, trial)
        windows = [text[start : start + self.window] for start in range(0, len(text), self.window)]
        return [
            windows[trial.index] if isinstance(trial, Window) else trial.context(model.encode, stack)
            for trial in self.trials
        ]

    def _check(self, model: Sketched) -> None:
        if not model.is_causal:
            raise Unsupported(
                f"{model.name} sees in both directions: it has no cache of the past to cut. Its norms are measured by "
                "l2_in_diffusion"
            )
        for share in self.shares:
            for cut in self.cuts(share):
                cut.check(model.n_layers)
            if "perplexity" in self.outcomes:
                check_room(self.window, self.cuts(share), self.limit)
        asked = {"lengths": self.lengths, "window": (self.window,)}
        for name, longest in ((name, max(sizes)) for name, sizes in asked.items()):
            if longest + 64 > model.n_ctx:
                raise TaskError(
                    f"{name}: {longest} tokens, a question and an answer exceed the {model.n_ctx} positions of "
                    f"{model.name}; give shorter ones"
                )


def asked(model: Sketched, trial: Retrieval) -> tuple[list[int], list[int]]:
    """Token ids of the question, and of the answer behind it.

    Raises:
        TaskError: the model's tokenizer does not tell them apart.
    """
    question = model.encode_piece(trial.question)
    whole = model.encode_piece(f"{trial.question} {trial.answer}")
    if whole[: len(question)] != question or len(whole) == len(question):
        raise TaskError(
            f"{model.name} reads {trial.question!r} otherwise when {trial.answer!r} follows it: its answer cannot be "
            "told from the question"
        )
    return question, whole[len(question) :]
