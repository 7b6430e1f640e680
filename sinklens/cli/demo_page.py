"""What the demo shows: tables in the terminal, and a page."""

from __future__ import annotations

from pathlib import Path

import typer

from sinklens import plots, report
from sinklens.cli.demo_job import Findings, Table

WRITES = {
    "tiny-dlm": "while it denoises",
    "tiny-bdlm": "while it denoises block by block",
    "tiny-arm": "while it writes",
}


def write_report(findings: Findings, out: Path) -> Path:
    """Write `report.html` into `out`."""
    records = findings.records
    trained = findings.layers[~findings.layers.model.str.contains("untrained")]
    effects = findings.ablations[findings.ablations.kind == "sinks"]
    common = findings.classes[findings.classes.share_of_keys > 0].reset_index(drop=True)
    columns = [
        "model",
        "outcome",
        "condition",
        "minus_unmasked",
        "minus_random",
        "minus_random_low",
        "minus_random_high",
    ]
    sections = [
        report.Section(
            "What the models can do",
            "Three models of one architecture, trained on the same toy language: tiny-dlm by masked diffusion, which "
            "sees the whole text; tiny-bdlm by masked diffusion in blocks of 4, each of which sees itself and the "
            "blocks before it; tiny-arm to predict the next word. Behind a trigger word a rule decides the next word "
            "(xa, xe, ...: repeat the last word; wa, we, ...: the last word but one). Accuracy counts those words "
            "only, on held-out texts, with 95 % bootstrap intervals over texts. Filling in, tiny-arm sees what stands "
            "before a gap, tiny-bdlm the rest of its block, too, and tiny-dlm everything.",
            [("Accuracy at rule-decided words", findings.accuracy), ("Held-out examples", findings.examples)],
            [],
        ),
        report.Section(
            "Where the sinks are",
            "A key is a sink of a head at a step if it receives more than 3 units of attention (column sum; the "
            "average key receives 1) beyond the mean of the other keys (arXiv 2510.15731, epsilon = 3). 'null' is what "
            "uniform attention would give, with the mask of the model: in a causal one the first key passes without "
            "being a sink.",
            [
                (
                    "Sinks per head and step, by layer; share of keys that are no sinks (the paper asks for 0.96)",
                    findings.layers,
                ),
                ("Token classes of sinks, beside how common each class is", common),
            ],
            [plots.layer_counts(trained), plots.token_classes(findings.classes)],
        ),
        report.Section(
            "How they move",
            "One held-out text while it is written. Jaccard is the overlap of a head's sinks at consecutive steps "
            "(1 = the same keys); 'ever' and 'always' count keys per head and run.",
            [("Movement of sinks, by layer", findings.movement)],
            [
                plots.text_timeline(records),
                *(plots.timeline(record, title=f"{name} {WRITES[name]}") for name, record in records.items()),
                *(
                    plots.sink_positions(record, title=f"Where the sinks of {name} are")
                    for name, record in records.items()
                ),
            ],
        ),
        report.Section(
            "What removing them does",
            "The top 1, 5 and 10 sinks of every layer and head at step t - 1 are masked (-inf before the softmax) at "
            "step t, and as many random keys that are no sinks. 'continuing' checks what the model writes itself; "
            "'filling in' scores the same masked words under every condition. Differences are paired by text. Exposed: "
            "the share of the scored words that were decided by a forward in which at least one key was edited (at "
            "step 0, which has no step before it, none is).",
            [
                ("Accuracy under each condition", findings.ablations.drop(columns=columns[3:])),
                ("Effects", effects[columns].reset_index(drop=True)),
            ],
            [
                plots.conditions(results, title=f"What masking costs, {outcome}")
                for outcome, results in findings.results.items()
            ],
        ),
    ]
    return report.write(
        out / "report.html",
        title="sinklens demo: attention sinks in three models of one architecture",
        intro="Every number on this page was computed by `sinklens demo` on the three bundled models. They are tiny: "
        "what they show holds for them, and is shown whichever way it came out.",
        sections=sections,
        footer=f"computed in {findings.seconds:.0f} s",
    )


def tell(findings: Findings) -> None:
    """Print the tables."""
    for caption, table in (
        ("Accuracy at rule-decided words of held-out texts (95 % intervals)", findings.accuracy),
        ("Examples", findings.examples),
        ("Sinks per head and step (epsilon 3, column sums); null = under uniform attention", findings.layers),
        ("What the sinks are", findings.classes[findings.classes.share_of_keys > 0]),
        (
            "How sinks move: Jaccard of consecutive steps; keys that are ever / always a sink of a head",
            findings.movement,
        ),
        (
            "Accuracy with sinks masked, and with as many random keys masked; exposed: the share of the scored words "
            "that an edited forward decided",
            _wide(findings.ablations),
        ),
    ):
        shown = table.replace({"\n": "\\n"}, regex=True)
        typer.echo(f"\n{caption}\n{shown.to_string(index=False, float_format=lambda x: f'{x:.3f}', max_colwidth=60)}")


def _wide(ablations: Table) -> Table:
    out: Table = ablations.copy()
    interval = [
        f"{a:.3f} [{low:.3f}, {high:.3f}]" + (f" ({met:.2f} exposed)" if met < 1 else "")
        for a, low, high, met in zip(out.accuracy, out.low, out.high, out.exposed, strict=True)
    ]
    out["accuracy"] = interval
    wide = out.pivot_table(
        index=["model", "outcome", "k"], columns="kind", values="accuracy", aggfunc="first", sort=False
    )
    wide["sinks"] = wide["sinks"].fillna(wide["unmasked"])
    return (
        wide[["sinks", "random"]]
        .fillna("")
        .rename(columns={"sinks": "sinks masked", "random": "random masked"})
        .reset_index()
    )
