"""Edits as short texts, for the command line and for experiment files: "mask:top1", "scale=0.1:eps3@layers=0-3"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from sinklens.errors import ContentError, ScopeError
from sinklens.hooks import Edit, Scope
from sinklens.interventions.grammar import (
    GRAMMAR,
    KINDS,
    OF_EDIT,
    OF_SELECTOR,
    OPERATORS,
    OPTIONS,
    READ,
    SCOPE,
    Word,
    number,
    written,
)
from sinklens.interventions.selectors.attention import ByRule
from sinklens.interventions.selectors.base import Selector
from sinklens.interventions.selectors.norms import ByKeyNorm
from sinklens.interventions.selectors.places import ByToken, Fixed
from sinklens.sinks import SinkRule
from sinklens.sinks.named import RULES


def parse(text: str) -> Edit:
    """An edit from its text.

    Example:
        >>> import sinklens as sl
        >>> sl.interventions.parse("mask:same/top1@layers=1")
        MaskSinks(SameStep(top_k=1), where=Scope(layers=1))

    Raises:
        ScopeError: what is wrong with it, with the grammar.
    """
    try:
        return _parse(text.strip())
    except ValueError as error:
        raise ScopeError(f"the edit {text!r} cannot be read: {error}\n{GRAMMAR}") from error


def text_of(edit: Edit) -> str:
    """The text of an edit: `parse(text_of(edit)) == edit`, to the last digit.

    Raises:
        ContentError: the grammar has no words for it; `to_dict` describes every edit.
    """
    words = [(name, word) for name, word in OPERATORS.items() if _says(word, edit)]
    text = _text(*words[0], edit) if words else None
    if text is None or not _reads_as(text, edit):
        raise ContentError(f"the grammar of edits has no words for {edit!r}; use edit.to_dict()")
    return text


def _reads_as(text: str, edit: Edit) -> bool:
    try:
        return parse(text) == edit
    except ScopeError:
        return False


def _parse(text: str) -> Edit:
    head, *options = text.split("@")
    operator, _, who = head.partition(":")
    name, equals, value = operator.partition("=")
    if equals and not value:
        raise ScopeError(f"{operator!r} ends without a value")
    if f"{name}:{who}" in OPERATORS:  # a WHO that makes another edit of it
        name, who = f"{name}:{who}", ""
    if name not in OPERATORS:
        raise ScopeError(f"operator {name!r} is unknown; the operators are {', '.join(OPERATORS)}")
    word, said = OPERATORS[name], _options(options)
    arguments: dict[str, Any] = dict(word.fixed)
    if value:
        if not word.value:
            raise ScopeError(f"{name} takes no value, and {value!r} was given")
        arguments[word.value] = word.read(value)
    elif word.needs:
        raise ScopeError(f"{name} needs {word.needs}")
    if who and not word.who:
        raise ScopeError(f"{name} acts on every query and takes no keys, and {who!r} was given")
    if word.who == "selector":
        if not who:
            raise ScopeError(f"{name} must know on which keys to act, for example {name}:top1")
        arguments["selector"] = _selector(who, {option: said.pop(option) for option in OF_SELECTOR if option in said})
    elif who:
        arguments[word.who] = who
    scope = {option: said.pop(option) for option in SCOPE if option in said}
    unknown = [option for option in said if option not in _fields(word.make) or option in (word.who, word.value)]
    if unknown:
        raise ScopeError(f"{name} cannot honour {unknown[0]}={said[unknown[0]]}; leave it out")
    missing = [
        option for option, usual in _fields(word.make).items() if usual is MISSING and option not in arguments | said
    ]
    if missing:
        raise ScopeError(f"{name} needs {missing[0]}, as in {name}...@{missing[0]}=FOLDER")
    return word.make(**arguments, **said, where=Scope(**scope))


def _options(texts: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in said:
            raise ScopeError(f"{name} is named twice")
        if name not in OPTIONS or (name == "diagonal" and value not in ("yes", "no")):
            raise ScopeError(f"the scope {text!r} is unknown; name {', '.join(OPTIONS)} (diagonal=no)")
        if name == "diagonal":
            said[name] = value == "yes"
        else:
            said[name] = range_of(value) if name in SCOPE else READ.get(name, str)(value)
    return said


def _selector(text: str, said: dict[str, str]) -> Selector:
    kind, slash, rest = text.rpartition("/")
    if slash and re.match(r"pos\d|token=|keynorm", rest):
        raise ScopeError(f"{rest} does not come from a step's attention, so {kind + slash!r} means nothing before it")
    if kind not in KINDS:
        raise ScopeError(f"{kind!r} is unknown; keys are those of {', '.join(filter(None, KINDS))}, as in same/top1")
    made, loop = KINDS[kind]
    if match := re.fullmatch(r"pos(\d+(?:\+\d+)*)", rest):
        return _honouring(Fixed, _places(match[1]), said)
    if match := re.fullmatch(r"token=(\d+(?:\+\d+)*)", rest):
        return _honouring(ByToken, _places(match[1]), said)
    if match := re.fullmatch(r"token=(.+)", rest):
        return _honouring(ByToken, match[1].replace("_", " "), said)
    if match := re.fullmatch(r"keynorm(\d+)", rest):
        return _honouring(ByKeyNorm, int(match[1]), said)
    rule = _rule(rest)
    sets = {name: said.pop(option) for option, name in (("by", "queries"), ("keys", "keys")) if option in said}
    return _honouring(made, replace(rule, **sets), said | {"loop": loop})


def _honouring(made: type[Selector], first: Any, said: Mapping[str, Any]) -> Selector:
    unknown = [name for name in said if name not in _fields(made)]
    if unknown:
        raise ScopeError(f"{made.__name__} cannot honour {unknown[0]}={said[unknown[0]]}; leave it out")
    options: dict[str, Any] = dict(said)
    make: Any = made
    return make(first, **options)


def _rule(text: str) -> SinkRule:
    if match := re.fullmatch(r"top(\d+)", text):
        return SinkRule(epsilon=None, top_k=int(match[1]), queries="auto")
    if match := re.fullmatch(r"eps(.+)", text):
        return SinkRule(epsilon=number(match[1]))
    if text in RULES:
        return RULES[text]
    raise ScopeError(f"keys {text!r} are unknown")


def _places(text: str) -> tuple[int, ...]:
    return tuple(int(place) for place in text.split("+"))


def range_of(text: str) -> Any:
    """Layers, heads or steps as texts name them: 3, 0-3, 8- or 0,2,5.

    Raises:
        ScopeError: what is no such range, or holds nothing.
    """
    if text.isdigit():
        return int(text)
    if match := re.fullmatch(r"(\d+)-(\d*)", text):
        if match[2] and int(match[2]) < int(match[1]):
            raise ScopeError(f"the range {text!r} holds nothing")
        return slice(int(match[1]), int(match[2]) + 1 if match[2] else None)
    if re.fullmatch(r"\d+(,\d+)*,?", text):
        return tuple(int(part) for part in text.split(",") if part)
    raise ScopeError(f"{text!r} is no range; write 3, 0-3, 8- or 0,2,5")


def _fields(made: type) -> dict[str, Any]:
    return {each.name: each.default for each in fields(made) if each.init}


# From an edit to its text. What has no words is caught by reading the text again.


def _says(word: Word, edit: Edit) -> bool:
    return type(edit) is word.make and all(getattr(edit, name) == value for name, value in word.fixed.items())


def _text(name: str, word: Word, edit: Edit) -> str | None:
    usual = _fields(word.make)
    value = getattr(edit, word.value) if word.value else None
    name, colon, kind = name.partition(":")
    text = name + (f"={word.write(value)}" if word.value and value != usual[word.value] else "") + colon + kind
    said = {option: getattr(edit.where, option) for option in SCOPE if getattr(edit.where, option) is not None}
    for option in ("queries", "diagonal", "keys", *OF_EDIT):
        if option in usual and option != word.value and getattr(edit, option) != usual[option]:
            said[option] = getattr(edit, option)
    if word.who == "by":
        text += f":{getattr(edit, word.who)}" if getattr(edit, word.who) != usual[word.who] else ""
    elif word.who:
        who = _who(getattr(edit, word.who))
        if who is None:
            return None
        text, said = f"{text}:{who[0]}", said | who[1]
    shown = {name: _option(value) for name, value in said.items()}
    if None in shown.values():
        return None
    return "@".join([text, *(f"{name}={value}" for name, value in shown.items())])


def _who(selector: Selector) -> tuple[str, dict[str, Any]] | None:
    """WHO, and the options that say the rest."""
    match selector:
        case Fixed():
            return "pos" + "+".join(map(str, selector.places)), _unusual(selector)
        case ByToken(what=str() as what):
            return f"token={what.replace(' ', '_')}", _unusual(selector)
        case ByToken(what=tuple() as ids):
            return "token=" + "+".join(map(str, ids)), _unusual(selector)
        case ByKeyNorm():
            return f"keynorm{selector.top_k}", _unusual(selector)
        case ByRule():
            kinds = [kind for kind, (made, loop) in KINDS.items() if (type(selector), selector.loop) == (made, loop)]
            name, queries = _rule_name(selector.rule)
            if not kinds or name is None:
                return None
            said = _unusual(selector) | ({"keys": selector.rule.keys} if selector.rule.keys != "all" else {})
            if selector.rule.queries != (queries if kinds[0] != "last" else "last"):
                said["by"] = selector.rule.queries
            return f"{kinds[0]}/{name}" if kinds[0] else name, said
    return None


def _unusual(selector: Selector) -> dict[str, Any]:
    usual = _fields(type(selector))
    names = [name for name in OF_SELECTOR if name in usual]
    return {name: getattr(selector, name) for name in names if getattr(selector, name) != usual[name]}


def _rule_name(rule: SinkRule) -> tuple[str | None, str]:
    """A rule's word, and the queries that it has without `by`."""
    known = {f"top{rule.top_k}": SinkRule(epsilon=None, top_k=rule.top_k or 1, queries="auto")}
    if rule.epsilon is not None:
        known[f"eps{written(rule.epsilon)}"] = replace(SinkRule(), epsilon=rule.epsilon)
    for name, word in (known | RULES).items():
        if replace(word, queries=rule.queries, keys=rule.keys) == rule:
            return name, word.queries
    return None, ""


def _option(value: Any) -> str | None:
    match value:
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case int() | float():
            return written(value)
        case slice(start=int() as start, stop=stop, step=None) if start >= 0:
            return f"{start}-" if stop is None else f"{start}-{stop - 1}"
        case tuple():
            return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
    return None
