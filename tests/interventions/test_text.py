"""Edits as texts: each gives the object that it says, and a bad one says what is wrong and shows the grammar."""

from __future__ import annotations

import re

import pytest

from sinklens.errors import ScopeError
from sinklens.hooks import Where
from sinklens.interventions import (
    GRAMMAR,
    BiasSinks,
    ByKeyNorm,
    ByToken,
    Fixed,
    KeepKeys,
    LastQuery,
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
    Swap,
    ZeroSinks,
    ZeroValue,
    parse,
)
from sinklens.interventions.text import OPERATORS
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
    "keynorm4": ByKeyNorm(4),
    **{name: PreviousStep(rule) for name, rule in RULES.items()},
}

SCOPE = {
    "": Where(),
    "@layers=1": Where(layers=1),
    "@layers=0-3": Where(layers=slice(0, 4)),
    "@layers=0,2,5": Where(layers=(0, 2, 5)),
    "@heads=1": Where(heads=1),
    "@steps=8-": Where(steps=slice(8, None)),
    "@queries=masked": Where(queries="masked"),
    "@keys=prompt": Where(keys="prompt"),
    "@diagonal=no": Where(diagonal=False),
    "@diagonal=yes": Where(),
    "@layers=0-3@heads=1,2@steps=8-@queries=masked@keys=prompt@diagonal=no": Where(
        slice(0, 4), (1, 2), slice(8, None), "masked", "prompt", False
    ),
}


def test_every_operator_is_listed_here_and_in_the_grammar():
    names = {re.split("[=:]", text)[0] for text in OPERATOR}
    assert names == {*OPERATORS, "keep"}
    for name in names:
        assert re.search(rf"\b{name}\b", GRAMMAR)


@pytest.mark.parametrize(("text", "expected"), OPERATOR.items(), ids=OPERATOR)
def test_operators(text, expected):
    assert repr(parse(text)) == repr(expected)
    assert type(parse(text)) is type(expected)
    assert parse(text).where == Where()


@pytest.mark.parametrize(("who", "expected"), WHO.items(), ids=WHO)
def test_who(who, expected):
    detector = parse(f"mask:{who}").detector
    assert repr(detector) == repr(expected)
    assert type(detector) is type(expected)


@pytest.mark.parametrize(("scope", "expected"), SCOPE.items(), ids=SCOPE)
@pytest.mark.parametrize("edit", ["mask:top1", "null_key", "keep=0.5:received"])
def test_scopes(edit, scope, expected):
    assert parse(edit + scope).where == expected


def test_different_texts_give_different_reprs():
    """A stored score is found by the repr of its edit, so no two edits may share one."""
    texts = [*OPERATOR, *(f"mask:{who}" for who in WHO), *(f"mask:top1{scope}" for scope in SCOPE)]
    same = [
        {"mask:top1", "mask:top1@diagonal=yes"},
        {"redistribute:top1", "redistribute=proportional:top1"},
        {"keep=0.5", "keep=0.5:received"},
        {"mask:top5", "mask:previous/top5"},
        {"mask:eps3", "mask:rulli"},
    ]
    seen: dict[str, set[str]] = {}
    for text in texts:
        seen.setdefault(repr(parse(text)), set()).add(text)
    assert [found for found in seen.values() if len(found) > 1 and found not in same] == []


def test_the_grammars_examples_can_be_read():
    examples = re.findall(r"\S+:\S+", GRAMMAR.rpartition("For example")[2])
    assert len(examples) == 3
    for example in examples:
        parse(example)


def test_spaces_around_a_text_do_not_matter():
    assert repr(parse("  mask:top1\n")) == repr(MaskSinks(TOP))


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
        ("bias=inf:top1", "finite"),
        ("redistribute=sideways:top1", "sideways"),
        ("null_key:top1", "takes no keys, and 'top1' was given"),
        ("null_key=inf", "-inf"),
        ("keep=0.5:luck", "luck"),
        ("keep=x", "'x' is no number"),
        ("keep", "needs a budget"),
        ("mask=:top1", "ends without a value"),
        ("mask:last/pos0", "does not come from a step's attention"),
        ("sink_token=1.7", "no token id"),
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
