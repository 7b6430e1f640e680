"""Steer: what is added where, against plain torch hooks on stock models; controls; what would be no edit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import logits

import sinklens as sl
from sinklens.directions import Direction
from sinklens.errors import ContentError, DirectionError, NeverExposed, ScopeError
from sinklens.interventions import InOrder, KeepKeys, MaskSinks, SideBySide, control, parse, text_of
from sinklens.models.fingerprint import ModelId
from sinklens.models.outline import outline

FAMILIES = ["LLaDA", "Dream", "Llama", "BERT"]
PROMPTS = [[5, 17, 9, 33, 8, 21, 50], [12, 40, 7]]
TOKENS = torch.tensor([[5, 17, 9, 33, 62, 62, 50], [1, 1, 1, 1, 12, 62, 7]])
VALID = torch.arange(7) >= torch.tensor([[0], [4]])


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    made = {name: tiny_model(name, layers=3) for name in FAMILIES}
    return made.__getitem__


def direction(dlm: Any, at: Any = "hook_out", layers: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> Direction:
    """A random one of a model."""
    vectors = torch.randn(len(layers), int(dlm.cfg.d_model), generator=torch.Generator().manual_seed(seed))
    return Direction(vectors, layers, at, (8.0, 9.0, 10.0)[: len(layers)], "all", ModelId.of(dlm), {})


def canvas(dlm: Any, **more: Any) -> sl.Canvas:
    masked = torch.zeros_like(VALID) if dlm.is_causal else VALID & (TOKENS == 62)
    prompt = VALID & ~masked & (torch.arange(7) < 6)
    return sl.Canvas(TOKENS, VALID, masked, prompt, seeds=(0, 1), **more)


def steered(dlm: Any, edit: sl.Steer, **more: Any) -> torch.Tensor:
    """Logits of one forward under an edit, by position of the token that stands there."""
    hooks = edit.fwd_hooks(dlm, canvas(dlm, **more))
    with torch.no_grad(), dlm.hooks(fwd_hooks=hooks):
        return dlm(TOKENS, attention_mask=VALID)


SETS = {
    "all": VALID,
    "masked": VALID & (TOKENS == 62),
    "committed": VALID & (TOKENS != 62),
    "prompt": VALID & (TOKENS != 62) & (torch.arange(7) < 6),
    "response": VALID & ((TOKENS == 62) | (torch.arange(7) == 6)),
    "last": VALID & (torch.arange(7) == 6),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at", ["hook_in", "hook_out"])
@pytest.mark.parametrize("positions", list(SETS))
def test_it_adds_what_a_plain_hook_would_add(model: Any, tiny_stock: Any, family: str, at: Any, positions: Any) -> None:
    dlm = model(family)
    found, where, layers = direction(dlm, at), SETS[positions], (1, 2)
    if dlm.is_causal:
        where = {"masked": VALID & False, "committed": VALID, "prompt": VALID & (torch.arange(7) < 6)}.get(
            positions, SETS["last"] if positions in ("response", "last") else VALID
        )

    def add(layer: int, residual: torch.Tensor) -> torch.Tensor:
        return residual + (1.5 * found.vectors[layer]) * where[..., None] if layer in layers else residual

    expected = logits(family, tiny_stock, TOKENS, VALID, at, add)
    edit = sl.Steer(found, 1.5, positions=positions, where=sl.Scope(layers=layers))
    real = VALID & (VALID.long().cumsum(-1) > 1) if family == "Dream" else VALID  # nothing predicts a row's first token
    torch.testing.assert_close(steered(dlm, edit)[real], expected[real], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_pads_are_not_changed(model: Any, family: str) -> None:
    dlm, seen = model(family), {}

    def keep(residual: torch.Tensor, *, hook: Any) -> None:
        seen[hook.name] = residual.clone()

    for name, hooks in {"plain": [], "edit": sl.Steer(direction(dlm), 3.0).fwd_hooks(dlm, canvas(dlm))}.items():
        with torch.no_grad(), dlm.hooks(fwd_hooks=[*hooks, ("blocks.0.hook_out", keep)]):
            dlm(TOKENS, attention_mask=VALID)
        seen[name] = seen["blocks.0.hook_out"]
    assert torch.equal(seen["plain"][~VALID], seen["edit"][~VALID])
    torch.testing.assert_close(
        seen["edit"][VALID] - seen["plain"][VALID],
        (3 * direction(dlm).vectors[0]).expand(int(VALID.sum()), -1),
        atol=1e-4,
        rtol=1e-4,
    )


def run(dlm: Any, *edits: Any, tokens: int = 5, **options: Any) -> Any:
    plan = sl.Plan(new_tokens=tokens, **options)
    plan = plan.for_causal() if dlm.is_causal else plan
    return sl.denoise(dlm, PROMPTS, plan, interventions=edits, progress=False)


def trace(dlm: Any, *edits: Any) -> list[torch.Tensor]:
    """Logits of every step."""
    plan = sl.Plan(new_tokens=5)
    plan = plan.for_causal() if dlm.is_causal else plan
    return [step.logits for step in sl.denoising_steps(dlm, PROMPTS, plan, interventions=edits)]


@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama"])
def test_a_scale_of_0_is_the_identity_bit_for_bit(model: Any, family: str) -> None:
    dlm = model(family)
    plain = trace(dlm)
    for edit in (sl.Steer(direction(dlm), 0.0), sl.Steer(direction(dlm), 2.0, schedule=[0, 0, 0, 0, 0])):
        assert not edit.changes
        assert all(map(torch.equal, plain, trace(dlm, edit)))
    assert not torch.equal(plain[0], trace(dlm, sl.Steer(direction(dlm), 1e-2))[0])


@pytest.mark.parametrize("family", ["LLaDA", "Llama"])
def test_schedules_multiply_the_scale(model: Any, family: str) -> None:
    """Each step against a constant edit of the same size, on the same canvases (the commits of a plain run)."""
    dlm, plan = model(family), sl.Plan(new_tokens=5)
    plan = plan.for_causal() if dlm.is_causal else plan
    found = direction(dlm)
    follow = [step for step in sl.denoising_steps(dlm, PROMPTS, plan)]
    answer = [[*follow[-1].tokens[row, -5:].tolist()] for row in range(2)]
    numbers = [0.5, 0.0, 2.0, 1.0, -1.0]
    for schedule, shares in {"linear": [1.0, 0.8, 0.6, 0.4, 0.2], tuple(numbers): numbers}.items():
        edit = sl.Steer(found, 2.0, schedule=schedule)
        steps = sl.denoising_steps(dlm, PROMPTS, plan, interventions=[edit], force=answer)
        for step, share in zip(steps, shares, strict=True):
            constant = sl.Steer(found, 2.0 * share)
            memory = constant.memory(5)
            with torch.no_grad(), dlm.hooks(fwd_hooks=constant.hooks(dlm, step.canvas, memory)):
                expected = dlm(step.canvas.tokens, attention_mask=step.canvas.valid)
            expected = dlm.by_position(expected)[:, -step.logits.shape[1] :]
            real = torch.isfinite(step.logits)
            torch.testing.assert_close(step.logits[real], expected[real], atol=1e-4, rtol=1e-4)


def test_linear_is_the_share_that_each_row_has_left(model: Any) -> None:
    """Rows with three and with two gaps."""
    dlm = model("LLaDA")
    prompts = [[5, 62, 62, 9, 62], [7, 62, 8, 62]]
    edit = sl.Steer(direction(dlm, layers=(0,)), 1.0, schedule="linear")
    shares = []
    for step in sl.denoising_steps(dlm, prompts, sl.Plan(new_tokens=0), interventions=[edit]):
        share = edit.share(step.canvas, step.memories[0]) if step.active.all() else None
        shares.append(None if share is None else [round(each, 4) for each in share.flatten().tolist()])
    assert shares == [[1.0, 1.0], [0.6667, 0.5], None]  # the second row is done, and only the first goes on


def test_what_a_schedule_cannot_say_is_refused(model: Any) -> None:
    dlm = model("LLaDA")
    with pytest.raises(ScopeError, match="its schedule is for 2 steps, and the run has 5"):
        run(dlm, sl.Steer(direction(dlm), schedule=[1, 0.5]))
    with pytest.raises(ScopeError, match="has a schedule for 2 steps, and a likelihood has none"):
        sl.log_likelihood(dlm, [[5, 6]], [[7]], interventions=[sl.Steer(direction(dlm), schedule=[1, 0.5])])
    causal = model("Llama")
    with pytest.raises(ScopeError, match="falls with what is left to be committed"):
        sl.log_likelihood(causal, [[5, 6]], [[7]], interventions=[sl.Steer(direction(causal), schedule="linear")])
    with pytest.raises(ScopeError, match="outside the denoising loop"):
        sl.Steer(direction(dlm), positions="masked").fwd_hooks(dlm)
    with pytest.raises(ContentError, match="schedule='cosine' is unknown"):
        sl.Steer(direction(dlm), schedule="cosine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ScopeError, match="holds no step"):
        sl.Steer(direction(dlm), schedule=[])


@pytest.fixture
def other(tiny_model: Any) -> Any:
    return tiny_model("LLaDA", layers=3, seed=3)


def test_scope_and_model_must_fit(model: Any, other: Any, no_forward: None) -> None:
    dlm = model("LLaDA")
    with pytest.raises(ScopeError, match="heads=0 has no meaning for Steer"):
        sl.Steer(direction(dlm), where=sl.Scope(heads=0))
    two = direction(dlm, layers=(0, 1))
    with pytest.raises(ScopeError, match=r"no vector of layer 2: its direction has \[0, 1\]"):
        run(dlm, sl.Steer(two, where=sl.Scope(layers=[1, 2])))
    with pytest.raises(DirectionError, match="this direction was found on"):
        run(other, sl.Steer(two))
    with pytest.raises(DirectionError, match=r"its direction is of .*Llama"):
        sl.Steer(direction(model("Llama"))).check(outline("tiny-dlm"), canvas(dlm))
    with pytest.raises(ScopeError, match="is autoregressive and sees no masks"):
        run(model("Llama"), sl.Steer(direction(model("Llama")), positions="masked"))


def test_another_direction_in_the_folder_is_another_edit(model: Any, tmp_path: Path) -> None:
    dlm = model("LLaDA")
    folder = str(direction(dlm).save(tmp_path))
    edit = sl.Steer(folder, 2.0)
    assert edit.mark == direction(dlm).digest
    assert torch.equal(run(dlm, edit).tokens, run(dlm, sl.Steer(direction(dlm), 2.0)).tokens)
    direction(dlm, seed=1).save(tmp_path)
    assert sl.Steer(folder, 2.0) != edit
    with pytest.raises(DirectionError, match="it is another direction now"):
        run(dlm, edit)


def test_units_are_lengths_of_the_residual_stream(model: Any) -> None:
    found = direction(model("LLaDA"))
    edit = sl.Steer(found, -0.5, units="residual")
    for layer, norm in enumerate((8.0, 9.0, 10.0)):
        vector = edit.vector(found, layer)
        assert float(vector.norm()) == pytest.approx(0.5 * norm, rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(vector, found.vectors[layer], dim=0)
        assert float(cosine) == pytest.approx(-1, abs=1e-5)


@given(seed=st.integers(0, 2**63 - 1), scale=st.floats(-8, 8), units=st.sampled_from(["difference", "residual"]))
def test_controls_have_the_directions_norm_in_every_layer(seed: int, scale: float, units: Any) -> None:
    found = Direction(torch.randn(2, 64), (0, 3), "hook_in", (3.0, 4.0), "all", ModelId("m", "LLaDA", "0"), {})
    edit = sl.Steer(found, scale, units=units)
    drawn = {}
    for name in ("random_direction", "orthogonal_direction"):
        other: Any = control(edit, name, seed)
        for layer in (0, 3):
            own, vector = edit.vector(found, layer), other.vector(found, layer)
            torch.testing.assert_close(vector.norm(), own.norm(), rtol=1e-5, atol=1e-6)
            drawn[name, layer] = vector
            if name == "orthogonal_direction":
                assert float(abs(vector @ own)) <= 1e-5 * float(own @ own) + 1e-9
    if abs(scale) > 0.1:
        cosine = torch.nn.functional.cosine_similarity
        assert abs(float(cosine(drawn["random_direction", 0], drawn["random_direction", 3], dim=0))) < 0.7


def test_controls_of_keys_and_of_directions_do_not_mix(model: Any) -> None:
    edit = sl.Steer(direction(model("LLaDA")))
    for name in ("random", "same_mass", "noop"):
        with pytest.raises(ValueError, match=r"acts on no keys.* has the controls 'random_direction' and 'orth"):
            control(edit, name)
    with pytest.raises(ValueError, match="acts on no keys"):
        sl.ablate(model("LLaDA"), [[5, 6]], {"steer": edit}, sl.Plan(new_tokens=2))
    for other in (MaskSinks(), KeepKeys(0.5)):
        with pytest.raises(ValueError, match="control 'random_direction' is for Steer"):
            control(other, "random_direction")
    with pytest.raises(ValueError, match="cannot match it"):
        control(control(edit, "random_direction"), "random_direction")


def test_in_an_ablation_it_stands_beside_its_controls(model: Any) -> None:
    dlm = model("LLaDA")
    edits = {"layer 1": sl.Steer(direction(dlm), 4.0, where=sl.Scope(layers=1), positions="masked")}
    found = sl.ablate(
        dlm,
        PROMPTS,
        edits,
        sl.Plan(new_tokens=5),
        controls=["random_direction", "orthogonal_direction"],
        progress=False,
    )
    table = found.to_dataframe()
    assert set(table["kind"]) == {"unmasked", "sinks", "random_direction", "orthogonal_direction"}
    edited = table["kind"] != "unmasked"  # it acts on no keys: how many it edited is no number, and not 0
    assert table.loc[edited, ["edited_keys", "edited_mass"]].isna().all(axis=None)
    assert (table.loc[~edited, ["edited_keys", "edited_mass"]] == 0).all(axis=None)
    assert found.summary().set_index("kind").loc["sinks", "edited_keys"].isna().all()
    figure = sl.plots.conditions(found)
    named = {trace.name: trace.hovertemplate for trace in figure.data if trace.hovertemplate}
    assert "sinks" not in named
    assert "edited keys" not in named["edit"]
    with_keys = sl.ablate(dlm, PROMPTS, {"cut": MaskSinks(sl.SameStep(top_k=1))}, sl.Plan(new_tokens=5), progress=False)
    named = {trace.name: trace.hovertemplate for trace in sl.plots.conditions(with_keys).data if trace.hovertemplate}
    assert "edited keys per prompt" in named["sinks"]
    assert set(table[table.kind != "unmasked"]["exposed"]) == {1.0}


@pytest.mark.parametrize(
    ("family", "positions", "share"),
    [
        ("LLaDA", "masked", 1.0),
        ("LLaDA", "committed", 0.0),  # behind the last layer no position tells another what it holds
        ("LLaDA", "prompt", 0.0),
        ("Dream", "prompt", 0.2),  # the last token of the prompt decides the first of the response
        ("Llama", "prompt", 0.2),
        ("Llama", "response", 0.8),
        ("Llama", "last", 1.0),
    ],
)
def test_behind_the_last_layer_only_what_decides_is_exposed(
    model: Any, family: str, positions: Any, share: float
) -> None:
    dlm, plan = model(family), sl.Plan(new_tokens=5, suppress_eos="logits")
    plan = plan.for_causal() if dlm.is_causal else plan
    edit = sl.Steer(direction(dlm), 4.0, positions=positions, where=sl.Scope(layers=2))
    options: dict[str, Any] = {"controls": None, "metrics": ["agreement"], "progress": False}
    if share == 0:
        assert torch.equal(run(dlm).tokens, run(dlm, edit).tokens)
        with pytest.raises(NeverExposed):
            sl.ablate(dlm, PROMPTS, {"edit": edit}, plan, **options)
        return
    table = sl.ablate(dlm, PROMPTS, {"edit": edit}, plan, **options).to_dataframe()
    exposed = table[table.kind == "sinks"]["exposed"]
    if family == "Dream":  # a row counts at every step at which the token behind the prompt is not committed yet
        assert (exposed > 0).all()
    else:
        assert exposed.to_list() == pytest.approx([share, share])


def test_beside_other_edits(model: Any) -> None:
    """In order two directions add up; side by side each has its own rows."""
    dlm = model("LLaDA")
    one, two = (sl.Steer(direction(dlm, seed=seed), 2.0, positions="masked") for seed in (0, 1))
    both = Direction(
        direction(dlm).vectors + direction(dlm, seed=1).vectors, (0, 1, 2), "hook_out", (8.0, 9.0, 10.0), "all",
        ModelId.of(dlm), {},
    )  # fmt: skip
    for a, b in zip(trace(dlm, InOrder(one, two)), trace(dlm, sl.Steer(both, 2.0, positions="masked")), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
    apart = run(dlm, SideBySide([one, two], 1))
    assert torch.equal(apart.tokens[:1], run(dlm, one).tokens[:1])
    assert torch.equal(apart.tokens[1:], run(dlm, two).tokens[1:])


def test_it_counts_positions(model: Any) -> None:
    dlm = model("LLaDA")
    edit = sl.Steer(direction(dlm), where=sl.Scope(layers=[0, 2]), positions="masked")
    *_, step = sl.denoising_steps(dlm, PROMPTS, sl.Plan(new_tokens=5), interventions=[edit])
    assert step.memories[0].counts() == {"positions": 2 * 2 * (5 + 4 + 3 + 2 + 1)}


def test_it_has_words(model: Any, tmp_path: Path) -> None:
    folder = str(direction(model("LLaDA")).save(tmp_path / "warm"))
    edit = sl.Steer(
        folder, 4.0, positions="masked", schedule=(1.0, 0.5), units="residual", where=sl.Scope(layers=slice(1, 3))
    )
    text = f"steer={folder}@layers=1-2@scale=4@units=residual@positions=masked@schedule=1.0,0.5"
    assert parse(text) == edit
    assert text_of(edit) == text
    assert parse(f"steer={folder}:random@seed=3") == control(sl.Steer(folder), "random_direction", 3)
    assert sl.Edit.from_dict(edit.to_dict()) == edit
    with pytest.raises(ContentError, match="has no words for"):
        text_of(sl.Steer(direction(model("LLaDA"))))
    for wrong, message in {
        "steer": "needs the folder of a direction",
        "steer=nowhere": "is no folder",
        f"steer={folder}:luck": "luck",
        f"steer={folder}@scale=x": "no number",
        f"steer={folder}@schedule=late": "late",
        f"steer={folder}@schedule=1,x": "no number",
        f"steer={folder}@heads=1": "heads=1 has no meaning",
        f"steer={folder}@queries=masked": "cannot honour queries",
    }.items():
        with pytest.raises(ScopeError, match=message):
            parse(wrong)
