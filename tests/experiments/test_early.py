"""What follows from arguments, files and config.json is refused before a weight is read, everywhere."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from fuzzing import command

from sinklens import HookedDLM, Plan, ablate, denoise
from sinklens.errors import (
    CheckpointError,
    NeverExposed,
    PartlyExposed,
    PlanError,
    PromptError,
    RecordError,
    ScopeError,
    SinklensError,
    TaskError,
)
from sinklens.experiments.config import Experiment
from sinklens.experiments.published import table1
from sinklens.models import loading
from sinklens.models.outline import outline
from sinklens.models.placing import Placing


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights fails the test."""

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_weights", read)


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task file."""
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"prompt": "dolko gake", "answer": "dolko"}))
    return str(path)


EDITS = ["mask:same/top1"]
FIELDS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": "tiny-arm", "plan": {"steps": 8}}, PlanError, "steps=8 has no meaning for the autoregressive tiny-arm"),
    ({"plan": {"new_tokens": 30, "block_length": 7}}, PlanError, "new_tokens=30 is not a multiple of block_length=7"),
    ({"edits": ["mask:same/top1@layers=7"]}, ScopeError, "condition 'mask:same/top1@layers=7': layer 7 does not exist"),
    ({"edits": ["mask:same/top1@heads=9"]}, ScopeError, "head 9 does not exist"),
    ({"edits": ["mask:same/top1@steps=40"]}, ScopeError, "steps=40"),
    ({"edits": ["mask:top1"], "plan": {"steps": 1, "block_length": 32}}, NeverExposed, "same/top1"),
    ({"model": "tiny-arm", "edits": ["mask:top1"], "plan": {"new_tokens": 1}}, NeverExposed, "same/top1"),
    ({"metrics": ["luck"]}, ValueError, "metric 'luck' is unknown"),
    ({"metrics": ["kl", "kl"]}, ValueError, "metric 'kl' is named twice"),
    ({"controls": ["luck"]}, ValueError, "control 'luck' is unknown"),
    ({"controls": ["random", "random"]}, ValueError, "control 'random' is named twice"),
    ({"edits": ["null_key=0"]}, ValueError, "no control can match it"),
    ({"seeds": [1, 1]}, PlanError, "seed 1 is named twice"),
    ({"task": "none.jsonl"}, PlanError, "'none.jsonl' is none of"),
    ({"extract": "x"}, PlanError, "extract='x' is for tasks from a file"),
    ({"match": "first"}, TaskError, "there is no extract"),
    ({"device": "quantum"}, CheckpointError, "device='quantum' cannot be used"),
    ({"device": "cuda:99"}, CheckpointError, "device='cuda:99' cannot be used"),
    ({"device": "meta"}, CheckpointError, "device='meta' cannot be used"),
    ({"dtype": "float8"}, CheckpointError, "dtype='float8' is unknown"),
    ({"attention": "flash"}, CheckpointError, "attention='flash' is unknown"),
    ({"device_map": "everywhere"}, CheckpointError, "device_map='everywhere' is unknown"),
    ({"device": "cpu", "device_map": "auto"}, CheckpointError, "give one"),
    ({"family": "Mamba"}, ValueError, "family 'Mamba' is unknown"),
    ({"mask_token_id": 10**6}, CheckpointError, "1000000"),
    ({"revision": "step-7"}, CheckpointError, "no revision 'step-7'"),
    ({"model": "nobody/nothing"}, CheckpointError, "'nobody/nothing' cannot be loaded"),
]


def options(fields: dict[str, Any]) -> list[str]:
    """The same as a command line."""
    words = {"edits": "edit", "metrics": "metric", "controls": "control", "seeds": "seed"}
    given: list[str] = []
    for name, value in fields.items():
        for each_name, each in value.items() if name == "plan" else [(name, value)]:
            if each is True:
                given.append(f"--{each_name}")
                continue
            for one in (each or ["none"]) if isinstance(each, list) else [each]:
                given += [f"--{words.get(each_name, each_name).replace('_', '-')}", str(one)]
    model = given.index("--model") if "--model" in given else None
    return [given[model + 1], *given[:model], *given[model + 2 :]] if model is not None else ["tiny-dlm", *given]


@pytest.mark.usefixtures("no_weights", "offline")
@pytest.mark.parametrize(("fields", "kind", "says"), FIELDS, ids=[str(fields) for fields, *_ in FIELDS])
def test_a_field_that_cannot_be_is_refused_before_weights(
    fields: dict[str, Any], kind: type[Exception], says: str, tmp_path: Path
) -> None:
    whole = {"edits": EDITS, **fields}
    with pytest.raises(kind, match=says) as error:
        Experiment(**whole).run(progress=False)
    assert isinstance(error.value, SinklensError | ValueError)
    code, _, err = command("ablate", *options(whole), "--out", str(tmp_path / "out"))
    assert code == 2
    assert err.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("no_weights")
def test_what_the_task_file_holds_is_refused_before_weights(task: str, tmp_path: Path) -> None:
    for fields, says in (
        ({"gaps": 0.5}, "gaps=0.5 is for the task 'echo'"),
        ({"extract": "("}, "is no regular expression"),
        ({"extract": "x", "match": "second"}, "match='second'"),
    ):
        with pytest.raises(ValueError, match=says.replace("(", r"\(")):
            Experiment(task=task, edits=EDITS, **fields).run(progress=False)
        assert command("ablate", *options({"edits": EDITS, "task": task, **fields}))[0] == 2
    for line, says in (('{"prompt": "zebra", "answer": "a"}', "zebra"), ('{"prompt": "a", "answer": null}', "null")):
        Path(task).write_text(line)
        with pytest.raises(TaskError, match=says):
            Experiment(task=task, edits=EDITS).run(progress=False)
        assert says in command("ablate", *options({"edits": EDITS, "task": task}))[2]


LONG = "dolko gake " * 70
TASKS: list[tuple[dict[str, str], dict[str, Any], type[Exception], str]] = [
    ({"prompt": LONG}, {}, PlanError, "exceeds the context of 128"),
    ({"prompt": LONG}, {"model": "tiny-arm"}, PlanError, "exceeds the context of 128"),
    ({}, {"plan": {"new_tokens": 127}}, PlanError, "with new_tokens=127 that exceeds the context of 128"),
    ({"answer": "dolko gake"}, {"metrics": ["forced_accuracy"], "plan": {"new_tokens": 3}}, ValueError, "new_tokens=3"),
    ({"answer": LONG}, {"metrics": ["log_likelihood"]}, PlanError, "within the context of 128"),
    ({"prompt": ""}, {"model": "tiny-arm", "edits": ["mask:pos40"]}, ScopeError, "shortest row"),
    ({}, {"metrics": ["log_likelihood"], "edits": ["mask:pos12"]}, ScopeError, "shortest row"),
    ({}, {"metrics": ["log_likelihood"], "edits": ["mask:same/top1@steps=1"]}, ScopeError, "names steps"),
    ({}, {"metrics": ["log_likelihood"], "plan": {"new_tokens": 0}}, ValueError, "filling gaps has none"),
    ({}, {"plan": {"new_tokens": 0}}, PlanError, "holds no mask token"),
    ({"prompt": "dolko <|mask|>"}, {}, PlanError, "holds 1 mask tokens"),
    ({"prompt": "dolko <|mask|>"}, {"plan": {"new_tokens": 0, "steps": 2}}, PlanError, "more than the 1 gaps"),
    ({}, {"plan": {"chat": True}}, PromptError, "cannot read"),
    ({}, {"plan": {"cfg_scale": 1.0}}, PlanError, "no one meaning"),
    ({}, {"edits": ["mask:token=99"]}, ScopeError, "token id 99 is outside the vocabulary of 67"),
    ({}, {"edits": ["mask:token=digit"]}, ValueError, "is of class 'digit'"),
    ({}, {"edits": ["sink_token=99"], "controls": []}, ScopeError, "token id 99 is outside the vocabulary of 67"),
    ({}, {"edits": ["mask:same/top999"]}, ScopeError, "999 keys"),
    ({}, {"edits": ["keep=400:recency"], "controls": []}, ScopeError, "keeps every key"),
]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("line", "fields", "kind", "says"), TASKS, ids=[says for *_, says in TASKS])
def test_prompts_answers_and_edits_that_do_not_fit_are_refused_before_weights_with_the_words_of_after(
    line: dict[str, str],
    fields: dict[str, Any],
    kind: type[Exception],
    says: str,
    task: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    Path(task).write_text(json.dumps({"prompt": "dolko gake", "answer": "dolko", **line}))
    asked = Experiment(**{"task": task, "edits": EDITS, **fields})
    dlm = HookedDLM.from_pretrained(asked.model)
    request.getfixturevalue("no_forward")
    with pytest.raises(kind, match=says) as after:
        ablate(
            dlm,
            asked.make_task(),
            asked.make_edits(),
            asked.make_plan(),
            controls=asked.controls,
            metrics=asked.asked_metrics,
        )
    request.getfixturevalue("no_weights")
    with pytest.raises(kind, match=says) as before:
        asked.run(progress=False)
    assert (type(before.value), str(before.value)) == (type(after.value), str(after.value))
    if "cfg_scale" in str(fields):  # no option
        return
    code, _, err = command("ablate", *options({"task": task, "edits": EDITS, **fields}), "--out", str(tmp_path / "o"))
    assert (code, says in err) == (2, True), err
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("no_weights")
def test_published_tables_and_traces_too(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="seed 3 is named twice"):
        table1("tiny-arm", seeds=(3, 3))
    with pytest.raises(NeverExposed, match="same/top1"):
        table1("tiny-arm", plan={"new_tokens": 1})
    out = ["--out", str(tmp_path / "out")]
    for given, says in (
        (["reproduce", "table1", "--model", "tiny-dlm", "--model", "tiny-dlm"], "--model tiny-dlm is given twice"),
        (["reproduce", "table1", "--seed", "3", "--seed", "3"], "seed 3 is named twice"),
        (["reproduce", "table1", "--extract", "x"], "extract='x' is for tasks from a file"),
        (["reproduce", "table1", "--new-tokens", "1"], "same/top1"),
        (["trace", "tiny-arm", "dolko", "--steps", "8"], "steps=8 has no meaning"),
        (["trace", "tiny-dlm", "dolko", "--device", "quantum"], "device='quantum'"),
        (["trace", "tiny-dlm", "dolko", "--rule", "luck"], "luck"),
        (["trace", "tiny-dlm", LONG], "exceeds the context of 128"),
        (["trace", "tiny-dlm", "dolko", "--new-tokens", "127"], "exceeds the context of 128"),
        (["trace", "tiny-dlm", "dolko", "--new-tokens", "0"], "holds no mask token"),
        (["trace", "tiny-dlm", "dolko", "--chat"], "cannot read"),
        (["trace", "tiny-dlm", "zebra"], "cannot read"),
        (["trace", "tiny-dlm", "dolko", "--seed", "-1"], "-1"),
        (["demo", "--revision", "step-7"], "tiny-dlm has no revision 'step-7'"),
        (["demo", "--device", "cpu", "--device-map", "auto"], "give one"),
        (["reproduce", "table1", "--new-tokens", "120"], "exceeds the context of 128"),
    ):
        code, _, err = command(*given, *out)
        assert (code, says in err) == (2, True), err
    assert "dtype='float8'" in command("hooks", "tiny-dlm", "--dtype", "float8")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_weights")
def test_a_family_and_a_mask_token_that_cannot_be(fidelity: Path) -> None:
    for folder, given, says in (
        ("diffullama", ["--family", "DiffuLLaMA", "--mask-token-id", "64"], "outside its vocabulary of 64"),
        ("diffullama", ["--family", "DiffuLLaMA"], "names no mask token"),
        ("diffullama", ["--family", "Mamba"], "'Mamba' is unknown; the families are LLaDA"),
        ("open_dcoder", ["--family", "DiffuLLaMA"], "unexpected weights model.layers.0.self_attn.k_proj.bias"),
        ("a2d_qwen2", ["--family", "Dream"], "which is A2D-Qwen2, and family= says Dream"),
        ("coda", ["--mask-token-id", "63"], "several mask tokens, 63, 62"),
    ):
        path = str(fidelity / folder / "checkpoint")
        for job in (["hooks", path], ["trace", path, "t3 t4"]):
            code, _, err = command(*job, *given)
            assert (code, says in err, err.count("\n")) == (2, True, 1), err


@pytest.mark.usefixtures("no_weights")
def test_a_folder_that_cannot_be_written_to_is_refused_before_weights(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for given in (
            ["trace", "tiny-dlm", "dolko"],
            ["ablate", "tiny-dlm", "--edit", "mask:same/top1"],
            ["reproduce", "table1"],
            ["demo"],
        ):
            code, _, err = command(*given, "--out", str(out))
            assert code == 2
            assert "is no folder" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_weights")
def test_a_file_of_others_is_refused_before_weights(task: str) -> None:
    with pytest.raises(RecordError, match="holds no scores that sinklens wrote"):
        Experiment(edits=EDITS).run(save_to=task, progress=False)
    assert json.loads(Path(task).read_text())["answer"] == "dolko"


def test_what_is_only_partly_exposed_is_a_note_and_what_never_is_an_error(tmp_path: Path) -> None:
    """From the shell: one line, without the line of code that it comes from; and nothing that was run is lost."""
    small = ["tiny-arm", "--prompts", "2", "--new-tokens", "4", "--out", str(tmp_path)]
    with warnings.catch_warnings():
        warnings.simplefilter("always", PartlyExposed)
        code, out, err = command("ablate", *small, "--edit", "mask:top1", "--metric", "agreement")
    assert code == 0
    assert "exposed" in out
    assert err.count("note: some scored places") == 1
    assert ".py" not in err
    never = ["--edit", "mask:same/eps99", "--metric", "agreement"]  # no key receives so much
    code, _, err = command("ablate", *small, *never)
    assert code == 2
    assert "never met what is scored" in err
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_an_outline_says_what_the_model_says(name: str) -> None:
    drawn, dlm = outline(name), HookedDLM.from_pretrained(name)
    for field in ("name", "family", "ids", "n_layers", "n_heads", "n_ctx", "is_causal"):
        assert getattr(drawn, field) == getattr(dlm, field), field
    assert drawn.tokenizer.get_vocab() == dlm.tokenizer.get_vocab()
    assert drawn.d_vocab == dlm.cfg.d_vocab
    assert repr(drawn) == repr(dlm)
    assert Plan().resolved(drawn) == Plan().resolved(dlm)
    for prompt in ("dolko gake", "", [5, 6], {"input_ids": [1, 5], "attention_mask": [0, 1]}):
        assert drawn.encode(prompt) == dlm.encode(prompt)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("folder", ["llada", "dream", "mmada", "a2d_qwen3"])
def test_an_outline_needs_no_weights(fidelity: Path, tmp_path: Path, folder: str) -> None:
    copy = tmp_path / folder
    shutil.copytree(fidelity / folder / "checkpoint", copy, ignore=shutil.ignore_patterns("*.safetensors"))
    drawn = outline(str(copy))
    assert not drawn.is_causal
    assert drawn.n_layers > 0
    assert drawn.n_heads > 0
    with pytest.raises(CheckpointError, match="is a folder here, which has no revision 'main'"):
        outline(str(copy), "main")


def test_a_model_is_placed_as_said() -> None:
    dlm = Placing("cpu", "float64", None, "step-0", "blocks").load("tiny-dlm")
    assert (str(dlm.dtype), dlm.device.type, dlm.revision, dlm.attention) == (
        "torch.float64",
        "cpu",
        "step-0",
        "blocks",
    )
    run = denoise(dlm, "dolko gake", Plan(new_tokens=2), progress=False)
    assert run.finished
    _, out, _ = command("hooks", "tiny-dlm", "--device", "cpu", "--dtype", "bfloat16", "--revision", "step-50")
    assert out.splitlines()[0] == "tiny-dlm on cpu, bfloat16, step-50"


def test_dtype_attention_and_revision_are_a_part_of_every_score(tmp_path: Path) -> None:
    """Nothing that was computed in another way is served from the file."""
    store = tmp_path / "scores"
    counts = []
    for fields in ({}, {"dtype": "bfloat16"}, {"attention": "blocks"}, {"revision": "step-2000"}, {}):
        asked = Experiment(edits=EDITS, prompts=1, plan={"new_tokens": 4}, controls=(), **fields)
        asked.run(save_to=store, progress=False)
        counts.append(len(store.read_text().splitlines()) - 1)
    assert counts == [1, 2, 3, 4, 4]
