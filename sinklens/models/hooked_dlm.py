"""HookedDLM: a TransformerBridge of a diffusion language model, with calibrated hook points."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklens.errors import PromptError
from sinklens.models import adapters, attention, copying, encoders, loading, notebook, rotary
from sinklens.models.calibration import calibrate
from sinklens.models.driver import FORWARD, Driver, positions, running
from sinklens.models.families import Family
from sinklens.models.fingerprint import fingerprint
from sinklens.models.loading import Checkpoint
from sinklens.models.special_ids import SpecialIds
from sinklens.models.text import Text
from sinklens.models.tools import Tools
from sinklens.models.wiring import Wiring, refuse_wrapped

PATHS = ("auto", "pattern", "blocks")


class HookedDLM(Text, Tools, notebook.Card):
    """A masked diffusion language model (or an autoregressive baseline) on TransformerLens hook points.

    It IS a `TransformerBridge`, so TransformerLens's tools take it for what it is; and it wraps the transformers model
    `dlm.original_model` as it stands: whatever is done to that (adapters, casts, replaced modules), forwards with and
    without hooks run the same modules. Called by itself it knows of no blocks: one that has them then sees both ways.

    Rows of logits: row i scores the token at position i, also in caches and under hooks (a family that predicts it at
    i - 1 is aligned inside, at `unembed`). For the autoregressive baselines row i scores token i + 1, as everywhere in
    transformers and TransformerLens; `by_position` moves rows to the position that they score.

    Attributes:
        family: What kind of checkpoint it is.
        ids: Special-token ids (mask, eos, bos, pad, eot).
        name: What it was loaded as.
        revision: Hub commit, if any.
        points: Hook points by name.
        wiring: Which of the bridge's components a forward needs.
    """

    def __init__(self, checkpoint: Checkpoint, *, check: bool = True) -> None:
        model: Any = checkpoint.model
        refuse_wrapped(model)
        adapters.register({**adapters.DECODERS, **encoders.ENCODERS})
        family, dtype = checkpoint.family, next(model.parameters()).dtype
        config = build_bridge_config_from_hf(model.config, family.architecture, checkpoint.name, dtype)
        adapter: Any = ArchitectureAdapterFactory.select_architecture_adapter(config)
        adapter.cfg.device = str(next(model.parameters()).device)
        driver = Driver(model, adapter, None)
        driver.first_position = family.first_position(model.config)
        driver.blocks = family.blocks_of(model.config)
        driver.pad = model.config.pad_token_id if getattr(model.config, "token_dropout", False) else None
        adapter.limit(causal=family.causal, shifted=family.shift, first_position=driver.first_position)
        super().__init__(model, adapter, None, driver=driver)
        self.family, self.ids, self._path = family, checkpoint.ids, "auto"
        self.name, self.revision = checkpoint.name, checkpoint.revision
        self.__dict__["wiring"] = Wiring(self, model)
        rotary.keep_settled(model)
        # TransformerLens gives an unembedding without bias one of zeros: not to be saved.
        for module in (module for module in model.modules() if "bias" in module._buffers):
            module._non_persistent_buffers_set.add("bias")
        model.set_attn_implementation(attention.NAME)
        if model._can_set_experts_implementation():
            model.set_experts_implementation("eager")  # the class's own loop: every dtype, the official order of sums
        if checkpoint.tokenizer is not None:
            self.tokenizer = checkpoint.tokenizer
        # TransformerLens wires its own module hooks at the first forward; count them as nobody's.
        inner, one = super().forward, torch.zeros((1, 1), dtype=torch.long, device=self.device)
        with torch.no_grad():
            self.wiring.run(lambda _: inner(one, use_cache=False), everything=True)
        self.settle()
        if check:
            self.check()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        revision: str | None = None,
        family: Family | str | None = None,
        mask_token_id: int | None = None,
        block_length: int | None = None,
        check: bool = True,
    ) -> HookedDLM:
        """Load a bundled model ("tiny-dlm", "tiny-bdlm", "tiny-arm"), a folder, or a Hub id.

        Args:
            name_or_folder: What to load. Hub ids come out of the local cache under HF_HUB_OFFLINE=1.
            dtype: Weight dtype; the checkpoint's own when None.
            device: Where to put the model; the CPU when None.
            device_map: As in transformers (several devices), instead of `device`.
            revision: Hub branch, tag or commit.
            family: What it is, where config.json does not say ("A2D-Qwen3", "Dream", ...); its weights must fit.
            mask_token_id: The mask token, where the checkpoint names none.
            block_length: Positions of a block, of a model that sees block by block; what config.json says when None.
            check: Run `check()` on the loaded model.

        Raises:
            CheckpointError: a layout, field, weight or file that cannot be loaded faithfully.
            CheckFailed: the loaded model failed its calibration.
        """
        checkpoint = loading.load(
            str(name_or_folder),
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            family=family,
            mask_token_id=mask_token_id,
            block_length=block_length,
        )
        return cls(checkpoint, check=check)

    @classmethod
    def from_transformers(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        family: Family | str,
        *,
        ids: SpecialIds | None = None,
        check: bool = True,
    ) -> HookedDLM:
        """Wrap a stock transformers model (Llama, Qwen2, Qwen3) that is in memory.

        The model stays usable by itself: hook points come in for the forwards of the HookedDLM only. Its mask
        direction and attention function are set in place.

        Args:
            model: The decoder, of the class that the family names.
            tokenizer: Its tokenizer; None restricts prompts to token ids.
            family: A Family or its name, for example "LLaDA".
            ids: Special-token ids, when neither the model's config nor the tokenizer has them.
            check: Run `check()`.

        Raises:
            ValueError: an unknown family, or a model of another class.
            ModelError: a model that TransformerLens has wrapped already.
        """
        return cls(loading.in_memory(model, tokenizer, family, ids), check=check)

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return next(self.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Weight dtype."""
        return next(self.original_model.parameters()).dtype

    @cached_property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.cfg.n_layers)

    @cached_property
    def n_heads(self) -> int:
        """Number of query heads."""
        return int(self.cfg.n_heads)

    @cached_property
    def n_ctx(self) -> int:
        """Longest sequence that the model was built for."""
        return int(self.cfg.n_ctx)

    def fingerprint(self) -> str:
        """Hash of everything that decides what the model computes; scores are stored under it (`fingerprint`)."""
        return self.wiring.held(lambda: fingerprint(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are made from the plain transformers model, and wrapped anew."""
        return copying.reduced(self)

    @property
    def attention(self) -> str:
        """How attention is computed: "auto" (the default), "pattern" or "blocks".

        "auto": fused in a layer whose scores and pattern nobody hooks; else in blocks of queries if every hook there
        treats queries by themselves, or with whole patterns. "pattern": whole patterns in every layer, hooked or not.
        "blocks": blocks in every layer; a hook that needs more is an error. Under grad whole patterns are used.

        Likewise, under "auto" `denoise` and `ablate` unembed the next position of a baseline alone while nobody hooks
        `unembed`. The ways differ by rounding. In float32 that has changed no token; in bfloat16 and float16 it does,
        so that a probe can change what a run writes. With "pattern" or "blocks" probes change no bit in any dtype.
        """
        return self._path

    @attention.setter
    def attention(self, path: str) -> None:
        if path not in PATHS:
            raise ValueError(f"attention={path!r} is unknown; choose {', '.join(PATHS)}")
        self.__dict__["_path"] = path

    @property
    def hooked(self) -> bool:
        """Whether anybody hooks anything. If not, a forward is that of the plain transformers model."""
        return self.wiring.hooked

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - the same arguments, all but two by name only
        self,
        input: Int[Tensor, "batch pos"] | str | list[str] | Tensor,
        return_type: str | None = "logits",
        *,
        attention_mask: Tensor | None = None,
        levels: Int[Tensor, "batch pos"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """TransformerLens's `forward`: logits [batch, pos, vocab], row i for the token at position i.

        For the autoregressive baselines row i scores token i + 1.

        Args:
            input: Token ids; text; or embeddings.
            return_type: "logits" or None; for baselines also "loss", "both", "predictions", "logits_and_cache".
            attention_mask: True (or 1) at real positions [batch, pos]; all real when None.
            levels: Of a model that sees block by block: no position sees one of a higher level (`Blocks.levels`);
                blocks from the start of each text when None.
            **kwargs: As in TransformerBridge.forward (stop_at_layer, start_at_layer, prepend_bos, ...).

        Raises:
            Unsupported: something that has no meaning for a diffusion model: next-token loss, a cache.
        """
        embedded = isinstance(input, Tensor) and input.is_floating_point()
        self.refuse(return_type, kwargs, embedded=embedded)
        if isinstance(input, str | list):
            wishes = {name: kwargs.pop(name, None) for name in ("prepend_bos", "padding_side")}
            tokens, real = self.padded_texts(input, **wishes)
            input = tokens.to(self.device)
            attention_mask = real.to(self.device) if attention_mask is None else attention_mask
        plain = isinstance(input, Tensor) and input.ndim == 2 and not embedded
        if plain and self.family.positions != "rotary" and input.shape[1] > self.n_ctx:
            raise PromptError(f"{input.shape[1]} tokens exceed the {self.n_ctx} positions that {self.name} knows")
        valid = attention_mask.bool() if attention_mask is not None and attention_mask.ndim == 2 else None
        if valid is not None and bool(valid.all()):
            valid = attention_mask = None
        if plain and kwargs.keys() <= {"logits_to_keep"} and return_type == "logits":
            inner = partial(self._logits, input, attention_mask, valid, kwargs)
        else:
            inner = partial(super().forward, input, return_type, attention_mask=attention_mask, **kwargs)

        def run(serving: dict[Any, Any]) -> Any:
            serving = serving if self._path == "auto" else self.wiring.serving(everywhere=True)
            self.check_attention(serving)
            now: Any = {"mask_token": self.ids.mask, "path": self._path, "levels": levels}
            return running(replace(FORWARD.get(), serving=serving, **now), inner)

        return self.wiring.run(run, everything=self.across(kwargs))

    def _logits(
        self, tokens: Any, attention_mask: Tensor | None, valid: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """The transformers model's own logits, without TransformerLens's handling of everything else."""
        arguments: dict[str, Any] = {"use_cache": False, **options}
        if valid is not None:
            places = positions(valid, self._driver.first_position)
            arguments |= {"attention_mask": valid.long(), "position_ids": places}
        elif attention_mask is not None:
            arguments["attention_mask"] = attention_mask
        return self._driver.forward(tokens, **arguments).logits

    def check(self) -> dict[str, float]:
        """Calibrate the instrument: is what the hooks show what the model computes? Runs on load.

        Returns:
            The measured deviations, by name (`calibration.calibrate`).

        Raises:
            CheckFailed: naming the claim that does not hold and by how much.
        """
        return calibrate(self)
