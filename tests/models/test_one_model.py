"""One model: whatever is done to it, a hooked and an unhooked forward run the same modules, or it raises at once."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens import HookedDLM
from sinklens.errors import ContentError, HookNeverFired, ModelError
from sinklens.hooks import by_query
from sinklens.models import attention
from sinklens.values.content import named

FAMILIES = ["LLaDA", "Dream", "LLaDA-MoE", "RND1", "Llama", "Qwen3", "GPT-2", "DiffuGPT", "MDLM"]
SERVED = ["hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_received"]
POINTS = [*(f"attn.{name}" for name in SERVED), "attn.v.hook_out", "attn.o.hook_in", "attn.hook_out", "hook_in",
          "hook_out", "ln1.hook_in", "ln2.hook_out", "mlp.hook_in", "mlp.hook_out", "mlp.gate.hook_out",
          "mlp.out.hook_in", "attn.q.hook_out"]  # fmt: skip
EXPERTS = {"mlp.gate.hook_out": "mlp.gate.hook_expert_weights", "mlp.out.hook_in": "mlp.gate.hook_in"}  # of a mixture
LOOKS = ["hook_out", "mlp.hook_in", "attn.q.hook_out", "attn.hook_rot_k", "ln1.hook_normalized", "attn.hook_out"]
TOKENS = torch.tensor([[5, 17, 9, 33, 8, 21, 63], [1, 1, 1, 40, 63, 7, 12]])
VALID = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    """Random models of a family, one per family; for tests that change nothing."""
    return lru_cache(tiny_model)


def nothing(tensor: Tensor, *, hook: Any) -> None:
    """A hook that only looks."""


def logits(dlm: HookedDLM, point: str | None = None) -> Tensor:
    """Logits of a padded batch, with a hook on a point of every layer that only looks."""
    hooks = [] if point is None else [(f"blocks.{layer}.{point}", nothing) for layer in range(dlm.n_layers)]
    with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        return dlm(TOKENS, attention_mask=VALID)


def agrees(dlm: HookedDLM) -> Tensor:
    """Hooked and unhooked forwards agree: bit for bit, up to rounding where the pattern is formed. The logits."""
    plain = logits(dlm)
    for point in LOOKS:
        assert torch.equal(logits(dlm, point)[VALID], plain[VALID]), point
    together = dlm.wiring.run(lambda _: logits(dlm), everything=True)
    assert torch.equal(together[VALID], plain[VALID]), "all components"
    scale = float(plain.abs().max().clamp(min=1))
    close = {torch.float32: 1e-5, torch.float64: 1e-6}.get(plain.dtype, 5e-2)
    torch.testing.assert_close(logits(dlm, "attn.hook_pattern")[VALID], plain[VALID], atol=close * scale, rtol=0)
    return plain


# The way a hook comes to fire.


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_point_shows_and_takes_the_same_alone_and_with_all_components_in_place(
    model: Any, family: str, point: str
) -> None:
    dlm, kept = model(family), []
    point = EXPERTS.get(point, point) if "Moe" in dlm.family.layout else point
    if dlm.family.layout in ("GPT2", "Starcoder2") and "gate" in point:
        with pytest.raises(KeyError, match="does not exist"), dlm.hooks(fwd_hooks=[(f"blocks.0.{point}", nothing)]):
            pass
        return

    def edit(tensor: Tensor, *, hook: Any) -> Tensor:
        kept.append(tensor.clone())
        if point == "ln1.hook_in":
            return tensor.abs()  # a norm that centres undoes whatever is the same everywhere
        return tensor * 0.7 if point == "attn.hook_pattern" else tensor * 0.7 + 0.1

    with dlm.hooks(fwd_hooks=[(f"blocks.{layer}.{point}", edit) for layer in range(dlm.n_layers)]):
        alone = dlm(TOKENS, attention_mask=VALID)
        together = dlm.wiring.run(lambda _: dlm(TOKENS, attention_mask=VALID), everything=True)
    assert len(kept) == 2 * dlm.n_layers
    for ours, theirs in zip(kept[: dlm.n_layers], kept[dlm.n_layers :], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(alone[VALID], together[VALID])
    changed = (alone - dlm(TOKENS, attention_mask=VALID))[VALID].abs().max()
    assert (changed > 1e-3) == (point != "attn.hook_received")


@torch.no_grad()
def test_a_forward_runs_the_components_that_are_hooked_and_no_others(model: Any, monkeypatch: Any) -> None:
    dlm, ran = model("LLaDA"), []
    parts = {}
    for i, block in enumerate(dlm.blocks):
        parts |= {f"{i}.block": block, f"{i}.attn": block.attn, f"{i}.mlp": block.mlp, f"{i}.k": block.attn.k}
    for name, part in parts.items():
        inner = part.forward
        monkeypatch.setitem(
            part.__dict__, "forward", lambda *a, inner=inner, name=name, **k: ran.append(name) or inner(*a, **k)
        )
    for points, expected in (
        ([], []),
        (["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_rot_q"], []),
        (["blocks.1.hook_out"], ["1.block"]),
        (["blocks.0.attn.k.hook_out", "blocks.1.mlp.hook_in"], ["0.k", "1.mlp"]),
        (["blocks.0.attn.hook_out"], ["0.attn"]),
    ):
        ran.clear()
        with dlm.hooks(fwd_hooks=[(name, nothing) for name in points]):
            dlm(TOKENS)
        assert ran == expected, points
    handle = dlm.blocks[0].mlp.register_forward_hook(lambda *_: None)  # anybody's hook, not TransformerLens's
    ran.clear()
    dlm(TOKENS)
    handle.remove()
    assert ran == ["0.mlp"]


@torch.no_grad()
def test_unhooked_it_is_transformers_sdpa_bit_for_bit(model: Any) -> None:
    for family in FAMILIES:
        plain = model(family).original_model
        ours = plain(TOKENS, attention_mask=VALID.long()).logits
        plain.set_attn_implementation("sdpa")
        theirs = plain(TOKENS, attention_mask=VALID.long()).logits
        plain.set_attn_implementation(attention.NAME)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_received_by_sets_of_queries(
    model: Any, family: str, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the whole pattern: queries that hold the mask token, those that do not, and each row's last."""
    dlm, kept = model(family), {}
    if block:
        monkeypatch.setattr(attention.blocks, "rows_at_once", lambda *_: block)

    def keep(tensor: Tensor, *, hook: Any) -> None:
        kept[hook.name.split(".")[-1]] = tensor.clone()

    mask_id = dlm.ids.mask if dlm.ids.mask is not None else -1
    tokens = TOKENS.masked_fill(TOKENS == 63, max(mask_id, 0))
    names = [f"blocks.1.attn.{name}" for name in attention.RECEIVED]
    for valid in (VALID, VALID.flip(-1)):  # padding on the left, and on the right
        with dlm.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", keep)]):
            dlm(tokens, attention_mask=valid)
        with dlm.hooks(fwd_hooks=[(name, by_query(keep)) for name in names]):
            dlm(tokens, attention_mask=valid)
        mask = tokens == mask_id
        last = torch.zeros_like(valid)
        for row, real in enumerate(valid.tolist()):
            last[row, max(place for place, there in enumerate(real) if there)] = True
        for name, queries in zip(attention.RECEIVED, (valid, mask & valid, ~mask & valid, last), strict=True):
            expected = torch.einsum("bhqk,bq->bhk", kept["hook_pattern"], queries.float())
            torch.testing.assert_close(kept[name], expected, atol=1e-5, rtol=0)
        if not dlm.is_causal:
            assert bool(mask.any())
            assert float(kept["hook_received_masked"].sum()) > 0


@torch.no_grad()
def test_sets_that_need_tokens_are_not_shown_without_tokens(model: Any) -> None:
    """Also not those of the forward before."""
    dlm, fired = model("LLaDA"), []

    def note(tensor: Tensor, *, hook: Any) -> None:
        fired.append(hook.name)

    names = [f"blocks.0.attn.{name}" for name in attention.RECEIVED]
    with dlm.hooks(fwd_hooks=[(name, note) for name in names]):
        dlm(TOKENS)
        assert fired == names
        fired.clear()
        dlm(dlm.original_model.get_input_embeddings()(TOKENS))
    assert fired == names[:1]


@torch.no_grad()
def test_a_component_that_is_called_by_itself_fires_its_points(model: Any) -> None:
    dlm, kept = model("LLaDA"), []

    def keep(pattern: Tensor, *, hook: Any) -> None:
        kept.append(pattern)

    stream = torch.randn(1, 5, dlm.cfg.d_model)
    embeddings = dlm.original_model.model.rotary_emb(stream, torch.arange(5)[None])
    with dlm.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", keep)]):
        dlm.blocks[0].attn(stream, position_embeddings=embeddings, attention_mask=None)
    assert kept[0].shape == (1, dlm.n_heads, 5, 5)


@torch.no_grad()
def test_long_texts_come_in_blocks_of_the_size_that_is_said(model: Any) -> None:
    """With the real block size, which other tests replace: no block holds more numbers than it may."""
    attn, sizes = model("LLaDA").blocks[0].attn, []
    q, k, v = (torch.randn(1, 2, 1100, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))

    def note(tensor: Tensor, *, hook: Any) -> None:
        sizes.append(tensor.shape[-2])

    handle = attn.hook_pattern.add_hook(by_query(note))
    sight = attention.Sight.of(1100)
    mixed, pattern = attention.blocks.attend(attn.served.weights, [], q, k, v, sight, 0.3)
    handle.hook.remove()
    attn.hook_pattern.fwd_hooks.remove(handle)
    assert pattern is None
    assert sum(sizes) == 1100
    assert len(sizes) > 1
    assert max(sizes) * 2 * 1100 <= attention.blocks.CPU_BLOCK
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(mixed, fused, atol=1e-5, rtol=0)


# What may be done to a model.


def lora(target: nn.Module) -> None:
    """Random LoRA on two projections, in place."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    peft.inject_adapter_in_model(config, target)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    target.eval()


def lora_layers(dlm: HookedDLM) -> list[Any]:
    """The projections that have an adapter."""
    return [module for module in dlm.original_model.modules() if hasattr(module, "lora_A")]


class Doubled(nn.Module):
    """Another module in the place of one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Twice what the inner module says."""
        return 2 * self.inner(*args, **kwargs)


class Negated(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the other sign."""
        return -weight


def layer(dlm: HookedDLM) -> Any:
    """The first layer of the transformers model."""
    return dlm.original_model.model.layers[0]


def add_adapter(dlm: HookedDLM) -> None:
    lora(dlm.original_model)


def switch_adapter_off(dlm: HookedDLM) -> None:
    lora(dlm.original_model)
    logits(dlm, "hook_out")  # seen with the adapter first
    for module in lora_layers(dlm):
        module.enable_adapters(False)
        module.enable_adapters(True)
        module.set_scale("default", 3.0)


def merge_adapter(dlm: HookedDLM) -> None:
    lora(dlm.original_model)
    logits(dlm, "attn.q.hook_out")
    for module in lora_layers(dlm):
        module.merge()


def replace_module(dlm: HookedDLM) -> None:
    layer(dlm).mlp.down_proj = Doubled(layer(dlm).mlp.down_proj)


def replace_attention(dlm: HookedDLM) -> None:
    layer(dlm).self_attn = copy.deepcopy(dlm.original_model.model.layers[1].self_attn)


def replace_layer(dlm: HookedDLM) -> None:
    dlm.original_model.model.layers[0] = copy.deepcopy(dlm.original_model.model.layers[1])


def replace_weight(dlm: HookedDLM) -> None:
    layer(dlm).self_attn.o_proj.weight = nn.Parameter(torch.zeros_like(layer(dlm).self_attn.o_proj.weight))


def change_weight_in_place(dlm: HookedDLM) -> None:
    layer(dlm).self_attn.o_proj.weight.data.mul_(0.5)


def replace_weight_on_the_bridge(dlm: HookedDLM) -> None:
    linear = dlm.blocks[0].attn.o.original_component
    linear.weight = nn.Parameter(torch.zeros_like(linear.weight))


def parametrise(dlm: HookedDLM) -> None:
    torch.nn.utils.parametrize.register_parametrization(layer(dlm).mlp.up_proj, "weight", Negated())


def hook_a_module(dlm: HookedDLM) -> None:
    layer(dlm).mlp.register_forward_hook(lambda module, args, out: out * 3)


def hook_a_component(dlm: HookedDLM) -> None:
    dlm.blocks[1].mlp.register_forward_hook(lambda module, args, out: out * 3)


def keep_a_hook(dlm: HookedDLM) -> None:
    dlm.blocks[0].hook_out.add_hook(lambda tensor, *, hook: tensor * 1.5, is_permanent=True)


def cast_a_part(dlm: HookedDLM) -> None:
    layer(dlm).double()  # its norms and projections meet float32, which torch refuses


CHANGES: list[Callable[[HookedDLM], None]] = [
    add_adapter, switch_adapter_off, merge_adapter, replace_module, replace_attention, replace_layer, replace_weight,
    change_weight_in_place, replace_weight_on_the_bridge, parametrise, hook_a_module, hook_a_component, keep_a_hook,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("family", ["LLaDA", "Dream"])
def test_hooked_and_unhooked_agree_after(tiny_model: Any, family: str, change: Callable[[HookedDLM], None]) -> None:
    dlm = tiny_model(family)
    before = agrees(dlm)
    change(dlm)
    after = agrees(dlm)
    assert float((after - before)[VALID].abs().max()) > 1e-2  # the change is seen at all


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_another_fingerprint(tiny_model: Any, change: Callable[[HookedDLM], None]) -> None:
    dlm = tiny_model("LLaDA")
    before = dlm.fingerprint()
    assert tiny_model("LLaDA").fingerprint() == before
    change(dlm)
    if change in (hook_a_module, hook_a_component, keep_a_hook):  # what a function does, nobody can tell
        with pytest.raises(ContentError, match=r"a hook was left on .* give it a name"):
            dlm.fingerprint()
    else:
        assert dlm.fingerprint() != before


def test_a_named_hook_that_is_left_on_the_model_is_another_fingerprint(tiny_model: Any) -> None:
    dlm, seen = tiny_model("LLaDA"), []
    seen.append(dlm.fingerprint())
    for name in ("louder", "louder still"):
        dlm.blocks[0].hook_out.add_hook(named(name, lambda tensor, *, hook: tensor * 1.5), is_permanent=True)
        seen.append(dlm.fingerprint())
        dlm.reset_hooks(including_permanent=True)
    assert len(set(seen)) == 3
    assert dlm.fingerprint() == seen[0]


def test_fingerprints_see_permuted_heads_switches_and_names(tiny_model: Any) -> None:
    """The sum of the weights is the same after a permutation."""
    dlm, seen = tiny_model("LLaDA"), []
    seen.append(dlm.fingerprint())
    with torch.no_grad():
        weight = layer(dlm).self_attn.q_proj.weight
        weight.copy_(weight.roll(8, 0))
    seen.append(dlm.fingerprint())
    add_adapter(dlm)
    seen.append(dlm.fingerprint())
    for module in lora_layers(dlm):
        module.enable_adapters(False)
    seen.append(dlm.fingerprint())
    for module in lora_layers(dlm):
        module.enable_adapters(True)
        module.set_scale("default", 3.0)
    seen.append(dlm.fingerprint())
    dlm.attention = "pattern"
    seen.append(dlm.fingerprint())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    "cast", ["half", "float", "double", "bfloat16", "to", "cpu", "eval", "train", "requires_grad_"]
)
def test_methods_that_return_self_return_the_hooked_model(tiny_model: Any, cast: str) -> None:
    dlm = tiny_model("Dream")
    back = dlm.to(torch.float64) if cast == "to" else getattr(dlm, cast)()
    assert back is dlm
    assert isinstance(back, TransformerBridge)
    dlm.eval()
    agrees(dlm)
    if cast in ("half", "double", "bfloat16", "to"):
        assert dlm.dtype != torch.float32


def test_a_part_cast_by_itself_raises_hooked_and_unhooked(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    cast_a_part(dlm)
    for point in (None, "hook_out"):
        with pytest.raises(RuntimeError, match="dtype"):
            logits(dlm, point)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda dlm: pickle.loads(pickle.dumps(dlm))], ids=["copy", "pickle"])
def test_a_copy_is_a_model_of_its_own(tiny_model: Any, way: Callable[[HookedDLM], HookedDLM]) -> None:
    dlm = tiny_model("Dream")
    dlm.attention = "pattern"
    before = agrees(dlm)
    other = way(dlm)
    assert isinstance(other, HookedDLM)
    assert other.attention == "pattern"
    assert torch.equal(agrees(other), before)
    assert other.fingerprint() == dlm.fingerprint()
    with torch.no_grad():
        roll = ("blocks.0.attn.hook_pattern", lambda pattern, *, hook: pattern.roll(1, -1))
        edited = other.run_with_hooks(TOKENS, fwd_hooks=[roll])
        assert float((edited - other(TOKENS)).abs().max()) > 1e-2  # an edit on the copy acts, on the copy
    replace_weight(other)
    assert torch.equal(agrees(dlm), before)
    assert not torch.equal(agrees(other), before)


def test_a_copy_keeps_hooks_that_were_left_on_the_model(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    keep_a_hook(dlm)
    assert torch.equal(agrees(copy.deepcopy(dlm)), agrees(dlm))
    replace_module(dlm)
    assert torch.equal(agrees(copy.deepcopy(dlm)), agrees(dlm))


def test_what_cannot_be_copied_says_so(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    dlm.enable_compatibility_mode()
    with pytest.raises(ModelError, match="compatibility mode"):
        copy.deepcopy(dlm)


def test_a_model_may_be_wrapped_twice(tiny_stock: Any) -> None:
    stock = tiny_stock("Llama")
    one, two = (HookedDLM.from_transformers(stock, None, "Llama") for _ in range(2))
    plain = agrees(one)
    assert torch.equal(agrees(two), plain)
    for dlm in (one, two):
        with torch.no_grad():
            half = ("blocks.0.attn.hook_pattern", lambda pattern, *, hook: pattern * 0.5)
            edited = dlm.run_with_hooks(TOKENS, fwd_hooks=[half])
            assert float((edited - dlm(TOKENS)).abs().max()) > 1e-2


def test_what_stands_around_its_calls_is_no_part_of_a_model(tiny_stock: Any, tmp_path: Any) -> None:
    """Neither of its hooks, nor of what a class is called, nor of what is saved; and twice wrapped is wrapped once."""
    stock = tiny_stock("Llama")
    plain = [(path, type(module).__module__, type(module).__qualname__) for path, module in stock.named_modules()]
    kind = type(stock)
    HookedDLM.from_transformers(stock, None, "Llama")
    once = type(stock)
    HookedDLM.from_transformers(copy.deepcopy(stock), None, "Llama")
    HookedDLM.from_transformers(stock, None, "Llama")
    assert type(stock) is once
    assert isinstance(stock, kind)
    assert [(path, type(m).__module__, type(m).__qualname__) for path, m in stock.named_modules()] == plain
    for module in stock.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    stock.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert type(type(stock).from_pretrained(tmp_path)).__name__ == "LlamaForCausalLM"
    loss = stock(TOKENS, labels=TOKENS).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in stock.parameters())


def test_two_wraps_of_one_model_do_not_meet_in_one_forward(tiny_stock: Any) -> None:
    """The hooks of the one would fire in the forward of the other."""
    stock = tiny_stock("Llama")
    one, two = (HookedDLM.from_transformers(stock, None, "Llama") for _ in range(2))
    plain = agrees(two)

    def inside(tensor: Tensor, *, hook: Any) -> None:
        two(TOKENS)

    with pytest.raises(ModelError, match="in the middle of a forward of another HookedDLM"), torch.no_grad():
        one.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_in", inside)])
    assert torch.equal(agrees(two), plain)


def test_weights_are_read_off_the_modules_that_stand_there_now(tiny_model: Any) -> None:
    dlm = tiny_model("Llama")
    old = dlm.W_O[0].clone()
    projection = copy.deepcopy(layer(dlm).self_attn.o_proj)
    with torch.no_grad():
        projection.weight.mul_(3)
    layer(dlm).self_attn.o_proj = projection
    torch.testing.assert_close(dlm.W_O[0], 3 * old)


def test_a_replaced_forward_needs_a_name_to_be_told_from_another(tiny_model: Any) -> None:
    dlm, seen = tiny_model("LLaDA"), []
    seen.append(dlm.fingerprint())
    layer(dlm).mlp.forward = lambda stream: stream * 0
    agrees(dlm)
    with pytest.raises(ContentError, match=r"layers\.0\.mlp as its forward.*give it a name"):
        dlm.fingerprint()
    layer(dlm).mlp.forward = named("nothing", lambda stream: stream * 0)
    seen.append(dlm.fingerprint())
    assert len(set(seen)) == 2


def test_a_model_that_transformer_lens_holds_is_refused(tiny_stock: Any) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    stock = tiny_stock("Llama")
    build_bridge_from_module(stock, "LlamaForCausalLM", hf_config=stock.config)
    with pytest.raises(ModelError, match=r"wrapped already: model\.embed_tokens"):
        HookedDLM.from_transformers(stock, None, "Llama")


def test_saved_by_transformers_it_loads_as_it_was(tiny_model: Any, tmp_path: Any) -> None:
    dlm = tiny_model("Llama")
    dlm.original_model.save_pretrained(tmp_path)
    assert torch.equal(agrees(HookedDLM.from_pretrained(str(tmp_path))), agrees(dlm))


def test_a_hook_whose_place_is_gone_raises(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    layer(dlm).mlp = Doubled(layer(dlm).mlp)
    agrees(dlm)
    with pytest.raises(HookNeverFired, match=r"blocks\.0\.mlp\.gate.*cannot fire.*was replaced"):
        dlm.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.mlp.gate.hook_out", nothing)])
    agrees(dlm)  # nothing is left in the wrong place


def test_another_attention_function_under_hooks_raises(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    dlm.original_model.set_attn_implementation("eager")
    logits(dlm)
    with pytest.raises(ModelError, match="'eager', which has no hook points"):
        logits(dlm, "attn.hook_pattern")


def test_an_error_inside_a_forward_leaves_the_model_plain(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    before = agrees(dlm)

    def fails(tensor: Tensor, *, hook: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dlm.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_out", fails)])
    assert not any(name.endswith("original_component") for name, _ in dlm.original_model.named_modules())
    assert torch.equal(agrees(dlm), before)


def test_two_threads_take_turns(tiny_model: Any) -> None:
    dlm, wrong = tiny_model("LLaDA"), []
    expected = logits(dlm)

    def look(point: str) -> None:
        for _ in range(20):
            if not torch.equal(logits(dlm, point)[VALID], expected[VALID]):
                wrong.append(point)

    threads = [threading.Thread(target=look, args=(point,)) for point in ("hook_out", "mlp.hook_in")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
