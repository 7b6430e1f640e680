"""The words of the grammar of edits: operators with their values and classes, kinds of selectors, options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sinklens.errors import ScopeError
from sinklens.interventions.edits.base import AttentionEdit
from sinklens.interventions.edits.budget import KeepKeys
from sinklens.interventions.edits.features import Feature, Splice
from sinklens.interventions.edits.learned import LearnedSelection
from sinklens.interventions.edits.scores import BiasSinks, MaskSinks, NullKey
from sinklens.interventions.edits.sink_token import SinkToken
from sinklens.interventions.edits.steer import Steer
from sinklens.interventions.edits.values import MeanValue, NoiseValue, ZeroValue
from sinklens.interventions.edits.weights import NoOp, Redistribute, ScaleSinks, Swap, ZeroSinks
from sinklens.interventions.selectors.attention import ByRule, LastQuery, PreviousStep, SameStep
from sinklens.interventions.selectors.base import Loop

GRAMMAR = """\
OPERATOR[=VALUE][:WHO][@OPTION ...]
  OPERATOR  mask, bias=B, zero, scale=F, rescale=F (rows renormalised), swap, noop,
            redistribute[=proportional|uniform|self|POSITION], zero_value, mean_value, noise_value[=STD];
            without WHO: null_key[=LOGIT], sink_token[=ID];
            keep=SHARE|N:received|key_norm|hidden_norm|random|random_tokens|recency,
            keep=SHARE:learned (by the gate that comes with sinklens for the model, or by yours: @gate=FOLDER);
            of a sparse autoencoder, @sae=FOLDER: splice[=error], feature=ID+ID (@factor=0, @boost=0);
            steer=FOLDER (adds a direction to the residual stream), steer=FOLDER:random, steer=FOLDER:orthogonal
  WHO       topK, epsE, a rule (rulli, gu, floating, sink_aware, act, streaming), pos0+3, token=CLASS, token=5+9,
            keynormK; the first three of the previous step (the paper's protocol), or same/topK, last/topK, open/topK
            (of a clean forward beside the edited run)
  OPTION    the scope: layers=0-3, heads=1, steps=8-; who is touched: queries=masked, diagonal=no;
            who is chosen: keys=prompt, by=masked (whose attention counts), fewer=none, first=same; share=0.6, seed=3;
            of steer: scale=4, units=residual, positions=masked, schedule=linear (or 1,0.5,0: a number for each step)
For example mask:top1   redistribute=uniform:top5   scale=0.1:same/eps3@layers=0-3@steps=8-"""


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ScopeError(f"{text!r} is no number") from None


def written(number: float) -> str:
    return repr(number).removesuffix(".0")


def whole(text: str) -> int:
    if not text.isdigit():
        raise ScopeError(f"{text!r} is no whole number from 0, as a token id or a seed is")
    return int(text)


def target(text: str) -> Any:
    return int(text) if text.isdigit() else text


def features_of(text: str) -> tuple[int, ...]:
    return tuple(whole(each) for each in text.split("+"))


def error_term(text: str) -> bool:
    if text != "error":
        raise ScopeError(f"splice takes 'error' (the error term is added) or nothing, and {text!r} was given")
    return True


def budget_of(text: str) -> float:
    return int(text) if text.isdigit() else number(text)


def schedule(text: str) -> Any:
    return text if text.isalpha() else tuple(number(part) for part in text.split(",") if part)


@dataclass(frozen=True)
class Word:
    """An operator of the grammar; one that is called "keep:learned" is written keep=VALUE:learned.

    Attributes:
        make: The edit's class.
        value: The field that VALUE fills; none when "".
        read: From the text of VALUE.
        write: To it.
        needs: What VALUE must be, for the error where it is missing; it may be left out when "".
        who: The field that WHO fills: "selector", "by", or none when "".
        fixed: Fields that the word itself says.
    """

    make: type[AttentionEdit] | type[Steer]
    value: str = ""
    read: Callable[[str], Any] = number
    write: Callable[[Any], str] = written
    needs: str = ""
    who: str = "selector"
    fixed: Mapping[str, Any] = field(default_factory=dict)


A_NUMBER = "a number, as in scale=0.1:top1"
OPERATORS: dict[str, Word] = {
    "mask": Word(MaskSinks),
    "bias": Word(BiasSinks, "bias", needs=A_NUMBER),
    "zero": Word(ZeroSinks),
    "scale": Word(ScaleSinks, "factor", needs=A_NUMBER, fixed={"renormalise": False}),
    "rescale": Word(ScaleSinks, "factor", needs=A_NUMBER, fixed={"renormalise": True}),
    "redistribute": Word(Redistribute, "to", target, str),
    "swap": Word(Swap),
    "zero_value": Word(ZeroValue),
    "mean_value": Word(MeanValue),
    "noise_value": Word(NoiseValue, "std"),
    "noop": Word(NoOp),
    "null_key": Word(NullKey, "logit", who=""),
    "sink_token": Word(SinkToken, "token", whole, str, who=""),
    "keep": Word(
        KeepKeys,
        "budget",
        budget_of,
        repr,
        needs="a budget, a share or a number of keys, as in keep=0.5:received",
        who="by",
    ),
    "splice": Word(Splice, "error", error_term, lambda _: "error", who=""),
    "feature": Word(
        Feature,
        "ids",
        features_of,
        lambda ids: "+".join(map(str, ids)),
        needs="features by number, as in feature=17+203@sae=FOLDER",
        who="",
    ),
    "keep:learned": Word(LearnedSelection, "rate", needs="a share, as in keep=0.5:learned", who=""),
    "steer": Word(Steer, "direction", str, str, needs="the folder of a direction, as in steer=FOLDER", who="by"),
}
KINDS: dict[str, tuple[type[ByRule], Loop]] = {
    "": (PreviousStep, "closed"),
    "previous": (PreviousStep, "closed"),
    "same": (SameStep, "closed"),
    "last": (LastQuery, "closed"),
    "open": (PreviousStep, "open"),
}
SCOPE = ("layers", "heads", "steps")
OF_SELECTOR = ("by", "keys", "fewer", "first")
OF_EDIT = ("share", "seed", "gate", "scale", "units", "positions", "schedule", "sae", "factor", "boost")
OPTIONS = (*SCOPE, "queries", "diagonal", *OF_SELECTOR, *OF_EDIT)
READ: dict[str, Callable[[str], Any]] = {"share": number, "seed": whole, "scale": number, "schedule": schedule} | {
    "factor": number,
    "boost": number,
}
