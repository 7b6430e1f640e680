"""Edits as short texts, for the command line and for experiment files: "mask:top1", "scale=0.1:eps3@layers=0-3"."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sinklens.errors import ScopeError
from sinklens.hooks import Where
from sinklens.interventions.edits.budget import KeepKeys
from sinklens.interventions.edits.scores import BiasSinks, MaskSinks, NullKey
from sinklens.interventions.edits.transplant import SinkToken
from sinklens.interventions.edits.values import MeanValue, NoiseValue, ZeroValue
from sinklens.interventions.edits.weights import NoOp, Redistribute, ScaleSinks, Swap, ZeroSinks
from sinklens.interventions.selectors.attention import Detector, LastQuery, PreviousStep, SameStep
from sinklens.interventions.selectors.places import ByKeyNorm, ByToken, Fixed
from sinklens.sinks import SinkRule
from sinklens.sinks.named import RULES

GRAMMAR = """\
OPERATOR[=VALUE][:WHO][@SCOPE ...]
  OPERATOR  mask, bias=B, zero, scale=F, rescale=F (rows renormalised), swap, noop,
            redistribute[=proportional|uniform|self|POSITION], zero_value, mean_value, noise_value[=STD];
            without WHO: null_key[=LOGIT], sink_token[=ID]; keep=SHARE|N:received|key_norm|random|recency
  WHO       topK, epsE, a rule (rulli, gu, floating, sink_aware, act, streaming), pos0+3, token=CLASS, keynormK;
            the first three of the previous step (the paper's protocol), or same/topK, last/topK, open/topK
            (of a clean forward beside the edited run)
  SCOPE     layers=0-3, heads=1, steps=8-, queries=masked, keys=prompt, diagonal=no
For example mask:top1   redistribute=uniform:top5   scale=0.1:same/eps3@layers=0-3@steps=8-"""

Maker = Callable[[str | None, Detector | None, Where], Any]


def _number(text: str | None, default: float | None = None) -> float:
    if text is None and default is not None:
        return default
    if text is None:
        raise ScopeError("this operator needs a number, as in scale=0.1:top1")
    try:
        return float(text)
    except ValueError:
        raise ScopeError(f"{text!r} is no number") from None


def _whole(text: str) -> int:
    if not text.isdigit():
        raise ScopeError(f"{text!r} is no token id")
    return int(text)


def _to(text: str | None) -> Any:
    return int(text) if text and text.isdigit() else text or "proportional"


OPERATORS: dict[str, Maker] = {
    "mask": lambda value, who, where: MaskSinks(who, where),
    "bias": lambda value, who, where: BiasSinks(_number(value), who, where),
    "zero": lambda value, who, where: ZeroSinks(who, where),
    "scale": lambda value, who, where: ScaleSinks(_number(value), who, where),
    "rescale": lambda value, who, where: ScaleSinks(_number(value), who, where, renormalise=True),
    "redistribute": lambda value, who, where: Redistribute(_to(value), who, where),
    "swap": lambda value, who, where: Swap(who, where),
    "zero_value": lambda value, who, where: ZeroValue(who, where),
    "mean_value": lambda value, who, where: MeanValue(who, where),
    "noise_value": lambda value, who, where: NoiseValue(None if value is None else _number(value), who, where),
    "noop": lambda value, who, where: NoOp(who, where),
    "null_key": lambda value, who, where: NullKey(_number(value, 0.0), where),
    "sink_token": lambda value, who, where: SinkToken(None if value is None else _whole(value), where),
}
WITHOUT_WHO = ("null_key", "sink_token")
TAKES_VALUE = ("bias", "scale", "rescale", "redistribute", "noise_value", "null_key", "sink_token", "keep")


def parse(text: str) -> Any:
    """An edit from its text.

    Raises:
        ScopeError: what is wrong with it, with the grammar.
    """
    try:
        return _parse(text.strip())
    except ValueError as error:
        raise ScopeError(f"the edit {text!r} cannot be read: {error}\n{GRAMMAR}") from error


def _parse(text: str) -> Any:
    head, *scopes = text.split("@")
    operator, _, who = head.partition(":")
    name, equals, value = operator.partition("=")
    where = _where(scopes)
    if equals and not value:
        raise ScopeError(f"{operator!r} ends without a value")
    if name == "keep":
        if not value:
            raise ScopeError("keep needs a budget, a share or a number of keys, as in keep=0.5:received")
        number = float(value) if "." in value else int(value) if value.isdigit() else _number(value)
        return KeepKeys(number, by=who or "received", where=where)  # pyright: ignore[reportArgumentType]
    if name not in OPERATORS:
        raise ScopeError(f"operator {name!r} is unknown; the operators are {', '.join((*OPERATORS, 'keep'))}")
    if value and name not in TAKES_VALUE:
        raise ScopeError(f"{name} takes no value, and {value!r} was given")
    if name in WITHOUT_WHO:
        if who:
            raise ScopeError(f"{name} acts on every row and takes no keys, and {who!r} was given")
        return OPERATORS[name](value or None, None, where)
    if not who:
        raise ScopeError(f"{name} must know on which keys to act, for example {name}:top1")
    return OPERATORS[name](value or None, _who(who), where)


def _who(text: str) -> Detector:
    kind, slash, rest = text.rpartition("/")
    if slash and re.match(r"pos\d|token=|keynorm", rest):
        raise ScopeError(f"{rest} does not come from a step's attention, so {kind + slash!r} means nothing before it")
    if match := re.fullmatch(r"pos(\d+(?:\+\d+)*)", rest):
        return Fixed([int(place) for place in match[1].split("+")])
    if match := re.fullmatch(r"token=(.+)", rest):
        return ByToken(match[1].replace("_", " "))
    if match := re.fullmatch(r"keynorm(\d+)", rest):
        return ByKeyNorm(int(match[1]))
    makers: dict[str, Callable[[SinkRule], Detector]] = {
        "": PreviousStep,
        "previous": PreviousStep,
        "same": SameStep,
        "last": LastQuery,
        "open": lambda rule: PreviousStep(rule, loop="open"),
    }
    if kind not in makers:
        raise ScopeError(f"{kind!r} is unknown; keys are those of {', '.join(filter(None, makers))}, as in same/top1")
    if match := re.fullmatch(r"top(\d+)", rest):
        return makers[kind](SinkRule(epsilon=None, top_k=int(match[1])))
    if match := re.fullmatch(r"eps([\d.]+)", rest):
        return makers[kind](SinkRule(epsilon=float(match[1])))
    if rest in RULES:
        return makers[kind](RULES[rest])
    raise ScopeError(f"keys {rest!r} are unknown")


def _where(scopes: list[str]) -> Where:
    found: dict[str, Any] = {}
    for scope in scopes:
        name, _, value = scope.partition("=")
        if name in found:
            raise ScopeError(f"{name} is named twice")
        if name in ("layers", "heads", "steps"):
            found[name] = _range(value)
        elif name in ("queries", "keys"):
            found[name] = value
        elif name == "diagonal" and value in ("yes", "no"):
            found[name] = value == "yes"
        else:
            raise ScopeError(f"the scope {scope!r} is unknown; name layers, heads, steps, queries, keys or diagonal=no")
    return Where(**found)


def _range(text: str) -> Any:
    if text.isdigit():
        return int(text)
    if match := re.fullmatch(r"(\d+)-(\d*)", text):
        if match[2] and int(match[2]) < int(match[1]):
            raise ScopeError(f"the range {text!r} holds nothing")
        return slice(int(match[1]), int(match[2]) + 1 if match[2] else None)
    if re.fullmatch(r"\d+(,\d+)+", text):
        return tuple(int(part) for part in text.split(","))
    raise ScopeError(f"{text!r} is no range; write 3, 0-3, 8- or 0,2,5")
