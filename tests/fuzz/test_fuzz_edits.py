"""Every edit, selector, control and probe takes what its fields say, or names the field; texts are edits or refused."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

from anything import ANYTHING, plain_number
from fuzzing import fuzz, refused
from hypothesis import strategies as st
from random_edits import AUTOENCODER, DIRECTION

from sinklens import interventions as iv
from sinklens import probes
from sinklens.hooks import Scope
from sinklens.interventions.grammar import OPERATORS, OPTIONS
from sinklens.interventions.selectors.attention import ByRule
from sinklens.probes.base import Measurement
from sinklens.sinks import SinkRule
from sinklens.tasks import Echo

EDITS = [iv.MaskSinks, iv.BiasSinks, iv.ZeroSinks, iv.ScaleSinks, iv.Redistribute, iv.Swap, iv.NoOp, iv.ZeroValue]
EDITS += [iv.MeanValue, iv.NoiseValue, iv.NullKey, iv.SinkToken, iv.KeepKeys, iv.LearnedSelection, iv.SideBySide]
EDITS += [iv.Splice, iv.Feature, iv.ChanceFeature]
EDITS += [iv.Steer]
SELECTORS = [iv.SameStep, iv.PreviousStep, iv.LastQuery, iv.Fixed, iv.ByToken, iv.ByKeyNorm, *iv.CONTROLS.values()]
PROBES = [each for each in vars(probes).values() if inspect.isclass(each) and issubclass(each, Measurement)]
NEEDED = {
    "bias": 1.0,
    "factor": 0.5,
    "budget": 0.5,
    "rate": 0.5,
    "positions": 0,
    "what": "mask",
    "direction": DIRECTION,
    "of": iv.SameStep(top_k=1),
}
NEEDED |= {"edits": [None, iv.MaskSinks()], "rows_each": 1, "sae": AUTOENCODER, "ids": (0, 3)}
MORE = {probes.Features: {"top_k": 2}}  # which has no default, but another field may stand for it
parts = ANYTHING | st.sampled_from([iv.SameStep(top_k=1), Scope(layers=0), SinkRule(), iv.MaskSinks()])


def same(kept: Any, value: Any) -> bool:
    """Whether a field holds what was given: the same number of the same kind, or the same list of them."""
    if isinstance(kept, tuple):
        listed = list(value) if hasattr(value, "__len__") and getattr(value, "ndim", 1) else [value]
        listed = sorted(listed) if isinstance(value, set) else listed
        return len(kept) == len(listed) and all(map(same, kept, listed))
    if isinstance(kept, bool):
        return bool(value) == kept and "bool" in str(getattr(value, "dtype", type(value)))
    if isinstance(kept, int | float):
        return plain_number(value) and bool(value == kept)
    return kept is value or bool(kept == value)


@fuzz(few=600, kind=st.sampled_from([*EDITS, *SELECTORS, *PROBES, Echo]), data=st.data())
def test_a_field_holds_what_was_given_or_is_refused_by_name(kind: Any, data: st.DataObject) -> None:
    stated = [field for field in fields(kind) if field.init]
    extra = ["top_k"] if issubclass(kind, ByRule) else []
    name = data.draw(st.sampled_from([field.name for field in stated] + extra))
    value = data.draw(parts)
    needed = {f.name: NEEDED[f.name] for f in stated if f.default is MISSING and f.default_factory is MISSING}
    made: list[Any] = []
    said = refused(lambda: made.append(kind(**{**needed, **MORE.get(kind, {}), name: value})))
    if said is not None:
        assert name in said or kind.__name__ in said, said
        return
    kept = made[0].rule.top_k if name in extra else getattr(made[0], name)
    usual = [getattr(kind, name, MISSING), "auto"]
    assert (
        any(kept is each for each in usual) or name in ("name", "rule", "unit", "variable", "mark") or same(kept, value)
    )
    assert made[0].digest == type(made[0]).from_dict(made[0].to_dict()).digest
    assert repr(made[0])


values = st.sampled_from(
    ["", "=", "=0.5", "=1", "=-1", "=nan", "=inf", "=1e400", "=uniform", "=3", "=x", "=99999999999"]
)
whos = st.sampled_from(
    ["", ":", ":top1", ":top0", ":top", ":eps3", ":epsnan", ":eps1e999", ":same/eps-1", ":last/top2"]
)
whos |= st.sampled_from([":same/top1", ":top99999999999999999999", ":same/top1:top2", ":token=", ":pos"])
whos |= st.sampled_from(
    [":pos0+3", ":token=5+9", ":token=verb", ":keynorm0", ":gu", ":open/top1", ":received", ":learned", ":top٣"]
)
worth = st.sampled_from(
    ["", "=", "=0", "=0-3", "=3-0", "=8-", "=0,2", "=1.5", "=-1", "=masked", "=no", "=nan", "=²", "=auto"]
)
options = st.lists(st.builds("@{}{}".format, st.sampled_from([*OPTIONS, "layer", ""]), worth), max_size=2).map("".join)
texts = st.builds("{}{}{}{}".format, st.sampled_from([*OPERATORS, "maks", ""]), values, whos, options)


@fuzz(few=1000, many=20_000, text=texts | st.text(alphabet="mask:=@top1eps/.-+,0 \n", max_size=14))
def test_a_text_is_an_edit_that_is_written_as_it_was_read(text: str) -> None:
    made: list[iv.AttentionEdit] = []
    if refused(lambda: made.append(iv.parse(text)), [repr(text)]) is not None:
        return
    edit = made[0]
    assert type(edit).from_dict(edit.to_dict()) == edit
    again: list[str] = []
    if refused(lambda: again.append(iv.text_of(edit)), ["has no words"]) is None:
        assert iv.parse(again[0]) == edit
