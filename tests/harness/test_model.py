"""The model of the harness: its arguments, edits that were at work, caches that mix nothing, and tasks from files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string
from parts_harness import asked, local_tasks
from parts_text import twin

from sinklens import HookedDLM, MaskSinks, Plan, denoise, log_likelihood
from sinklens.errors import CheckpointError, ContentError, NeverExposed, PlanError, PromptError, ScopeError
from sinklens.harness import SinklensLM
from sinklens.interventions import SameStep, control, parse
from sinklens.tasks import Echo

PROMPTS = [example.prompt for example in Echo(n=6, seed=1)]
PAIRS = [(" ".join(words[:-2]), " " + " ".join(words[-2:])) for words in map(str.split, PROMPTS)]
TOP = "mask:same/top1"


@pytest.fixture(scope="module")
def dlm() -> HookedDLM:
    """The bundled diffusion twin."""
    return HookedDLM.from_pretrained("tiny-dlm")


@pytest.fixture(scope="module")
def arm() -> HookedDLM:
    """The bundled autoregressive twin."""
    return HookedDLM.from_pretrained("tiny-arm")


def scores(lm: SinklensLM, pairs: Any = PAIRS) -> list[float]:
    """Log-likelihoods."""
    return [score for score, _ in lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)]


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"edit": "mask:top"}, ScopeError, "top"),
        ({"edit": 5}, PlanError, "edit=5 must be"),
        ({"control": "random"}, PlanError, "control='random' without edit="),
        ({"edit": TOP, "control": "luck"}, ValueError, "control 'luck' is unknown"),
        ({"edit": f"{TOP}@layers=7"}, ScopeError, "layer"),
        ({"seed": -1}, PlanError, "seed=-1"),
        ({"plan": "steps"}, PlanError, "'steps' is no field with a value"),
        ({"plan": "steps=4@steps=8"}, PlanError, "each field once"),
        ({"plan": "stepz=4"}, ContentError, "do you mean 'steps'"),
        ({"plan": "steps=four"}, ValueError, "'four'"),
        ({"plan": "chat=true"}, PlanError, "--apply_chat_template"),
        ({"plan": "new_tokens=0"}, PlanError, "new_tokens=0 fills gaps"),
        ({"mc_num": 0}, PlanError, "mc_num=0"),
        ({"estimator": "luck"}, PlanError, "choose from 'llada', 'dream'"),
        ({"batch_size": "auto"}, PlanError, "batch_size='auto'"),
        ({"max_batch_size": 8}, PlanError, "max_batch_size=8"),
        ({"trust_remote_code": True}, PlanError, "runs no code of a checkpoint"),
        ({"layers": 3}, PlanError, "'layers' is unknown"),
        ({"revision": 200}, PlanError, "revision=200: lm_eval has read this as no text"),
        ({"dtype": "int8"}, CheckpointError, "dtype='int8' is unknown"),
    ],
)
def test_arguments_are_refused_before_weights_are_read(
    arguments: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not {"mc_num", "estimator"} & set(arguments):

        def unread(*args: object, **kwargs: object) -> None:
            raise AssertionError("weights were read")

        monkeypatch.setattr(HookedDLM, "from_pretrained", unread)
    with pytest.raises(error, match=message):
        SinklensLM("tiny-dlm", **arguments)


def test_a_text_that_was_cut_at_a_comma_is_refused() -> None:
    """The harness's own reading of arguments as one text."""
    for said in ("edit=mask:top1@layers=0,2", "edit=mask:top1@layers=0,heads=1", "plan=steps=4,block_length=2"):
        with pytest.raises(PlanError, match="lm_eval cuts its arguments at commas"):
            SinklensLM.create_from_arg_string(f"pretrained=tiny-dlm,{said}")


def test_what_the_command_line_makes_of_arguments(arm: HookedDLM) -> None:
    from lm_eval._cli.utils import key_val_to_dict

    said = "edit=keep=0.5:received@layers=0-1,control=random,seed=3,plan=new_tokens=5@temperature=0.5"
    lm = SinklensLM(arm, **key_val_to_dict(said))
    assert lm.setting.edits == (control(parse("keep=0.5:received@layers=0-1"), "random", 3),)
    assert (lm.setting.seed, lm.setting.plan) == (3, Plan(new_tokens=5, temperature=0.5))
    quoted = key_val_to_dict('edit="mask:top1@layers=0,1",batch_size=4')
    assert SinklensLM(arm, **quoted).setting.edits == (parse("mask:top1@layers=0,1"),)
    assert simple_parse_args_string(said)["edit"] == "keep=0.5:received@layers=0-1"


def test_baselines_have_no_draws_and_no_steps() -> None:
    for arguments in ({"mc_num": 4}, {"estimator": "llada"}, {"plan": "remasking=entropy"}):
        with pytest.raises(PlanError, match="autoregressive"):
            SinklensLM("tiny-arm", **arguments)


def test_models_that_cannot_answer(official: Any) -> None:
    with pytest.raises(PromptError, match="has no tokenizer"):
        SinklensLM(official("llada"))


# Edits.


@pytest.mark.parametrize("text", [TOP, "mask:top1", "zero_value:same/eps1.5@layers=1"])
@pytest.mark.parametrize("other", [None, "random"])
def test_edited_likelihoods_are_those_of_log_likelihood(dlm: HookedDLM, text: str, other: str | None) -> None:
    lm = SinklensLM(dlm, edit=text, control=other, seed=2, mc_num=4, batch_size=5)
    edit = parse(text) if other is None else control(parse(text), other, 2)
    rows = [lm._encode_pair(*pair) for pair in PAIRS]
    expected = log_likelihood(
        dlm, [row for row, _ in rows], [said for _, said in rows], interventions=[edit], samples=4, seed=2
    )
    lengths = [len(said) for _, said in rows]
    by_hand = [float(value) * length for value, length in zip(expected, lengths, strict=True)]
    found = scores(lm)
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert found != pytest.approx(scores(SinklensLM(dlm, seed=2, mc_num=4, batch_size=5)), rel=1e-3)


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_edited_generations_are_those_of_denoise(name: str, dlm: HookedDLM, arm: HookedDLM) -> None:
    model = dlm if name == "tiny-dlm" else arm
    lm = SinklensLM(model, edit=MaskSinks(SameStep(top_k=1)), batch_size=4)
    found = lm.generate_until(
        asked("generate_until", *((each, {"max_gen_toks": 8, "until": [" ,"]}) for each in PROMPTS)), disable_tqdm=True
    )
    run = denoise(model, PROMPTS, Plan(new_tokens=8), interventions=[MaskSinks(SameStep(top_k=1))], progress=False)
    assert found == [text.split(" ,")[0] for text in run.completions]
    plain = denoise(model, PROMPTS, Plan(new_tokens=8), progress=False)
    assert plain.completions != run.completions


def test_an_edit_that_meets_nothing_is_an_error(arm: HookedDLM) -> None:
    lm = SinklensLM(arm, edit="mask:same/eps1000")
    with pytest.raises(NeverExposed, match="changed nothing in any forward of 6 loglikelihood requests"):
        scores(lm)
    with pytest.raises(NeverExposed, match="of 1 generate_until requests"):
        lm.generate_until(asked("generate_until", (PROMPTS[0], {"max_gen_toks": 3})), disable_tqdm=True)
    assert scores(SinklensLM(arm, edit="noop:same/top1")) == pytest.approx(scores(SinklensLM(arm)), rel=1e-6)


def test_an_edit_that_names_steps_has_no_likelihood(dlm: HookedDLM, no_forward: None) -> None:
    with pytest.raises(ScopeError, match="names steps, and a likelihood has none"):
        scores(SinklensLM(dlm, edit=f"{TOP}@steps=2-"))
    with pytest.raises(PlanError, match="without guidance"):
        scores(SinklensLM(dlm, plan="cfg_scale=1"))


def test_whole_texts_of_diffusion_models_are_refused(dlm: HookedDLM, no_forward: None) -> None:
    with pytest.raises(PlanError, match="loglikelihood_rolling has no meaning"):
        SinklensLM(dlm).loglikelihood_rolling(asked("loglikelihood_rolling", (PROMPTS[0],)))


def test_batches_change_nothing(dlm: HookedDLM) -> None:
    one, many = (scores(SinklensLM(dlm, edit=TOP, mc_num=6, batch_size=size)) for size in (1, 50))
    assert one == pytest.approx(many, rel=1e-5)


# Generation arguments.


def written(lm: SinklensLM, times: int = 1, **kwargs: Any) -> list[str]:
    """Continuations of the first prompt."""
    return lm.generate_until(asked("generate_until", *[(PROMPTS[0], kwargs)] * times), disable_tqdm=True)


def test_what_the_plan_says_wins_and_the_log_says_so(dlm: HookedDLM, caplog: pytest.LogCaptureFixture) -> None:
    lm = SinklensLM(dlm, plan="new_tokens=6")
    with caplog.at_level("WARNING", "lm_eval.sinklens"):
        found = written(lm, max_gen_toks=12)
    assert found == [*denoise(dlm, PROMPTS[0], Plan(new_tokens=6), progress=False).completions]
    assert "plan=new_tokens=6 is used, and not max_gen_toks=12" in caplog.text or lm_log_is_silent()


def lm_log_is_silent() -> bool:
    """Whether the harness keeps its log from others (it does once its command line has run in the process)."""
    import logging

    return not logging.getLogger("lm_eval").propagate


def test_generation_arguments_that_mean_nothing_here_are_refused(dlm: HookedDLM, no_forward: None) -> None:
    with pytest.raises(PlanError, match="'num_beams' of the task has no meaning here"):
        written(SinklensLM(dlm), num_beams=4)
    with pytest.raises(PlanError, match="do_sample=true needs a temperature"):
        written(SinklensLM(dlm), do_sample=True)


def test_a_repeated_request_draws_anew(arm: HookedDLM) -> None:
    lm = SinklensLM(arm, seed=5)
    found = written(lm, 4, do_sample=True, temperature=2.0, max_gen_toks=6)
    assert len(set(found)) == 4
    assert found == written(lm, 4, do_sample=True, temperature=2.0, max_gen_toks=6)
    assert len(set(written(lm, 3, max_gen_toks=6))) == 1


# Caches.


def test_a_cache_serves_its_own_model_and_no_other(arm: HookedDLM, tmp_path: Path) -> None:
    file = str(tmp_path / "answers.db")
    settings = [{}, {"edit": TOP}, {"edit": TOP, "control": "random"}, {"seed": 1}, {"plan": "new_tokens=3"}]
    first = CachingLM(SinklensLM(arm, edit=TOP), file)
    found = first.loglikelihood(asked("loglikelihood", *PAIRS))
    first.dbdict.close()
    for setting in settings:
        if setting == {"edit": TOP}:
            continue
        with pytest.raises(PlanError, match="holds answers of another model, edit"):
            CachingLM(SinklensLM(arm, **setting), file)
    again = SinklensLM(arm, edit=TOP)
    kept = CachingLM(again, file)
    again._loglikelihood_tokens = None  # type: ignore[method-assign]
    assert kept.loglikelihood(asked("loglikelihood", *PAIRS)) == found
    kept.dbdict.close()


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_a_cache_does_not_turn_an_edit_that_met_nothing_into_a_result(
    arm: HookedDLM, tmp_path: Path, kind: str
) -> None:
    file = str(tmp_path / "answers.db")
    args = PAIRS if kind == "loglikelihood" else [(PROMPTS[0], {"max_gen_toks": 3})]
    first = CachingLM(SinklensLM(arm, edit="mask:same/eps500"), file)
    with pytest.raises(NeverExposed):
        getattr(first, kind)(asked(kind, *args))
    first.dbdict.close()
    with pytest.raises(NeverExposed):
        CachingLM(SinklensLM(arm, edit="mask:same/eps500"), file)


def test_a_cache_keeps_the_share_that_the_edit_met(arm: HookedDLM, tmp_path: Path) -> None:
    """Over all answers in it: those of a first call, of a second one that adds some, and of a third that asks none."""
    file, shares = str(tmp_path / "answers.db"), []
    pairs = [("dolko xe", " dolko"), ("pisko pomo wu", " tuko vesmo"), ("", " xu wy")]
    alone = []
    for pair in pairs:
        lm = SinklensLM(arm, edit="mask:rulli")
        try:
            lm.loglikelihood(asked("loglikelihood", pair))
            alone.append(1)
        except NeverExposed:
            alone.append(0)
    assert 0 < sum(alone) < 3
    order = sorted(range(3), key=lambda at: -alone[at])
    for count in (1, 3, 3):
        lm = SinklensLM(arm, edit="mask:rulli")
        kept = CachingLM(lm, file)
        kept.loglikelihood(asked("loglikelihood", *[pairs[at] for at in order[:count]]))
        shares.append(lm.get_model_info()["sinklens"]["read_as"]["edited_requests"]["loglikelihood"])
        kept.dbdict.close()
    assert shares == pytest.approx([1.0, sum(alone) / 3, sum(alone) / 3])


def test_a_cache_of_another_model_of_the_harness_is_refused(arm: HookedDLM, tmp_path: Path) -> None:
    from sqlitedict import SqliteDict

    with SqliteDict(str(tmp_path / "answers.db"), autocommit=True) as held:
        held["1f"] = (-1.0, False)
    with pytest.raises(PlanError, match="holds answers of another model"):
        CachingLM(SinklensLM(arm), str(tmp_path / "answers.db"))


def test_a_cache_of_drawn_answers_is_refused(arm: HookedDLM, tmp_path: Path) -> None:
    kept = CachingLM(SinklensLM(arm, plan="temperature=1"), str(tmp_path / "answers.db"))
    with pytest.raises(PlanError, match="leave out --use_cache"):
        kept.generate_until(asked("generate_until", (PROMPTS[0], {"max_gen_toks": 4})))
    kept.dbdict.close()


# Tasks from files.


@pytest.mark.parametrize("name", ["tiny-dlm", "tiny-arm"])
def test_tasks_over_a_local_file(name: str, dlm: HookedDLM, arm: HookedDLM, tmp_path: Path) -> None:
    """Multiple choice and generation, against the choice that the scores make and the text that is generated."""
    model = dlm if name == "tiny-dlm" else arm
    plain = denoise(model, PROMPTS, Plan(new_tokens=8), progress=False).completions
    plain = [text.split(" ,")[0] for text in plain]
    lines = [
        {"question": prompt, "choices": [text or "xu", "xe xo xu"], "gold": number % 2}
        for number, (prompt, text) in enumerate(zip(PROMPTS, plain, strict=True))
    ]
    folder = local_tasks(tmp_path / "tasks", lines)
    lm = SinklensLM(model, edit="noop:same/top1", batch_size=16, **({} if model.is_causal else {"mc_num": 8}))
    found = lm_eval.simple_evaluate(
        lm,
        tasks=["local_choice", "local_write"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    both = [[scores(lm, [(line["question"], f" {choice}")])[0] for choice in line["choices"]] for line in lines]
    right = [max((0, 1), key=pair.__getitem__) == line["gold"] for pair, line in zip(both, lines, strict=True)]
    assert found["results"]["local_choice"]["acc,none"] == sum(right) / len(right)
    wrote = [text == line["choices"][line["gold"]] for text, line in zip(plain, lines, strict=True)]
    assert found["results"]["local_write"]["exact_match,none"] == sum(wrote) / len(wrote)
    assert set(wrote) == {True, False}
    told = found["config"]["sinklens"]
    assert told["model"] == repr(model)
    assert json.dumps(told)
    assert math.isfinite(sum(map(sum, both)))


def test_chat_templates_reach_the_prompt(tmp_path: Path) -> None:
    lm = SinklensLM(twin("tiny-arm"), batch_size=8)
    folder = local_tasks(tmp_path / "tasks", [{"question": "xe xo", "choices": [" xu", " xa"], "gold": 0}])
    found = lm_eval.simple_evaluate(
        lm,
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert found is not None
    (context, said), *_ = found["samples"]["local_choice"][0]["arguments"]
    assert context == lm.apply_chat_template([{"role": "user", "content": "xe xo"}])
    assert lm.tok_encode(context)[:2] == lm.tok_encode("xe")[:2]  # BOS once
    assert found["samples"]["local_choice"][0]["resps"][0][0][0] == pytest.approx(scores(lm, [(context, said)])[0])
    messages = [{"role": "user", "content": "xe"}]
    assert lm.tokenizer_name != SinklensLM("tiny-arm").tokenizer_name or lm.tokenizer.get_vocab()
    with pytest.raises(PromptError, match="chat template cannot read"):
        SinklensLM("tiny-arm").apply_chat_template(messages)


def test_local_edits_score_no_likelihoods() -> None:
    lm = SinklensLM("tiny-arm", edit="mask:same/top1", plan="editing=local")
    with pytest.raises(PlanError, match="needs steps, and a likelihood has none"):
        scores(lm)
