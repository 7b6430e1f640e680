"""TransformerLens's tools on a HookedDLM: those that need every component in place, and those with no right answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from sinklens.errors import ModelError, Unsupported
from sinklens.models import attention
from sinklens.models.caches import Cache
from sinklens.models.calibration import hook_table
from sinklens.models.callers import NEXT_TOKEN, called_by
from sinklens.models.driver import FORWARD
from sinklens.models.weights import Weights
from sinklens.sinks import Blocks

SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


class Tools(Weights):
    """What of TransformerBridge is run with all components in place, and what is refused, saying why."""

    _path: str
    points: dict[str, Any]

    @property
    def is_causal(self) -> bool:
        """True for the autoregressive baselines."""
        return self.family.causal

    @property
    def in_blocks(self) -> Blocks | None:
        """How a model that sees block by block cuts a text into blocks; None for any other."""
        return self.family.blocks_of(self.original_model.config)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer: only keys closer than this many positions are seen; None where all are (`Sight.window`)."""
        config: Any = self.original_model.config
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(self.cfg.n_layers)
        near = None if "sliding_attention" not in kinds else config.sliding_window + (not self.is_causal)
        return tuple(near if kind == "sliding_attention" else None for kind in kinds)

    def settle(self) -> None:
        """The bridge is built: collect its hook points once, and count the hooks that are there as nobody's."""
        self.__dict__["points"] = dict(self.hook_dict)
        self.wiring.settle()

    def across(self, kwargs: dict[str, Any]) -> bool:
        """Whether all components must be in place: what TransformerLens does across several of them."""
        across = kwargs.get("stop_at_layer") is not None or kwargs.get("start_at_layer") is not None
        return across or bool(self.compatibility_mode) or any(getattr(self.cfg, flag, False) for flag in SWITCHES)

    def check_attention(self, serving: Any) -> None:
        """Hooks on attention need sinklens's attention function; somebody may have chosen another."""
        for module in serving:
            chosen = getattr(getattr(module, "config", None), "_attn_implementation", attention.NAME)
            if chosen != attention.NAME:
                raise ModelError(
                    f"attention is hooked, and the model was set to attention {chosen!r}, which has no hook points; "
                    f"say dlm.original_model.set_attn_implementation({attention.NAME!r})"
                )

    def last_logits(
        self, tokens: Int[Tensor, "batch pos"], *, attention_mask: Tensor | None = None, levels: Tensor | None = None
    ) -> Float[Tensor, "batch 1 vocab"]:
        """Logits of the last position, by which a baseline decides.

        The unembedding runs there alone, unless somebody hooks it, or `attention` is other than "auto": a hook must see
        every position, and must then not change a bit by looking.
        """
        unembed: Any = self.unembed
        wanted = any(slot.wanted for slot in self.wiring.slots if slot.component is unembed)
        alone = (self.is_causal or FORWARD.get().behind is not None) and self._path == "auto" and not wanted
        options = {"logits_to_keep": 1} if alone else {}
        return self(tokens, attention_mask=attention_mask, levels=levels, **options)[:, -1:]

    def by_position(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch rows vocab"]:
        """Logits with row i for the token at position i, whatever the model.

        Of a diffusion model they are so already. A baseline's move one to the right: one row more than it has seen,
        the last for the next position; row 0, before which nothing stands, repeats the first and predicts nothing.
        """
        return torch.cat([logits[:, :1], logits], 1) if self.is_causal else logits

    def refuse(self, return_type: Any, kwargs: dict[str, Any], *, embedded: bool = False) -> None:
        """Raise for what a forward of this model cannot give; `embedded`: of embeddings, not of tokens.

        Raises:
            Unsupported: a next-token loss or a key-value cache of a diffusion model; a switch of TransformerLens's that
                does not work here.
            TypeError: a mask in the place of return_type.
        """
        if (
            kwargs.get("start_at_layer") is None
            and embedded
            and getattr(self.original_model.config, "token_dropout", 0)
        ):
            raise Unsupported(f"{self.name} scales embeddings by how many tokens are masks; give token ids")
        for switch in SWITCHES:
            if getattr(self.cfg, switch, False):
                self.refuse_rebuilding(f"{switch}=True rebuilds a decoder's layer")
        if isinstance(return_type, Tensor):
            raise TypeError("the second argument is return_type; give the mask by name, attention_mask=...")
        if self.is_causal:
            return
        if (tool := called_by(NEXT_TOKEN)) is not None:
            raise Unsupported(
                f"{tool} reads the logits of a row as the prediction of the next token, and {self.name} is a diffusion "
                "model, whose rows are about their own token; use sinklens.log_likelihood, or a task of sinklens.tasks"
            )
        if return_type not in ("logits", None):
            raise Unsupported(
                f"return_type={return_type!r}: {self.name} is a diffusion model, which has no next-token loss; use "
                "sinklens.log_likelihood, or compute a loss at masked positions from the logits"
            )
        if kwargs.get("logits_to_keep") and FORWARD.get().behind is None:
            raise Unsupported(
                f"logits_to_keep: {self.name} is a diffusion model, whose logits are aligned with all positions; take "
                "the rows that you want"
            )
        if kwargs.get("past_key_values") is not None or kwargs.get("use_past_kv_cache") or kwargs.get("use_cache"):
            raise Unsupported(f"{self.name} sees the whole canvas at every step, so a key-value cache is never right")

    def refuse_rebuilding(self, what: str) -> None:
        """Raise for what TransformerLens does to decoders with three projections only.

        Raises:
            Unsupported: this is an encoder, or GPT-2.
        """
        if not self.adapter.plain:
            raise Unsupported(f"{what}, and {self.name} is an encoder ({self.family.name}), whose layers are others")
        if self.adapter.fused:
            raise Unsupported(
                f"{what}, and {self.name} ({self.family.name}) has one projection for queries, keys and values, which "
                "stays as it is; hook its parts, attn.q.hook_out, attn.k.hook_out, attn.v.hook_out"
            )

    @contextmanager
    def hooks(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """TransformerLens's context of hooks; forwards of other threads wait until it is over."""
        inner = super().hooks
        with self.wiring.lock, inner(*args, **kwargs) as hooked:
            yield hooked

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `run_with_hooks`; forwards of other threads wait."""
        inner = super().run_with_hooks
        return self.wiring.held(lambda: inner(*args, **kwargs))

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `run_with_cache`; forwards of other threads wait."""
        inner = super().run_with_cache
        output, cache = self.wiring.held(lambda: inner(*args, **kwargs))
        return output, Cache.of(cache) if isinstance(cache, ActivationCache) else cache

    def enable_compatibility_mode(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's weight folding and old hook names; every forward then runs all of its components."""
        self.refuse_rebuilding("compatibility mode folds a decoder's norms into the weights behind them")
        inner = super().enable_compatibility_mode
        result = self.wiring.run(lambda _: inner(*args, **kwargs), everything=True)
        self.settle()
        return result

    def process_weights(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's weight folding."""
        self.refuse_rebuilding("process_weights folds a decoder's norms into the weights behind them")
        inner = super().process_weights
        return self.wiring.run(lambda _: inner(*args, **kwargs), everything=True)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's generation, for baselines.

        Raises:
            Unsupported: a diffusion model does not write from left to right; use `sinklens.denoise`.
        """
        return self._generation("generate", args, kwargs)

    def hf_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' generation, for baselines.

        Raises:
            Unsupported: a diffusion model, or no tokenizer, from which TransformerLens takes the pad here.
        """
        if self.is_causal and self.tokenizer is None:
            raise Unsupported(f"hf_generate: {self.name} has no tokenizer; use generate, or original_model.generate")
        return self._generation("hf_generate", args, kwargs)

    def generate_stream(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's generation token by token, for baselines."""
        return self._generation("generate_stream", args, kwargs)

    def diffusion_generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: TransformerLens's loop takes one prompt, tells hooks no step and returns no trajectory."""
        raise Unsupported("use sinklens.denoise, or sinklens.denoising_steps for the loop in the open")

    @staticmethod
    def boot_transformers(*args: Any, **kwargs: Any) -> NoReturn:
        """Refused: TransformerLens's loaders make its own bridges, whose Dream drops edits of the pattern."""
        raise Unsupported("TransformerLens's loaders make its own bridges; use HookedDLM.from_pretrained")

    boot_native = boot_tl_legacy = boot_transformers

    def loss_fn(self, *args: Any, **kwargs: Any) -> Tensor:
        """TransformerLens's next-token loss of logits, for baselines.

        Raises:
            Unsupported: a diffusion model.
        """
        self.refuse("loss", {})
        return super().loss_fn(*args, **kwargs)

    def hook_table(self) -> dict[str, tuple[int, ...]]:
        """Every hook point that fires, with the shape it carries for one prompt of 5 tokens (batch first)."""
        return hook_table(self)

    def hook_meanings(self) -> dict[str, str]:
        """What the main hook points of a layer carry, by what follows "blocks.{i}."; encoders have their own."""
        return {**attention.MEANING, **self.adapter.meaning}

    def _generation(self, name: str, args: Any, kwargs: Any) -> Any:
        if not self.is_causal:
            raise Unsupported(
                f"{name}: {self.name} is a diffusion model, which does not write from left to right; use "
                "sinklens.denoise"
            )
        if len(args) < 4 and self.ids.eos:  # the fourth is eos_token_id; by itself TransformerLens takes one of them
            kwargs.setdefault("eos_token_id", list(self.ids.eos))
        inner = getattr(super(), name)
        return self.wiring.run(lambda _: inner(*args, **kwargs), everything=self.wiring.hooked)
