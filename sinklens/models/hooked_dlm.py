"""HookedDLM: a TransformerBridge around a diffusion language model, with calibrated hook points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklens.models import attention, loading
from sinklens.models.calibration import calibrate
from sinklens.models.families import FAMILIES, Family
from sinklens.models.loading import Checkpoint, SpecialIds


class HookedDLM:
    """A masked diffusion language model (or an autoregressive baseline) on TransformerLens hook points.

    Holds a `TransformerBridge` (`dlm.bridge`) and forwards what TransformerLens's tools ask for, so it is a
    `TransformerLensModel`. Make one with `from_pretrained` or `from_transformers`.

    Attributes:
        bridge: The TransformerBridge.
        family: What kind of checkpoint it is.
        ids: Special-token ids (mask, eos, bos, pad, eot).
        name: What it was loaded as.
        revision: Hub commit, if any.
    """

    def __init__(self, checkpoint: Checkpoint, *, check: bool = True) -> None:
        model, self.family, self.ids = checkpoint.model, checkpoint.family, checkpoint.ids
        self.name, self.revision = checkpoint.name, checkpoint.revision
        self.reference: PreTrainedModel | None = None
        if not getattr(model, "hf_device_map", None):
            self.reference = loading.plain_twin(model)
        # The plain model has these very weights; if somebody puts others in their place, only the bridge knows.
        self._weights = [
            (module._parameters, name, weight)
            for module in model.modules()
            for name, weight in module._parameters.items()
            if weight is not None
        ]
        _register()
        self.bridge = build_bridge_from_module(
            model, self.family.architecture, hf_config=model.config, model_name=self.name
        )
        # The bridge may switch the model to eager attention; sdpa's masks are what `attention` expects.
        model.set_attn_implementation("sdpa")
        self.cfg.attention_dir = "causal" if self.is_causal else "bidirectional"
        if checkpoint.tokenizer is not None:
            self.bridge.tokenizer = checkpoint.tokenizer
            added = checkpoint.tokenizer("")["input_ids"]
            self.cfg.tokenizer_prepends_bos = added[:1] == [self.ids.bos]
            self.cfg.tokenizer_appends_eos = added[-1:] == [self.ids.eos]
        self._share(model)
        # TransformerLens wires its own module hooks on first use; count them as nobody's.
        with torch.no_grad():
            self.bridge.run_with_cache(torch.zeros((1, 1), dtype=torch.long, device=self.device))
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self._hooks = [getattr(module, kind) for module in self.bridge.modules() for kind in kinds]
        self._shown = [point._forward_hooks for block in self.bridge.blocks for point in block.attn.shown()]
        self._own_hooks = sum(map(len, self._hooks))
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
        check: bool = True,
    ) -> HookedDLM:
        """Load a bundled twin ("tiny-dlm", "tiny-arm"), a folder, or a Hub id.

        Args:
            name_or_folder: What to load. Hub ids come out of the local cache under HF_HUB_OFFLINE=1.
            dtype: Weight dtype; the checkpoint's own when None.
            device: Where to put the model; the CPU when None.
            device_map: As in transformers (several devices), instead of `device`.
            revision: Hub branch, tag or commit.
            check: Run `check()` on the loaded model.

        Raises:
            CheckpointError: a layout, field, weight or file that cannot be loaded faithfully.
            CheckFailed: the loaded model failed its calibration.
        """
        checkpoint = loading.load(
            str(name_or_folder), dtype=dtype, device=device, device_map=device_map, revision=revision
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
        """Wrap a stock transformers model (Llama, Qwen2, Qwen3) that is in memory. It is modified in place.

        Args:
            model: The decoder, of the class that the family names.
            tokenizer: Its tokenizer; None restricts prompts to token ids.
            family: A Family or its name, for example "LLaDA".
            ids: Special-token ids, when neither the model's config nor the tokenizer has them.
            check: Run `check()`.
        """
        if isinstance(family, str):
            by_name = {known.name.lower(): known for known in FAMILIES}
            if family.lower() not in by_name:
                raise ValueError(
                    f"family {family!r} is unknown; the families are {', '.join(f.name for f in FAMILIES)}"
                )
            family = by_name[family.lower()]
        wanted = f"{family.decoder}ForCausalLM"
        if type(model).__name__ != wanted:
            raise ValueError(f"family {family.name} wraps a {wanted}, not a {type(model).__name__}")
        loading.set_direction(model, causal=family.causal)
        name = getattr(model.config, "name_or_path", "") or family.name
        ids = ids or loading.special_ids(model.config.to_dict(), tokenizer, family, name)
        return cls(Checkpoint(model.eval(), tokenizer, family, ids, name, None), check=check)

    # What TransformerLens's tools ask for.

    @property
    def cfg(self) -> Any:
        """The bridge's config."""
        return self.bridge.cfg

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""
        return self.bridge.tokenizer

    @property
    def hook_dict(self) -> dict[str, Any]:
        """Hook points by name."""
        return self.bridge.hook_dict

    @property
    def is_causal(self) -> bool:
        """True for the autoregressive baselines."""
        return self.family.causal

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Weight dtype."""
        return next(self.bridge.parameters()).dtype

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

    def __getattr__(self, name: str) -> Any:
        """Forward the rest of the bridge: blocks, hooks, add_hook, reset_hooks, to_string, W_Q, ..."""
        if name.startswith("_") or "bridge" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.bridge, name)

    def __repr__(self) -> str:
        return f"HookedDLM({self.name!r}, {self.family.name}, {self.n_layers} layers x {self.n_heads} heads)"

    def to_tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        """TransformerLens's `to_tokens`."""
        return self.bridge.to_tokens(*args, **kwargs)

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `run_with_hooks`; logits come back aligned with positions."""
        out = self.bridge.run_with_hooks(*args, **kwargs)
        return self._aligned(out) if kwargs.get("return_type", "logits") == "logits" else out

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `run_with_cache`; logits come back aligned with positions."""
        out, cache = self.bridge.run_with_cache(*args, **kwargs)
        return (self._aligned(out) if kwargs.get("return_type", "logits") == "logits" else out), cache

    def to(self, *args: Any, **kwargs: Any) -> HookedDLM:
        """Move or cast the model."""
        self.bridge.to(*args, **kwargs)
        if self.reference is not None:
            self.reference.to(*args, **kwargs)
        return self

    @property
    def attention(self) -> str:
        """How hooked attention is computed: "auto" (the default), "pattern" or "streaming".

        "auto": in blocks of queries if every hook on scores and pattern works row by row, else with whole patterns.
        "pattern": always whole patterns. "streaming": always blocks; a hook that needs more is an error. Under grad
        whole patterns are used. A layer whose scores and pattern nobody hooks runs fused attention in any case.
        """
        return self.bridge.blocks[0].attn.path

    @attention.setter
    def attention(self, path: str) -> None:
        if path not in ("auto", "pattern", "streaming"):
            raise ValueError(f"attention={path!r} is unknown; choose auto, pattern or streaming")
        for block in self.bridge.blocks:
            block.attn.__dict__["path"] = path

    # Forward.

    def __call__(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits ALIGNED with positions: row i scores the token at position i (Dream's shift is undone).

        For the autoregressive baselines row i scores token i + 1, as everywhere in transformers.

        Args:
            tokens: Token ids.
            attention_mask: True (or 1) at real positions; all real when None.
        """
        raw = self._raw(tokens, attention_mask)
        logits = self._aligned(raw)
        if self.family.shift and attention_mask is not None:
            # As at position 0, a row's first real position has nothing before it and keeps its own logits.
            first = attention_mask.bool() & (attention_mask.long().cumsum(-1) == 1)
            logits = torch.where(first[..., None], raw, logits)
        return logits

    def _raw(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        arguments = self._arguments(attention_mask)
        if self.reference is not None and self._plain_will_do():
            return self.reference(tokens, **arguments).logits
        return self.bridge(tokens, return_type="logits", **arguments)

    def _arguments(self, attention_mask: Tensor | None) -> dict[str, Any]:
        if attention_mask is None or bool(attention_mask.all()):
            return {"use_cache": False}
        mask = attention_mask.long()
        return {"use_cache": False, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    def _aligned(self, logits: Tensor) -> Tensor:
        return torch.cat([logits[:, :1], logits[:, :-1]], 1) if self.family.shift else logits

    @property
    def hooked(self) -> bool:
        """Whether anybody hooks anything. If not, a forward costs what the plain transformers model costs."""
        return sum(map(len, self._hooks)) != self._own_hooks

    def _plain_will_do(self) -> bool:
        """Whether nobody hooks anything but what the plain model's attention shows, too (`plain_attention`).

        Then a forward costs what the plain transformers model costs, and what the hooks do. Not if a weight was
        replaced (edits in place reach both models).
        """
        shown = sum(map(len, self._shown))
        return (
            sum(map(len, self._hooks)) == self._own_hooks + shown
            and not (shown and torch.is_grad_enabled())
            and all(held.get(name) is weight for held, name, weight in self._weights)
        )

    def _share(self, model: PreTrainedModel) -> None:
        """Tell every attention of this model and of the plain one about the forward that runs."""
        now: dict[str, Any] = {"mask": self.ids.mask}

        def note(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            now["tokens"] = kwargs.get("input_ids", args[0] if args else None)

        for block in self.bridge.blocks:
            block.attn.__dict__["now"] = now
        for each in (model, self.reference):
            if each is not None:
                each.model.register_forward_pre_hook(note, with_kwargs=True)
        if self.reference is not None:
            attention.share_points(self.reference, self.bridge)

    # Text.

    def encode(self, prompt: str | Sequence[int] | Tensor, *, chat: bool = False) -> list[int]:
        """Token ids of one prompt: text through the tokenizer, ids as they are.

        Args:
            prompt: Text, or token ids.
            chat: Put the text into the tokenizer's chat template as one user turn.
        """
        if isinstance(prompt, Tensor):
            prompt = prompt.tolist()
        if not isinstance(prompt, str):
            ids = [int(token) for token in prompt]
            wrong = [token for token in ids if not 0 <= token < self.cfg.d_vocab]
            if wrong:
                raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self.cfg.d_vocab}")
            return ids
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer; give prompts as token ids, not as text {prompt[:40]!r}")
        try:
            if chat:
                message = [{"role": "user", "content": prompt}]
                text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
                return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            return list(self.tokenizer(prompt)["input_ids"])
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"{self.name}'s tokenizer cannot read {prompt[:60]!r}: {error}") from error

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of token ids, special tokens left out."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True) if self.tokenizer is not None else str(ids)

    def token_strings(self, ids: Sequence[int] | Tensor) -> list[str]:
        """One readable string per token id."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.tokenizer is None:
            return [str(token) for token in ids]
        return [self.tokenizer.decode([token]) for token in ids]

    # Calibration.

    def check(self) -> dict[str, float]:
        """Calibrate the instrument: is what the hooks show what the model computes? Runs on load.

        Returns:
            The measured deviations, by name (`calibration.calibrate`).

        Raises:
            CheckFailed: naming the claim that does not hold and by how much.
        """
        return calibrate(self)

    @torch.no_grad()
    def hook_table(self) -> dict[str, tuple[int, ...]]:
        """Every hook point that fires, with the shape it carries for one prompt of 5 tokens (batch first)."""
        shapes: dict[str, tuple[int, ...]] = {}

        def note(tensor: Any, *, hook: Any) -> None:
            if isinstance(tensor, Tensor):
                shapes[hook.name] = tuple(tensor.shape)

        # Point by point: by name, TransformerLens warns about those that are switched off.
        points = list({id(point): point for point in self.hook_dict.values()}.values())
        handles = [(point, point.add_hook(note)) for point in points]
        tokens = torch.zeros((1, min(5, self.n_ctx)), dtype=torch.long, device=self.device)
        try:
            self.bridge(tokens, return_type="logits")
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)
        return shapes


def _register() -> None:
    """Register the adapters where the entry points are not seen (a source tree on the path)."""
    ArchitectureAdapterFactory.discover_entry_points()
    for decoder in ("Llama", "Qwen2", "Qwen3"):
        name = f"Sinklens{decoder}"
        if name not in ArchitectureAdapterFactory._adapters:
            ArchitectureAdapterFactory.register_adapter(name, getattr(attention, f"{name}Adapter"))
