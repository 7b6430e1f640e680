"""The command line, in-process and from outside."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import pytest
import torch
import typer
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app as cli
from sinklens.cli import options
from sinklens.experiments import runner
from sinklens.models import files

RUNNER = CliRunner()


def plain(text: str) -> str:
    """Text without colours and frames."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def invoke(*arguments: str) -> str:
    """Output of a command that must succeed."""
    result = RUNNER.invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return plain(result.output)


def test_help_names_the_commands_and_where_to_start() -> None:
    text = invoke("--help")
    for command in ("demo", "models", "hooks"):
        assert re.search(rf"\b{command}\b", text)
    assert "sinklens demo" in text
    for option in ("--out", "--prompts", "--seed"):
        assert option in invoke("demo", "--help")


def test_models_lists_the_bundle_and_every_family() -> None:
    from sinklens.models.families import FAMILIES

    text = invoke("models")
    for word in ("tiny-dlm", "tiny-bdlm", "tiny-arm", *(family.name for family in FAMILIES)):
        assert word in text
    assert re.search(r"GSAI-ML/LLaDA-8B-Base +8 B +MIT\n", text)
    assert re.search(r"Qwen3-0\.6B-diffusion-mdlm-v0\.1 +0\.75 B laptop\n", text)
    said = json.loads(invoke("models", "--json"))
    assert said["bundled"] == ["tiny-dlm", "tiny-bdlm", "tiny-arm"]
    for package in said["packages"]:
        assert f"sinklens models get {package['name']}`" in text
        assert package["about"] in text
    for family in said["families"]:
        for model in family["models"]:
            assert model["laptop"] == (model["parameters"] is not None and model["parameters"] < 2.2e9)
            assert re.search(rf"{re.escape(model['name'])}.*{model['licence']}", text)


@pytest.mark.parametrize("name", files.BUNDLED)
def test_hooks_lists_points_with_their_shapes(name: str) -> None:
    text = invoke("hooks", name)
    assert name in text
    assert re.search(r"blocks\.\{i\}\.attn\.hook_pattern +\[1, 4, 5, 5\]", text)
    assert re.search(r"blocks\.\{i\}\.attn\.hook_attn_scores +\[1, 4, 5, 5\]", text)
    assert re.search(r"hook_received_last +\[1, 4, 5\] +from each row's last query; shown only", text)
    assert "blocks.1." not in text


def test_every_hook_point_that_is_explained_exists() -> None:
    from sinklens import HookedDLM
    from sinklens.models.attention import MEANING

    assert {f"blocks.0.{name}" for name in MEANING} <= HookedDLM.from_pretrained("tiny-dlm").hook_table().keys()


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the Hub's own message has several lines, as without a network."""

    def unreachable(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("Cannot find it in the local cache.\n\nCheck your connection.")

    monkeypatch.setattr(files, "snapshot_download", unreachable)
    monkeypatch.setattr(sys, "argv", ["sinklens", "hooks", "nonsense"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: 'nonsense' cannot be loaded")
    assert "tiny-dlm" in lines[0]


@pytest.mark.parametrize("option", [["--prompts", "0"], ["--prompts", "many"], ["--nothing"]])
def test_options_that_make_no_sense_are_refused(option: list[str], tmp_path: Path) -> None:
    result = RUNNER.invoke(cli.app, ["demo", "--out", str(tmp_path / "out"), *option])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert "Traceback" not in capfd.readouterr().err


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_the_demo_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "results"
    threads = torch.get_num_threads()
    text = invoke("demo", "--prompts", "4", "--out", str(out))
    torch.set_num_threads(threads)
    kept = ("record.nc", "record-bdlm.nc", "record-arm.nc")
    for name in ("report.html", *kept, "ablation.csv"):
        assert (out / name).is_file()
        assert name in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(page) > 10_000
    assert "<html" in page
    assert page.rstrip().endswith("</html>")
    for name, model in zip(kept, files.BUNDLED, strict=True):
        record = sinklens.open(out / name)
        assert f"{model} while it" in page
        assert f"sinks of {model} are" in page
        assert json.loads(record.attrs["provenance"])["model"] == model
        assert record.sizes["prompt"] == 4
        assert record.sizes["step"] == 32
        per_layer = sinklens.analysis.rates.per_layer(record)
        assert len(per_layer) == 2
    table = pd.read_csv(out / "ablation.csv")
    for model in files.BUNDLED:
        found = {(row.condition, row.kind) for row in table[table.model == model].itertuples()}
        expected = {(f"top-{k}", kind) for k in (1, 5, 10) for kind in ("sinks", "random")}
        assert found == {("unmasked", "unmasked"), *expected}
    assert set(table.outcome) == {"continuing", "filling in"}
    assert len(table) == 3 * 2 * 7
    assert table.accuracy.between(0, 1).all()
    assert (table.low <= table.accuracy).all()
    assert (table.accuracy <= table.high).all()
    for row in table[table.kind == "sinks"].itertuples():
        base = table[(table.model == row.model) & (table.outcome == row.outcome) & (table.kind == "unmasked")]
        if row.scored == base.scored.iloc[0] == 4:  # paired over the same texts
            assert row.minus_unmasked == pytest.approx(row.accuracy - base.accuracy.iloc[0], abs=1e-6)


def test_importing_sinklens_imports_nothing_heavy() -> None:
    code = "import sinklens, sys; print(sorted({m.split('.')[0] for m in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for package in ("plotly", "pandas", "transformers", "torch", "transformer_lens", "xarray"):
        assert f"'{package}'" not in result.stdout
    assert "'sinklens'" in result.stdout


def test_every_public_name_is_there() -> None:
    for name in sinklens.__all__:
        assert getattr(sinklens, name) is not None
    assert sorted(sinklens.__all__) == dir(sinklens)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sinklens.nonsense


def test_ablate_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    edits = ["--edit", "mask:top1", "--edit", "zero_value:top2@layers=1", "--gaps", "0.5"]
    given = [*edits, "--prompts", "3", "--seed", "2", "--control", "random", "--control", "noop", "--out", str(out)]
    text = invoke("ablate", "tiny-dlm", *given)
    for name in ("result.json", "summary.csv", "report.html"):
        assert (out / name).is_file()
        assert name in text
    result = sinklens.AblationResult.open(out / "result.json")
    assert result.finished
    table = pd.read_csv(out / "summary.csv")
    pd.testing.assert_frame_equal(table, result.summary(), check_exact=False)
    kinds = {(name, kind) for name in ("mask:top1", "zero_value:top2@layers=1") for kind in ("sinks", "random", "noop")}
    assert {(row.condition, row.kind) for row in table.itertuples()} == {("unmasked", "unmasked"), *kinds}
    assert set(table.metric) == {"forced_accuracy"}
    nothing = table[table.kind == "noop"]["value"]
    assert nothing.tolist() == [table["value"].iloc[0]] * 2  # to find sinks alone changes nothing
    assert "Effects on forced_accuracy" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "zero_value:top2@layers=1" in page
    before = (out / "scores.jsonl").read_text()
    again = invoke("ablate", "tiny-dlm", *given)  # nothing is left to run
    assert again.partition("Effects on")[2].strip() == text.partition("Effects on")[2].strip()
    assert (out / "scores.jsonl").read_text() == before


def test_ablate_shows_how_edits_are_written() -> None:
    from sinklens.interventions import GRAMMAR

    assert GRAMMAR in invoke("ablate", "--grammar")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["ablate", "tiny-dlm"], "there are no edits; name at least one, for example mask:top1"),
        (["ablate", "tiny-dlm", "--edit", "maks:top1"], "the edit 'maks:top1' cannot be read"),
        (["ablate", "--edit", "mask:top1", "--task", "none.jsonl"], "'none.jsonl' is none of 'echo'"),
        (["ablate", "--spec", "none.yaml"], "'none.yaml' cannot be read as YAML or JSON"),
        (["ablate", "--edit", "mask:top1", "--metric", "luck"], "metric 'luck' is unknown"),
        (["ablate", "--edit", "mask:top1", "--control", "luck"], "control 'luck' is unknown"),
        (["reproduce", "l2", "--model", "tiny-dlm", "--length", "300"], "lengths=[300] says nothing of tiny-dlm"),
        (["reproduce", "l2", "--model", "tiny-arm", "--prompts", "3"], "prompts=3 says nothing of tiny-arm"),
        (["reproduce", "l2", "--model", "tiny-arm"], "leaves none of the 2 layers to cut"),
        (["reproduce", "l2", "--model", "tiny-dlm", "--share", "1.5"], "rate 1.5 is outside (0, 1]"),
        (["reproduce", "l2", "--model", "tiny-dlm", "--share", "0.001"], "means nothing on the shortest prompt"),
    ],
)
def test_what_cannot_be_ablated_is_one_error(
    given: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sinklens", *given, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_ablation_that_is_interrupted_at_once_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "steps_from", interrupt)
    monkeypatch.setattr(sys, "argv", ["sinklens", "ablate", "--edit", "mask:top1", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_others_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "out" / "scores.jsonl"
    mine.parent.mkdir()
    mine.write_text('{"prompt": "a", "answer": "b"}\n{"prompt"')
    monkeypatch.setattr(sys, "argv", ["sinklens", "ablate", "--edit", "mask:top1", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "is no file of scores that sinklens wrote" in capfd.readouterr().err
    assert mine.read_text() == '{"prompt": "a", "answer": "b"}\n{"prompt"'


def test_every_command_says_what_it_does() -> None:
    """Every option has words of its own, wherever it is shared."""
    every = dict(typer.main.get_command(cli.app).commands)
    assert {"demo", "trace", "ablate", "reproduce", "models", "hooks"} <= set(every)
    for group in [command for command in every.values() if hasattr(command, "commands")]:
        every |= {f"{group.name} {name}": command for name, command in group.commands.items()}
    for name, command in every.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)


def test_reproduce_table_1(tmp_path: Path) -> None:
    out = tmp_path / "out"
    threads = torch.get_num_threads()
    text = invoke("reproduce", "table1", "--prompts", "2", "--new-tokens", "12", "--out", str(out))
    torch.set_num_threads(threads)
    for name in ("table1.csv", "report.html", *(f"result-{model}.json" for model in files.BUNDLED)):
        assert (out / name).is_file()
    table = pd.read_csv(out / "table1.csv")
    expected = [(name, k) for name in files.BUNDLED for k in ("unmasked", "top-1", "top-5", "top-10")]
    assert list(zip(table.model, table.setting, strict=True)) == expected
    assert "Published (arXiv 2510.15731, table 1)" in text
    assert "Llama-3.1-8B" in text
    assert text.rstrip().endswith("report.html")


def test_reproduce_l2_of_a_diffusion_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    threads = torch.get_num_threads()
    given = ("--prompts", "3", "--share", "0.5", "--out", str(out))
    text = invoke("reproduce", "l2", "--model", "tiny-dlm", *given)
    torch.set_num_threads(threads)
    steps = pd.read_csv(out / "l2-steps.csv")
    assert set(steps.key_type) == {"prompt", "committed", "mask", "eos"}
    assert sorted(set(steps.step)) == list(range(32))
    table = pd.read_csv(out / "l2-budgets.csv")
    assert list(table.selector) == ["unmasked", "key_norm", "received", "recency", "random"]
    assert text.rstrip().endswith("report.html")
    assert (out / "report.html").is_file()


def test_every_command_that_loads_a_model_takes_the_same_options() -> None:
    """Also those that a later command adds: `models` and `course` load none, and `eval` gets them in --model_args."""
    told = {
        "device": options.Device,
        "dtype": options.Dtype,
        "device_map": options.DeviceMap,
        "revision": options.Revision,
        "attention": options.Attention,
        "family": options.Family,
        "mask_token_id": options.MaskTokenId,
    }
    assert set(told) == set(options.PLACING)
    for info in cli.app.registered_commands:
        callback = inspect.unwrap(info.callback)
        if callback.__name__ in ("models", "course"):  # load none
            continue
        if callback.__name__ == "evaluate":
            said = " ".join(str(inspect.getdoc(callback)).split())
            assert all(f"{name}," in said or f"{name}." in said for name in set(told) - {"device"}), said
            continue
        given = get_type_hints(callback, include_extras=True)
        bundled = {"family", "mask_token_id"} if callback.__name__ == "demo" else set()  # it loads the twins alone
        for name in set(told) - bundled:
            assert given.get(name) == told[name], (callback.__name__, name)
