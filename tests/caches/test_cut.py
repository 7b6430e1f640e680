"""Caches that are cut, against full forwards in which the same keys are hidden by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sinklens import HookedDLM
from sinklens.caches.cut import Cache, Cut
from sinklens.caches.recomputed import answers_recomputed
from sinklens.caches.streaming import losses
from sinklens.errors import ContentError, ScopeError, Unsupported

CONTEXT, MORE = 12, 5
TOKENS = torch.tensor([[5, 9, 14, 3, 7, 22, 41, 8, 30, 12, 50, 17, 33, 6, 28, 44, 19]])
RANKINGS = ("low_norm", "high_norm", "attended", "attended_mean", "recent")


def chosen(dlm: HookedDLM, cut: Cut, tokens: torch.Tensor) -> list[list[set[int]]]:
    """Which places of a context each layer and key head keeps: python lists, of TransformerLens's own cache."""
    _, cache = dlm.run_with_cache(tokens)
    kept = []
    for layer in range(dlm.n_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0].double()
        keys = cache[f"blocks.{layer}.attn.hook_rot_k"][0].double()  # [pos, key head, d_head]
        heads, size, group = [], keys.shape[0], pattern.shape[0] // keys.shape[1]
        for head in range(keys.shape[1]):
            received = pattern[head * group : (head + 1) * group].mean(0).sum(0).tolist()
            norms = [math.sqrt(float((keys[place, head] ** 2).sum())) for place in range(size)]
            worth = {
                "low_norm": [-norm for norm in norms],
                "high_norm": norms,
                "attended": received,
                "attended_mean": [value / (size - place) for place, value in enumerate(received)],
                "recent": list(range(size)),
            }[cut.by]
            order = sorted(range(size), key=lambda place: -worth[place])
            if cut.first != "ranked":
                order.remove(0)
                order = [0, *order] if cut.first == "kept" else [*order, 0]
            number = size if layer in cut.skip_layers else math.ceil(cut.share * size)
            heads.append(set(order[:number]))
        kept.append(heads)
    return kept


def hidden_from(dlm: HookedDLM, kept: list[list[set[int]]], context: int, since: int) -> list:
    """Hooks that hide what is not kept of a context from all queries from a place on."""

    def hook(layer: int):
        def hide(scores: torch.Tensor, hook: object) -> torch.Tensor:
            scores = scores.clone()
            group = scores.shape[1] // len(kept[layer])
            for head in range(scores.shape[1]):
                for place in set(range(context)) - kept[layer][head // group]:
                    scores[:, head, since:, place] = -math.inf
            return scores

        return f"blocks.{layer}.attn.hook_attn_scores", hide

    return [hook(layer) for layer in range(dlm.n_layers)]


@pytest.fixture(params=["Llama", "Qwen3", "GPT-2"])
def arm(request: pytest.FixtureRequest, tiny_model) -> HookedDLM:
    return tiny_model(request.param, layers=3)


@pytest.mark.parametrize("by", RANKINGS)
@pytest.mark.parametrize("first", ["ranked", "kept", "dropped"])
def test_reading_on_is_a_full_forward_without_the_keys_that_are_gone(arm: HookedDLM, by, first) -> None:
    cut = Cut(0.4, by, first, skip_layers=(0,))
    context = TOKENS[:, :CONTEXT]
    cache, _ = Cache(arm).read(context)
    _, logits = cache.cut([cut]).read(TOKENS[:, CONTEXT:])
    kept = chosen(arm, cut, context)
    assert [len(head) for head in kept[0]] == [CONTEXT] * len(kept[0])
    assert [len(head) for head in kept[1]] == [5] * len(kept[1])  # 4.8, rounded up
    with torch.no_grad():
        whole = arm.run_with_hooks(TOKENS, fwd_hooks=hidden_from(arm, kept, CONTEXT, CONTEXT))[:, CONTEXT:]
        bare = arm(TOKENS)[:, CONTEXT:]
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, bare, rtol=1e-3, atol=1e-3)


def test_without_a_cut_it_is_the_model(arm: HookedDLM) -> None:
    cache, one = Cache(arm).read(TOKENS[:, :7])
    cache, two = cache.cut([Cut(1.0)]).read(TOKENS[:, 7:11])
    _, three = cache.read(TOKENS[:, 11:])
    with torch.no_grad():
        whole = arm.original_model(TOKENS).logits
    torch.testing.assert_close(torch.cat([one, two, three], 1), whole, rtol=1e-4, atol=1e-4)
    assert cache.seen == 11


def test_what_keys_received_goes_on(arm: HookedDLM) -> None:
    cache, _ = Cache(arm).read(TOKENS[:, :9])
    cache, _ = cache.read(TOKENS[:, 9:])
    _, seen = arm.run_with_cache(TOKENS)
    for index, layer in enumerate(cache.layers):
        pattern = seen[f"blocks.{index}.attn.hook_pattern"]
        heads = layer.received.shape[1]
        expected = pattern.sum(2).unflatten(1, (heads, -1)).mean(2)
        torch.testing.assert_close(layer.received, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_cut_each_by_its_own_ranking(arm: HookedDLM) -> None:
    cuts = [Cut(0.5, by, skip_layers=()) for by in (*RANKINGS, "random")]
    cache, _ = Cache(arm).read(TOKENS[:, :CONTEXT])
    _, together = cache.cut(cuts).read(TOKENS[:, CONTEXT:].expand(len(cuts), -1))
    for row, cut in enumerate(cuts):
        torch.testing.assert_close(together[row], cache.cut([cut]).read(TOKENS[:, CONTEXT:])[1][0])


def test_an_answer_is_right_if_greedy_decoding_gives_it(arm: HookedDLM) -> None:
    cache, _ = Cache(arm).read(TOKENS[:, :CONTEXT])
    left = cache.cut([Cut(0.5, skip_layers=())])
    held, said, total = left, [], 0.0
    text = TOKENS[:, CONTEXT:]
    for _ in range(3):  # token by token
        held, logits = held.read(text, last=1)
        text = logits[:, -1].argmax(-1, keepdim=True)
        total += float(logits[0, -1].log_softmax(-1).max())
        said.append(int(text))
    right, likelihood = left.answers(TOKENS[:, CONTEXT:], torch.tensor(said))
    assert right.tolist() == [True]
    assert float(likelihood) == pytest.approx(total, abs=1e-4)
    for place in range(3):
        other = torch.tensor(said)
        other[place] = (other[place] + 1) % 60
        assert left.answers(TOKENS[:, CONTEXT:], other)[0].tolist() == [False]


def test_a_cut_of_a_cut_and_random_keys(arm: HookedDLM) -> None:
    cache, _ = Cache(arm).read(TOKENS)
    for seed in range(5):
        cut = Cut(0.5, "random", skip_layers=(), seed=seed)
        once = cache.cut([cut])
        twice = once.cut([cut])
        straight = cache.cut([Cut(5 / TOKENS.shape[1], "random", skip_layers=(), seed=seed)])
        for layer, two, one in zip(straight.layers, twice.layers, once.layers, strict=True):
            assert two.places.shape[-1] == 5
            assert torch.equal(two.places, layer.places)  # a place keeps its number
            assert bool((two.places[..., 1:] > two.places[..., :-1]).all())
            assert one.places.shape[-1] == 9
    every = [cache.cut([Cut(0.5, "random", skip_layers=(), seed=seed)]).layers[0].places for seed in range(60)]
    counts = torch.bincount(torch.cat(every).flatten(), minlength=TOKENS.shape[1])
    assert counts.float().std() < 0.2 * counts.float().mean()  # no place is preferred


def test_losses_against_one_forward_for_each_token(arm: HookedDLM) -> None:
    tokens, limit, cut = TOKENS[0], 8, Cut(0.5, "recent", skip_layers=(0,))
    found = losses(arm, tokens, [cut], limit)
    assert found.shape == (1, len(tokens) - limit - 1)
    rows = _seen_by(limit, len(tokens))
    with torch.no_grad():
        logits = arm.run_with_hooks(tokens[None], fwd_hooks=_only(arm, rows, skip=(0,)))
    expected = -logits[0, limit:-1].log_softmax(-1).gather(-1, tokens[limit + 1 :, None])[:, 0]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def _seen_by(limit: int, size: int) -> list[set[int]]:
    """What each query sees of a cache that keeps its last 4 keys when it holds `limit`."""
    held, rows = set(), []
    for place in range(size):
        held.add(place)
        rows.append(set(held))
        if len(held) == limit:
            held = set(sorted(held)[-4:])
    return rows


def _only(dlm: HookedDLM, rows: list[set[int]], skip: tuple[int, ...]) -> list:
    allowed = torch.tensor([[key in row for key in range(len(rows))] for row in rows])
    return [
        (f"blocks.{layer}.attn.hook_attn_scores", lambda scores, hook: scores.masked_fill(~allowed, -math.inf))
        for layer in range(dlm.n_layers)
        if layer not in skip
    ]


def test_losses_of_the_whole_cache_are_the_models(arm: HookedDLM) -> None:
    found = losses(arm, TOKENS[0], [Cut(1.0)], 6)
    with torch.no_grad():
        logits = arm.original_model(TOKENS).logits
    expected = -logits[0, 6:-1].log_softmax(-1).gather(-1, TOKENS[0, 7:, None])[:, 0]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_recomputed_hides_keys_from_the_context_too(arm: HookedDLM) -> None:
    context, question = TOKENS[0, :CONTEXT], TOKENS[0, CONTEXT:]
    text, said, total = TOKENS, [], 0.0
    for _ in range(3):
        rows = [{key for key in range(query + 1) if key >= 6} or {query} for query in range(text.shape[1])]
        with torch.no_grad():
            logits = arm.run_with_hooks(text, fwd_hooks=_only(arm, rows, skip=(0,)))[:, -1]
        said.append(int(logits.argmax()))
        total += float(logits[0].log_softmax(-1).max())
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    cut = Cut(0.5, "recent", skip_layers=(0,))
    right, likelihood = answers_recomputed(arm, context, question, torch.tensor(said), [cut])
    assert right.tolist() == [True]
    assert float(likelihood) == pytest.approx(total, abs=1e-4)
    cache, _ = Cache(arm).read(context[None])
    _, cached = cache.cut([cut]).answers(question[None], torch.tensor(said))
    assert float(cached) != pytest.approx(total, abs=1e-2)  # the two semantics differ
    _, whole = answers_recomputed(arm, context, question, torch.tensor(said), [Cut(1.0, skip_layers=(0,))])
    _, expected = cache.answers(question[None], torch.tensor(said))
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)


def test_recomputed_norms_are_those_of_the_edited_forward(arm: HookedDLM) -> None:
    """In the first layer nothing differs, so there the kept keys are those that a cache would keep."""
    context, question = TOKENS[0, :CONTEXT], TOKENS[0, CONTEXT:]
    cut = Cut(0.5, "low_norm", skip_layers=tuple(range(1, arm.n_layers)))
    kept = chosen(arm, cut, context[None])
    with torch.no_grad():
        logits = arm.run_with_hooks(TOKENS, fwd_hooks=_lost_see_themselves(arm, kept))[0, -1]
    _, likelihood = answers_recomputed(arm, context, question, torch.tensor([7]), [cut])
    assert float(likelihood) == pytest.approx(float(logits.log_softmax(-1)[7]), abs=1e-4)


def _lost_see_themselves(dlm: HookedDLM, kept: list[list[set[int]]]) -> list:
    hooks = hidden_from(dlm, kept, CONTEXT, 0)

    def restore(scores: torch.Tensor, hook: object) -> torch.Tensor:
        changed = hooks[0][1](scores, hook)
        for head in range(scores.shape[1]):
            for query in range(scores.shape[2]):
                if bool((changed[0, head, query] == -math.inf).all()):
                    changed[0, head, query, query] = scores[0, head, query, query]
        return changed

    return [(hooks[0][0], restore)]


def test_what_cannot_be_cut_is_said(arm: HookedDLM, tiny_model) -> None:
    with pytest.raises(Unsupported, match="both directions"):
        Cache(tiny_model("LLaDA"))
    for share in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises((ScopeError, ContentError), match="share"):
            Cut(share)
    with pytest.raises(ContentError, match="by='small'"):
        Cut(0.5, "small")  # type: ignore[arg-type]
    cache, _ = Cache(arm).read(TOKENS)
    with pytest.raises(ScopeError, match="no layer 7"):
        cache.cut([Cut(0.5, skip_layers=(7,))])
    with pytest.raises(ScopeError, match="none of the 3 layers"):
        cache.cut([Cut(0.5, skip_layers=(0, 1, 2))])
    with pytest.raises(ScopeError, match="same share"):
        cache.cut([Cut(0.5), Cut(0.4)])
    with pytest.raises(ScopeError, match="longer"):
        losses(arm, TOKENS[0], [Cut(0.5)], 17)
    with pytest.raises(ScopeError, match="no room"):
        losses(arm, TOKENS[0], [Cut(0.95)], 8)
    with pytest.raises(ScopeError, match="attended"):
        answers_recomputed(arm, TOKENS[0, :4], TOKENS[0, 4:], TOKENS[0, :1], [Cut(0.5, "attended")])
