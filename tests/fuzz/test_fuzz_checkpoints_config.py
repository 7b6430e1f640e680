"""Mutated config.json: whatever loads gives the logits of the stock class that reads the same fields."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import stock
import torch
import transformers
from fuzzing import fuzz, refused
from hypothesis import note
from hypothesis import strategies as st

from sinklens import HookedDLM

pytestmark = pytest.mark.filterwarnings("ignore")
FLAGS = st.booleans()
SIZES = st.sampled_from([1, 2, 4, 7, 8, 16, 24, 32, 48, 64, 67, 96, 128, 192])
POSITIVE = st.sampled_from([1e-12, 1e-5, 0.01, 0.3, 1, 1.0, 2, 2.5, 7, 8.0, 100, 1e4, 5e5, 1e9])
WILD = st.sampled_from(
    [None, True, False, 0, -1, 1, 3, 10**12, 2**70, 0.0, -1.5, 0.5, 1e300, float("nan"), float("inf"), "", "2", "silu"]
) | st.sampled_from([[], [1], [[2]], {}, {"a": 1}, ["full_attention"], {"rope_type": "linear"}])
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["linear", "dynamic", "yarn", "longrope", "llama3", "default", "su"]),
        "rope_type": st.sampled_from(["linear", "dynamic", "yarn", "longrope", "llama3", "default"]),
        "factor": POSITIVE,
        "original_max_position_embeddings": SIZES,
        "short_factor": st.lists(POSITIVE, min_size=2, max_size=4),
        "long_factor": st.lists(POSITIVE, min_size=2, max_size=4),
        "rope_theta": POSITIVE,
        "partial_rotary_factor": st.sampled_from([1.0, 0.5, 1]),
        **dict.fromkeys(["attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"], POSITIVE),
        **dict.fromkeys(["low_freq_factor", "high_freq_factor"], POSITIVE),
        "truncate": FLAGS,
        "odd": WILD,
    },
)
# Of each kind one that is whole, or chance would hardly ever make it.
WHOLE = {
    "linear": ["factor"],
    "dynamic": ["factor"],
    "yarn": ["factor", "beta_fast", "beta_slow", "attention_factor", "truncate", "mscale", "mscale_all_dim"],
    "longrope": ["short_factor", "long_factor", "attention_factor", "factor"],
    "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
}
PARTS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys([name for names in WHOLE.values() for name in names], POSITIVE),
    "original_max_position_embeddings": SIZES,
    "truncate": FLAGS,
}
KNOWN = {field.name for kind in ("Llama", "Qwen2", "Qwen3") for field in fields(getattr(transformers, f"{kind}Config"))}
# Fields of other classes, which change what is computed there.
FOREIGN = (
    "attn_logit_softcapping final_logit_softcapping logits_scaling residual_multiplier embedding_multiplier "
    "attention_multiplier query_pre_attn_scalar partial_rotary_factor rope_interleaved use_mrope qk_norm "
    "no_rope_layers num_experts quantization_config use_qk_norm clip_qkv attention_chunk_size layer_norm_eps "
    "norm_type unheard_of rope_local_base_freq hidden_activation scale_embeddings is_decoder kv_channels "
    "rope_pct tie_encoder_decoder"
)
ROPES = ("rope_scaling", "rope_parameters")


@st.composite
def ropes(draw: st.DrawFn, folder: Path) -> dict[str, Any]:
    """The parameters of a rope, most often of one that there is, for the heads of a folder."""
    if draw(st.integers(0, 3)) == 0:
        return draw(ROPE)
    kind = draw(st.sampled_from([*WHOLE, "default"]))
    needed = {"yarn": 1, "longrope": 2, "llama3": 4}.get(kind, 1)
    names = WHOLE.get(kind, [])
    chosen = [name for place, name in enumerate(names) if place < needed or draw(FLAGS)]
    lists = st.lists(POSITIVE, min_size=stock.head_size(folder) // 2, max_size=stock.head_size(folder) // 2)
    made = {name: draw(lists if name in ("short_factor", "long_factor") else PARTS[name]) for name in chosen}
    more = draw(st.fixed_dictionaries({}, optional={"rope_theta": POSITIVE, "original_max_position_embeddings": SIZES}))
    return {draw(st.sampled_from(["type", "rope_type"])): kind} | made | (more if kind != "default" else {})


@st.composite
def mutations(draw: st.DrawFn, folder: Path) -> dict[str, Any]:
    """One to three fields that config.json says instead."""
    own = json.loads((folder / "config.json").read_text())
    names = sorted({*own, *KNOWN, "original_max_position_embeddings", "rope_theta", "sliding_window"})
    made: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(
            st.sampled_from(names)
            | st.sampled_from([*ROPES, "rms_norm_eps", "head_dim"])
            | st.sampled_from(FOREIGN.split())
        )
        fitting = [WILD]
        value = own.get(name)
        if name in ROPES and draw(FLAGS):
            made["original_max_position_embeddings"] = draw(SIZES)
        if name in ROPES:
            fitting = [ropes(folder)] * 4 + [WILD]
        elif isinstance(value, bool) or name.endswith("_bias"):
            fitting += [FLAGS] * 3
        elif isinstance(value, float) or name in ("rms_norm_eps", "rope_theta"):
            fitting += [POSITIVE] * 4
        elif isinstance(value, int) or name in ("head_dim", "sliding_window", "original_max_position_embeddings"):
            fitting += [SIZES] * 3
        made[name] = draw(st.one_of(*fitting))
    return made


@fuzz(200, 5000, folder=st.integers(0, stock.COUNT - 1), data=st.data())
def test_what_loads_computes_what_config_json_says(folder: int, data: Any) -> None:
    source = stock.checkpoints()[folder]
    said = data.draw(mutations(source))
    length = data.draw(st.sampled_from([3, 12, 70]))
    tokens = torch.randint(0, 60, (1, length), generator=torch.Generator().manual_seed(length))
    own = json.loads((source / "config.json").read_text())
    with tempfile.TemporaryDirectory() as made:
        for path in source.iterdir():
            if path.is_file():
                shutil.copy(path, made)
        Path(made, "config.json").write_text(json.dumps(own | said))
        loaded: list[HookedDLM] = []
        why = refused(lambda: loaded.append(HookedDLM.from_pretrained(made, check=False)))
        note(f"{source.name}: {said}: {why}")
        if why is None:
            stock.same(loaded[0](tokens), stock.logits(Path(made), tokens))
