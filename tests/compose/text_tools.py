"""Text, losses, generation and evaluations, against the tokenizer, transformers' own losses and naive ones."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from compose.cases import Case, close
from compose.table import Told, tool
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import evals
from transformer_lens.utilities.exploratory_utils import test_prompt as prompt_check

from sinklens.errors import Unsupported

ROOM = "Text, losses, generation, evaluations"
TEXT = "dolko xe dolko xo dolko talma"


@tool(
    ROOM, "to_tokens", "ids and texts of the tokenizer itself", "to_string", "to_str_tokens", "to_single_token",
    "to_single_str_token", "get_token_position", "tokenizer",
)  # fmt: skip
@torch.no_grad()
def text(case: Case) -> None:
    own, dlm = case.dlm.tokenizer, case.dlm
    ids = own(TEXT, add_special_tokens=False)["input_ids"]
    found = dlm.to_tokens(TEXT)[0].tolist()
    start = found.index(ids[0])
    assert found[start : start + len(ids)] == ids
    assert set(found[:start] + found[start + len(ids) :]) <= {dlm.ids.bos, *dlm.ids.eos}
    assert dlm.to_tokens(TEXT, prepend_bos=False)[0].tolist() == ids
    assert dlm.to_string(ids) == own.decode(ids)
    words = [own.decode([each]) for each in ids]
    assert dlm.to_str_tokens(torch.tensor(ids)) == dlm.to_str_tokens(np.array(ids)) == words
    assert dlm.to_str_tokens(TEXT, prepend_bos=False) == words
    assert dlm.to_single_token("talma") == own.convert_tokens_to_ids("talma")
    assert dlm.to_single_str_token(ids[0]) == words[0]
    assert dlm.get_token_position("talma", TEXT) == start + len(ids) - 1
    assert dlm.get_token_position("dolko", TEXT, mode="last") == start + ids.index(ids[-1]) - 1
    close(dlm(TEXT), case.logits(torch.tensor([found])))


@tool(ROOM, "forward(return_type='loss')", "transformers' own loss with labels")
@torch.no_grad()
def loss(case: Case) -> None:
    found = case.dlm(case.tokens, return_type="loss")
    close(found, case.plain(case.tokens, labels=case.tokens).loss)
    close(case.dlm.loss_fn(case.dlm(case.tokens), case.tokens), found)
    logits, again = case.dlm(case.tokens, return_type="both", loss_per_token=True)
    close(again[0], cross_entropy(case.logits(case.tokens)[0, :-1], case.tokens[0, 1:], reduction="none"))
    close(logits, case.logits(case.tokens))


@tool(ROOM, "loss_fn", "naive cross entropy of logits, and what it refuses")
@torch.no_grad()
def loss_of_logits(case: Case) -> None:
    found = case.dlm.loss_fn(case.dlm(case.tokens), case.tokens)
    close(found, cross_entropy(case.logits(case.tokens)[0, :-1], case.tokens[0, 1:]))


@tool(
    ROOM, "generate", "greedy tokens: transformers' generate on the plain model", "hf_generate", "generate_stream",
)  # fmt: skip
@torch.no_grad()
def generation(case: Case) -> None:
    options = {"max_new_tokens": 5, "do_sample": False}
    quiet = contextlib.redirect_stderr(io.StringIO())
    with quiet:
        found = case.dlm.generate(case.tokens, verbose=False, use_past_kv_cache=False, **options)
    streamed = list(case.dlm.generate_stream(case.tokens, verbose=False, use_past_kv_cache=False, **options))
    end = list(case.dlm.ids.eos)
    truth = case.plain.generate(case.tokens, eos_token_id=end, pad_token_id=1, **options)
    size = min(found.shape[1], truth.shape[1])
    assert size > case.tokens.shape[1]
    for way in (found, case.dlm.hf_generate(case.tokens, **options), torch.cat(streamed, 1)):
        assert torch.equal(way[:, :size], truth[:, :size])


@tool(
    ROOM,
    "diffusion_generate",
    "sinklens's own loop is compared with the official samplers in tests/models/test_fidelity.py",
)
def diffusion(case: Case) -> None:
    case.dlm.diffusion_generate(case.tokens)


@tool(ROOM, "evals.evaluate_on_dataset", "mean of transformers' own losses")
def dataset(case: Case) -> None:
    batches = [{"tokens": case.tokens}, {"tokens": case.other}]
    with contextlib.redirect_stderr(io.StringIO()):
        found = evals.evaluate_on_dataset(case.dlm, batches, device="cpu")
    with torch.no_grad():
        losses = [case.plain(each["tokens"], labels=each["tokens"]).loss for each in batches]
    assert abs(found - float(sum(losses)) / 2) < 1e-4


class Drawn(Exception):
    """What induction_loss has drawn."""


@tool(ROOM, "evals.sanity_check", "transformers' own loss of its text")
@torch.no_grad()
def sanity(case: Case) -> None:
    dlm = case.fresh()
    dlm.to_tokens = lambda *_, **__: case.tokens  # its text is English, which no tokenizer here knows
    dlm.padded_texts = lambda *_, **__: (case.tokens, torch.ones_like(case.tokens, dtype=torch.bool))
    close(evals.sanity_check(dlm), case.plain(case.tokens, labels=case.tokens).loss)


@tool(ROOM, "evals.induction_loss", "naive cross entropy of the second half of the tokens that it drew")
def induction(case: Case) -> None:
    drawn: list[Tensor] = []
    plain_draw = torch.randint

    def draw(low: int, high: int, size: Any, **options: Any) -> Tensor:
        drawn.append(plain_draw(3, 60, size, **options))  # it draws from 100 to 20,000; the vocabulary here has 67
        return drawn[-1]

    torch.randint = draw
    try:
        found = evals.induction_loss(case.dlm, batch_size=1, subseq_len=12, prepend_bos=False, device="cpu")
    finally:
        torch.randint = plain_draw
    tokens = torch.cat([drawn[0]] * 2, 1)
    each = cross_entropy(case.logits(tokens)[0, :-1], tokens[0, 1:], reduction="none")
    close(found, each[13:].mean())


@tool(ROOM, "evals.ioi_eval", "logit difference at the place before the names, by the plain model")
@torch.no_grad()
def indirect_object(case: Case) -> None:
    row, first, second = case.tokens[0], torch.tensor([21]), torch.tensor([33])
    rows = [{"prompt": torch.cat([row, first]), "IO": first, "S": second}]
    with contextlib.redirect_stderr(io.StringIO()):
        found = evals.ioi_eval(case.dlm, dataset=rows, batch_size=1, tokenizer=case.dlm.tokenizer)
    logits = case.logits(torch.cat([row, first])[None])[0, len(row) - 1]
    assert abs(found["Logit Difference"] - float(logits[21] - logits[33])) < 1e-3


@tool(ROOM, "evals.mmlu_eval", "the answer letter that the plain model gives most after the prompt")
@torch.no_grad()
def multiple_choice(case: Case) -> None:
    words = ["talma", "dolko", "zuko", "wu"]

    class Letters:
        """The tokenizer of the model; its words stand for the four letters."""

        def encode(self, text: str, **options: Any) -> Any:
            if text.strip() in "ABCD":
                return [case.dlm.to_single_token(words["ABCD".index(text.strip())])]
            return case.tokens if options.get("return_tensors") else case.tokens[0].tolist()

    question = {"question": "?", "choices": words, "answer": 0, "subject": "one"}
    before, evals.make_mmlu_data_loader = evals.make_mmlu_data_loader, lambda **_: [question]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = evals.mmlu_eval(case.dlm, tokenizer=Letters())
    finally:
        evals.make_mmlu_data_loader = before
    last = case.logits(case.tokens)[0, -1, [case.dlm.to_single_token(word) for word in words]]
    assert found["accuracy"] == float(last.argmax() == 0)


@tool(ROOM, "utilities.test_prompt", "the rank that it prints: the plain model's")
@torch.no_grad()
def ranks(case: Case) -> None:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        prompt_check("dolko xe dolko xo dolko", "talma", case.dlm, prepend_space_to_answer=False, top_k=3)
    found = int(re.findall(r"\('talma', (\d+)\)", shown.getvalue())[0])
    logits = case.logits(case.dlm.to_tokens("dolko xe dolko xo dolko"))[0, -1]
    assert found == int((logits > logits[case.dlm.to_single_token("talma")]).sum())


@tool(
    ROOM, "predict_next_sentence", "no model here has its head, an audio encoder or images", "to_sentence_pair_tokens",
    "encoder_output", "prepare_multimodal_inputs",
)  # fmt: skip
@torch.no_grad()
def pairs(case: Case) -> None:
    with pytest.raises(NotImplementedError, match="audio"):
        case.dlm.encoder_output(case.tokens)
    with pytest.raises(ValueError, match="multimodal"):
        case.dlm.prepare_multimodal_inputs(text=TEXT)
    if case.encoder:  # its token types are honoured, though the tokenizer here gives none
        types = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
        truth = case.plain(case.tokens, attention_mask=case.mask(case.tokens), token_type_ids=types).logits
        close(case.dlm(case.tokens, token_type_ids=types), truth)
    try:
        case.dlm.predict_next_sentence(TEXT, TEXT)
    except ValueError as error:
        raise Told(error) from error
    raise AssertionError("a prediction by a head that is not there")


@tool(
    ROOM,
    "boot_transformers",
    "TransformerLens's own loaders, which make its own bridges",
    "boot_native",
    "boot_tl_legacy",
)
def loaders(case: Case) -> None:
    for way in ("boot_native", "boot_tl_legacy"):
        with pytest.raises(Unsupported, match="from_pretrained"):
            getattr(case.dlm, way)("tiny-dlm")
    type(case.dlm).boot_transformers("tiny-dlm")
