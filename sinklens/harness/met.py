"""Which requests the edits of an evaluation have met: none is an error, some is said."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sinklens.errors import NeverExposed
from sinklens.hooks import Edit, Memory

LOG = logging.getLogger("lm_eval.sinklens")


class Met:
    """Requests of one call whose numbers come from at least one forward that an edit changed.

    Args:
        edits: The edits.
        asked: How many requests there are.
        before: Of answers that a cache holds of earlier calls: how many were met, and how many there are.
    """

    def __init__(self, edits: Sequence[Edit], asked: int, before: Sequence[int] = (0, 0)) -> None:
        self.edits, self.asked, self.before = edits, asked, before
        self.indices: set[int] = set()

    def add(self, indices: Sequence[int], memories: Sequence[Memory]) -> None:
        """A forward of rows of these requests is done; its edits' memories have counted it."""
        for memory in memories:
            if memory.forwards is not None:
                self.indices |= {index for index, count in zip(indices, memory.forwards.tolist(), strict=True) if count}

    def counts(self, done: int) -> list[int]:
        """How many were met, and of how many, after `done` of the requests; earlier calls included."""
        return [self.before[0] + len(self.indices), self.before[1] + done]

    def judge(self, kind: str) -> float | None:
        """The share of requests that were met, earlier calls included; None where nothing was to be changed.

        Args:
            kind: What was asked, for the message.

        Raises:
            NeverExposed: none was.
        """
        met, asked = self.counts(self.asked)
        if not asked or not any(leaf.changes for edit in self.edits for leaf in edit.leaves()):
            return None
        share = met / asked
        if not share:
            raise NeverExposed(
                f"{', '.join(map(repr, self.edits))} changed nothing in any forward of {asked} {kind} requests: "
                "the numbers would be those of the unedited model. Give another rule or scope; mask:same/top1 edits a "
                "step by its own attention"
            )
        if share < 1:
            LOG.warning("the edit changed something for %.2g of the requests of %s, not for all", share, kind)
        return share
