"""Encoders from their files: config fields, heads that are left out, vocabularies, and what a text is to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sinklens import HookedDLM, MaskSinks, Plan, PreviousStep, SinkRule, denoise, log_likelihood, probes
from sinklens.errors import CheckpointError, PlanError, PromptError
from sinklens.models.outline import outline
from sinklens.models.special_ids import SpecialIds

TOKENS = torch.tensor([[5, 17, 4, 9, 30, 4, 11, 44, 11, 50]])
SPECIAL = {
    "Bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "Roberta": ["<s>", "<pad>", "</s>", "<unk>"],
    "Esm": ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"],
    "ModernBert": [],
}
ARCHITECTURE = {"Bert": "BertForMaskedLM", "Roberta": "RobertaForMaskedLM", "Esm": "EsmForMaskedLM"}
ARCHITECTURE |= {"ModernBert": "ModernBertForMaskedLM"}
BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
OWN: dict[str, dict[str, Any]] = {
    "Bert": {"hidden_act": "gelu", "pad_token_id": 0, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "Roberta": {"hidden_act": "gelu", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "Esm": {
        "pad_token_id": 1,
        "mask_token_id": 4,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        "emb_layer_norm_before": False,
    },
    "ModernBert": {
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 6,
        "norm_eps": 1e-5,
    },
}
LETTERS = [chr(ord("A") + i) for i in range(26)]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, tiny_stock: Any) -> Make:
    """A folder with a random encoder in its official layout; `edit` changes its tensors, `fields` its config."""

    def write(layout: str = "Bert", edit: Callable[[dict[str, Any]], Any] | None = None, **fields: Any) -> Path:
        own = {"architectures": [ARCHITECTURE[layout]], "model_type": layout.lower()}
        config = {"mask_token_id": 4, **own, **BASE, **OWN[layout], "tie_word_embeddings": False, **fields}
        kept = {
            name: value
            for name, value in config.items()
            if name in {*BASE, *OWN[layout], "tie_word_embeddings", "rope_theta", "norm_bias"}
        }
        stock = getattr(transformers, ARCHITECTURE[layout])(getattr(transformers, f"{layout}Config")(**kept))
        noisy(stock)
        tensors = {name: value.clone().contiguous() for name, value in stock.state_dict().items()}
        if edit is not None:
            edit(tensors)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def noisy(model: Any) -> None:
    """Weights large enough that everything matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name.lower() and "weight" in name else 0.4 * noise)


def words(folder: Path, layout: str, tokens: list[str], **said: Any) -> Path:
    """A vocabulary for the folder: its special tokens, then these."""
    every = [*SPECIAL[layout], *tokens]
    (folder / "vocab.txt").write_text("\n".join(every))
    if said:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def refused(folder: Path, *quotes: str) -> None:
    """Loading raises CheckpointError, and its message holds every quote."""
    with pytest.raises(CheckpointError) as caught:
        HookedDLM.from_pretrained(str(folder), check=False)
    for quote in quotes:
        assert quote in str(caught.value)


# Config and weights.


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ("Bert", {}),
        ("Bert", {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
        ("Bert", {"classifier_dropout": 0.1, "directionality": "bidi", "position_embedding_type": "absolute"}),
        ("Roberta", {}),
        ("Roberta", {"pad_token_id": 3}),
        ("ModernBert", {}),
        (
            "ModernBert",
            {"global_attn_every_n_layers": 1, "local_rope_theta": 50.0, "position_embedding_type": "absolute"},
        ),
        ("ModernBert", {"norm_eps": 0.1, "classifier_activation": "relu", "norm_bias": True}),
        (
            "ModernBert",
            {
                "layer_types": ["sliding_attention", "full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 9.0},
                    "sliding_attention": {"rope_theta": 7.0},
                },
            },
        ),
        ("Esm", {}),
        ("Esm", {"token_dropout": False, "emb_layer_norm_before": True}),
        ("Esm", {"dplm_type": "dplm_esm", "vocab_list": None, "rope_theta": 500.0}),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_the_class_that_transformers_reads_them_into(
    make: Make, layout: str, fields: dict[str, Any]
) -> None:
    folder = make(layout, **fields)
    dlm = HookedDLM.from_pretrained(str(folder))
    stock = transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    torch.testing.assert_close(dlm(TOKENS), stock(TOKENS).logits, atol=2e-4, rtol=1e-4)
    sketch = outline(str(folder))
    assert (sketch.n_ctx, sketch.n_layers) == (dlm.n_ctx, dlm.n_layers)


@torch.no_grad()
def test_a_field_that_is_passed_on_changes_the_logits(make: Make) -> None:
    logits = [
        HookedDLM.from_pretrained(str(make(**fields)))(TOKENS)
        for fields in ({}, {"hidden_act": "relu"}, {"layer_norm_eps": 1.0})
    ]
    for place, one in enumerate(logits):
        for other in logits[:place]:
            assert float((one - other).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"position_embedding_type": "relative_key"}, ("position_embedding_type='relative_key'", "'absolute'")),
        ({"hidden_act": "mish"}, ("hidden_act='mish'", "gelu")),
        ({"is_decoder": True}, ("is_decoder=True", "encoder")),
        ({"add_cross_attention": True}, ("add_cross_attention=True",)),
        ({"chunk_size_feed_forward": 2}, ("chunk_size_feed_forward=2",)),
        ({"pruned_heads": {"0": [1]}}, ("pruned_heads",)),
        ({"embedding_size": 16}, ("embedding_size=16",)),
        ({"rope_scaling": {"type": "linear"}}, ("rope_scaling",)),
        ({"rope_theta": 5.0}, ("rope_theta=5.0",)),
        ({"quantization_config": {}}, ("quantization_config",)),
        ({"layer_norm_eps": -1.0}, ("layer_norm_eps=-1.0",)),
        ({"layer_norm_eps": "small"}, ("layer_norm_eps='small'",)),
        ({"type_vocab_size": 0}, ("type_vocab_size=0",)),
        ({"type_vocab_size": 3}, ("mismatched", "token_type_embeddings")),
        ({"max_position_embeddings": 65}, ("mismatched", "position_embeddings")),
        ({"num_hidden_layers": 3}, ("bert.encoder.layer.2.*", "3 layers")),
        ({"num_hidden_layers": 10**6}, ("1000000 layers",)),
        ({"num_attention_heads": 5}, ("num_attention_heads=5", "multiple")),
        ({"vocab_size": "64"}, ("vocab_size='64'",)),
        ({"is_causal": True}, ("is_causal=True",)),
        ({"architectures": ["BertLMHeadModel"]}, ("BertLMHeadModel",)),
        ({"mask_token_id": 64}, ("64", "mask")),
        ({"mask_token_id": None}, ("no mask token", "[MASK]")),
    ],
)
def test_refuses_and_quotes_what_it_cannot_compute(make: Make, fields: dict[str, Any], quotes: tuple[str, ...]) -> None:
    refused(rewritten(make(), **fields), *quotes)


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"position_embedding_type": "absolute"}, ("position_embedding_type='absolute'", "'rotary'")),
        ({"position_embedding_type": None}, ("lacks position_embedding_type",)),
        ({"mask_token_id": None}, ("lacks mask_token_id",)),
        ({"pad_token_id": 1.5}, ("pad_token_id=1.5",)),
        ({"hidden_act": "relu"}, ("hidden_act='relu'",)),
        ({"is_folding_model": True}, ("is_folding_model=True",)),
        ({"esmfold_config": {}}, ("esmfold_config",)),
        ({"dplm_type": "dplm_2"}, ("dplm_type='dplm_2'",)),
        ({"token_dropout": 1}, ("token_dropout=1",)),
        ({"type_vocab_size": 2}, ("type_vocab_size=2",)),
    ],
)
def test_esm_is_refused_likewise(make: Make, fields: dict[str, Any], quotes: tuple[str, ...]) -> None:
    refused(rewritten(make("Esm"), **fields), *quotes)


@pytest.mark.parametrize(
    ("fields", "quotes"),
    [
        ({"layer_types": ["sliding_attention"]}, ("layer_types=['sliding_attention']", "2 layers")),
        ({"layer_types": ["chunked_attention"] * 2}, ("chunked_attention",)),
        ({"rope_parameters": {"rope_theta": 5.0}}, ("rope_parameters", "full_attention")),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}},
            ("'yarn'", "rope_type='default'"),
        ),
        (
            {
                "global_rope_theta": 5.0,
                "rope_parameters": {"full_attention": {"rope_theta": 6.0}, "sliding_attention": {}},
            },
            ("5.0", "6.0", "which is it"),
        ),
        ({"rope_scaling": {"type": "linear"}}, ("rope_scaling",)),
        ({"hidden_activation": "mish"}, ("hidden_activation='mish'",)),
        ({"local_attention": 0}, ("local_attention=0",)),
        ({"norm_bias": "no"}, ("norm_bias='no'",)),
        ({"hidden_act": "gelu"}, ("hidden_act='gelu'",)),
    ],
)
def test_modernbert_is_refused_likewise(make: Make, fields: dict[str, Any], quotes: tuple[str, ...]) -> None:
    refused(rewritten(make("ModernBert"), **fields), *quotes)


def test_what_esm_may_lack_changes_nothing(make: Make) -> None:
    """The head for contacts, and frequencies, which older files have by layers; beside a table that is not used."""

    def aged(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "contact_head" in name]:
            del tensors[name]
        kept = tensors.pop("esm.rotary_embeddings.inv_freq")
        for layer in range(2):
            tensors[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = kept.clone()
        tensors["esm.embeddings.position_embeddings.weight"] = torch.ones(64, 32)

    expected = HookedDLM.from_pretrained(str(make("Esm")))(TOKENS)
    folder = make("Esm", edit=aged)
    dlm = HookedDLM.from_pretrained(str(folder))
    assert torch.equal(dlm(TOKENS), expected)
    assert dlm.fingerprint() == HookedDLM.from_pretrained(str(folder)).fingerprint()
    refused(make("Esm", edit=lambda tensors: tensors.pop("lm_head.bias")), "missing", "lm_head.bias")


@torch.no_grad()
def test_casts_do_not_round_esms_frequencies(make: Make) -> None:
    dlm = HookedDLM.from_pretrained(str(make("Esm")))
    expected = dlm(TOKENS)
    dlm.to(torch.bfloat16).float()
    weights = HookedDLM.from_pretrained(str(make("Esm")), dtype=torch.bfloat16).float()
    assert torch.equal(dlm(TOKENS), weights(TOKENS))
    assert float((dlm(TOKENS) - expected).abs().max()) < 0.5
    assert dlm.original_model.esm.rotary_embeddings.inv_freq.dtype == torch.float32


def test_residues_with_or_without_spaces(make: Make) -> None:
    dlm = HookedDLM.from_pretrained(str(words(make("Esm"), "Esm", LETTERS)))
    assert dlm.encode("AC<mask>D") == dlm.encode("A C <mask> D") == [0, 5, 7, 4, 8, 2]
    run = denoise(dlm, ["AC<mask>D", "<mask><mask>"], Plan(new_tokens=0), progress=False)
    assert run.tokens[0, [0, 1, 2, 4, 5]].tolist() == [0, 5, 7, 8, 2]
    with pytest.raises(PlanError, match=r"ends in \[2\]"):
        denoise(dlm, "ACD", Plan(new_tokens=2), progress=False)


def test_the_mask_that_esm_counts_is_the_models(tiny_stock: Any) -> None:
    with pytest.raises(ValueError, match=r"ids\.mask=7, .*mask_token_id=62"):
        HookedDLM.from_transformers(tiny_stock("Esm"), None, "ESM-2", ids=SpecialIds(mask=7, eos=1))


@pytest.mark.parametrize("pad", [None, 64, "1", True, -1])
def test_roberta_needs_its_pad(make: Make, pad: Any) -> None:
    refused(rewritten(make("Roberta"), pad_token_id=pad), "pad_token_id")


def rewritten(folder: Path, **fields: Any) -> Path:
    """The folder with other fields in its config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


HEADS = (
    "bert.pooler.dense.weight", "bert.pooler.dense.bias", "bert.embeddings.position_ids", "cls.seq_relationship.weight",
    "cls.seq_relationship.bias", "cls.species.weight", "cls.chain.bias", "cls.graft.weight",
)  # fmt: skip


def test_known_heads_are_left_out_and_nothing_else_is(make: Make) -> None:
    expected = HookedDLM.from_pretrained(str(make()))(TOKENS)
    beside = {name: torch.ones(3) for name in HEADS} | {"bert.embeddings.position_ids": torch.arange(64)[None]}
    with_heads = make(edit=lambda tensors: tensors.update(beside))
    assert torch.equal(HookedDLM.from_pretrained(str(with_heads))(TOKENS), expected)
    refused(make(edit=lambda tensors: tensors.update({"cls.predictions.bias": torch.arange(64)})), "I64")
    for name in ("cls.predictions.extra.weight", "bert.encoder.layer.0.adapter.weight", "classifier.weight"):
        folder = make(edit=lambda tensors, name=name: tensors.update({name: torch.ones(3)}))
        refused(folder, "unexpected", name)
    refused(make(edit=lambda tensors: tensors.pop("cls.predictions.transform.dense.bias")), "missing", "dense.bias")


def test_a_tied_head_may_be_left_out_of_the_file(make: Make) -> None:
    def untie(tensors: dict[str, Any]) -> None:
        del tensors["cls.predictions.decoder.weight"], tensors["cls.predictions.decoder.bias"]

    dlm = HookedDLM.from_pretrained(str(make(edit=untie, tie_word_embeddings=True)))
    model: Any = dlm.original_model
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    refused(make(edit=untie), "missing", "cls.predictions.decoder.weight")


def test_old_names_of_normalisations(make: Make) -> None:
    def aged(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "LayerNorm." in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)

    expected = HookedDLM.from_pretrained(str(make()))(TOKENS)
    assert torch.equal(HookedDLM.from_pretrained(str(make(edit=aged)))(TOKENS), expected)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(make(edit=aged) / "model.safetensors")


# Texts.


def test_a_vocabulary_of_capitals_is_not_lowered(make: Make) -> None:
    """Where no file says it. Lowered, every residue would be the unknown token, without a word."""
    dlm = HookedDLM.from_pretrained(str(words(make(mask_token_id=None), "Bert", LETTERS)))
    assert (dlm.ids.mask, dlm.ids.pad) == (4, 0)
    assert dlm.encode("A C [MASK] D") == [2, 5, 7, 4, 8, 3]
    lower = HookedDLM.from_pretrained(str(words(make(), "Bert", [letter.lower() for letter in LETTERS])))
    assert lower.encode("A C [MASK] D") == [2, 5, 7, 4, 8, 3]


def test_what_tokenizer_config_says_of_case_decides(make: Make) -> None:
    both = [*LETTERS, *(letter.lower() for letter in LETTERS[:20])]
    kept = HookedDLM.from_pretrained(str(words(make(), "Bert", both, do_lower_case=False)))
    assert kept.encode("A a") == [2, 5, 31, 3]
    lowered = HookedDLM.from_pretrained(str(words(make(), "Bert", both, do_lower_case=True)))
    assert lowered.encode("A a") == [2, 31, 31, 3]


@pytest.fixture
def dlm(make: Make) -> HookedDLM:
    """A random BERT of letters, with its tokenizer."""
    return HookedDLM.from_pretrained(str(words(make(), "Bert", LETTERS)))


def test_a_text_is_whole_and_ids_are_as_given(dlm: HookedDLM) -> None:
    assert dlm.encode("A B") == [2, 5, 6, 3]
    assert dlm.encode("[CLS] A B") == dlm.encode("A B [SEP]") == dlm.encode("[CLS] A B [SEP]") == [2, 5, 6, 3]
    assert dlm.encode("[SEP] A") == [2, 3, 5, 3]
    assert dlm.encode([2, 5, 6]) == [2, 5, 6]
    assert dlm.encode("") == [2, 3]
    assert dlm.encode_piece("A B") == [5, 6]
    assert dlm.to_tokens("A B").tolist() == [[2, 5, 6, 3]]
    assert dlm.closing == [3]


def test_a_text_of_unknown_tokens_is_refused(dlm: HookedDLM) -> None:
    for text in ("ABCD", "a b c"):
        with pytest.raises(PromptError, match="unknown tokens"):
            dlm.encode(text)
    assert dlm.encode("A q B") == [2, 5, 1, 6, 3]


def test_segments_are_refused(dlm: HookedDLM) -> None:
    """Token types are 0; an encoding of two segments is another input."""
    one = {"input_ids": [[2, 5, 6, 3]], "attention_mask": [[1, 1, 1, 1]], "token_type_ids": [[0, 0, 0, 0]]}
    assert dlm.encode(one) == [2, 5, 6, 3]
    with pytest.raises(PromptError, match="token_type_ids"):
        dlm.encode(one | {"token_type_ids": [[0, 0, 1, 1]]})


def test_gaps_are_filled_and_the_ends_stay(dlm: HookedDLM) -> None:
    run = denoise(
        dlm, ["A [MASK] B [MASK]", "C [MASK]"], Plan(new_tokens=0), probes=[probes.ReceivedAttention()], progress=False
    )
    assert run.record["token"].to_numpy()[0, [0, 1, 3, 5]].tolist() == [2, 5, 6, 3]
    assert run.record["token"].to_numpy()[1, [0, 1, 3]].tolist() == [2, 7, 3]
    assert not bool((run.tokens == dlm.ids.mask).any())
    alone = denoise(dlm, "C [MASK]", Plan(new_tokens=0), progress=False)
    assert alone.tokens[0].tolist() == run.tokens[1, -4:].tolist()


def test_nothing_follows_the_end_of_a_text(dlm: HookedDLM) -> None:
    for prompt in ("A B", [2, 5, 6, 3], ""):
        with pytest.raises(PlanError, match=r"prompt 0 ends in \[3\].*new_tokens=0"):
            denoise(dlm, prompt, Plan(new_tokens=4), progress=False)
    run = denoise(dlm, [2, 5, 6], Plan(new_tokens=4), progress=False)
    assert run.tokens.shape == (1, 7)
    for prompt in ("A B", [2, 5, 6, 3]):
        with pytest.raises(PromptError, match=r"ends in \[3\], and no answer follows"):
            log_likelihood(dlm, prompt, "C")
    assert log_likelihood(dlm, [2, 5, 6], [7, 8]).isfinite().all()


def test_sinks_of_the_step_before_are_cut(dlm: HookedDLM) -> None:
    """The paper's protocol, on an encoder that fills gaps."""
    cut = MaskSinks(PreviousStep(SinkRule(None, top_k=1)))
    run = denoise(dlm, "A [MASK] B [MASK] C", Plan(new_tokens=0), interventions=[cut], progress=False)
    assert run.record.sizes["step"] == 2
    assert float(run.memories[0].counts()["keys"]) == dlm.n_layers * dlm.n_heads
