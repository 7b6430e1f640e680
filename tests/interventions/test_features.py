"""Splicing autoencoders in and editing their features: against plain torch hooks on the transformers model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_autoencoders import by_chance, of_direction, perfect
from torch import Tensor

import sinklens as sl
from sinklens import Autoencoder, Feature, HookedDLM, Plan, Scope, Splice, ablate, denoise
from sinklens.autoencoders import Formula
from sinklens.errors import AutoencoderError, ContentError, NeverExposed, ScopeError
from sinklens.hooks import Canvas
from sinklens.interventions import ChanceFeature, InOrder, SideBySide, control

VALID = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
TOKENS = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(1)).masked_fill(~VALID, 1)
MASKED = VALID & torch.tensor([False, False, False, True, False, True, True])
PROMPT = VALID & torch.tensor([True] * 5 + [False] * 2)
CANVAS = Canvas(TOKENS.masked_fill(MASKED, 62), VALID, MASKED, PROMPT, seeds=(3, 4))
FORMULAS = [Formula("standard"), Formula("gated", normalised="layer_norm"), Formula("jumprelu"), Formula("topk", k=4)]
PLAN = Plan(new_tokens=4)
PROMPTS = [[5, 17, 9, 33, 8], [12, 40, 7]]


@torch.no_grad()
def ours(dlm: HookedDLM, edit: Any, canvas: Canvas = CANVAS) -> Tensor:
    """Logits under an edit, of real positions."""
    with dlm.hooks(fwd_hooks=edit.fwd_hooks(dlm, canvas)):
        return dlm(canvas.tokens, attention_mask=canvas.valid)[canvas.valid]


@torch.no_grad()
def theirs(
    dlm: HookedDLM, layer: int, change: Callable[[Tensor], Tensor], where: Tensor, canvas: Canvas = CANVAS
) -> Tensor:
    """The same with a plain forward hook on the transformers model's own layer."""
    (blocks,) = [
        each for name, each in dlm.original_model.named_modules() if name.rpartition(".")[2] in ("layers", "h", "layer")
    ]

    def hook(module: Any, args: Any, out: Any) -> Any:
        stream = out[0] if isinstance(out, tuple) else out
        new = torch.where(where[..., None], change(stream), stream)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = blocks[layer].register_forward_hook(hook)
    try:
        return dlm(canvas.tokens, attention_mask=canvas.valid)[canvas.valid]
    finally:
        handle.remove()


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.architecture)
@pytest.mark.parametrize("family", ["LLaDA", "Dream", "Llama", "BERT", "ModernBERT", "GPT-2"])
def test_a_splice_is_a_hook_on_the_layer(tiny_model: Any, family: str, formula: Formula) -> None:
    dlm = tiny_model(family)
    sae = by_chance(dlm, formula=formula)

    def reconstruct(stream: Tensor) -> Tensor:
        return sae.decode(sae.encode(stream), stream)

    clean = dlm(CANVAS.tokens, attention_mask=VALID)[VALID]
    for positions, where in {"all": VALID, "masked": MASKED, "committed": VALID & ~MASKED, "prompt": PROMPT}.items():
        found = ours(dlm, Splice(sae, queries=positions))  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, theirs(dlm, 0, reconstruct, where), atol=2e-4, rtol=1e-4)
        assert not torch.allclose(found, clean, atol=1e-2)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.architecture)
@pytest.mark.parametrize(("factor", "boost"), [(0.0, 0.0), (3.0, 0.0), (1.0, 2.0), (-0.5, 0.25)])
def test_an_edit_of_features_keeps_the_error_term(
    tiny_model: Any, formula: Formula, factor: float, boost: float
) -> None:
    """DLM-Scope's steering, written out: decode edited features, add what the unedited ones leave unexplained."""
    dlm = tiny_model("LLaDA")
    sae, ids = by_chance(dlm, "blocks.1.hook_out", formula), [1, 7, 20]

    def steer(stream: Tensor) -> Tensor:
        f = sae.encode(stream)
        edited = f.clone()
        edited[..., ids] = factor * f[..., ids] + boost * f.max(-1, keepdim=True).values
        return sae.decode(edited, stream) + (stream - sae.decode(f, stream))

    for positions, where in {"all": VALID, "masked": MASKED}.items():
        edit = Feature(sae, ids, factor, boost=boost, queries=positions)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(ours(dlm, edit), theirs(dlm, 1, steer, where), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.architecture)
def test_with_the_error_term_nothing_changes_bit_for_bit(tiny_model: Any, formula: Formula, dtype: torch.dtype) -> None:
    dlm = tiny_model("LLaDA")
    dlm.original_model.to(dtype)
    sae = by_chance(dlm, formula=formula)
    stays = dlm.hooks(fwd_hooks=[("blocks.0.hook_out", lambda tensor, hook: None)])
    with torch.no_grad(), stays:
        clean = dlm(CANVAS.tokens, attention_mask=VALID)[VALID]
    for edit in (Splice(sae, error=True), Feature(sae, [2, 3], factor=1.0)):
        assert torch.equal(ours(dlm, edit), clean)
        assert not edit.changes
    features = sae.encode(torch.zeros(1, 32, dtype=dtype))
    never = [index for index in range(sae.features) if not features[0, index]]
    assert never  # of a feature that is inactive at a position nothing moves there, bit for bit


def test_a_perfect_autoencoder_changes_nothing(tiny_model: Any) -> None:
    for family in ("LLaDA", "Dream", "Llama", "BERT"):
        dlm = tiny_model(family)
        plan = PLAN.for_causal() if dlm.is_causal else PLAN
        clean, spliced = (
            denoise(dlm, PROMPTS, plan, interventions=edits, seed=[1, 2], progress=False)
            for edits in ([], [Splice(perfect(dlm))])
        )
        assert torch.equal(clean.tokens, spliced.tokens)
        edit = Splice(perfect(dlm))
        clean_logits = ours(dlm, Splice(perfect(dlm), error=True))
        assert torch.equal(ours(dlm, edit), clean_logits)


def test_ablating_a_planted_feature_removes_exactly_its_direction(tiny_model: Any) -> None:
    """What the stream holds along the direction, where that is positive; all across it stays."""
    dlm = tiny_model("LLaDA")
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
    sae = of_direction(dlm, direction)
    kept: dict[str, Tensor] = {}

    def stream_under(edit: Any) -> Tensor:
        def look(tensor: Tensor, *, hook: Any) -> None:
            kept["stream"] = tensor.clone()

        with torch.no_grad(), dlm.hooks(fwd_hooks=[*edit.fwd_hooks(dlm, CANVAS), ("blocks.0.hook_out", look)]):
            dlm(CANVAS.tokens, attention_mask=VALID)
        return kept["stream"]

    before = stream_under(Splice(sae, error=True))
    along = before @ direction
    both = stream_under(Feature(sae, [0, 1]))
    torch.testing.assert_close((both @ direction)[VALID], torch.zeros(11), atol=1e-5, rtol=0)
    across = before - along[..., None] * direction
    torch.testing.assert_close(both[VALID], across[VALID], atol=1e-5, rtol=1e-5)
    assert torch.equal(both[~VALID], before[~VALID])
    one = stream_under(Feature(sae, [0]))
    positive = along > 0
    assert 0 < int(positive[VALID].sum()) < 11
    torch.testing.assert_close(one[VALID & positive], across[VALID & positive], atol=1e-5, rtol=1e-5)
    assert torch.equal(one[VALID & ~positive], before[VALID & ~positive])
    doubled = stream_under(Feature(sae, [0, 1], factor=2.0))
    torch.testing.assert_close((doubled @ direction)[VALID], 2 * along[VALID], atol=1e-5, rtol=1e-5)


def test_a_row_is_edited_alike_alone_padded_and_side_by_side(tiny_model: Any) -> None:
    """Also the chance control, whose draws depend on the row's seed and on positions from the first real one."""
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm, formula=Formula("topk", k=6))
    for edit in (Splice(sae), Feature(sae, [0, 4, 5], boost=1.0), ChanceFeature(sae, [0, 4, 5], seed=7)):
        together = denoise(dlm, PROMPTS, PLAN, interventions=[edit], seed=[1, 2], progress=False)
        alone = denoise(dlm, PROMPTS[1:], PLAN, interventions=[edit], seed=[2], progress=False)
        assert together.completions[1] == alone.completions[0]
        beside = SideBySide([None, edit], 1)
        prompts = [PROMPTS[0], PROMPTS[1]]
        mixed = denoise(dlm, prompts, PLAN, interventions=[beside], seed=[1, 2], progress=False)
        assert mixed.completions[1] == alone.completions[0]
        counts = mixed.memories[0].parts[0].counts()
        assert counts == pytest.approx(alone.memories[0].counts(), rel=1e-4)
        assert counts["positions"] == 4 * (3 + 4)


def test_what_is_counted(tiny_model: Any) -> None:
    """Positions, active features, and how far activations moved: by hand, from the stream of each step."""
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm, formula=Formula("topk", k=6))
    edit = Feature(sae, [0, 4], queries="masked", where=Scope(steps=[1, 2]))
    memory = edit.memory()
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2))
    for step in range(4):
        canvas = Canvas(CANVAS.tokens, VALID, MASKED, PROMPT, step=step, seeds=(0, 0))
        hooks = edit.at_step(dlm, canvas, memory)
        assert bool(hooks) == (step in (1, 2))
        for _, function in hooks:
            function(x, hook=None)
    f = sae.encode(x)
    moved = (f[..., [0, 4]] @ sae.weights["W_dec"][[0, 4]]).norm(dim=-1)
    for row in range(2):
        mine = MASKED[row]
        assert memory.per_row("positions")[row] == 2 * int(mine.sum())
        assert memory.per_row("active")[row] == 2 * int((f[row, mine] > 0).sum())
        assert memory.per_row("moved")[row] == pytest.approx(2 * float(moved[row, mine].sum()), rel=1e-5)


# The control.


def test_the_control_scales_as_many_other_active_features(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm, formula=Formula("topk", k=6))
    edit = Feature(sae, [0, 4, 5, 11], factor=0.5, queries="masked", where=Scope(steps=[0]))
    matched = control(edit, "random", seed=9)
    assert isinstance(matched, ChanceFeature)
    assert (matched.ids, matched.factor, matched.where, matched.queries) == (edit.ids, 0.5, edit.where, "masked")
    wide = Canvas(
        torch.zeros(1, 400, dtype=torch.long), *(torch.ones(1, 400, dtype=torch.bool) for _ in range(3)), seeds=(0,)
    )
    x = torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(3))
    f = sae.encode(x)[0]
    new = dict(matched.hooks(dlm, wide, matched.memory()))["blocks.0.hook_out"](x, hook=None)
    ids = torch.tensor(edit.ids)
    wanted = (f[:, ids] > 0).sum(-1)
    seen = torch.zeros(sae.features)
    for place in range(400):
        change = (new - x)[0, place]
        among = [index for index in range(24) if f[place, index] > 0 and index not in edit.ids]
        number = min(int(wanted[place]), len(among))
        if number == 0:
            assert not change.any()
            continue
        # Which of the others explain the change: their directions are independent, so it is one answer.
        rows = sae.weights["W_dec"][among]
        parts = torch.linalg.lstsq(rows.T, change[:, None]).solution[:, 0]
        chosen = parts.abs() > 1e-4
        assert int(chosen.sum()) == number
        torch.testing.assert_close(parts[chosen], -0.5 * f[place, among][chosen], atol=1e-3, rtol=1e-3)
        seen[torch.tensor(among)[chosen]] += 1
    usual = [index for index in range(24) if index not in edit.ids and int((f[:, index] > 0).sum()) > 40]
    share = seen[usual] / torch.tensor([float((f[:, index] > 0).sum()) for index in usual])
    assert float(share.min()) > 0.1  # nobody is left out
    assert not seen[list(edit.ids)].any()
    assert control(edit, "random", seed=10) != matched


def test_what_no_control_matches_is_said(tiny_model: Any) -> None:
    sae = by_chance(tiny_model("LLaDA"))
    with pytest.raises(AutoencoderError, match="no chance control matches that"):
        control(Feature(sae, [0], factor=1.0, boost=2.0))
    with pytest.raises(ValueError, match="has the control 'random' only"):
        control(Feature(sae, [0]), "same_mass")
    with pytest.raises(ValueError, match="no control can match it; say controls=None"):
        control(Splice(sae))


# In an ablation.


@pytest.fixture(scope="module")
def twin() -> HookedDLM:
    """The bundled diffusion twin."""
    return HookedDLM.from_pretrained("tiny-dlm")


def test_features_stand_in_an_ablation_beside_their_control(twin: HookedDLM) -> None:
    sae, task, plan = by_chance(twin, formula=Formula("topk", k=8)), sl.tasks.Echo(n=6, seed=1), Plan(new_tokens=32)
    often = sae.encode(twin.run_with_cache(torch.tensor(task.texts[:6]))[1]["blocks.0.hook_out"]) > 0
    ids = often.flatten(0, 1).sum(0).argsort(descending=True)[:3].tolist()
    found = ablate(twin, task, {"ablated": Feature(sae, ids)}, plan, metrics=["forced_accuracy"], progress=False)
    assert set(found.to_dataframe()["kind"]) == {"unmasked", "sinks", "random"}
    shares = found.summary().set_index(["condition", "kind"])["exposed"]
    assert shares["ablated", "sinks"] == pytest.approx(1.0, abs=0.05)
    spliced = ablate(
        twin, task, {"spliced": Splice(sae)}, plan, metrics=["forced_accuracy"], controls=None, progress=False
    )
    means = spliced.summary().set_index("condition")["value"]
    assert means["spliced"] < means["unmasked"] - 0.3  # random weights reconstruct nothing


def test_an_edit_that_does_nothing_is_never_taken_for_robustness(twin: HookedDLM) -> None:
    """The identity, and a feature that is never active: nothing was changed, which is an error and no finding."""
    sae, task = by_chance(twin), sl.tasks.Echo(n=2, seed=1)
    dead = Autoencoder(
        sae.formula,
        sae.place,
        {**sae.weights, "b_enc": sae.weights["b_enc"].clone().index_fill(0, torch.tensor([3]), -1e6)},
    )
    options: dict[str, Any] = {"metrics": ["forced_accuracy"], "controls": None, "progress": False}
    with pytest.raises(NeverExposed, match="is the identity"):
        ablate(twin, task, {"whole": Splice(sae, error=True)}, Plan(new_tokens=32), **options)
    with pytest.raises(NeverExposed, match="never met what is scored"):
        ablate(twin, task, {"dead": Feature(dead, [3])}, Plan(new_tokens=32), **options)


def test_the_grammar_runs_and_likelihoods_take_the_edits(twin: HookedDLM, tmp_path: Any) -> None:
    folder = str(by_chance(twin, formula=Formula("topk", k=8)).save(tmp_path / "sae"))
    task = sl.tasks.Echo(n=2, seed=1)
    text = sl.interventions.parse(f"feature=0+1@sae={folder}@factor=4@queries=masked")
    built = Feature(folder, [0, 1], factor=4.0, queries="masked")
    runs = [denoise(twin, task[0].prompt, PLAN, interventions=[each], progress=False) for each in (text, built)]
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    assert sl.Edit.from_dict(built.to_dict()) == built
    values = [
        float(sl.log_likelihood(twin, task[0].prompt, "xe xo", samples=4, interventions=edits))
        for edits in ([], [Splice(folder)], [Splice(folder, error=True)])
    ]
    assert values[0] == pytest.approx(values[2], abs=1e-5)
    assert values[1] != pytest.approx(values[0], abs=1e-2)


def test_edits_in_order_see_what_the_first_left(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm)

    def both(stream: Tensor) -> Tensor:
        f = sae.encode(stream)
        once = stream - f[..., [3]] @ sae.weights["W_dec"][[3]]
        return sae.decode(sae.encode(once))

    found = ours(dlm, InOrder(Feature(sae, [3]), Splice(sae)))
    torch.testing.assert_close(found, theirs(dlm, 0, both, VALID), atol=2e-4, rtol=1e-4)


def test_a_run_is_replayed_with_its_edit_and_an_object_is_no_description(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    edit = Feature(by_chance(dlm), [1], factor=3.0)
    run = denoise(dlm, PROMPTS, PLAN, interventions=[edit], progress=False)
    again = sl.replay(run.record, dlm, interventions=[edit], progress=False)
    assert torch.equal(again.tokens, run.tokens)
    with pytest.raises(ContentError, match="an Autoencoder cannot be made from its description"):
        sl.Edit.from_dict(edit.to_dict())


# What is refused.


def test_scopes_that_mean_nothing_are_refused(tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm)
    for where, what in ((Scope(layers=[0]), "layers"), (Scope(heads=0), "heads")):
        with pytest.raises(ScopeError, match=f"{what}=.* has no meaning for Splice"):
            Splice(sae, where=where)
    for positions in ("masked", "response"):
        with pytest.raises(ScopeError, match=f"nobody says which positions are {positions}"):
            Splice(sae, queries=positions).fwd_hooks(dlm)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ScopeError, match="draws by position and step"):
        ChanceFeature(sae, [0]).fwd_hooks(dlm)
    for ids in ([], [0, 0], [24]):
        with pytest.raises(ContentError, match="must name features, each once, out of 24: 0 to 23"):
            Feature(sae, ids)


def test_another_models_autoencoder_is_refused_before_a_forward(twin: HookedDLM, no_forward: None) -> None:
    for edit in (Splice(by_chance("tiny-arm")), Feature(by_chance("tiny-arm"), [0])):
        with pytest.raises(AutoencoderError, match="has d_model 32; tiny-dlm"):
            denoise(twin, PROMPTS, PLAN, interventions=[edit], progress=False)


def test_a_folder_that_holds_another_autoencoder_now_is_noticed(tmp_path: Any, tiny_model: Any) -> None:
    dlm = tiny_model("LLaDA")
    folder = str(by_chance(dlm, formula=Formula("topk", k=3)).save(tmp_path))
    edit = Splice(folder)
    by_chance(dlm, formula=Formula("topk", k=3), seed=1).save(tmp_path)
    with pytest.raises(AutoencoderError, match="it is another autoencoder now"):
        denoise(dlm, PROMPTS, PLAN, interventions=[edit], progress=False)
    assert Splice(folder).digest != edit.digest


def test_an_autoencoder_that_was_changed_in_place_is_another_one(tiny_model: Any) -> None:
    """An edit and a probe that were made with it before refuse it; a new one is stored under another hash."""
    dlm = tiny_model("LLaDA")
    sae = by_chance(dlm)
    edit, probe = Splice(sae), sl.probes.Features(sae, top_k=2)
    denoise(dlm, PROMPTS, PLAN, interventions=[edit], probes=[probe], progress=False)
    before = edit.digest
    sae.weights["W_dec"].mul_(2)
    for what in ({"interventions": [edit]}, {"probes": [probe]}):
        with pytest.raises(AutoencoderError, match="it is another autoencoder now"):
            denoise(dlm, PROMPTS, PLAN, progress=False, **what)
    assert Splice(sae).digest != before
