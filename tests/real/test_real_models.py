"""Real models against naive computations with stock transformers, and the published claim on them.

They need what `sinklens models get smollm2-135m` and `... antiberty` fetch: run `make test-real`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from fuzzing import command
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
)
from transformers.masking_utils import eager_mask

import sinklens as sl
from sinklens.cli import real_models
from sinklens.models import packages
from sinklens.tasks import antibodies, facts

pytestmark = pytest.mark.real
CAPITALS = [index for index, line in enumerate(facts()) if line.prompt.startswith("Country")][:20]
MASK_TOP_1 = sl.MaskSinks(sl.SameStep(top_k=1))


def patterns(name: str, top: int, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Register an attention function that masks the `top` keys with the largest `choose(pattern)` in every head."""

    def attention(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: Any, **_: Any):
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = (q.float() @ k.float().transpose(-1, -2)) * (scaling or q.shape[-1] ** -0.5)
        scores = scores if mask is None else scores.masked_fill(mask < 0, float("-inf"))
        for index in choose(scores.softmax(-1)).topk(top, -1).indices.unbind(-1) if top else ():  # [batch, head]
            column = torch.zeros(scores.shape[:2] + scores.shape[-1:], dtype=torch.bool).scatter(
                -1, index[..., None], True
            )
            gone = scores.masked_fill(column[:, :, None], float("-inf"))
            lost = (gone == float("-inf")).all(-1, keepdim=True)  # the query that saw this key alone keeps it
            scores = torch.where(lost, scores, gone)
        return (scores.softmax(-1) @ v.float()).to(v.dtype).transpose(1, 2), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, eager_mask)


def naive_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """Continue token by token, every forward from scratch."""
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids[-count:]


@pytest.fixture(scope="module")
def smollm2() -> sl.HookedDLM:
    """SmolLM2 in float32, so that a naive computation decides alike."""
    return sl.HookedDLM.from_pretrained("smollm2-135m", dtype=torch.float32)


@pytest.fixture(scope="module")
def antiberty() -> sl.HookedDLM:
    """AntiBERTy as it is."""
    return sl.HookedDLM.from_pretrained("antiberty")


def test_smollm2_writes_what_stock_transformers_writes_with_and_without_its_first_sink(smollm2: sl.HookedDLM) -> None:
    folder = str(packages.find("smollm2-135m"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [facts()[index].prompt for index in CAPITALS[:3]]
    for top, edits in ((0, []), (1, [MASK_TOP_1])):
        patterns(f"naive_last_{top}", top, lambda pattern: pattern[:, :, -1])
        stock: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=f"naive_last_{top}"
        )
        run = sl.denoise(smollm2, prompts, sl.Plan(new_tokens=3), interventions=edits, progress=False)
        for prompt, completion in zip(prompts, run.completions, strict=True):
            ids = naive_greedy(stock, tokenizer(prompt)["input_ids"], 3)
            assert tokenizer.decode(ids, skip_special_tokens=True) == completion


def test_one_masked_key_destroys_smollm2_and_random_keys_do_not(smollm2: sl.HookedDLM) -> None:
    task = facts()
    task = sl.tasks.Jsonl(
        task.path, extract=task.extract, match=task.match, examples=tuple(task[index] for index in CAPITALS)
    )
    result = sl.ablate(
        smollm2, task, {"top-1": MASK_TOP_1}, sl.Plan(new_tokens=1), metrics=["accuracy"], progress=False
    )
    found: Any = result.summary().set_index("kind")["value"]
    assert found["unmasked"] >= 0.7
    assert found["sinks"] <= 0.1
    assert found["random"] >= 0.7


def test_smollm2_has_one_sink_on_the_first_token_which_stays(smollm2: sl.HookedDLM) -> None:
    prompts = [facts()[index].prompt for index in range(4)]
    record = sl.denoise(
        smollm2, prompts, sl.Plan(new_tokens=4), probes=[sl.probes.ReceivedAttention()], progress=False
    ).record
    places: Any = sl.metrics.place_classes(record).set_index("place")
    assert places.loc["first", "share_of_sinks"] > 0.75
    assert sl.metrics.movement(record)["jaccard"].min() > 0.9
    assert 0.8 < sl.metrics.per_layer(record)["sinks"].mean() < 1.5


def test_antiberty_fills_what_stock_transformers_fills_with_and_without_its_first_sink(antiberty: sl.HookedDLM) -> None:
    folder = str(packages.find("antiberty"))
    tokenizer: Any = antiberty.tokenizer
    prompt = antibodies()[0].prompt
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    hidden = ids[0] == antiberty.ids.mask
    for top, edits in ((0, []), (1, [MASK_TOP_1])):
        patterns(f"naive_sum_{top}", top, lambda pattern: pattern.sum(-2))
        stock = BertForMaskedLM.from_pretrained(folder, attn_implementation=f"naive_sum_{top}").eval()
        with torch.no_grad():
            logits = stock(ids).logits[0, hidden]
        logits[:, antiberty.ids.mask] = float("-inf")
        run = sl.denoise(antiberty, prompt, sl.Plan(new_tokens=0, steps=1), interventions=edits, progress=False)
        assert "".join(tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())) == run.completions[0].replace(
            " ", ""
        )


def test_sinks_of_antiberty_are_those_of_its_patterns(antiberty: sl.HookedDLM) -> None:
    stock = BertForMaskedLM.from_pretrained(str(packages.find("antiberty")), attn_implementation="eager").eval()
    prompt = antibodies()[0].prompt
    ids = torch.tensor([antiberty.tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        attentions = stock(ids, output_attentions=True).attentions
    expected = []
    for pattern in attentions:
        received = pattern[0].double().sum(-2)  # head, key
        others = (received.sum(-1, keepdim=True) - received) / (received.shape[-1] - 1)
        expected.append(float((received > others + 3).sum(-1).double().mean()))
    record = sl.denoise(
        antiberty, prompt, sl.Plan(new_tokens=0, steps=1), probes=[sl.probes.ReceivedAttention()], progress=False
    ).record
    assert sl.metrics.per_layer(record)["sinks"].tolist() == pytest.approx(expected)
    assert 2 < sum(expected) / 8 < 5


def test_antiberty_does_without_its_first_sink(antiberty: sl.HookedDLM) -> None:
    task = antibodies(4)
    plan = sl.Plan(new_tokens=0, steps=15)
    result = sl.ablate(antiberty, task, {"top-1": MASK_TOP_1}, plan, metrics=["accuracy"], progress=False)
    found: Any = result.summary().set_index("kind")["value"]
    assert found["unmasked"] > 0.8
    assert found["sinks"] > 0.7
    assert found["random"] > 0.8


def test_the_adapted_model_has_no_sink_on_its_first_token_and_does_without_its_first_sinks() -> None:
    dlm = sl.HookedDLM.from_pretrained("smollm2-135m-diffusion")
    prompts = [facts()[index].prompt for index in range(4)]
    record = sl.denoise(
        dlm, prompts, sl.Plan(new_tokens=1), probes=[sl.probes.ReceivedAttention()], progress=False
    ).record
    places: Any = sl.metrics.place_classes(record).set_index("place")
    assert places.loc["first", "share_of_sinks"] < 0.1
    task = facts()
    task = sl.tasks.Jsonl(
        task.path, extract=task.extract, match=task.match, examples=tuple(task[index] for index in CAPITALS[:10])
    )
    result = sl.ablate(dlm, task, {"top-1": MASK_TOP_1}, sl.Plan(new_tokens=1), metrics=["accuracy"], progress=False)
    found: Any = result.summary().set_index("kind")["value"]
    assert found["unmasked"] >= 0.7
    assert found["sinks"] >= 0.5


def test_the_real_demo_from_end_to_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_models, "RESIDUES", sl.Plan(new_tokens=0, steps=4))  # 15 take minutes
    code, text, said = command("demo", "--real", "--prompts", "4", "--out", str(tmp_path))
    assert code == 0, text + said
    table = pd.read_csv(tmp_path / "table1.csv")
    assert set(table.model) == {"smollm2-135m", "smollm2-135m-diffusion", "antiberty"}
    assert table[table.kind == "sinks"].exposed.gt(0).all()
    budgets = pd.read_csv(tmp_path / "budgets.csv")
    assert set(budgets.model) == set(table.model)
    assert (budgets[budgets.selector == "learned"].groupby("model").size() == 3).all()
    assert (tmp_path / "report.html").stat().st_size > 100_000


def test_the_harness_gives_what_its_own_model_gives() -> None:
    """lm-evaluation-harness's `hf` on the same checkpoint: log-likelihoods to 1e-6, all generations, with padding."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from sinklens.harness import SinklensLM

    def asked(kind: Any, requests: list[tuple[Any, ...]]) -> list[Instance]:
        return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in requests]

    lines = [facts()[index] for index in CAPITALS[:8]]
    answers = [(line.answer, lines[number - 3].answer) for number, line in enumerate(lines)]
    pairs = [(line.prompt, f" {said}") for line, both in zip(lines, answers, strict=True) for said in both]
    stop = {"until": ["\n\n"], "max_gen_toks": 12}
    prompts = [(line.prompt[-20 * (number + 1) :], stop) for number, line in enumerate(lines)]
    folder = str(packages.find("smollm2-135m"))
    theirs = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=3)
    ours = SinklensLM("smollm2-135m", device="cpu", dtype="float32", batch_size=3)
    expected, found = (lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True) for lm in (theirs, ours))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [lm.generate_until(asked("generate_until", prompts), disable_tqdm=True) for lm in (theirs, ours)]
    assert texts[0] == texts[1]
