"""`sinklens trace`: one run, kept and shown."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

import sinklens as sl
from sinklens.analysis.headline import headline
from sinklens.cli.app import app


def test_trace_writes_record_and_report_and_explains_its_rule(tmp_path: Path) -> None:
    arguments = [
        "trace",
        "tiny-dlm",
        "zuko xi zuko",
        "pante",
        "--new-tokens",
        "4",
        "--rule",
        "gu",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "units='share'" in result.output
    said, _, rest = result.output.partition("zuko xi zuko -> ")  # first where it runs, then what is remarkable
    assert said.startswith("tiny-dlm on ")
    assert headline(sl.open(tmp_path / "record.nc"), sl.rule("gu")) in said
    assert " layer  sinks" in rest
    assert "zuko xi zuko -> " in result.output
    assert sl.open(tmp_path / "record.nc").sizes["prompt"] == 2
    assert '"name":"tiny-dlm"' in (tmp_path / "timeline.html").read_text(encoding="utf-8")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('class="sinklens-timeline"') == 2
    assert "tiny-dlm" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_without_sinks_says_so(tmp_path: Path) -> None:
    """Five tokens: no column sum exceeds the mean of the others by 3 unless nearly all attention goes there."""
    given = ["trace", "tiny-bdlm", "molma telme <|mask|> xe", "--new-tokens", "0", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert sl.metrics.sink_tokens(sl.open(tmp_path / "record.nc"), sl.SinkRule()).empty
    assert "Which tokens are sinks (arXiv 2510.15731, table 2)\nnone, at no step\n" in result.output
