"""What tests of the harness share: a tokenizer of one word per id, checkpoints with it, and tasks over local files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

MARKS = {1: "<eos>", 2: "<eot>", 62: "<mask>"}


def word_tokenizer(size: int = 64, *, mask: bool = True) -> Any:
    """Id i is the word "wi"; 1 is EOS and pad, 62 the mask. Nothing is put in front of a text or behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marked = MARKS if mask else {1: "<eos>", 2: "<eot>"}
    backend = Tokenizer(models.WordLevel({marked.get(i, f"w{i}"): i for i in range(size)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"eos_token": "<eos>", "pad_token": "<eos>", "additional_special_tokens": ["<eot>"]}
    marks |= {"mask_token": "<mask>"} if mask else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **marks)


def with_words(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint with that tokenizer."""
    shutil.copytree(checkpoint, folder)
    word_tokenizer(json.loads((folder / "config.json").read_text()).get("vocab_size", 64)).save_pretrained(folder)
    return folder


def asked(kind: Any, *requests: tuple[Any, ...]) -> list[Any]:
    """Requests as the harness makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in requests]


CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
output_type: generate_until
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: [" ,"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""


def local_tasks(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """Two tasks over one JSONL file: `local_choice` (multiple choice) and `local_write` (generate_until)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "lines.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, form in (("local_choice", CHOICE), ("local_write", WRITE)):
        (folder / f"{name}.yaml").write_text(form.format(name=name, data=json.dumps(str(data))))
    return folder
