"""The page of a published table beside this run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinklens import files, plots
from sinklens.errors import ContentError
from sinklens.experiments.published import layout, published, wide
from sinklens.experiments.results import AblationResult
from sinklens.report import page
from sinklens.report.ablation import table_of
from sinklens.report.page import Section


def file_names(models: Sequence[str]) -> list[str]:
    """A name for each model's files: its last part, or all of it where two end alike.

    Raises:
        ContentError: one model twice, whose second file would replace the first.
    """
    whole = ["--".join(part for part in Path(model).parts if part != "/") for model in models]
    last = [Path(model).name for model in models]
    names = [short if last.count(short) == 1 else long for short, long in zip(last, whole, strict=True)]
    twice = [model for model, name in zip(models, names, strict=True) if names.count(name) > 1]
    if twice:
        raise ContentError(f"two results are of {twice[0]!r}; a table has a column for each model, so give each once")
    return names


def files_of(models: Sequence[str]) -> dict[str, files.Kind]:
    """The files that a table of these models writes."""
    table = {"table1.csv": files.table("task", "model", "editing", "setting"), "report.html": files.PAGE}
    return table | {f"result-{name}.json": files.RESULT for name in file_names(models)}


def unfinished(results: Sequence[AblationResult], missing: Sequence[str] = ()) -> str:
    """What is to be said of a table that was interrupted; empty if it is whole.

    Args:
        results: Its results.
        missing: Models that were to be run and were not.
    """
    parts = [f"{result.provenance['model']} is {result.unfinished}" for result in results if result.unfinished]
    return "; ".join([*parts, *(f"{model} was not run" for model in missing)])


def write_table1(results: Sequence[AblationResult], out: Path, missing: Sequence[str] = ()) -> Path:
    """Write `table1.csv`, one `result-MODEL.json` per model, and `report.html` into a folder.

    Args:
        results: From `table1`, one per model.
        out: The folder.
        missing: Models that were to be run and were not: the page says so.
    """
    names = file_names([str(result.provenance["model"]) for result in results])
    table: Any = layout(results)
    files.write_table(out / "table1.csv", table, files_of([])["table1.csv"])
    for result, name in zip(results, names, strict=True):
        result.save(out / f"result-{name}.json")
    beyond = [column for column in table.columns if column not in ("low", "high")]
    protocols = [(result.provenance["model"], table_of(result.provenance["experiment"])) for result in results]
    sections = [
        Section(
            "Table 1",
            "Accuracy when the top 1, 5 and 10 sinks of every layer and head at step t - 1 get -inf before the softmax "
            "at step t (autoregressive models: by the last query), with 95 % intervals over prompts. Below it the "
            "numbers of arXiv 2510.15731, for other models and tasks: compare the direction, not the size. Exposed: "
            "the share of the scored places that were decided by a forward in which at least one key was edited.",
            [
                ("This run", wide(table)),
                ("Published (arXiv 2510.15731, table 1)", wide(published())),
            ],
            [plots.conditions(results)],
        ),
        Section(
            "With the controls that the paper lacks",
            "The same edit on as many random keys that are no sinks (in autoregressive models from the neighbourhood "
            "of each sink), and on random keys with the same total attention. minus_control: (sinks - unmasked) - "
            "(random - unmasked), paired by prompt, with its 95 % interval; p_holm: permutation test, corrected over "
            "the table.",
            [("Sinks and random keys", table[beyond])],
            [],
        ),
        Section("Protocol", "Everything that made the numbers.", protocols, []),
    ]
    return page.write(
        out / "report.html",
        title="Table 1 of “Attention Sinks in Diffusion Language Models”, reproduced",
        intro="Does removing attention sinks hurt, and does it hurt more than removing other keys?",
        sections=sections,
        footer="written by sinklens reproduce table1",
        warning=unfinished(results, missing),
    )
