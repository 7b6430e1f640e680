"""What of TransformerLens takes a model: found in the installed package, so that no tool is forgotten."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import transformer_lens
from torch import nn
from transformer_lens import ActivationCache, patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

ELSEWHERE = (".model_bridge.", ".lit", ".model_registry.", ".benchmarks", "conversion_utils", ".factories")
TENSORS = "takes tensors, texts or names, and no model"
INSIDE = "a part of a tool above, or of how TransformerLens builds a bridge"
NOT_RUN: dict[str, str] = {
    **dict.fromkeys(
        (
            "JSpaceDecomposition",
            "get_sparse_decomposition",
            "solve_coordinate_patch",
            "SparseProbeConvergenceError",
            "fit_sparse_probe",
            "sweep_sparse_probe",
            "SubspaceBasis",
            "orthonormal_subspace",
            "projection_kernel",
            "random_projection_kernel_moments",
            "arbitrary_targets",
            "mean_difference_basis",
            "neuron_basis",
            "probe_basis",
            "random_neuron_basis",
            "LearnedSubspace",
            "NormMatchedPlacebo",
            "FaithfulnessConfig",
        ),
        TENSORS,
    ),
    **dict.fromkeys(
        (
            "require_eval_mode",
            "hybrid_block_types",
            "to_token_ids",
            "enumerate_nodes",
            "enumerate_edges",
            "cache_activation_and_gradient",
            "capture_writer_outputs",
            "collect_all_submodules_of_component",
            "collect_components_of_block_bridge",
            "collect_all_components",
            "apply_fn_to_all_components",
            "cast_floating_params_to_dtype",
            "maybe_cast_floating_params",
            "accepts_mask_derived_position_ids",
            "LocallyOverridenDefaults",
            "clear_hook_registry",
            "hook_aliases",
            "init_weights",
            "close",
        ),
        INSIDE,
    ),
    **dict.fromkeys(
        ("block_hooks", "block_submodules", "layer_types", "composition_layer_indices", "list_hooks", "mod_dict"),
        "lists of names",
    ),
    **dict.fromkeys(
        ("cuda", "cpu", "mps", "move_to_and_update_config", "force_eager_attention", "original_model"),
        "moves or sets the model that `dlm.original_model` is; tests/models/test_one_model.py has what follows it",
    ),
    **dict.fromkeys(
        ("list_supported_models", "check_model_support", "random_init_bridge"),
        "TransformerLens's own loaders and lists, which make its own bridges",
    ),
    "evaluate": "evaluate_on_dataset over texts that it fetches",
    **dict.fromkeys(
        (
            "infer_tracr_output_label",
            "make_tracr_categorical_unembed",
            "make_tracr_transformer_bridge_config",
            "make_tracr_transformer_bridge_state_dict",
        ),
        "takes a model of Tracr",
    ),
    "transformer_lens.benchmarks": "TransformerLens's own test suite of its bridges",
    "transformer_lens.tools.model_registry": "TransformerLens's own lists of models",
    "transformer_lens.lit": "needs lit-nlp; its forward is refused on a diffusion model as those of `evals` are",
}


def taking_a_model() -> set[str]:
    """Public names of TransformerLens that are, or take, a model or its cache."""
    found = {name for name in dir(ActivationCache) if not name.startswith("_")} - {"model", "cache_dict"}
    found |= {name for name in dir(TransformerBridge) if not name.startswith("_") and name not in dir(nn.Module)}
    found |= {name for name in dir(patching) if name.startswith("get_act_patch")} | set(analysis.__all__)
    for module in pkgutil.walk_packages(transformer_lens.__path__, "transformer_lens."):
        if any(part in module.name for part in ELSEWHERE):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.name or not callable(value):
                continue
            try:
                parameters = inspect.signature(value).parameters
            except (TypeError, ValueError):
                continue
            if "model" in parameters or "bridge" in parameters:
                found.add(name)
    return found
