"""ModernBERT, and dllm's BERT-Chat, which is one: an encoder most of whose layers see their neighbourhood only."""

from __future__ import annotations

from typing import Any

from sinklens.errors import CheckpointError
from sinklens.models.families.base import Family, Model
from sinklens.models.families.encoder_fields import ACTIVATIONS, encoder
from sinklens.models.families.fields import Config, positive, short

KINDS = ("full_attention", "sliding_attention")
THETA = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def translate(config: Config) -> dict[str, Any]:
    """ModernBERT's config.json -> ModernBertConfig arguments."""
    arguments = encoder(
        {name: value for name, value in config.items() if name not in ("layer_types", "rope_parameters")},
        sizes=("intermediate_size", "max_position_embeddings", "local_attention", "global_attn_every_n_layers"),
        numbers=("norm_eps", *THETA.values()),
        flags=("attention_bias", "mlp_bias", "norm_bias", "decoder_bias", "classifier_bias", "tie_word_embeddings"),
        choices={"hidden_activation": ACTIVATIONS, "classifier_activation": ACTIVATIONS},
        inert=(  # of losses, kernels and classifiers; two that other encoders read
            "sparse_prediction sparse_pred_ignore_index reference_compile repad_logits_with_grad classifier_pooling "
            "deterministic_flash_attn initializer_cutoff_factor position_embedding_type layer_norm_eps"
        ),
    )
    thetas = _thetas(config, {kind: arguments.pop(name, None) for kind, name in THETA.items()})
    arguments["rope_parameters"] = {kind: {"rope_type": "default", "rope_theta": thetas[kind]} for kind in KINDS}
    every = arguments.pop("global_attn_every_n_layers", 3)
    said = config.get("layer_types")
    layers = arguments["num_hidden_layers"]
    if said is None:
        said = [KINDS[index % every > 0] for index in range(layers)]
    if not isinstance(said, list) or len(said) != layers or any(kind not in KINDS for kind in said):
        raise CheckpointError(
            f"config.json has layer_types={short(said)}; expected {' or '.join(KINDS)} for each of {layers} layers"
        )
    return arguments | {"layer_types": said}


def _thetas(config: Config, old: dict[str, Any]) -> dict[str, float]:
    """The base of the rotary angles of each kind of layer, as new and as old files say it; both must agree."""
    said = config.get("rope_parameters")
    if said is not None and not (isinstance(said, dict) and all(isinstance(said.get(kind), dict) for kind in KINDS)):
        raise CheckpointError(f"config.json has rope_parameters={short(said)}; expected an object for each of {KINDS}")
    found = {"full_attention": 160000.0, "sliding_attention": 10000.0}
    for kind in KINDS:
        new = dict((said or {}).get(kind, {}))
        theta, rest = new.pop("rope_theta", None), {n: v for n, v in new.items() if (n, v) != ("rope_type", "default")}
        if rest:
            raise CheckpointError(
                f"config.json has {short(rest)} in rope_parameters; only rope_type='default' is loaded"
            )
        given = [positive("rope_theta", each) for each in (theta, old[kind]) if each is not None]
        if len(set(given)) > 1:
            raise CheckpointError(f"config.json says {THETA[kind]}={given[1]} and rope_theta={given[0]}; which is it?")
        found[kind] = given[0] if given else found[kind]
    return found


MODERNBERT = Family(
    name="ModernBERT",
    model_types=("modernbert",),
    architectures=("ModernBertForMaskedLM",),
    model_class="ModernBertForMaskedLM",
    causal=False,
    translate=translate,
    closes=True,
    mask_tokens=("[MASK]",),
    plan={"sampler": "llada", "remasking": "low_confidence", "block_length": 32},
    models=(
        Model("dllm-hub/ModernBERT-base-chat-v0.1", note="new tokens behind messages"),
        Model("dllm-hub/ModernBERT-large-chat-v0.1"),
        Model("answerdotai/ModernBERT-base"),
    ),
    source="transformers ModernBertForMaskedLM; github ZHZisZZ/dllm, examples/bert and MDLMSampler",
)
