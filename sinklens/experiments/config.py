"""An ablation as a value: the same fields in Python, in YAML or JSON, and on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, cast

from sinklens.decoding.plan import Plan
from sinklens.errors import ContentError, PlanError
from sinklens.experiments import specs
from sinklens.experiments.ablation import ablate
from sinklens.experiments.batch import Repetition
from sinklens.experiments.early import check_fields, check_model
from sinklens.experiments.results import AblationResult
from sinklens.experiments.scores import ScoreStore
from sinklens.hooks import Edit
from sinklens.interventions import parse
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.models.placing import Placing
from sinklens.tasks import Echo, Jsonl, Task, bundled
from sinklens.tasks.matching import Match
from sinklens.values import kinds
from sinklens.values.content import Value, build, rebuilt
from sinklens.values.kinds import Count, Index, Share


@dataclass(frozen=True, repr=False)
class Experiment(Value):
    """Everything that an ablation needs, as plain values.

    Attributes:
        model: A bundled twin, a folder or a Hub id.
        edits: Edits by the name of the condition: texts of the grammar ("mask:top1", `interventions.GRAMMAR`), or what
            `to_dict` says of an edit. Of a list of texts each is its own name.
        task: "echo" (the twins' language), "facts" or "antibodies" (`tasks.facts`, `tasks.antibodies`), or a JSONL file
            of {"prompt", "answer"}.
        prompts: How many examples.
        gaps: For echo: the share of rule-decided words to fill in; 0 continues texts instead.
        extract: For a JSONL file: what to compare (`tasks.Jsonl`).
        match: For a JSONL file: which match of `extract` to compare, "last", "first" or "full".
        separator: For a JSONL file: white space between prompt and answer (`tasks.Jsonl`); "as-written" for None.
        plan: Fields of `Plan`, those that are said; or a whole `Plan`. For echo new_tokens is set, and temperature is 1
            when continuing (greedy decoding of a toy bigram language runs into loops).
        seeds: Repetitions.
        controls: Names of controls; none if empty.
        metrics: Names of `outcomes.METRICS`; accuracy (forced_accuracy when filling in) if empty.
        batch_size: Rows per forward.
        device: Where the model goes, "cuda" say; as `HookedDLM.from_pretrained` has it when None.
        dtype: "bfloat16", "float16", "float32" or "float64"; the checkpoint's own when None.
        device_map: As in transformers ("auto"), instead of `device`.
        revision: Hub branch, tag or commit.
        attention: As `HookedDLM.attention`.
        family: What the model is, where its config.json does not say.
        mask_token_id: Its mask token, where it names none.

    Raises:
        ContentError: a field that there is not, or a value of the wrong kind, which is quoted.
        PlanError: a plan that cannot be carried out.
        ScopeError: an edit that cannot be read, with the grammar.
    """

    model: str = "tiny-dlm"
    edits: Mapping[str, str | Edit | Mapping[str, Any]] | Sequence[str] = field(default_factory=dict)
    task: str = "echo"
    prompts: Count = 64
    gaps: Share = 0.0
    extract: str | None = None
    match: Match = "last"
    separator: str = " "
    plan: Mapping[str, Any] | Plan = field(default_factory=dict)
    seeds: tuple[Repetition, ...] = (0,)
    controls: tuple[str, ...] = ("random",)
    metrics: tuple[str, ...] = ()
    batch_size: Count = 128
    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None
    attention: str | None = None
    family: str | None = None
    mask_token_id: Index | None = None

    def __post_init__(self) -> None:
        edits: Any = self.edits
        if not isinstance(edits, Mapping):
            edits = {text: text for text in self.edits}
            if len(edits) < len(self.edits):
                raise ContentError(f"edits={list(self.edits)} names an edit twice")
        rebuilds = {name: rebuilt(edit) for name, edit in edits.items()}
        object.__setattr__(self, "edits", kinds.read("edits", rebuilds, Mapping[str, str | Edit]))
        if isinstance(self.plan, Plan):
            plan = {each.name: getattr(self.plan, each.name) for each in fields(self.plan)}
            object.__setattr__(self, "plan", plan)
        self.make_plan()
        check_fields(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """An experiment from its fields. Null stands for the default, and for none in `controls`."""
        given = {name: value for name, value in data.items() if value is not None and name != "type"}
        if "controls" in data and data["controls"] is None:
            given["controls"] = ()
        return super().from_dict({"type": data.get("type", cls.__name__), **given})

    def make_task(self) -> Task:
        """The task.

        Raises:
            PlanError: no such file.
        """
        if self.task == "echo":
            return Echo(self.prompts, seed=self.seeds[0], gaps=self.gaps)
        if self.task in bundled.NAMES:
            return bundled.bundled(self.task, self.prompts)
        if not Path(self.task).is_file():
            names = ", ".join(repr(name) for name in ("echo", *bundled.NAMES))
            raise PlanError(f"task {self.task!r} is none of {names}, and no JSONL file that exists")
        between = None if self.separator == "as-written" else self.separator
        return Jsonl(self.task, extract=self.extract, match=self.match, separator=between, limit=self.prompts)

    @property
    def placing(self) -> Placing:
        """How the model is loaded.

        Raises:
            CheckpointError: what is unknown or not there.
        """
        return Placing(**{each.name: getattr(self, each.name) for each in fields(Placing)})

    def make_plan(self) -> Plan:
        """The plan."""
        defaults: dict[str, Any] = {}
        if self.task == "echo":
            defaults = {"new_tokens": 0} if self.gaps else {"new_tokens": 32, "temperature": 1.0}
        return build(Plan, {**defaults, **cast(Mapping[str, Any], self.plan)})

    def make_edits(self) -> dict[str, Edit]:
        """The edits by the name of their condition."""
        edits = cast(Mapping[str, str | Edit], self.edits)
        return {name: parse(edit) if isinstance(edit, str) else edit for name, edit in edits.items()}

    def check(self, dlm: HookedDLM | None = None) -> None:
        """Raise for everything that can be refused before weights are read.

        Args:
            dlm: The model, if it is loaded already; else its outline is read.

        Raises:
            CheckpointError: a model, or a way to load it, that there is not.
            PlanError: no edit, no seed, a plan that the model cannot carry out, no such task file.
            ScopeError: layers or heads that the model does not have.
            NeverExposed: an edit that no step can see at work.
            TaskError: a task file that is none, or words that the tokenizer does not know.
        """
        if not self.edits or not self.seeds:
            what = "there are no edits; name at least one, for example mask:top1"
            raise PlanError(what if not self.edits else "seeds is empty; give at least one")
        check_model(dlm or self.placing.outline(self.model), self.make_task(), self)

    @property
    def asked_metrics(self) -> tuple[str, ...]:
        """The metrics, with the default filled in."""
        return self.metrics or (("forced_accuracy",) if self.gaps else ("accuracy",))

    def run(
        self, dlm: HookedDLM | None = None, *, save_to: str | Path | None = None, progress: bool | str = True
    ) -> AblationResult:
        """Run it; the experiment goes into the result's provenance. First of all it is checked.

        Args:
            dlm: The model, if it is loaded already; it is used as it is, wherever it is.
            save_to: As in `ablate`.
            progress: As in `ablate`.
        """
        self.check(dlm)
        ScoreStore(save_to)  # a file of others is refused before weights are read, too
        described = self.to_dict()
        try:
            result = ablate(
                dlm or self.placing.load(self.model),
                self.make_task(),
                self.make_edits(),
                self.make_plan(),
                seeds=self.seeds,
                controls=self.controls or None,
                metrics=self.asked_metrics,
                batch_size=self.batch_size,
                save_to=save_to,
                progress=progress,
            )
        except BaseException as error:
            kept = getattr(error, "result", None)  # what was finished
            if isinstance(kept, AblationResult):
                kept.provenance["experiment"] = described
            raise
        result.provenance["experiment"] = described
        return result


def read(path: str | Path | None = None, given: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment from a YAML or JSON file, and from what is given beside it, which wins.

    Args:
        path: The file; None if there is none.
        given: Fields by name. Fields of the plan win one by one.

    Raises:
        PlanError: a file that cannot be read, or that holds no fields.
        ContentError: as for `Experiment`.
    """
    said = {} if path is None else specs.load(path, [each.name for each in fields(Experiment)])
    both = {**said, **(given or {})}
    if said.get("plan") is not None:
        of_file = kinds.read("plan", said["plan"], Mapping[str, Any])
        both["plan"] = {**of_file, **((given or {}).get("plan") or {})}
    return Experiment.from_dict(both)
