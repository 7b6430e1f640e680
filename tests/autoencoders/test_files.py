"""Files of autoencoders: both formats, where they sit, whose they are, and that nothing is guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_autoencoders import by_chance
from safetensors.torch import load_file, save_file

from sinklens import Autoencoder, HookedDLM
from sinklens.autoencoders import Formula
from sinklens.autoencoders.place import Place, bridge_point
from sinklens.autoencoders.reading import load, same
from sinklens.errors import AutoencoderError, SaveError
from sinklens.models.outline import outline

DATA = Path(__file__).parents[1] / "data" / "autoencoders"
SAELENS, TOPK = DATA / "saelens", DATA / "topk"


@pytest.fixture(scope="module")
def twin() -> HookedDLM:
    """A model of d_model 96 and two layers."""
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    """A copy of a recorded folder, with fields of its JSON changed; None takes a field out."""

    def copy(folder: Path, within: str = "", **fields: Any) -> Path:
        shutil.copytree(folder, tmp_path / folder.name)
        path = next((tmp_path / folder.name).glob("c*.json"))
        said = json.loads(path.read_text())
        part = said[within] if within else said
        part.update({name: value for name, value in fields.items() if value is not None})
        for name in [name for name, value in fields.items() if value is None]:
            part.pop(name, None)
        path.write_text(json.dumps(said))
        return tmp_path / folder.name

    return copy


def test_what_is_written_is_read_again(tmp_path: Path, twin: HookedDLM) -> None:
    """The Top-K format: the tensors as nn.Linear has them, and all that dictionary_learning asks for."""
    sae = by_chance(twin, "blocks.1.hook_resid_post", Formula("topk", k=5))
    folder = sae.save(tmp_path / "new" / "sae", {"updates": 3})
    assert Autoencoder.load(folder) == sae
    held = load_file(folder / "ae.safetensors")
    assert torch.equal(held["encoder.weight"], sae.weights["W_enc"].T)
    assert torch.equal(held["decoder.weight"], sae.weights["W_dec"].T)
    assert {name: tuple(each.shape) for name, each in held.items()} == {
        "encoder.weight": (24, 96),
        "encoder.bias": (24,),
        "decoder.weight": (96, 24),
        "b_dec": (96,),
        "k": (),
        "threshold": (),
    }
    said = json.loads((folder / "config.json").read_text())
    assert said["trainer"] == {
        "trainer_class": "TopKTrainer",
        "dict_class": "AutoEncoderTopK",
        "activation_dim": 96,
        "dict_size": 24,
        "k": 5,
        "layer": 1,
        "lm_name": "tiny-dlm",
        "submodule_name": "resid_post_layer_1",
    }
    assert said["made"] == {"updates": 3}
    assert by_chance(twin, "blocks.1.hook_out", Formula("topk", k=5)).save(folder) == folder  # one's own is replaced


def test_other_peoples_files_are_left(tmp_path: Path, twin: HookedDLM) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(SaveError, match="no description of an autoencoder"):
        by_chance(twin, formula=Formula("topk", k=5)).save(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'
    assert not (tmp_path / "ae.safetensors").exists()


@pytest.mark.parametrize(
    ("formula", "point"),
    [
        (Formula("standard"), "blocks.0.hook_out"),
        (Formula("topk", k=3, by_norm=True), "blocks.0.hook_out"),
        (Formula("topk", k=3, centred=False), "blocks.0.hook_out"),
        (Formula("topk", k=3), "blocks.0.hook_in"),
    ],
)
def test_what_the_format_has_no_words_for_is_not_written(tmp_path: Path, formula: Formula, point: str) -> None:
    with pytest.raises(AutoencoderError, match="has no words in the Top-K format"):
        by_chance("m", point, formula).save(tmp_path)


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("blocks.3.hook_resid_pre", "blocks.3.hook_in"),
        ("blocks.12.hook_resid_post", "blocks.12.hook_out"),
        ("blocks.0.hook_attn_out", "blocks.0.attn.hook_out"),
        ("blocks.0.hook_mlp_out", "blocks.0.mlp.hook_out"),
        ("blocks.0.hook_out", "blocks.0.hook_out"),
        ("blocks.0.mlp.hook_out", "blocks.0.mlp.hook_out"),
    ],
)
def test_hook_points_of_saelens_are_those_of_the_bridge(tiny_model: Any, name: str, point: str) -> None:
    assert bridge_point(name) == point
    layer, _, end = name.removeprefix("blocks.").partition(".")
    points = tiny_model("LLaDA", layers=1).points
    if end in ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"):  # TransformerLens's own aliases
        assert points[f"blocks.0.{end}"] is points[point.replace(layer, "0")]


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_mid",
        "blocks.hook_out",
        "hook_embed",
        "blocks.0.ln1.hook_normalized",
        "",
    ],
)
def test_other_hook_points_are_refused(name: str) -> None:
    with pytest.raises(AutoencoderError, match="hook_resid_post \\(hook_out\\)"):
        bridge_point(name)


SAELENS_REFUSALS = [
    ("standard", "", {"architecture": "matching_pursuit"}, "architecture='matching_pursuit' of cfg.json"),
    ("standard", "", {"architecture": "skip_transcoder"}, "architecture='skip_transcoder'"),
    ("standard", "", {"temperature": 0.3}, "temperature=0.3 of cfg.json is a field that sinklens does not know"),
    ("standard", "", {"normalize_activations": "expected_average_only_in"}, "numbers that are not in these files"),
    ("standard", "", {"normalize_activations": "covariance_whitening"}, "numbers that are not in these files"),
    ("standard", "", {"normalize_activations": True}, "normalize_activations=True"),
    ("standard", "", {"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
    ("standard", "", {"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input of cfg.json='yes' must be true or false"),
    ("standard", "", {"activation_fn": "tanh-relu"}, "activation_fn='tanh-relu'"),
    ("standard", "", {"activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu'"),
    ("standard", "", {"finetuning_scaling_factor": True}, "features are scaled"),
    ("standard", "", {"k": 4}, "k=4 of cfg.json says nothing of architecture='standard'"),
    ("standard", "", {"d_in": 13}, "d_in=13 in cfg.json, and 12 in sae_weights.safetensors"),
    ("standard", "", {"d_sae": 24}, "d_sae=24 in cfg.json, and 20"),
    ("standard", "", {"architecture": "jumprelu"}, "threshold is missing, and must be"),
    ("jumprelu", "", {"architecture": "standard"}, "threshold is .*left out in a standard"),
    ("topk", "", {"k": None}, "'topk' needs one"),
    ("topk", "", {"k": 21}, "k=21 features are to be kept, and there are 20"),
    ("topk", "", {"k": 2.5}, "k=2.5"),
    ("topk", "metadata", {"hook_name": "blocks.0.attn.hook_z"}, "hook point 'blocks.0.attn.hook_z' is none"),
    ("topk", "metadata", {"hook_name": None}, "hook_name of cfg.json=None must be a text"),
    ("topk", "metadata", {"hook_head_index": 3}, "hook_head_index=3"),
    ("topk", "metadata", {"hook_name_out": "blocks.0.hook_mlp_out"}, "from one place to another"),
    ("topk", "metadata", {"model_name": None}, "names no model; say which: Autoencoder.load"),
]


@pytest.mark.parametrize(("name", "within", "fields", "message"), SAELENS_REFUSALS)
def test_what_saelens_says_and_sinklens_does_not_know_is_refused(
    copied: Any, name: str, within: str, fields: dict[str, Any], message: str
) -> None:
    folder = copied(SAELENS / name, within, **fields)
    with pytest.raises(AutoencoderError, match=message) as caught:
        Autoencoder.load(folder)
    assert str(folder) in str(caught.value)


TOPK_REFUSALS = [
    ("", {"trainer": None}, "has no 'trainer'"),
    ("trainer", {"dict_class": "BatchTopKSAE"}, "dict_class='BatchTopKSAE' of config.json is none that sinklens reads"),
    ("trainer", {"dict_class": None}, "dict_class=None"),
    ("trainer", {"k": 5}, r"k=5 in config.json, and 4 in ae.safetensors"),
    ("trainer", {"k": None}, "k of config.json=None must be a whole number"),
    ("trainer", {"layer": -1}, "layer of config.json=-1"),
    ("trainer", {"layer": 0}, "submodule_name='resid_post_layer_1' of config.json is not 'resid_post_layer_0'"),
    ("trainer", {"submodule_name": "mlp_out_layer_1"}, "no other place in this format"),
    ("trainer", {"dict_size": 16384}, "dict_size=16384 in config.json, and 20 in ae.safetensors"),
    ("trainer", {"activation_dim": 3584}, "activation_dim=3584"),
    ("trainer", {"lm_name": None}, "lm_name of config.json names no model"),
]


@pytest.mark.parametrize(("within", "fields", "message"), TOPK_REFUSALS)
def test_what_the_topk_format_says_and_sinklens_does_not_know_is_refused(
    copied: Any, within: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AutoencoderError, match=message):
        Autoencoder.load(copied(TOPK, within, **fields))


def test_other_tensors_are_refused(copied: Any) -> None:
    folder = copied(TOPK)
    held = load_file(folder / "ae.safetensors")
    save_file({**held, "r_mag": torch.zeros(20)}, folder / "ae.safetensors")
    with pytest.raises(
        AutoencoderError, match=r"ae.safetensors has 'r_mag'; AutoEncoderTopK has exactly encoder.weight"
    ):
        Autoencoder.load(folder)
    save_file({name: each for name, each in held.items() if name != "b_dec"}, folder / "ae.safetensors")
    with pytest.raises(AutoencoderError, match="lacks 'b_dec'"):
        Autoencoder.load(folder)


def test_a_scaling_of_ones_scales_nothing_and_another_is_refused(copied: Any) -> None:
    folder = copied(SAELENS / "before_6")
    held, before = load_file(folder / "sae_weights.safetensors"), Autoencoder.load(folder)
    save_file({**held, "scaling_factor": torch.ones(20)}, folder / "sae_weights.safetensors")
    assert Autoencoder.load(folder) == before
    save_file({**held, "scaling_factor": torch.full((20,), 1.5)}, folder / "sae_weights.safetensors")
    with pytest.raises(AutoencoderError, match="features are scaled"):
        Autoencoder.load(folder)


def test_a_pickle_is_not_opened_and_how_to_turn_it_is_said(copied: Any) -> None:
    """The command of the error makes the file that was missing, of a file as SAE4DLM saves it."""
    folder = copied(TOPK)
    before, held = Autoencoder.load(folder), load_file(folder / "ae.safetensors")
    (folder / "ae.safetensors").unlink()
    torch.save(held, folder / "ae.pt")
    with pytest.raises(AutoencoderError, match="a pickle, which sinklens never opens") as caught:
        Autoencoder.load(folder)
    command = str(caught.value).partition("of it once: ")[2]
    exec(
        command.replace('"ae.pt"', repr(str(folder / "ae.pt"))).replace(
            '"ae.safetensors"', repr(str(folder / "ae.safetensors"))
        )
    )
    assert Autoencoder.load(folder) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "has neither"),
        (lambda folder: (folder / "cfg.json").write_text("{}"), "has the files of both formats"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds no JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "ae.safetensors").write_bytes(b"0" * 99), "cannot be read"),
        (lambda folder: (folder / "ae.safetensors").unlink(), "cannot be read"),
    ],
)
def test_a_spoilt_folder_is_one_clear_error(copied: Any, spoil: Any, message: str) -> None:
    folder = copied(TOPK)
    spoil(folder)
    with pytest.raises(AutoencoderError, match=message):
        Autoencoder.load(folder)


# Whose it is.


def test_an_autoencoder_of_other_weights_is_refused(tmp_path: Path, tiny_model: Any) -> None:
    """Same family, sizes and name; what sinklens wrote says whose weights they were, in any dtype."""
    mine, other = tiny_model("LLaDA"), tiny_model("LLaDA", seed=1)
    sae = Autoencoder.load(by_chance(mine, formula=Formula("topk", k=3)).save(tmp_path))
    sae.check(mine)
    with pytest.raises(AutoencoderError, match="or other weights of that name"):
        sae.check(other)
    transferred = Autoencoder.load(tmp_path, model=other.name)
    transferred.check(other)
    assert transferred != sae


@pytest.mark.parametrize(
    ("said", "name", "fits"),
    [
        ("Dream-org/Dream-v0-Base-7B", "Dream-org/Dream-v0-Base-7B", True),
        ("Dream-org/Dream-v0-Base-7B", "/models/dream-v0-base-7b", True),
        ("Dream-org/Dream-v0-Base-7B", "/hub/models--Dream-org--Dream-v0-Base-7B/snapshots/05334cb9", True),
        ("Dream-org/Dream-v0-Base-7B", "Dream-org/Dream-v0-Instruct-7B", False),
        ("Dream-org/Dream-v0-Base-7B", "/models/dream-v0-base-7b-tuned", False),
        ("gpt2-small", "gpt2", False),
    ],
)
def test_a_model_is_known_by_its_name_whatever_folder_it_is_in(
    tiny_model: Any, said: str, name: str, fits: bool
) -> None:
    dlm = tiny_model("LLaDA")
    dlm.name = name
    sae = by_chance(said)
    if fits:
        sae.check(dlm)
        return
    with pytest.raises(AutoencoderError, match=r"say Autoencoder.load\(folder, model="):
        sae.check(dlm)


def test_another_width_and_a_layer_that_is_not_there_are_refused(twin: HookedDLM, tiny_model: Any) -> None:
    with pytest.raises(AutoencoderError, match="d_model 32; tiny-dlm has the layers 0 to 1 and d_model 96"):
        by_chance("tiny-dlm").check(twin)
    dlm = tiny_model("LLaDA")
    with pytest.raises(AutoencoderError, match=r"sits at blocks.2.hook_out"):
        by_chance(dlm.name, "blocks.2.hook_out").check(dlm)


def test_an_outline_is_checked_before_weights_are_read(twin: HookedDLM) -> None:
    sketch = outline("tiny-dlm")
    by_chance(twin).check(sketch)
    with pytest.raises(AutoencoderError, match="this model is 'tiny-arm'"):
        by_chance(twin).check(outline("tiny-arm"))
    with pytest.raises(AutoencoderError, match="this model is 'tiny-dlm'"):
        by_chance("tiny-arm").check(sketch)


def test_centred_weights_of_transformer_lens_are_refused_where_they_matter(copied: Any, tiny_model: Any) -> None:
    """A LayerNorm model that TransformerLens processed has another residual stream; a model with RMSNorm does not."""
    folder = copied(SAELENS / "standard", "metadata", model_from_pretrained_kwargs={})
    sae = Autoencoder.load(folder)
    assert not sae.place.uncentred
    assert Autoencoder.load(SAELENS / "standard").place.uncentred
    place = Place("blocks.0.hook_out", "m", uncentred=False)
    wide = Autoencoder(Formula("standard"), place, by_chance("m").weights)
    for family, refused in (("GPT-2", True), ("BERT", True), ("Llama", False), ("LLaDA", False)):
        dlm = tiny_model(family)
        dlm.name = "m"
        if refused:
            with pytest.raises(AutoencoderError, match="has mean 0; the model here is as published"):
                wide.check(dlm)
        else:
            wide.check(dlm)


# What edits and probes use.


def test_a_folder_is_read_once_and_again_when_it_changes(tmp_path: Path, twin: HookedDLM) -> None:
    first, second = (by_chance(twin, formula=Formula("topk", k=3), seed=seed) for seed in (0, 1))
    folder = str(first.save(tmp_path))
    assert load(folder) is load(folder)
    assert load(folder) == first
    assert same(folder, None) == first.identity == same(first, first.identity)
    second.save(tmp_path)
    assert load(folder) == second
    with pytest.raises(AutoencoderError, match="it is another autoencoder now"):
        same(folder, first.identity)
