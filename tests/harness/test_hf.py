"""For baselines the numbers are those of the harness's own `hf` model: log-likelihoods to 1e-6, all generations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from parts_harness import asked, word_tokenizer
from stock import TWINS
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sinklens.errors import PlanError
from sinklens.harness import SinklensLM
from sinklens.tasks import Echo

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


def random_checkpoint(folder: Path, kind: str) -> Path:
    """A tiny random Llama or GPT-2 with a tokenizer of one word per id."""
    ids: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=48,
            **ids,
        )
        model: Any = LlamaForCausalLM(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=48, **ids))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            one = "norm" in name or ".ln_" in name
            parameter.copy_((1 if one and name.endswith("weight") else 0) + (0.3 if one else 0.4) * noise)
    model.save_pretrained(folder)
    word_tokenizer(mask=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["twin", "llama", "gpt2"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HFLM, SinklensLM, list[str]]:
    """The harness's own model, ours, and words of the vocabulary."""
    if request.param == "twin":
        name, words = str(TWINS / "tiny-arm"), " ".join(example.prompt for example in Echo(n=6, seed=1)).split()
    else:
        name = str(random_checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param))
        words = [f"w{number}" for number in range(3, 60)]
    theirs = HFLM(pretrained=name, batch_size=3, logits_cache=False, **CPU)  # its cache of logits is wrong: see below
    return theirs, SinklensLM(name, batch_size=3, **CPU), words


def test_log_likelihoods_in_batches_with_padding(both: Any) -> None:
    theirs, ours, words = both
    places = [(0, 9, 1), (3, 2, 5), (7, 13, 2), (4, 1, 1), (20, 5, 7), (9, 17, 3), (2, 4, 4)]
    ends = [(start, start + size, start + size + long) for start, size, long in places]
    pairs = [(" ".join(words[a:b]), " " + " ".join(words[b:c])) for a, b, c in ends]
    pairs += [(pairs[2][0] + " ", words[5]), ("", " ".join(words[4:9]))]
    for context, _ in pairs[:3]:  # so that some are greedy
        ids = ours.tok_encode(context)
        with torch.no_grad():
            token = int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax())
        pairs.append((context, " " + ours.tokenizer.decode([token])))
    requests = asked("loglikelihood", *pairs)
    expected, found = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (theirs, ours))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in found} == {True, False}


def test_whole_texts_also_beyond_the_context(both: Any) -> None:
    theirs, ours, words = both
    texts = [" ".join(words[:count]) for count in (1, 20, 47, 48)] + [" ".join((words * 5)[:200])]
    requests = asked("loglikelihood_rolling", *((text,) for text in texts))
    assert len(ours.tok_encode(texts[-1])) > ours.dlm.n_ctx
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, rel=1e-6)


def test_generations_with_stops(both: Any) -> None:
    theirs, ours, words = both
    contexts = [" ".join(words[start : start + size]) for start, size in ((0, 9), (3, 2), (7, 13), (20, 5), (9, 17))]
    plain = theirs.generate_until(asked("generate_until", *((each, {"max_gen_toks": 20}) for each in contexts)))
    assert len(set(plain)) > 2
    said = [word for text in plain for word in text.split()[3:9:2]]
    more = [{"until": said[:2], "max_gen_toks": 20}, {"until": said[2], "max_gen_toks": 12, "do_sample": False}]
    kinds = [{"max_gen_toks": 20}, *more]
    requests = asked("generate_until", *((each, kind) for each in contexts for kind in kinds))
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests, disable_tqdm=True) == expected
    assert len(set(map(len, expected))) > 3  # some were cut


def test_the_harness_takes_two_splits_of_one_text_for_each_other() -> None:
    """Hf keeps logits by context and continuation together; without that it gives what sinklens gives."""
    name, text = str(TWINS / "tiny-arm"), Echo(n=1, seed=1)[0].prompt
    head, tail = text.rsplit(" ", 1)
    requests = asked("loglikelihood", (head, " " + tail), ("", text))
    kept, right = (HFLM(pretrained=name, batch_size=4, logits_cache=on, **CPU) for on in (True, False))
    expected = [score for score, _ in right.loglikelihood(requests, disable_tqdm=True)]
    assert [score for score, _ in kept.loglikelihood(requests, disable_tqdm=True)] != pytest.approx(expected, rel=1e-2)
    ours = SinklensLM(name, batch_size=4, **CPU).loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in ours] == pytest.approx(expected, rel=1e-6)


def test_what_exceeds_the_context_is_refused_and_not_cut() -> None:
    ours = SinklensLM("tiny-arm", **CPU)
    long = " ".join((["xe", "xo"] * 80)[:126])
    assert len(ours.tok_encode(long + " xu xa")) == ours.dlm.n_ctx + 1  # the last token is not read
    ours.loglikelihood(asked("loglikelihood", (long, " xu xa")), disable_tqdm=True)
    with pytest.raises(PlanError, match="more than the context of 128"):
        ours.loglikelihood(asked("loglikelihood", (long, " xu xa xe")), disable_tqdm=True)
    with pytest.raises(PlanError, match="exceeds the context of 128"):
        ours.generate_until(asked("generate_until", (long, {"max_gen_toks": 2, "until": []})), disable_tqdm=True)


def test_the_chat_template_is_the_tokenizers() -> None:
    ours = SinklensLM("tiny-arm", **CPU)
    theirs = HFLM(pretrained=str(TWINS / "tiny-arm"), **CPU)
    messages = [{"role": "user", "content": "xe"}, {"role": "assistant", "content": "xo"}]
    template = "{% for m in messages %}{{ m.content }} ,{% endfor %}{% if add_generation_prompt %} xi{% endif %}"
    for lm in (ours, theirs):
        lm.tokenizer.chat_template = template
    for end in (True, False):
        assert ours.apply_chat_template(messages, end) == theirs.apply_chat_template(messages, end)
    assert ours.chat_template(True) == theirs.chat_template(True) == template
