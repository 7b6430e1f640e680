"""MDLM (OpenWebText): a diffusion transformer whose clock stands still; its modulations fold into Starcoder2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.fields import SUPPORTED, Config, only, refuse, require, size

NAMES = ("vocab_size", "model_length", "hidden_dim", "n_blocks", "n_heads")
THETA = 10000.0


class BiasedStarcoder2ForCausalLM(transformers.Starcoder2ForCausalLM):
    """Starcoder2 with a bias in its unembedding; everything else is transformers'."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)


def translate(config: Config) -> dict[str, Any]:
    """MDLM's config.json -> Starcoder2Config arguments."""
    config = {name: value for name, value in config.items() if value is not None}
    require(config, NAMES)
    refuse(config, SUPPORTED | {"time_conditioning": (False,)})
    only(config, "Starcoder2", (*NAMES, "cond_dim", "dropout", "time_conditioning"))
    vocabulary, length, width, blocks, heads = (size(name, config[name]) for name in NAMES)
    if width % heads or width // heads % 2:
        raise CheckpointError(
            f"config.json has hidden_dim={width} and n_heads={heads}; heads of one even size must make up the first"
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": length,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    }


def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MDLM's weights as Starcoder2's: at noise 0, always, every modulation is a constant.

    Shifts and scales go into the norms before attention and MLP, gates into what writes to the residual stream: what
    `attn.o` and `mlp.out` show is gated already.

    Raises:
        KeyError: a weight that is not there.
        CheckpointError: rotary frequencies of another base.
    """
    rest = {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    blocks = 1 + max((int(name.split(".")[1]) for name in rest if name.startswith("blocks.")), default=-1)
    constant = _condition(rest)
    out = {"model.embed_tokens.weight": rest.pop("vocab_embed.embedding")}
    for block in range(blocks):
        ours, theirs = f"model.layers.{block}", f"blocks.{block}"
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _modulation(rest, theirs, constant, 6)
        out |= _norm(f"{ours}.input_layernorm", rest.pop(f"{theirs}.norm1.weight"), shift, scale)
        out |= _norm(f"{ours}.post_attention_layernorm", rest.pop(f"{theirs}.norm2.weight"), mlp_shift, mlp_scale)
        *projections, output = *rest.pop(f"{theirs}.attn_qkv.weight").chunk(3), rest.pop(f"{theirs}.attn_out.weight")
        for name, weight in zip("qkvo", (*projections, _gated(gate, output)), strict=True):
            out[f"{ours}.self_attn.{name}_proj.weight"] = weight
            out[f"{ours}.self_attn.{name}_proj.bias"] = torch.zeros_like(weight[:, 0])
        for part in ("weight", "bias"):
            out[f"{ours}.mlp.c_fc.{part}"] = rest.pop(f"{theirs}.mlp.0.{part}")
            out[f"{ours}.mlp.c_proj.{part}"] = _gated(mlp_gate, rest.pop(f"{theirs}.mlp.2.{part}"))
    shift, scale = _modulation(rest, "output_layer", constant, 2)
    out |= _norm("model.norm", rest.pop("output_layer.norm_final.weight"), shift, scale)
    out |= {f"lm_head.{part}": rest.pop(f"output_layer.linear.{part}") for part in ("weight", "bias")}
    _check_frequencies(rest.pop("rotary_emb.inv_freq", None))
    return out | {f"backbone.{name}": tensor for name, tensor in rest.items()}  # what nobody knows, to be refused


def _condition(rest: dict[str, Tensor]) -> Tensor:
    """What all modulations are made of: SiLU of the clock's MLP at time 0, in float64."""
    first, bias, second, last = (
        rest.pop(f"sigma_map.mlp.{layer}.{part}").double() for layer in (0, 2) for part in ("weight", "bias")
    )
    half = first.shape[1] // 2
    clock = torch.cat([first.new_ones(half), first.new_zeros(first.shape[1] - half)])  # cosines and sines of 0
    silu = nn.functional.silu
    return silu(second @ silu(first @ clock + bias) + last)


def _modulation(rest: dict[str, Tensor], where: str, constant: Tensor, parts: int) -> tuple[Tensor, ...]:
    weight, bias = (rest.pop(f"{where}.adaLN_modulation.{part}").double() for part in ("weight", "bias"))
    return (weight @ constant + bias).chunk(parts)


def _norm(name: str, weight: Tensor, shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """A norm without bias, scaled and shifted after it."""
    folded = (weight.double() * (1 + scale)).to(weight.dtype)
    return {f"{name}.weight": folded, f"{name}.bias": shift.to(weight.dtype)}


def _gated(gate: Tensor, tensor: Tensor) -> Tensor:
    """What writes to the residual stream, times the gate of each of its numbers."""
    return (gate.view(-1, *[1] * (tensor.ndim - 1)) * tensor.double()).to(tensor.dtype)


def _check_frequencies(stored: Tensor | None) -> None:
    if stored is None or stored.is_meta:
        return
    expected = THETA ** -(torch.arange(len(stored), dtype=torch.float64) / len(stored))
    if not torch.allclose(stored.double(), expected, rtol=1e-2):  # also where they were rounded to half precision
        raise CheckpointError(
            f"the weights hold rotary frequencies from {float(stored[0]):g} to {float(stored[-1]):g}, and MDLM's are "
            f"those of the base {THETA:g}"
        )


MDLM = Family(
    name="MDLM",
    model_types=("mdlm",),
    architectures=("MDLM",),
    model_class="BiasedStarcoder2ForCausalLM",
    own=BiasedStarcoder2ForCausalLM,
    causal=False,
    translate=translate,
    fold=fold,
    last_is_mask=True,
    tokenizer="GPT2Tokenizer",
    plan={"sampler": "ddpm_cache"},
    models=(Model("kuleshov-group/mdlm-owt", 0.17e9, note="its tokenizer is GPT-2's, which it does not ship"),),
    source="github kuleshov-group/mdlm; class DIT, Diffusion._sample",
)
