"""Run a record again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from sinklens.decoding.plan import Plan
from sinklens.decoding.run import Run, denoise
from sinklens.errors import RecordError
from sinklens.hooks import Edit, Probe
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.placing import Placing
from sinklens.models.prompts import Unpadded
from sinklens.records import made
from sinklens.values.content import digest
from sinklens.values.kinds import reads


@reads()
def replay(
    record: xr.Dataset,
    dlm: HookedDLM | None = None,
    *,
    probes: Sequence[Probe] = (),
    interventions: Sequence[Edit] = (),
    progress: bool = True,
) -> Run:
    """Decode a record's prompts again, to the same tokens, for example with other probes.

    Args:
        record: A record of `denoise`.
        dlm: The model; when None loaded as the record's was (name, revision, family, dtype, way of attention).
        probes: What to measure this time.
        interventions: The edits of the record, if it had any: the same content, not the same objects.
        progress: Show a progress bar.

    Raises:
        RecordError: the record says nothing about its making, had other edits, was teacher-forced, or the tokens
            come out differently (another model, version or device).
    """
    origin = made(record)
    try:
        plan = Plan.from_dict(origin["plan"])
        edits = [digest(content) for content in origin["interventions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"this record cannot be replayed, its provenance lacks {error}") from error
    if origin.get("forced"):
        raise RecordError("this record was teacher-forced; run denoise with force= or follow= to repeat it")
    if edits != [edit.digest for edit in interventions]:
        recorded = origin.get("read_as", origin)["interventions"]
        given = [repr(edit) for edit in interventions]
        same = " (they read alike, and their content differs)" if recorded == given else ""
        raise RecordError(f"the record was made with interventions {recorded}, and given are {given}{same}")
    dlm = dlm or _loaded(origin)
    token, given = record["token"].to_numpy(), record["given"].to_numpy()
    if plan.new_tokens == 0:  # the gaps of a prompt are masks again
        prompts = [
            np.where(mask == 0, dlm.ids.mask, row)[row >= 0].tolist() for row, mask in zip(token, given, strict=True)
        ]
    else:
        prompts = [row[mask == 1].tolist() for row, mask in zip(token, given, strict=True)]
    run = denoise(
        dlm,
        [Unpadded(tuple(prompt)) for prompt in prompts],  # what was given as text is tokens now, template and all
        replace(plan, chat=False),
        probes=probes,
        interventions=interventions,
        seed=origin["seed"],
        progress="replaying" if progress else False,
    )
    if not np.array_equal(run.record["token"].to_numpy(), token):
        where = origin["versions"] | {"device": origin["device"], "dtype": origin["dtype"]}
        raise RecordError(f"{dlm.name} gave other tokens than the record, which was made with {where}")
    return run


def _loaded(origin: dict[str, Any]) -> HookedDLM:
    """The model of a record, loaded as it was then; on the CPU."""
    try:
        said = {name: origin[name] for name in ("dtype", "revision", "family")}
        more = {name: origin.get(name) for name in ("attention", "mask_token_id")}
        return Placing(**said, **more).load(origin["model"])
    except KeyError as error:
        raise RecordError(f"this record cannot be replayed, its provenance lacks {error}; give the model") from error
