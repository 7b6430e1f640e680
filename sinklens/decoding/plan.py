"""The Plan: how to decode, checked before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sinklens.decoding.plan_rules import (
    ANY_STEPS,
    EPS,
    IN_BLOCKS,
    ONLY,
    Remasking,
    Sampler,
    check_residues,
    checked,
    reach,
    reachable,
)
from sinklens.errors import PlanError
from sinklens.models.outline import Sketched
from sinklens.sinks import Blocks
from sinklens.values.content import Value


@dataclass(frozen=True, repr=False)
class Plan(Value):
    """How to decode. Fields left at None take the model family's default.

    An autoregressive baseline commits one token per step, from left to right: a plan that says anything else is refused
    for it, wherever it is given. `for_causal` makes the plan with which a baseline runs beside a diffusion model.

    Example:
        >>> import sinklens as sl
        >>> sl.Plan(new_tokens=64, steps=32, temperature=0.5)
        Plan(new_tokens=64, steps=32, temperature=0.5)

    Attributes:
        new_tokens: Positions to append and fill. 0 fills the mask tokens inside the prompts instead (gaps).
        steps: Denoising steps in all; one token per step when None. In blocks each takes its share of them.
        block_length: Blocks are filled from left to right; one block when None. A model that sees block by block
            sees in blocks of this length; its own when None. `new_tokens` need not be a multiple there: a prompt's last
            tokens may share the first block, and the last one may be shorter.
        remasking: Which positions a step commits: the most confident by "low_confidence" (probability of the
            chosen token), "margin", "entropy", "maskgit_plus"; at "random"; or "origin" (Dream: each with
            probability 1 - s/t; the samplers "diffugpt" and "ddpm_cache" know nothing else). "p2" and "dplm" know
            "low_confidence" alone.
        sampler: Whose counts per step and whose random draws: "llada" (even split, Gumbel-max in float64);
            "dream" (timesteps from 1 to eps, categorical draws with top_p and top_k); "diffugpt" (DiffuGPT's and
            DiffuLLaMA's: a draw for every position, each revealed with probability 1 / (steps that are left); official
            are 64 steps, temperature 0.95 or 0.9, top_p 0.9); "ddpm_cache" (MDLM's: timesteps from 1 to eps, and one
            step more that fills what is left with the likeliest tokens; official is temperature 1); "p2"
            (open-dcoder's, path planning: every step draws for all positions that were masked at first, and the least
            confident are masked after it, also committed ones; official are temperature 0.5, top_k 200 and as many
            steps as tokens); "dplm" (DPLM's: likewise with Gumbel noise, the confidence is the score with its noise;
            temperature 1 is the official "gumbel_argmax", 0 "argmax", another scales the noise; official are 500
            steps, temperature 1 and resample 0.25). All but "llada" and "dream" take more steps than tokens, too: a
            step may commit nothing.
        threshold: Commit every position whose confidence reaches it (>=), at least one per step; `steps` is then not
            used. In (0, 1] for probabilities and margins; below 0 for remasking="entropy", whose confidence is minus
            the entropy in nats. Fast-dLLM's parallel decoding compares so, too; the block samplers of SDAR, LLaDA2.x
            and Fast-dLLM v2 commit above it only (>), which differs at exact ties.
        temperature: 0 takes the likeliest token.
        top_p: Nucleus; "llada" and "dplm" have none.
        top_k: Likewise.
        cfg_scale: Classifier-free guidance w: u + (w + 1)(c - u), u with the prompt masked.
        eps: The last timestep; 1e-3 for "dream" and 1e-5 for "ddpm_cache" when None.
        alg_temp: Dream: draw the positions to commit with this temperature on the confidence.
        resample: DPLM: where a residue makes up more than this share of a row's drawn tokens, all places of such
            residues are drawn once more, after a second forward that sees them masked. In (0, 1), and only with a
            temperature; never when None (the official disable_resample). Edits are refused with it.
        suppress_eos: LLaDA, appendix B.4: "logits" never chooses EOS; "confidence" commits EOS and EoT last
            (their confidence is 0 and the others' is renormalised, at every temperature), for the "llada" sampler;
            "both" does both.
        allow_mask: Let the model choose the mask token, as the official samplers do; the position then stays
            masked. By default it cannot be chosen: another token is, and confidences, the nucleus and the order of
            commits are still the official ones, with the mask's probability in them.
        cache: Keep keys and values of what does not change any more: of a baseline all that stands to the left of its
            next position, of a model that sees block by block the finished blocks. A step then computes what is new
            alone; the numbers are the same, up to rounding. None: where probes and edits ask for no more than that.
            True: or else an error says why not. False: every step computes every position.
        editing: What an edit means where there is a past. "scratch": as if the model had always been so; every position
            is edited at every step, and no cache can be kept. "local": as in a decoder with a cache; only the queries
            that a step computes are edited, what was finished before stays as it was read: finished blocks unedited,
            a baseline's earlier tokens as they were at their own steps.
        chat: Put prompts that are texts into the tokenizer's chat template, as a user's turn. Messages are put there
            in any case; token ids are refused.
    """

    new_tokens: int = 32
    steps: int | None = None
    block_length: int | None = None
    remasking: Remasking | None = None
    sampler: Sampler | None = None
    threshold: float | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    cfg_scale: float = 0.0
    eps: float | None = None
    alg_temp: float | None = None
    resample: float | None = None
    suppress_eos: Literal["logits", "confidence", "both"] | None = None
    allow_mask: bool = False
    cache: bool | None = None
    editing: Literal["scratch", "local"] = "scratch"
    chat: bool = False
    kind_error = PlanError

    def __post_init__(self) -> None:
        rules = [
            ("new_tokens", self.new_tokens >= 0, "must be at least 0 (0 fills the gaps inside the prompts)"),
            ("steps", self.steps is None or self.steps >= 1, "must be at least 1"),
            ("block_length", self.block_length is None or self.block_length >= 1, "must be at least 1"),
            ("threshold", reachable(self.threshold, self.remasking), f"must be {reach(self.remasking)}"),
            ("temperature", 0 <= self.temperature < math.inf, "must be at least 0, and finite"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "must be in (0, 1]"),
            ("top_k", self.top_k is None or self.top_k >= 1, "must be at least 1"),
            ("cfg_scale", 0 <= self.cfg_scale < math.inf, "must be at least 0, and finite"),
            ("eps", self.eps is None or 0 < self.eps < 1, "must be in (0, 1)"),
            ("alg_temp", self.alg_temp is None or 0 <= self.alg_temp < math.inf, "must be at least 0, and finite"),
            ("resample", self.resample is None or 0 < self.resample < 1, "must be in (0, 1)"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise PlanError(f"{name}={getattr(self, name)!r} {rule}")
        if self.editing == "local" and self.cache is False:
            raise PlanError("editing='local' is what a cache does to edits; leave cache=False out")

    def resolved(self, dlm: Sketched) -> Plan:
        """The plan with the family's defaults filled in and checked against itself and the model, or its outline.

        Resolving it once more changes nothing.

        Raises:
            PlanError: naming the field, its value and the rule.
        """
        if dlm.is_causal:
            return self._resolved_causal(dlm)
        if dlm.in_blocks is None and (self.cache or self.editing != "scratch"):
            what = f"cache={self.cache}" if self.cache else f"editing={self.editing!r}"
            raise PlanError(
                f"{what}: {dlm.name} sees the whole canvas at every step, so that nothing is ever settled. Baselines "
                "and models that see block by block have a past"
            )
        default = dlm.family.plan
        sampler = self.sampler or default.get("sampler", "llada")
        usual = ONLY.get(sampler, default.get("remasking", "low_confidence"))
        eps = EPS.get(sampler) if self.eps is None else self.eps
        plan = replace(self, sampler=sampler, remasking=self.remasking or usual, eps=eps)
        if sampler == "dplm":
            check_residues(dlm)
        if dlm.in_blocks is not None:
            return plan._resolved_in_blocks(dlm, dlm.in_blocks)
        if sampler in IN_BLOCKS[1:]:
            raise PlanError(f"sampler={sampler!r} is of models that see block by block, and {dlm.name} sees everything")
        if self.new_tokens == 0:
            if self.block_length is not None:
                raise PlanError(f"block_length={self.block_length} has no meaning for filling gaps (new_tokens=0)")
            return checked(plan)
        block = self.block_length
        if block is None:
            usual = default.get("block_length", self.new_tokens)
            block = self.new_tokens if sampler != "llada" or self.new_tokens % usual else usual
        if self.new_tokens % block:
            raise PlanError(f"new_tokens={self.new_tokens} is not a multiple of block_length={block}")
        blocks = self.new_tokens // block
        steps = self.steps if self.steps is not None else self.new_tokens
        if self.threshold is None and steps % blocks:
            raise PlanError(f"steps={steps} is not divisible by the {blocks} blocks of new_tokens={self.new_tokens}")
        if self.threshold is None and steps > self.new_tokens and sampler not in ANY_STEPS:
            raise PlanError(
                f"steps={steps} is more than new_tokens={self.new_tokens}; a step commits at least one token"
            )
        return checked(replace(plan, steps=steps, block_length=block))

    def for_causal(self) -> Plan:
        """The same plan without what only diffusion models can do: for running a baseline beside them.

        Nothing calls it silently: whoever runs a baseline with another plan than the diffusion model says so.
        """
        suppress = "logits" if self.suppress_eos in ("logits", "both") else None
        return replace(self, **_ONLY_DIFFUSION, suppress_eos=suppress)

    @property
    def more(self) -> int:
        """Steps that a run takes behind the planned ones: MDLM's noise removal."""
        return int(self.sampler == "ddpm_cache")

    def _resolved_in_blocks(self, dlm: Sketched, blocks: Blocks) -> Plan:
        if self.sampler not in IN_BLOCKS:
            raise PlanError(
                f"sampler={self.sampler!r} decides anywhere on a canvas, and {dlm.name} sees block by block: choose "
                f"{', '.join(IN_BLOCKS)}"
            )
        if self.cfg_scale:
            raise PlanError(f"cfg_scale={self.cfg_scale:g}: guidance is not there for {dlm.name}, which sees in blocks")
        if self.new_tokens == 0 and blocks.aligned == "prompt":
            raise PlanError(
                f"new_tokens=0: the blocks of {dlm.name} begin behind a prompt, so it cannot fill gaps in one"
            )
        steps = self.steps if self.steps is not None or not self.new_tokens else self.new_tokens
        if self.threshold is None and self.new_tokens and (steps or 0) > self.new_tokens:
            raise PlanError(
                f"steps={steps} is more than new_tokens={self.new_tokens}; a step commits at least one token"
            )
        return checked(replace(self, steps=steps, block_length=self.block_length or blocks.length))

    def _resolved_causal(self, dlm: Sketched) -> Plan:
        plain = self.for_causal()
        if self.steps == self.new_tokens:  # what it does anyway
            plain = replace(plain, steps=self.steps)
        for field in fields(self):
            if getattr(self, field.name) != getattr(plain, field.name):
                raise PlanError(
                    f"{field.name}={getattr(self, field.name)!r} has no meaning for the autoregressive {dlm.name}: it "
                    "commits one token per step, from left to right. Leave it out, or run plan.for_causal()"
                )
        return replace(self, steps=self.new_tokens or None)


# What only diffusion models can do, and what it is where nothing is said.
_ONLY_DIFFUSION: dict[str, Any] = {
    name: getattr(Plan, name)
    for name in (
        "steps",
        "block_length",
        "remasking",
        "sampler",
        "threshold",
        "cfg_scale",
        "eps",
        "alg_temp",
        "resample",
    )
}
