"""The model that lm-evaluation-harness asks: `sinklens`, with edits and controls as arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sinklens.decoding.answers import Answered
from sinklens.decoding.likelihood import draw_seed
from sinklens.errors import PlanError, PromptError
from sinklens.experiments.identity import model_identity, tokenizer_digest
from sinklens.harness import generation, scoring
from sinklens.harness.arguments import Setting, check_model, edits_of, load, plan_of, size_of
from sinklens.harness.met import Met
from sinklens.models.hooked_dlm import HookedDLM
from sinklens.values.content import digest
from sinklens.values.kinds import Seed, read

R = TypeVar("R")
MARK = "sinklens"  # the key under which a cache says whose it is; the harness's own keys are hashes
COUNTS = "sinklens: met, of how many"  # likewise


@register_model("sinklens")
class SinklensLM(TemplateLM):
    """A HookedDLM as a model of lm-evaluation-harness 0.4.13, `--model sinklens`.

    Log-likelihoods are sums over the continuation, in nats. Baselines: exact. Diffusion models: the mean of `mc_num`
    draws of LLaDA's estimator, or of Dream's for Dream (`decoding.noising`), whose masks depend on `seed` and on the
    length alone: the same for every edit and in every batch. `is_greedy` is exact for baselines; for diffusion models
    it says whether the model writes the continuation when it commits its surest token first, one a forward.

    Generations are decoded by `plan`, end at the first EOS token, and are cut before the first stop. Texts become
    tokens as everywhere in sinklens (`Reading`), contexts and continuations by the harness's own `_encode_pair`.

    What exceeds the context is an error, and is not cut from the left as the harness's own models do.

    Example:
        >>> lm = SinklensLM("tiny-dlm", edit="mask:same/top1", batch_size=16)
        >>> lm_eval.simple_evaluate(lm, tasks=["my_task"], task_manager=TaskManager(include_path="my_tasks"))

    Args:
        pretrained: tiny-dlm, a folder, a Hub id; or a HookedDLM.
        edit: An edit in the grammar (`interventions.GRAMMAR`) or as an object, or several of them.
        control: Do it to other keys instead: "random", "same_mass", ...
        seed: Of Monte-Carlo masks, of sampling and of the control. A request that is asked several times (`repeats`)
            gets another seed each time.
        plan: How generations are decoded: FIELD=VALUE joined by @, or the fields by name, or a Plan.
        mc_num: Monte-Carlo draws; 128 when None, as in both official evaluations. Diffusion models only.
        estimator: "llada" or "dream"; the family's own when None. Diffusion models only.
        batch_size: Rows per forward.
        max_batch_size: None; the harness names it, and it has no meaning without batch_size="auto".
        others: How the model is loaded, as the fields of `Placing`: device, dtype, device_map, revision, attention,
            family, mask_token_id.

    Raises:
        PlanError, ScopeError, ContentError, CheckpointError, PromptError: for arguments that cannot be honoured, before
            weights are read where that can be.
    """

    def __init__(
        self,
        pretrained: str | HookedDLM,
        edit: Any = (),
        control: str | None = None,
        seed: int = 0,
        plan: Any = None,
        mc_num: int | None = None,
        estimator: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        self.batch_size = size_of(batch_size)
        if max_batch_size is not None:
            raise PlanError(f"max_batch_size={max_batch_size!r} goes with batch_size='auto', which sinklens has not")
        seed = read("seed", seed, Seed, PlanError)
        edits = edits_of(edit, control, seed)
        decoded, said = plan_of(plan)
        of_diffusion = {"mc_num": mc_num, "estimator": estimator}
        self.dlm = load(pretrained, others, lambda model: check_model(model, edits, decoded, of_diffusion))
        own = "dream" if self.dlm.family.name == "Dream" else "llada"
        fields: Any = {"mc_num": 128 if mc_num is None else mc_num, "estimator": estimator or own}
        self.setting = Setting(edits, decoded, said, seed, **fields)
        self.tokenizer = self.dlm.tokenizer
        self.met: dict[str, float] = {}
        self._device = self.dlm.device
        self._held: Any = None  # the harness's cache
        self._before: dict[str, list[int]] = {}  # of the answers in it: how many the edit has met, of how many

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> SinklensLM:
        """A model from `--model_args` and from the harness's own options beside them.

        Raises:
            PlanError: one of these in `--model_args`, too.
        """
        beside = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if "device_map" in arg_dict:
            beside.pop("device", None)  # the harness always names one
        twice = [name for name in beside if name in arg_dict]
        if twice:
            raise PlanError(f"{twice[0]} is lm_eval's own option --{twice[0]}; leave it out of --model_args")
        return cls(**arg_dict, **beside)

    # What the harness asks of a model's texts.

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation that has no context: BOS, or for a baseline without one EOS."""
        ids = self.dlm.ids
        first = ids.bos if ids.bos is not None else self.tokenizer.eos_token_id if self.dlm.is_causal else None
        if first is None:
            raise PlanError(f"a request has no context, and {self.dlm.name} has no BOS token to begin with")
        return first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text as `HookedDLM.encode` reads it; of a piece of one without `add_special_tokens`."""
        return self.dlm.encode_piece(string) if add_special_tokens is False else self.dlm.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages in the tokenizer's chat template, as text.

        Raises:
            PromptError: there is no template, or it cannot read them; the harness's own model drops a system turn then.
        """
        try:
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except Exception as error:  # templates raise those of jinja
            raise PromptError(f"{self.dlm.name}'s chat template cannot read {chat_history!r:.60}: {error}") from error

    @property
    def tokenizer_name(self) -> str:
        """Tells the tokenizer from others, for the harness's cache of requests."""
        return f"sinklens-{tokenizer_digest(self.dlm)}"

    # Requests.

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        rows = [Answered(list(context), list(said)) for _, context, said in requests]
        if not rows:
            return []
        scoring.check(self.dlm, rows, self.setting)
        met = Met(self.setting.edits, len(rows), self._before.get("loglikelihood", (0, 0)))
        found: dict[int, tuple[float, bool]] = {}
        for batch in _shown(
            scoring.scored(self.dlm, rows, self.setting, self.batch_size, met), len(rows), disable_tqdm
        ):
            found |= batch
            self._note("loglikelihood", met, len(found))
            for index in batch:
                if (asked := requests[index][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", asked, found[index])
        self._judge(met, "loglikelihood")
        return [found[index] for index in range(len(rows))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of a baseline: log-likelihoods of whole texts, in the harness's windows. See the harness's own `LM`.

        Raises:
            PlanError: a diffusion model: it predicts masked tokens, and has no product over a text from left to right.
        """
        if not self.dlm.is_causal:
            raise PlanError(
                f"loglikelihood_rolling has no meaning for {self.dlm!r}: a diffusion model predicts masked tokens, not "
                "the next one. Leave the task out; those with contexts and continuations can be scored"
            )
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            made = get_rolling_token_windows(tokens, self.prefix_token_id, self.dlm.n_ctx, context_len=1)
            windows += [(None, *make_disjoint_window(window)) for window in made]
            owners += [number] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, as the class says. See the harness's own `LM`."""
        if not requests:
            return []
        asked: list[generation.Asked] = []
        times: dict[str, int] = {}
        for request in requests:
            context, given = cast("tuple[str, dict[str, Any]]", request.args)
            same = json.dumps([context, given])
            times[same] = times.get(same, -1) + 1
            seed = draw_seed(self.setting.seed, times[same]) if times[same] else self.setting.seed
            wish = generation.wish_of(given, self.setting)
            if self._held is not None and not given.get("do_sample") and generation.draws(wish.plan.resolved(self.dlm)):
                raise PlanError(
                    "a cache keeps one answer per request, and this plan draws answers; leave out --use_cache"
                )
            asked.append(generation.Asked(self.tok_encode(context), wish, seed))
        generation.check(self.dlm, asked, self.setting)
        met = Met(self.setting.edits, len(asked), self._before.get("generate_until", (0, 0)))
        found: dict[int, str] = {}
        made = generation.generated(self.dlm, asked, self.setting, self.batch_size, met)
        for batch in _shown(made, len(asked), disable_tqdm):
            found |= batch
            self._note("generate_until", met, len(found))
            for index, text in batch.items():
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        self._judge(met, "generate_until")
        return [found[index] for index in range(len(asked))]

    def _note(self, kind: str, met: Met, done: int) -> None:
        """Keep beside the answers in a cache how many of them the edit has met."""
        if self._held is not None:
            self._before |= {kind: met.counts(done)}
            self._held[COUNTS] = self._before

    def _judge(self, met: Met, kind: str) -> None:
        share = met.judge(kind)
        if share is not None:
            self.met[kind] = share

    # Whose the numbers are.

    def identity(self) -> dict[str, Any]:
        """What answers depend on beside the request, as plain data. Reads all weights."""
        return {**model_identity(self.dlm), "setting": self.setting.to_dict()}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use a cache of answers (`--use_cache`). It is looked up by requests alone, so the file says whose they are.

        Raises:
            PlanError: it holds answers of another model, edit, plan, seed or version.
            NeverExposed: the edit has met none of the answers in it.
        """
        held, own = cache_hook.dbdict, digest(self.identity())
        if held is not None and held.get(MARK) != own:
            if len(held):
                held.close()
                raise PlanError(
                    f"--use_cache: {held.filename!r} holds answers of another model, edit, control, plan, seed or "
                    "version of sinklens, and they would be taken for this one's; name another file"
                )
            held[MARK] = own
        self._held = held
        self._before = {} if held is None else dict(held.get(COUNTS, {}))
        for kind, counts in self._before.items():
            self._judge(Met(self.setting.edits, 0, counts), kind)
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model: its setting, and the share of requests that the edit has met, by kind."""
        told = {"edits": [repr(edit) for edit in self.setting.edits], "edited_requests": self.met}
        return {"sinklens": {"model": repr(self.dlm), **self.setting.to_dict(), "read_as": told}}


def _shown(batches: Iterator[dict[int, R]], total: int, hidden: bool) -> Iterator[dict[int, R]]:
    """Batches, under a progress bar."""
    with tqdm(total=total, desc="sinklens", unit="request", disable=hidden) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
