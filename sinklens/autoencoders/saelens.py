"""SAELens's format: cfg.json and sae_weights.safetensors, of version 6 and of those before it.

Source: SAELens 6.54.12 (github decoderesearch/SAELens): the fields of its configurations, and what it makes of older
files. What SAELens would pass over in silence, an activation function or a normalisation that it does not apply, is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sinklens.autoencoders.formulas import Formula, Weights
from sinklens.autoencoders.place import Place
from sinklens.errors import AutoencoderError
from sinklens.values.kinds import read as read_value

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
OLD = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
# Of the autoencoder's own fields these say what it computes; those of NEUTRAL change no number. Version 6 has what is
# about the model under "metadata"; before, it stood beside the others.
READ = (
    *("architecture", "d_in", "d_sae", "k", "apply_b_dec_to_input", "normalize_activations", "reshape_activations"),
    *("rescale_acts_by_decoder_norm", "activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor"),
    *("hook_name", "hook_head_index", "model_name", "model_class_name", "model_from_pretrained_kwargs", "metadata"),
)
NEUTRAL = (
    *("dtype", "device", "prepend_bos", "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice"),
    *("dataset_path", "dataset_trust_remote_code", "sae_lens_version", "sae_lens_training_version", "hook_layer"),
    *("hook_point_layer", "noise_scale", "from_pretrained_path", "sae_lens_training_version"),
)


def read(said: Mapping[str, Any], held: Mapping[str, Tensor], model: str | None) -> tuple[Formula, Place, Weights]:
    """Formula, place and weights of a cfg.json and its tensors.

    Raises:
        AutoencoderError: a field that is unknown, or says something that sinklens does not compute.
    """
    fields = {OLD.get(name, name): value for name, value in said.items()}
    unknown = sorted(set(fields) - {*READ, *NEUTRAL})
    if unknown:
        raise AutoencoderError(
            f"{unknown[0]}={fields[unknown[0]]!r} of {CONFIG} is a field that sinklens does not know, and what it "
            "changes cannot be told"
        )
    about = fields.get("metadata", fields)
    if not isinstance(about, Mapping):
        raise AutoencoderError(f"metadata={about!r} of {CONFIG} must be an object")
    formula = _formula(fields)
    weights = dict(held)
    scaling = weights.pop("scaling_factor", None)
    if fields.get("finetuning_scaling_factor") or (scaling is not None and not torch.equal(*_ones(scaling))):
        raise AutoencoderError(f"finetuning_scaling_factor of {CONFIG}: features are scaled, which sinklens does not")
    sizes = {"d_in": weights.get("b_dec"), "d_sae": weights.get("W_dec")}
    for name, tensor in sizes.items():
        if tensor is not None and fields.get(name) != len(tensor):
            raise AutoencoderError(f"{name}={fields.get(name)!r} in {CONFIG}, and {len(tensor)} in {WEIGHTS}")
    return formula, _place(about, model), weights


def _ones(scaling: Tensor) -> tuple[Tensor, Tensor]:
    return scaling, torch.ones_like(scaling)


def _formula(fields: Mapping[str, Any]) -> Formula:
    architecture, k = fields.get("architecture", "standard"), fields.get("k")
    function, more = fields.get("activation_fn", "relu"), fields.get("activation_fn_kwargs") or {}
    if function == "topk" and architecture in ("standard", "topk"):  # before version 6
        architecture, k = "topk", more.get("k")
    elif function != "relu":
        raise AutoencoderError(f"activation_fn={function!r} of {CONFIG} is none that sinklens knows: 'relu' or 'topk'")
    if architecture not in ("standard", "gated", "jumprelu", "topk"):
        raise AutoencoderError(
            f"architecture={architecture!r} of {CONFIG} is none that sinklens computes: 'standard', 'gated', "
            "'jumprelu' (as which SAELens saves BatchTopK, too) and 'topk'"
        )
    normalised = fields.get("normalize_activations", "none")
    if normalised in (None, False):
        normalised = "none"
    if normalised not in ("none", "layer_norm", "constant_norm_rescale"):
        raise AutoencoderError(
            f"normalize_activations={normalised!r} of {CONFIG}: activations are to be scaled by numbers that are not "
            "in these files. Fold them into the weights first (SAELens does when a training ends)"
        )
    reshaped = fields.get("reshape_activations", "none")
    if reshaped != "none":
        raise AutoencoderError(f"reshape_activations={reshaped!r} of {CONFIG}: only whole positions, 'none'")
    said = {"centred": ("apply_b_dec_to_input", True), "by_norm": ("rescale_acts_by_decoder_norm", False)}
    flags = {
        ours: read_value(f"{name} of {CONFIG}", fields.get(name, usual), bool, AutoencoderError)
        for ours, (name, usual) in said.items()
    }
    if k is not None and architecture != "topk":
        raise AutoencoderError(f"k={k!r} of {CONFIG} says nothing of architecture={architecture!r}")
    return Formula(architecture, k=k, normalised=normalised, **flags)


def _place(about: Mapping[str, Any], model: str | None) -> Place:
    for name in ("hook_head_index", "hook_name_out"):
        if about.get(name) is not None:
            raise AutoencoderError(
                f"{name}={about[name]!r} of {CONFIG}: an autoencoder of one head, or from one place to another, is "
                "none that sinklens can splice in"
            )
    known = model if model is not None else about.get("model_name")
    if not known:
        raise AutoencoderError(f"model_name of {CONFIG} names no model; say which: Autoencoder.load(folder, model=...)")
    point = read_value(f"hook_name of {CONFIG}", about.get("hook_name"), str, AutoencoderError)
    options = about.get("model_from_pretrained_kwargs") or {}
    hooked = about.get("model_class_name") in (None, "HookedTransformer")
    uncentred = not hooked or options.get("center_writing_weights") is False
    return Place(point, read_value(f"model_name of {CONFIG}", known, str, AutoencoderError), uncentred=uncentred)
