"""Edits as texts: each gives the object that it says, and a bad one says what is wrong and shows the grammar."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_edits import AUTOENCODER, DIRECTION, edits, fewer, finite, first, positions, whole

from sinklens.errors import ContentError, ScopeError
from sinklens.hooks import Edit, Scope
from sinklens.interventions import (
    GRAMMAR,
    BiasSinks,
    ByKeyNorm,
    ByToken,
    Feature,
    Fixed,
    InOrder,
    KeepKeys,
    LastQuery,
    LearnedSelection,
    MaskSinks,
    MeanValue,
    NoiseValue,
    NoOp,
    NullKey,
    PreviousStep,
    Redistribute,
    SameStep,
    ScaleSinks,
    SinkToken,
    Splice,
    Steer,
    Swap,
    ZeroSinks,
    ZeroValue,
    control,
    parse,
    text_of,
)
from sinklens.interventions.grammar import OPERATORS
from sinklens.sinks import SinkRule
from sinklens.sinks.named import RULES

TOP = PreviousStep(top_k=1)

OPERATOR = {
    "mask:top1": MaskSinks(TOP),
    "bias=-2.5:top1": BiasSinks(-2.5, TOP),
    "zero:top1": ZeroSinks(TOP),
    "scale=0.1:top1": ScaleSinks(0.1, TOP),
    "rescale=0.1:top1": ScaleSinks(0.1, TOP, renormalise=True),
    "redistribute:top1": Redistribute("proportional", TOP),
    "redistribute=proportional:top1": Redistribute("proportional", TOP),
    "redistribute=uniform:top1": Redistribute("uniform", TOP),
    "redistribute=self:top1": Redistribute("self", TOP),
    "redistribute=3:top1": Redistribute(3, TOP),
    "swap:top1": Swap(TOP),
    "noop:top1": NoOp(TOP),
    "zero_value:top1": ZeroValue(TOP),
    "mean_value:top1": MeanValue(TOP),
    "noise_value:top1": NoiseValue(None, TOP),
    "noise_value=2:top1": NoiseValue(2.0, TOP),
    "null_key": NullKey(0.0),
    "null_key=-1.5": NullKey(-1.5),
    "null_key=-inf": NullKey(float("-inf")),
    "sink_token": SinkToken(),
    "sink_token=7": SinkToken(7),
    "keep=0.5": KeepKeys(0.5),
    "keep=8": KeepKeys(8),
    "keep=0.5:received": KeepKeys(0.5, by="received"),
    "keep=0.5:key_norm": KeepKeys(0.5, by="key_norm"),
    "keep=8:random": KeepKeys(8, by="random"),
    "keep=8:recency": KeepKeys(8, by="recency"),
    "keep=8:random_tokens": KeepKeys(8, by="random_tokens"),
    "keep=0.5:hidden_norm": KeepKeys(0.5, by="hidden_norm"),
    "keep=0.5:learned": LearnedSelection(rate=0.5),
    f"splice@sae={AUTOENCODER}": Splice(AUTOENCODER),
    f"splice=error@sae={AUTOENCODER}": Splice(AUTOENCODER, error=True),
    f"feature=3@sae={AUTOENCODER}": Feature(AUTOENCODER, [3]),
    f"feature=3+17@sae={AUTOENCODER}": Feature(AUTOENCODER, [3, 17]),
    f"steer={DIRECTION}": Steer(DIRECTION),
    f"steer={DIRECTION}:random": Steer(DIRECTION, by="random"),
    f"steer={DIRECTION}:orthogonal": Steer(DIRECTION, by="orthogonal"),
}

WHO = {
    "top5": PreviousStep(top_k=5),
    "previous/top5": PreviousStep(top_k=5),
    "same/top5": SameStep(top_k=5),
    "last/top5": LastQuery(top_k=5),
    "open/top5": PreviousStep(top_k=5, loop="open"),
    "eps3": PreviousStep(SinkRule(epsilon=3.0)),
    "eps0.5": PreviousStep(SinkRule(epsilon=0.5)),
    "same/eps3": SameStep(SinkRule(epsilon=3.0)),
    "open/eps3": PreviousStep(SinkRule(epsilon=3.0), loop="open"),
    "last/gu": LastQuery(RULES["gu"]),
    "same/floating": SameStep(RULES["floating"]),
    "pos0": Fixed([0]),
    "pos0+3+12": Fixed([0, 3, 12]),
    "token=mask": ByToken("mask"),
    "token=white_space": ByToken("white space"),
    "token=5+9": ByToken([5, 9]),
    "keynorm4": ByKeyNorm(4),
    "eps-1e-07": PreviousStep(SinkRule(epsilon=-1e-07)),
    **{name: PreviousStep(rule) for name, rule in RULES.items()},
}

SCOPE: dict[str, dict[str, Any]] = {
    "": {},
    "@layers=1": {"where": Scope(layers=1)},
    "@layers=1,": {"where": Scope(layers=(1,))},
    "@layers=0-3": {"where": Scope(layers=slice(0, 4))},
    "@layers=0,2,5": {"where": Scope(layers=(0, 2, 5))},
    "@heads=1": {"where": Scope(heads=1)},
    "@steps=8-": {"where": Scope(steps=slice(8, None))},
    "@queries=masked": {"queries": "masked"},
    "@diagonal=no": {"diagonal": False},
    "@diagonal=yes": {},
    "@layers=0-3@heads=1,2@steps=8-@queries=masked@diagonal=no": {
        "where": Scope(slice(0, 4), (1, 2), slice(8, None)),
        "queries": "masked",
        "diagonal": False,
    },
}

CHOSEN = {
    "mask:top2@keys=prompt": MaskSinks(PreviousStep(SinkRule(None, top_k=2, queries="auto", keys="prompt"))),
    "mask:same/top2@by=masked": MaskSinks(SameStep(SinkRule(None, top_k=2, queries="masked"))),
    "mask:same/top2@by=all@queries=masked": MaskSinks(SameStep(SinkRule(None, top_k=2)), queries="masked"),
    "zero:eps0.5@by=auto@keys=committed": ZeroSinks(PreviousStep(SinkRule(0.5, queries="auto", keys="committed"))),
    "zero:same/gu@by=last": ZeroSinks(SameStep(dataclasses.replace(RULES["gu"], queries="last"))),
    "mask:streaming@keys=prompt": MaskSinks(PreviousStep(dataclasses.replace(RULES["streaming"], keys="prompt"))),
    "mask:top2@first=same@fewer=none": MaskSinks(PreviousStep(top_k=2, first="same", fewer="none")),
    "mask:pos0+2@keys=masked": MaskSinks(Fixed([0, 2], keys="masked")),
    "mask:token=mask@keys=response": MaskSinks(ByToken("mask", keys="response")),
    "mask:keynorm3@keys=committed": MaskSinks(ByKeyNorm(3, keys="committed")),
    "redistribute=uniform:top1@share=0.6": Redistribute("uniform", TOP, share=0.6),
    "swap:top1@seed=5": Swap(TOP, seed=5),
    "noise_value=0.5:top1@seed=5": NoiseValue(0.5, TOP, seed=5),
    "keep=0.5:random@seed=5@keys=committed": KeepKeys(0.5, "random", seed=5, keys="committed"),
    f"feature=3@sae={AUTOENCODER}@factor=1@boost=-0.5": Feature(AUTOENCODER, [3], factor=1.0, boost=-0.5),
    "keep=1:learned@gate=auto@keys=prompt": LearnedSelection("auto", rate=1.0, keys="prompt"),
    f"steer={DIRECTION}@scale=-4@units=residual": Steer(DIRECTION, -4.0, units="residual"),
    f"steer={DIRECTION}:random@seed=3@positions=masked": Steer(DIRECTION, by="random", seed=3, positions="masked"),
    f"steer={DIRECTION}@schedule=linear": Steer(DIRECTION, schedule="linear"),
    f"steer={DIRECTION}@schedule=1.0,0.5": Steer(DIRECTION, schedule=(1.0, 0.5)),
    f"steer={DIRECTION}@schedule=0.25,": Steer(DIRECTION, schedule=(0.25,)),
}


def test_every_operator_is_listed_here_and_in_the_grammar():
    names = {"keep:learned" if text.endswith(":learned") else re.split("[=:@]", text)[0] for text in OPERATOR}
    assert names == set(OPERATORS)
    for name in names:
        assert re.search(rf"\b{name.split(':')[-1]}\b", GRAMMAR)


@pytest.mark.parametrize(("text", "expected"), OPERATOR.items(), ids=OPERATOR)
def test_operators(text, expected):
    assert parse(text) == expected
    assert type(parse(text)) is type(expected)
    assert parse(text).where == Scope()


@pytest.mark.parametrize(("who", "expected"), WHO.items(), ids=WHO)
def test_who(who, expected):
    assert parse(f"mask:{who}") == MaskSinks(expected)


@pytest.mark.parametrize(("scope", "expected"), SCOPE.items(), ids=SCOPE)
@pytest.mark.parametrize("edit", ["mask:top1", "null_key", "keep=0.5:received"])
def test_scopes(edit, scope, expected):
    if edit == "null_key" and "diagonal" in scope:  # it has no keys
        with pytest.raises(ScopeError, match=r"null_key cannot honour diagonal"):
            parse(edit + scope)
        return
    assert parse(edit + scope) == dataclasses.replace(parse(edit), **expected)


@pytest.mark.parametrize(("text", "expected"), CHOSEN.items(), ids=CHOSEN)
def test_who_is_chosen_and_how_much(text, expected):
    assert parse(text) == expected


EVERY = [*OPERATOR, *(f"mask:{who}" for who in WHO), *(f"mask:top1{scope}" for scope in SCOPE), *CHOSEN]


def test_different_texts_are_different_edits():
    """By content, under which scores are stored, and by the names that people read."""
    same = [
        {"mask:top1", "mask:top1@diagonal=yes"},
        {"redistribute:top1", "redistribute=proportional:top1"},
        {"keep=0.5", "keep=0.5:received"},
        {"mask:top5", "mask:previous/top5"},
        {"mask:eps3", "mask:rulli"},
    ]
    for tell in (lambda edit: edit.digest, repr):
        seen: dict[str, set[str]] = {}
        for text in EVERY:
            seen.setdefault(tell(parse(text)), set()).add(text)
        assert [found for found in seen.values() if len(found) > 1 and found not in same] == []


def test_numbers_keep_their_last_digit():
    """Once written with `:g`, -1.000001 and -1.0000001 were one edit, and one score was the other's."""
    edits = [BiasSinks(bias, TOP) for bias in (-1.0, -1.000001, -1.0000001, -0.1 - 0.2, -0.3)]
    texts = [text_of(edit) for edit in edits]
    assert texts[1:3] == ["bias=-1.000001:top1", "bias=-1.0000001:top1"]
    assert len({edit.digest for edit in edits}) == len(set(texts)) == len({repr(edit) for edit in edits}) == 5
    assert [parse(text) for text in texts] == edits


@pytest.mark.parametrize("text", EVERY)
def test_an_edits_text_can_be_written(text):
    """The shortest of those that say the same."""
    edit = parse(text)
    assert parse(text_of(edit)) == edit
    assert len(text_of(edit)) <= len(text)


@given(edit=edits)
def test_a_text_says_all_of_its_edit_or_is_refused(edit: Edit) -> None:
    try:
        text = text_of(edit)
    except ContentError:
        return
    assert parse(text) == edit
    assert parse(text).digest == edit.digest
    assert parse(f" {text}\n") == edit


plain_selectors = st.one_of(
    st.builds(
        lambda kind, k, **more: kind(top_k=k, **more),
        st.sampled_from([PreviousStep, LastQuery]),
        st.integers(1, 9),
        first=first,
        fewer=fewer,
    ),
    st.builds(lambda k, **more: SameStep(top_k=k, **more), st.integers(1, 9), fewer=fewer),
    st.builds(lambda k: PreviousStep(top_k=k, loop="open"), st.integers(1, 9)),
    st.builds(
        lambda kind, epsilon, queries, keys: kind(SinkRule(epsilon, queries=queries, keys=keys)),
        st.sampled_from([SameStep, PreviousStep]),
        finite,
        st.sampled_from(["all", "auto", "masked", "committed"]),
        positions,
    ),
    st.builds(
        lambda kind, rule: kind(rule), st.sampled_from([SameStep, PreviousStep]), st.sampled_from(list(RULES.values()))
    ),
    st.builds(Fixed, st.lists(whole, min_size=1, max_size=3), keys=positions),
    st.builds(ByToken, st.sampled_from(["mask", "white space", "digit"]), keys=positions),
    st.builds(ByToken, st.lists(whole, min_size=1, max_size=3), keys=positions),
    st.builds(ByKeyNorm, st.integers(1, 9), keys=positions),
)
plain_ranges = st.one_of(
    st.none(),
    whole,
    st.lists(whole, min_size=1, max_size=3).map(tuple),
    st.builds(slice, whole, st.one_of(st.none(), st.integers(41, 60))),
)


@given(edit=edits, selector=plain_selectors, where=st.builds(Scope, plain_ranges, plain_ranges, plain_ranges))
def test_what_the_grammar_has_words_for_is_never_refused(edit: Any, selector: Any, where: Scope) -> None:
    where = Scope(steps=where.steps) if type(edit) in (Splice, Feature) else where
    where = dataclasses.replace(where, heads=None) if isinstance(edit, Steer) else where
    edit = dataclasses.replace(edit, where=where)
    if type(edit) not in (NullKey, SinkToken, KeepKeys, LearnedSelection, Splice, Feature, Steer):
        edit = dataclasses.replace(edit, selector=selector)
    assert parse(text_of(edit)) == edit


def test_what_has_no_words_is_refused_with_a_way_out():
    for edit in (
        InOrder(MaskSinks(TOP)),
        control(MaskSinks(TOP)),
        MaskSinks(SameStep(top_k=1, loop="open")),
        MaskSinks(ByKeyNorm(largest=True)),
        MaskSinks(ByToken("mask", top_k=1)),
        MaskSinks(SameStep(SinkRule(0.1, "mean"))),
        MaskSinks(TOP, where=Scope(layers=-1)),
        MaskSinks(TOP, where=Scope(layers=slice(None, 4))),
        MaskSinks(TOP, where=Scope(steps=slice(0, 8, 2))),
    ):
        with pytest.raises(ContentError, match=r"has no words for .*; use edit\.to_dict\(\)"):
            text_of(edit)


def test_the_grammars_examples_can_be_read():
    examples = re.findall(r"\S+:\S+", GRAMMAR.rpartition("For example")[2])
    assert len(examples) == 3
    for example in examples:
        parse(example)


def test_spaces_around_a_text_do_not_matter():
    assert parse("  mask:top1\n") == MaskSinks(TOP)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "operator '' is unknown"),
        ("maks:top1", "operator 'maks' is unknown; the operators are mask, bias"),
        ("mask", "must know on which keys to act, for example mask:top1"),
        ("mask:", "must know on which keys to act"),
        ("mask=3:top1", "takes no value, and '3' was given"),
        ("zero_value=0:top1", "takes no value, and '0' was given"),
        ("mask:tops", "keys 'tops' are unknown"),
        ("mask:top", "keys 'top' are unknown"),
        ("mask:top-1", "keys 'top-1' are unknown"),
        ("mask:later/top1", "'later' is unknown; keys are those of previous, same, last, open"),
        ("mask:top0", "top_k"),
        ("mask:eps1.2.3", "1.2.3"),
        ("mask:last/eps3", "can never fire"),
        ("mask:pos", "keys 'pos' are unknown"),
        ("scale:top1", "needs a number"),
        ("scale=x:top1", "'x' is no number"),
        ("scale=-1:top1", "at least 0"),
        ("scale=0.5:top1@factor=0.1", "scale cannot honour factor=0.1"),
        ("splice", "splice needs sae, as in splice...@sae=FOLDER"),
        ("feature@sae=there", "needs features by number"),
        ("feature=3", "feature needs sae"),
        ("feature=x@sae=there", "'x' is no whole number"),
        ("feature=3@sae=there", "'there' is no folder"),
        (f"feature=20@sae={AUTOENCODER}", "out of 20: 0 to 19"),
        (f"feature=3@sae={AUTOENCODER}@layers=0", "has no meaning for Feature"),
        (f"splice=errors@sae={AUTOENCODER}", "takes 'error'"),
        (f"splice@sae={AUTOENCODER}@factor=1", "splice cannot honour factor=1"),
        ("bias=inf:top1", "finite"),
        ("redistribute=sideways:top1", "sideways"),
        ("null_key:top1", "takes no keys, and 'top1' was given"),
        ("null_key=inf", "-inf"),
        ("keep=0.5:luck", "luck"),
        ("keep=x", "'x' is no number"),
        ("keep", "needs a budget"),
        ("mask=:top1", "ends without a value"),
        ("mask:last/pos0", "does not come from a step's attention"),
        ("sink_token=1.7", "no whole number from 0, as a token id"),
        ("swap:top1@seed=-1", "no whole number"),
        ("mask:top1@share=0.5", "mask cannot honour share=0.5"),
        ("mask:top1@seed=1", "mask cannot honour seed=1"),
        ("null_key@keys=prompt", "null_key cannot honour keys=prompt"),
        ("sink_token@diagonal=no", "sink_token cannot honour diagonal=False"),
        ("keep=0.5@by=random", "keep cannot honour by=random"),
        ("keep=0.5@first=same", "keep cannot honour first=same"),
        ("mask:pos0@by=masked", "Fixed cannot honour by=masked"),
        ("mask:keynorm2@fewer=none", "ByKeyNorm cannot honour fewer=none"),
        ("mask:same/top1@first=same", "SameStep cannot honour first=same"),
        ("mask:last/top1@by=masked", "counts masked queries"),
        ("mask:top1@by=some", "queries='some' is unknown"),
        ("mask:top1@keys=some", "keys='some' is unknown"),
        ("mask:top1@fewer=some", "fewer='some' is unknown"),
        ("redistribute:top1@share=x", "'x' is no number"),
        ("mask:top1@layers=0@layers=1", "named twice"),
        ("mask:top1@layers=3-1", "holds nothing"),
        ("mask:top1@steps=-4", "no range"),
        ("keep=0", "0"),
        ("mask:top1@layer=1", "the scope 'layer=1' is unknown"),
        ("mask:top1@layers=a", "'a' is no range; write 3, 0-3"),
        ("mask:top1@layers", "'' is no range"),
        ("mask:top1@queries=some", "queries='some' is unknown"),
        ("mask:top1@diagonal=maybe", "the scope 'diagonal=maybe' is unknown"),
        ("mask:top1@", "the scope '' is unknown"),
    ],
)
def test_a_bad_text_is_quoted_explained_and_the_grammar_shown(text, message):
    with pytest.raises(ScopeError) as caught:
        parse(text)
    said = str(caught.value)
    assert said.startswith(f"the edit {text!r} cannot be read: ")
    assert message in said
    assert said.endswith(GRAMMAR)
