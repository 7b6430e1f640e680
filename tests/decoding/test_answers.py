"""Answers are read behind their prompts: one rule for white space, and for what becomes of tokens at the border."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODER, IDS
from parts_text import ids_of, spaced_tokenizer

from sinklens import HookedDLM, Plan, ablate, denoise, log_likelihood
from sinklens.decoding.answers import answered_rows
from sinklens.errors import PlanError, PromptError, TaskError
from sinklens.experiments.config import Experiment
from sinklens.tasks import Example, Jsonl, Prompts, Score, Task

USER = [{"role": "user", "content": "w1 w2"}]
ASKED = ids_of("<user>", "w1", " w2", "\n", "A:")


@pytest.fixture(scope="module")
def model(tiny_stock: Any) -> Callable[..., HookedDLM]:
    made: dict[Any, HookedDLM] = {}

    def make(family: str = "LLaDA", *, before: bool = False) -> HookedDLM:
        if (family, before) not in made:
            own = spaced_tokenizer(before=before)
            made[family, before] = HookedDLM.from_transformers(tiny_stock(DECODER[family]), own, family, ids=IDS)
        return made[family, before]

    return make


def read(dlm: HookedDLM, prompt: Any, answer: Any, **options: Any) -> tuple[list[int], list[int]]:
    return tuple(answered_rows(dlm, [prompt], [answer], **options)[0])  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("prompt", "answer", "separator", "tokens", "said"),
    [
        ("A: w1", "w2", " ", ["A:", " w1"], [" w2"]),
        ("A: w1", " w2", " ", ["A:", " w1"], [" w2"]),
        ("A: w1", "w2 w3\n", " ", ["A:", " w1"], [" w2", " w3"]),
        ("A: w1 ", "w2", " ", ["A:", " w1"], [" w2"]),  # white space at the end goes to the answer
        ("A: w1 ", " w2", " ", ["A:", " w1"], [" w2"]),
        ("A: w1\n", "w2", " ", ["A:", " w1"], ["\n", "w2"]),
        ("A: w1\n", " w2", " ", ["A:", " w1"], ["\n", "w2"]),
        ("A: w1", "w2", "\n", ["A:", " w1"], ["\n", "w2"]),
        ("A: w1", "\nw2", "\n", ["A:", " w1"], ["\n", "w2"]),
        ("A: w1<user>", "w2", " ", ["A:", " w1", "<user>"], ["w2"]),  # nothing behind a special token
        ("A: w1<user>", "w2", "", ["A:", " w1", "<user>"], ["w2"]),
        ("w1\n", "\n w2", None, ["w1"], ["\n", "\n", " w2"]),  # as it is written
        ("w1 ", " w2", None, ["w1"], [" ", " w2"]),
        ("w1", " w2 ", None, ["w1"], [" w2"]),
        ("", "w2", " ", [], ["w2"]),
        ("", " w2", None, [], [" w2"]),
    ],
)
def test_prompt_and_answer_are_read_together(
    model: Any, before: bool, prompt: str, answer: str, separator: str | None, tokens: list[str], said: list[str]
) -> None:
    expected = (ids_of(*tokens), ids_of(*said))
    expected = (ids_of("<bos>", *tokens) if before or not tokens else expected[0], expected[1])
    assert read(model(before=before), prompt, answer, separator=separator) == expected


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("answer", ["w2", " w2"])
def test_behind_a_template_nothing_stands_in_between(model: Any, before: bool, answer: str) -> None:
    dlm = model(before=before)
    expected = (ASKED, ids_of("w2"))
    with pytest.raises(PromptError, match=r"cannot read .*A:w2"):
        read(dlm, USER, answer)  # "A:" and "w2" are one word
    own = spaced_tokenizer(before=before)
    own.chat_template = own.chat_template.replace("A:{%", "A:\n{%")
    old, dlm.tokenizer = dlm.tokenizer, own
    try:
        asked = [*ASKED, *ids_of("\n")]
        templated = own.apply_chat_template(USER, add_generation_prompt=True)
        for prompt, options in ((USER, {}), ("w1 w2", {"chat": True}), (USER, {"chat": True}), (templated, {})):
            assert read(dlm, prompt, answer, **options) == (asked, expected[1])
        # As a text it is a text: the line break goes to the answer.
        text = own.apply_chat_template(USER, add_generation_prompt=True, tokenize=False)
        head = ids_of("<bos>") if before else []
        assert read(dlm, text, answer) == ([*head, *ASKED], ids_of("\n", "w2"))
    finally:
        dlm.tokenizer = old


@pytest.mark.parametrize("before", [False, True])
def test_prompts_that_are_ids_are_read_as_their_text(model: Any, before: bool) -> None:
    dlm = model(before=before)
    ids = dlm.encode("A: w1")
    for answer in ("w2", " w2"):
        assert read(dlm, ids, answer) == (ids, ids_of(" w2"))
        assert read(dlm, [*ids, *ids_of("\n")], answer) == ([*ids, *ids_of("\n")], ids_of("w2"))
    with pytest.raises(PromptError, match="does not leave the prompt's tokens"):
        read(dlm, ids_of("w1", "w2"), "w3")  # no text gives these ids
    assert read(dlm, ids_of("w1", "w2"), ids_of("w3")) == (ids_of("w1", "w2"), ids_of("w3"))


@pytest.mark.parametrize(
    ("prompt", "answer", "options", "error", "message"),
    [
        ("ab", "c", {"separator": ""}, PromptError, "the answer 'c' behind 'ab' does not leave the prompt's tokens"),
        ("w1", "\nw2", {}, PromptError, r"'\\nw2' begins with '\\n', which does not count under separator=' '"),
        ("w1", " w2", {"separator": ""}, PromptError, "' w2' begins with ' '"),
        ("w1", "w2", {"separator": "->"}, PromptError, "separator='->' must be white space"),
        ("w1", " \n", {}, PlanError, r"the answer ' \\n' is empty"),
        ("w1", [], {}, PlanError, "an answer is empty"),
        ("w1", [0, 5], {}, PromptError, r"the answer \[0, 5\] begins with BOS"),
        ("w1", USER, {}, PromptError, "is messages; give its text"),
        ("w1", [5, 99], {}, PromptError, "token id 99 is outside the vocabulary"),
        ("w1", [5.5], {}, PromptError, "5.5"),
    ],
)
def test_what_cannot_be_read_behind_its_prompt_is_refused(
    model: Any, prompt: Any, answer: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    dlm = model(before=True)
    with pytest.raises(error, match=message):
        log_likelihood(dlm, [prompt], [answer], **options)


def exact(dlm: HookedDLM, prompt: list[int], answer: list[int]) -> float:
    """Nats per answer token of a baseline, from a plain forward."""
    with torch.no_grad():
        scores = dlm(torch.tensor([prompt + answer]))[0].double().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return sum(float(scores[place, token]) for place, token in zip(places, answer, strict=True)) / len(answer)


def test_likelihood_of_texts(model: Any) -> None:
    arm = model("Llama", before=True)
    prompt, answer = ids_of("<bos>", "A:", " w1"), ids_of(" w2", " w3")
    expected = pytest.approx(exact(arm, prompt, answer), abs=1e-4)
    for given, said in (
        ("A: w1", "w2 w3"),
        ("A: w1", " w2 w3"),
        ("A: w1 ", "w2 w3\n"),
        (prompt, "w2 w3"),
        (arm.tokenizer("A: w1"), [answer]),
        (["A: w1"], torch.tensor([answer])),
        ("A: w1", arm.tokenizer(" w2 w3", add_special_tokens=False)),
    ):
        assert float(log_likelihood(arm, given, said)) == expected
    apart = exact(arm, prompt, ids_of("w2", " w3"))
    assert abs(apart - exact(arm, prompt, answer)) > 0.01
    two = log_likelihood(arm, ["A: w1", "w3"], ["w2 w3", " w4"]).tolist()
    assert two == pytest.approx(
        [exact(arm, prompt, answer), exact(arm, ids_of("<bos>", "w3"), ids_of(" w4"))], abs=1e-4
    )


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_all_metrics_say_the_same_of_an_answer_with_and_without_its_space(
    model: Any, tmp_path: Path, family: str
) -> None:
    """The model's own completion is the answer, so accuracy and forced accuracy are 1 and its likelihood is known."""
    dlm, found = model(family), []
    for word in (f"w{number}" for number in range(20)):
        prompt = f"A: {word}"
        said = denoise(dlm, prompt, Plan(new_tokens=1), progress=False).completions[0]
        if said.startswith(" w"):
            found.append((prompt, said.strip()))
    assert found
    scores = []
    for form in ("{}", " {}", "{}\n"):
        path = tmp_path / "task.jsonl"
        lines = [json.dumps({"prompt": prompt, "answer": form.format(word)}) for prompt, word in found]
        path.write_text("\n".join(lines), encoding="utf-8")
        metrics = ["accuracy", "forced_accuracy", "log_likelihood"]
        result = ablate(dlm, Jsonl(path), {}, Plan(new_tokens=1), metrics=metrics, progress=False)
        scores.append([(row["metric"], row["prompt"], row["value"]) for row in result.scores])
        for metric, prompt, value in scores[0]:
            if metric == "log_likelihood":
                ids, answer = dlm.encode(found[prompt][0]), dlm.encode_piece(f" {found[prompt][1]}")
                with torch.no_grad():
                    canvas = torch.tensor([ids + ([62] if family == "LLaDA" else [])])
                    by_hand = dlm(canvas)[0, -1].double().log_softmax(-1)[answer[0]]
                assert value == pytest.approx(float(by_hand), abs=1e-4)
            else:
                assert value == 1.0
    assert scores[0] == scores[1] == scores[2]


class Asked(Task):
    """Texts or messages with one answer."""

    name, identity = "asked", "texts or messages with one answer, for tests"

    def __init__(self, prompts: list[Any], answer: str) -> None:
        self.prompts, self.answer = prompts, answer

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Example:
        return Example(self.prompts[index], self.answer, f"asked {index}")

    def score(self, example: Example, completion: str) -> Score:
        return Score(0, 1)

    def checkable(self, example: Example, answer: Any) -> list[bool]:
        return [True] * len(answer)


@pytest.mark.parametrize("before", [False, True])
def test_a_chat_plan_scores_the_templated_prompt(model: Any, before: bool) -> None:
    arm = model("Llama", before=before)
    own = spaced_tokenizer(before=before)
    own.chat_template = own.chat_template.replace("A:{%", "A:\n{%")
    old, arm.tokenizer = arm.tokenizer, own
    try:
        expected = exact(arm, [*ASKED, *ids_of("\n")], ids_of("w2"))
        for prompts, plan in ((["w1 w2"], Plan(new_tokens=1, chat=True)), ([USER], Plan(new_tokens=1))):
            result = ablate(arm, Asked(prompts, "w2"), {}, plan, metrics=["log_likelihood"], progress=False)
            assert [row["value"] for row in result.scores] == [pytest.approx(expected, abs=1e-4)]
            assert float(log_likelihood(arm, prompts, ["w2"], chat=plan.chat)) == pytest.approx(expected, abs=1e-4)
        assert abs(exact(arm, arm.encode("w1 w2"), ids_of(" w2")) - expected) > 0.01
    finally:
        arm.tokenizer = old


@pytest.mark.usefixtures("no_forward")
def test_an_answer_that_cannot_be_read_is_refused_before_a_forward(model: Any) -> None:
    for metric in ("log_likelihood", "forced_accuracy"):
        with pytest.raises(PromptError, match=r"asked 0: the answer '\\nw2' begins with"):
            ablate(model(), Asked(["w1"], "\nw2"), {}, Plan(new_tokens=1), metrics=[metric], progress=False)
    with pytest.raises(ValueError, match="needs true answers"):
        ablate(model(), Prompts(["w1"]), {}, Plan(new_tokens=1), metrics=["log_likelihood"], progress=False)


def test_a_task_says_which_white_space_counts(tmp_path: Path) -> None:
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"prompt": "def f():\n", "answer": "    return 1\n"}), encoding="utf-8")
    for said, lenient, written in (("    return 1", 1, 1), ("return 1", 1, 0), ("    return 1\n\n", 1, 1)):
        for task, right in ((Jsonl(path), lenient), (Jsonl(path, separator=None), written)):
            assert task.score(task[0], said) == Score(right, 1)
    assert Jsonl(path).checker() != Jsonl(path, separator=None).checker()
    with pytest.raises(TaskError, match="separator='->' must be white space"):
        Jsonl(path, separator="->")


def test_an_experiment_says_it_in_a_word(tmp_path: Path) -> None:
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"prompt": "def f():", "answer": "return 1"}), encoding="utf-8")
    for word, separator in ((" ", " "), ("", ""), ("\n", "\n"), ("as-written", None)):
        experiment = Experiment(task=str(path), edits={"cut": "mask:top1"}, separator=word)
        assert experiment.make_task().separator == separator
        assert Experiment.from_dict(experiment.to_dict()) == experiment
    with pytest.raises(TaskError, match="separator='->' must be white space"):
        Experiment(task=str(path), edits={"cut": "mask:top1"}, separator="->")
    with pytest.raises(PlanError, match="separator='' is for tasks from a file"):
        Experiment(edits={"cut": "mask:top1"}, separator="")
