"""The Family: everything that distinguishes one family of checkpoints from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import transformers
from torch import Tensor

from sinklens.models.families.fields import Config
from sinklens.sinks import Blocks

BLOCK_SIZE = "block_size"  # the field of a stock config that says how long blocks are
LAPTOP = 2.1e9  # parameters that a laptop holds in bfloat16, and runs on its processor


@dataclass(frozen=True)
class Model:
    """A public checkpoint.

    Attributes:
        name: Its Hub id.
        parameters: How many numbers it stores; None where no source at hand says so.
        licence: Of the weights, as their authors' own pages say; "" where none at hand does.
        note: What one must know of it.
    """

    name: str
    parameters: float | None = None
    licence: str = ""
    note: str = ""

    @property
    def on_a_laptop(self) -> bool:
        """Whether it is small enough for a processor and a few gigabytes of memory."""
        return self.parameters is not None and self.parameters <= LAPTOP


@dataclass(frozen=True)
class Family:
    """One family of checkpoints: a stock transformers class and how to read a checkpoint into it.

    Attributes:
        name: What users call it.
        model_types: `model_type` values of config.json that belong to it; none if only `family=` can say so.
        architectures: `architectures` values of config.json that belong to it.
        model_class: The stock transformers class that computes it, for example "LlamaForCausalLM".
        own: That class, where it is not transformers' own but adds to it what it lacks.
        causal: True for the autoregressive baselines.
        blocks: How a model that sees block by block cuts a text; None for one that sees otherwise. The length is for a
            checkpoint whose config.json says none.
        translate: config.json -> keyword arguments of the stock config class. Raises CheckpointError for a
            field that the stock class cannot honour.
        key_mapping: Weight renames, regular expression -> replacement (at most the group ``\\1``).
        fold: The checkpoint's tensors -> those of the stock class, where renames do not do. It is also run on tensors
            without numbers; a tensor that is missing is a KeyError.
        shift: The prediction for position i sits at i - 1 in the raw logits (Dream). Undone by HookedDLM.
        mask_tokens: Names under which the tokenizer may carry the mask token, if config.json has no
            `mask_token_id`.
        last_is_mask: The last row of the embedding is the mask token's, if nothing names another.
        dropped: Weights of a checkpoint that are left out, as regular expressions: heads that predict no token.
        optional: Weights that a checkpoint may lack, likewise: what predicts no token, or follows from the config.
        positions: "rotary"; "absolute", embedded, from 0 on; "fairseq", embedded, from the pad's id + 1 on.
        begins: A text begins with BOS, though the tokenizer does not put it there.
        closes: What the tokenizer puts behind a text belongs to it ([SEP]): an encoder fills gaps in a whole text.
        tokenizer: Which transformers tokenizer class reads the checkpoint when there is no tokenizer.json.
        plan: Default decoding plan, as keyword arguments of `Plan`.
        never: Tokens that the sampler "dplm" never chooses, by name; none if it is not a sampler of this family.
        marked: A word in a checkpoint's name that tells this family from another one with the same config.json.
        models: Checkpoints known to be in this layout.
        source: Where the facts come from.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    model_class: str
    causal: bool
    translate: Callable[[Config], dict[str, Any]]
    source: str
    own: Any = None
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    fold: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    shift: bool = False
    blocks: Blocks | None = None
    last_is_mask: bool = False
    dropped: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    positions: Literal["rotary", "absolute", "fairseq"] = "rotary"
    begins: bool = False
    closes: bool = False
    mask_tokens: tuple[str, ...] = ("<|mdm_mask|>", "<|mask|>", "<|MASK|>", "[MASK]")
    tokenizer: str = "PreTrainedTokenizerFast"
    plan: Mapping[str, Any] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    marked: str = ""
    models: tuple[Model, ...] = ()

    @property
    def stock(self) -> Any:
        """The stock transformers class."""
        return self.own or getattr(transformers, self.model_class)

    @property
    def layout(self) -> str:
        """What transformers calls that kind of model: "Llama", "Qwen2", ..."""
        return self.stock.config_class.__name__.removesuffix("Config")

    def blocks_of(self, config: Any) -> Blocks | None:
        """How a model with this (stock) config cuts a text into blocks; None if it does not."""
        length = getattr(config, BLOCK_SIZE, None)
        return self.blocks if self.blocks is None or length is None else replace(self.blocks, length=length)

    def first_position(self, config: Any) -> int:
        """What the first position of a text is called: a row of the table of positions, 0 without one."""
        return config.pad_token_id + 1 if self.positions == "fairseq" else 0

    @property
    def architecture(self) -> str:
        """The name under which the TransformerLens adapter is registered."""
        return f"Sinklens{self.layout}"

    def __repr__(self) -> str:
        return f"Family({self.name!r})"
