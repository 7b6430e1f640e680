"""An ablation as a file: what to run, in YAML or JSON; the same fields as the command line has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sinklens.decoding.plan import Plan
from sinklens.errors import PlanError
from sinklens.experiments.ablation import ablate
from sinklens.experiments.results import AblationResult
from sinklens.interventions import parse
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.tasks import Echo, Jsonl, Task


@dataclass(frozen=True)
class Spec:
    """Everything that an ablation needs, as plain values.

    Attributes:
        model: A bundled twin, a folder or a Hub id.
        edits: Texts of `interventions.named` ("mask:top1"), by the name of the condition.
        task: "echo" (the twins' language), or a JSONL file of {"prompt", "answer"}.
        prompts: How many examples.
        gaps: For echo: the share of rule-decided words to fill in; 0 continues texts instead.
        extract: For a JSONL file: what to compare (`tasks.Jsonl`).
        plan: Fields of `Plan`. For echo new_tokens is set, and temperature is 1 when continuing (greedy decoding of a
            toy bigram language runs into loops).
        seeds: Repetitions.
        controls: Names of controls; none if empty.
        metrics: Names of `measures.METRICS`; accuracy (forced_accuracy when filling in) if empty.
        batch_size: Rows per forward.
    """

    model: str = "tiny-dlm"
    edits: Mapping[str, str] = field(default_factory=dict)
    task: str = "echo"
    prompts: int = 64
    gaps: float = 0.0
    extract: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    controls: tuple[str, ...] = ("random",)
    metrics: tuple[str, ...] = ()
    batch_size: int = 128

    def make_task(self) -> Task:
        """The task."""
        if self.task != "echo":
            if not Path(self.task).is_file():
                raise PlanError(f"task {self.task!r} is neither 'echo' nor a JSONL file that exists")
            return Jsonl(self.task, extract=self.extract, limit=self.prompts)
        return Echo(self.prompts, seed=self.seeds[0], gaps=self.gaps)

    def make_plan(self) -> Plan:
        """The plan."""
        known = {each.name for each in fields(Plan)}
        wrong = set(self.plan) - known
        if wrong:
            raise PlanError(f"plan has no field {sorted(wrong)[0]!r}; its fields are {', '.join(sorted(known))}")
        if self.task != "echo":
            return Plan(**self.plan)
        defaults = {"new_tokens": 0} if self.gaps else {"new_tokens": 32, "temperature": 1.0}
        return Plan(**{**defaults, **self.plan})

    def run(self, save_to: str | Path | None = None, progress: bool | str = True) -> AblationResult:
        """Run it; the spec goes into the result's provenance.

        Args:
            save_to: As in `ablate`.
            progress: As in `ablate`.
        """
        edits = {name: parse(text) for name, text in self.edits.items()}
        if not self.seeds:
            raise PlanError("seeds is empty; give at least one")
        if not edits:
            raise PlanError("there are no edits; name at least one, for example mask:top1")
        task, plan = self.make_task(), self.make_plan()
        result = ablate(
            HookedDLM.from_pretrained(self.model),
            task,
            edits,
            plan,
            seeds=self.seeds,
            controls=self.controls or None,
            metrics=self.metrics or (("forced_accuracy",) if self.gaps else ("accuracy",)),
            batch_size=self.batch_size,
            save_to=save_to,
            progress=progress,
        )
        result.provenance["spec"] = asdict(self)
        return result


def read(path: str | Path) -> Spec:
    """A spec from a YAML or JSON file.

    Raises:
        PlanError: no such file, or fields that there are not; the message lists those that there are.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PlanError(f"{str(path)!r} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(found, dict):
        raise PlanError(f"{str(path)!r} holds {type(found).__name__} instead of fields such as model: and edits:")
    return spec(found)


def spec(found: Mapping[str, Any]) -> Spec:
    """A spec from plain values; edits may be a list of texts, which are then their own names."""
    known = {each.name for each in fields(Spec)}
    wrong = set(found) - known
    if wrong or not found:
        what = f"has the unknown field {sorted(wrong)[0]!r}" if wrong else "is empty"
        raise PlanError(f"the experiment {what}; the fields are {', '.join(sorted(known))}")
    values: dict[str, Any] = {
        name: value for name, value in found.items() if value is not None or name in ("controls", "extract")
    }
    edits = values.get("edits", {})
    edits = [edits] if isinstance(edits, str) else edits
    values["edits"] = dict(edits) if isinstance(edits, Mapping) else {str(text): text for text in edits}
    kinds: dict[str, type | tuple[type, ...]] = {
        "model": str, "task": str, "prompts": int, "gaps": (int, float), "plan": Mapping, "batch_size": int,
    }  # fmt: skip
    for name, kind in kinds.items():
        if name in values and not isinstance(values[name], kind):
            raise PlanError(f"{name}={values[name]!r} of the experiment is of the wrong type")
    wrong = [text for text in values["edits"].values() if not isinstance(text, str)]
    if wrong:
        raise PlanError(f"the edit {wrong[0]!r} is no text; write for example mask:top1")
    bad = [field for field, value in values.get("plan", {}).items() if isinstance(value, str) and value.isdigit()]
    if bad:
        raise PlanError(f"plan.{bad[0]} is the text {values['plan'][bad[0]]!r}; write a number without quotes")
    for name in ("seeds", "controls", "metrics"):
        if name in values:
            each = values[name]
            values[name] = tuple(each) if isinstance(each, list | tuple) else () if each is None else (each,)
    return Spec(**values)
