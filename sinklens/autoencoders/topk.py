"""The Top-K format: config.json and ae.safetensors, with the names of dictionary_learning, as SAE4DLM has them.

Source: AutoEncoderTopK and TopKTrainer.config of dictionary_learning (github saprmarks/dictionary_learning) in SAE4DLM
(github Xu0615/SAE4DLM, ffecb62). Its ae.pt holds the same tensors under the same names. What SAE4DLM's own scripts for
steering and order encode leaves b_dec in x; training and evaluation take it off, and so does sinklens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sinklens.autoencoders.formulas import Formula, Weights
from sinklens.autoencoders.place import Place
from sinklens.errors import AutoencoderError
from sinklens.values.kinds import Count, Index
from sinklens.values.kinds import read as read_value

CONFIG, WEIGHTS = "config.json", "ae.safetensors"
CLASS = "AutoEncoderTopK"
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "b_dec": "b_dec"}
TURNED = ("W_enc", "W_dec")  # stored as nn.Linear has them: [out, in]
BESIDE = ("k", "threshold")  # numbers; the threshold is of another way to encode, which has to be asked for
EXACT = ("family", "weights")  # of the model: what a file of sinklens says beside its name


def read(said: Mapping[str, Any], held: Mapping[str, Tensor], model: str | None) -> tuple[Formula, Place, Weights]:
    """Formula, place and weights of a config.json and its tensors.

    Raises:
        AutoencoderError: another class of dictionary, a place other than the residual stream after a layer, tensors
            of other names, or two numbers for one thing.
    """
    trainer = said.get("trainer")
    if not isinstance(trainer, Mapping):
        raise AutoencoderError(f"{CONFIG} has no 'trainer', so it is not that of a Top-K autoencoder")
    kind = trainer.get("dict_class")
    if kind != CLASS:
        raise AutoencoderError(f"dict_class={kind!r} of {CONFIG} is none that sinklens reads; it reads {CLASS!r}")
    lost, more = {*NAMES, "k"} - {*held}, {*held} - {*NAMES, *BESIDE}
    if lost or more:
        wrong = f"has {min(more)!r}" if more else f"lacks {min(lost)!r}"
        raise AutoencoderError(f"{WEIGHTS} {wrong}; {CLASS} has exactly {', '.join((*NAMES, *BESIDE))}")
    k = read_value(f"k of {CONFIG}", trainer.get("k"), Count, AutoencoderError)
    if held["k"].numel() != 1 or int(held["k"]) != k:
        raise AutoencoderError(f"k={k} in {CONFIG}, and {held['k'].tolist()} in {WEIGHTS}: one of them is wrong")
    weights = {ours: held[theirs].T if ours in TURNED else held[theirs] for theirs, ours in NAMES.items()}
    sizes = {"activation_dim": weights["b_dec"].numel(), "dict_size": weights["b_enc"].numel()}
    for name, size in sizes.items():
        if name in trainer and trainer[name] != size:
            raise AutoencoderError(f"{name}={trainer[name]!r} in {CONFIG}, and {size} in {WEIGHTS}")
    return Formula("topk", k=k), _place(said, trainer, model), weights


def _place(said: Mapping[str, Any], trainer: Mapping[str, Any], model: str | None) -> Place:
    layer = read_value(f"layer of {CONFIG}", trainer.get("layer"), Index, AutoencoderError)
    name = trainer.get("submodule_name")
    if name != f"resid_post_layer_{layer}":
        raise AutoencoderError(
            f"submodule_name={name!r} of {CONFIG} is not 'resid_post_layer_{layer}', the residual stream after the "
            "layer, and sinklens knows no other place in this format"
        )
    point, ours = f"blocks.{layer}.hook_out", said.get("place") if said.get("sinklens") == "autoencoder" else None
    if model is None and isinstance(ours, Mapping):
        return Place(point, *(read_value(f"{each} of {CONFIG}", ours.get(each), str) for each in ("model", *EXACT)))
    known = model if model is not None else trainer.get("lm_name")
    if not known:
        raise AutoencoderError(f"lm_name of {CONFIG} names no model; say which: Autoencoder.load(folder, model=...)")
    return Place(point, read_value(f"lm_name of {CONFIG}", known, str, AutoencoderError))


def described(formula: Formula, place: Place, weights: Weights, made: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says.

    Raises:
        AutoencoderError: the format has no words for this autoencoder.
    """
    plain = formula.architecture == "topk" and formula == Formula("topk", k=formula.k)
    if not plain or not re.fullmatch(r"blocks\.\d+\.hook_out", place.point):
        raise AutoencoderError(
            f"{formula!r} at {place.point} has no words in the Top-K format, which holds 'topk' as it is by default, "
            "after a layer"
        )
    features, d_model = weights["W_dec"].shape
    trainer = {
        "trainer_class": "TopKTrainer",
        "dict_class": CLASS,
        "activation_dim": d_model,
        "dict_size": features,
        "k": formula.k,
        "layer": place.layer,
        "lm_name": place.model,
        "submodule_name": f"resid_post_layer_{place.layer}",
    }
    exact = {name: getattr(place, name) for name in ("model", *EXACT)}
    return {"trainer": trainer, "made": dict(made)} | ({"place": exact} if place.weights is not None else {})


def stored(formula: Formula, weights: Weights) -> dict[str, Tensor]:
    """The tensors of the weights' file; of no threshold, as before training has one."""
    held = {theirs: weights[ours].T if ours in TURNED else weights[ours] for theirs, ours in NAMES.items()}
    return held | {"k": torch.tensor(formula.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
