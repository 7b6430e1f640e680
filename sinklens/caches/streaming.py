"""Reading a long text with a cache that is cut whenever it is full: what each token costs then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.caches.cut import Cache, Cut
from sinklens.errors import ScopeError

AT_ONCE = 64  # tokens of several rows: their logits are large


def losses(dlm: Any, tokens: Int[Tensor, " pos"], cuts: Sequence[Cut], limit: int) -> Float[Tensor, "row scored"]:
    """-log p of each token behind the first `limit`, in nats, a row for each cut.

    When a layer holds `limit` keys, the best share of them is kept and the model reads on until there are `limit`
    again (arXiv 2406.11430's released code prunes like this, at 2048). A share of 1 is never cut.

    Args:
        dlm: An autoregressive model.
        tokens: The text.
        cuts: All of one share.
        limit: When a cache is full.

    Raises:
        ScopeError: as in `check_room`.
    """
    check_room(len(tokens), cuts, limit)
    one = cuts[0]
    # The token at the limit is predicted with the whole cache: with it all caches have been cut when it is read.
    cache, logits = Cache(dlm).read(tokens[None, :limit], last=1)
    cache, before = cache.cut(cuts), logits.expand(len(cuts), -1, -1)
    found, place = [], limit
    while place < len(tokens):
        room = len(tokens) if one.share == 1 else limit - cache.keys(one.skip_layers)
        part = tokens[place : place + min(room, AT_ONCE)]
        found.append(_costs(before, part[:1]))
        cache, logits = cache.read(part.expand(len(cuts), -1))
        found.append(_costs(logits[:, :-1], part[1:]))
        before, place = logits[:, -1:], place + len(part)
        if one.share < 1 and cache.keys(one.skip_layers) >= limit:
            cache = cache.cut(cuts)
    return torch.cat(found, 1)[:, 1:]


def check_room(tokens: int, cuts: Sequence[Cut], limit: int) -> None:
    """Raise for a text of so many tokens that is never cut, or a cut that leaves no room for a further token.

    Raises:
        ScopeError: naming it.
    """
    if tokens <= limit + 1:
        raise ScopeError(
            f"a text of {tokens} tokens is never read with a cache cut at limit={limit}; give a longer one"
        )
    for cut in cuts:
        if cut.share < 1 and cut.number(limit) >= limit:
            raise ScopeError(f"share={cut.share} of {limit} keys leaves no room for a token; give a smaller share")


def _costs(logits: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, " pos"]) -> Float[Tensor, "row pos"]:
    index = tokens.to(logits.device).expand(len(logits), -1)[..., None]
    return -logits.float().log_softmax(-1).gather(-1, index)[..., 0]
