"""Words that the tokenizer does not know are refused before anything is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sinklens import HookedDLM, MaskSinks, Plan, SameStep, ablate
from sinklens.errors import TaskError
from sinklens.experiments.words import refuse_unknown
from sinklens.tasks import Echo, Example, Jsonl


def tokenizer(kind: str) -> Any:
    """Words with and without a token for unknown ones; pieces that drop what they do not hold; bytes."""
    unknown = {"unk_token": "<unk>"} if kind == "unknown" else {}
    words = {"pad" if kind == "no token" else "<unk>": 0, "a": 1, "b": 2, "é": 3}
    if kind == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return PreTrainedTokenizerFast(tokenizer_object=backend)
    hidden = {"unk_token": "<unk>"} if kind == "of the model" else unknown
    backend = Tokenizer(models.BPE(words, []) if kind == "pieces" else models.WordLevel(words, **hidden))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **unknown)


@pytest.mark.parametrize("kind", ["unknown", "of the model", "no token", "pieces"])
@pytest.mark.parametrize(("text", "word"), [("a b c", "c"), ("ü", "ü"), ("a\u4f60 b", "\u4f60")])
@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_a_word_that_is_lost_is_quoted(kind: str, text: str, word: str, where: str) -> None:
    example = Example(**{"prompt": "a", "answer": "b", "name": "task:7", where: text})
    with pytest.raises(TaskError, match=f"task:7: the tokenizer does not know '[a]?{word}' in the {where}"):
        refuse_unknown(tokenizer(kind), [example], answers=True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("unknown", "a  b\n a"),
        ("no token", "b a"),
        ("pieces", "ab e\u0301"),
        ("bytes", "x \u4f60 \U0001f600\n"),
        ("unknown", "<unk> a"),
    ],
)
def test_a_text_of_known_words_is_fine(kind: str, text: str) -> None:
    refuse_unknown(tokenizer(kind), [Example(text, text, "task:1"), Example((1, 2), "", "ids")], answers=True)
    refuse_unknown(None, [Example((1, 2), "", "ids")], answers=True)


@pytest.mark.usefixtures("no_forward")
def test_an_ablation_refuses_them_before_the_first_forward(tmp_path: Path) -> None:
    dlm = HookedDLM.from_pretrained("tiny-dlm", check=False)
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"prompt": "dolko zebra gake", "answer": "dolko"}))
    for task in (Jsonl(path), ["dolko zebra"]):
        with pytest.raises(TaskError, match="zebra"):
            ablate(dlm, task, {"a": MaskSinks(SameStep(top_k=1))}, Plan(new_tokens=4), progress=False)
    refuse_unknown(dlm.tokenizer, [Echo(4, gaps=0.5)[index] for index in range(4)], answers=True)


def test_an_answer_that_the_model_does_not_read_is_a_text() -> None:
    refuse_unknown(tokenizer("unknown"), [Example("a", "#### 7", "task:1")], answers=False)


def test_echo_is_asked_of_models_of_its_language_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that can read its words has other numbers for them: answers would be checked as other words."""
    tiny_arm = HookedDLM.from_pretrained("tiny-arm")
    words = dict(tiny_arm.tokenizer.get_vocab())
    last = max(words, key=words.__getitem__)
    first = next(word for word, number in words.items() if number == 10)
    words[last], words[first] = words[first], words[last]
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    monkeypatch.setattr(tiny_arm, "tokenizer", PreTrainedTokenizerFast(tokenizer_object=backend))
    with pytest.raises(TaskError, match=r"has another vocabulary.*Choose a task"):
        ablate(tiny_arm, Echo(2), {"top1": MaskSinks(SameStep(top_k=1))})
