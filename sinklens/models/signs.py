"""Signs that a checkpoint is another than its config.json says, mostly a diffusion model: its name, card, tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinklens.errors import CheckpointError
from sinklens.models import files
from sinklens.models.families import FAMILIES, Family
from sinklens.values.kinds import shown

# What diffusion models are called, as whole words: what they are, and those that are published in a stock layout
# (DiffuLLaMA, DiffuGPT: https://github.com/HKUNLP/DiffuLLaMA; fredzzp/open-dcoder-0.5B).
WORDS = frozenset(["diffusion", "dlm", "dllm", "mdm", "mdlm", "bd3lm", "llada", "diffucoder"])
WORDS |= {"diffullama", "diffugpt", "diffusionfamily", "dcoder", "opendcoder"}
IN_BLOCKS = frozenset(["bd3lm"])  # dllm's, whose config.json is that of the checkpoints that see both ways
MASKS = {name for family in FAMILIES for name in family.mask_tokens} | {"<[MASK]>", "|<MASK>|", "[¨M¨]", "<M>"}


def refuse_unasked(
    family: Family, name: str, folder: Path, configs: Sequence[Mapping[str, Any]], tokenizer: Any
) -> None:
    """Raise for signs that a checkpoint is another than its config.json says; nobody said which it is.

    One that would load as a baseline may be a diffusion model (unless config.json has `is_causal: true`), and one that
    would see both ways may be trained to see block by block.

    Args:
        family: Of a config.json by itself.
        name: What was asked for.
        folder: Where it is.
        configs: config.json and generation_config.json.
        tokenizer: Its tokenizer; None without.

    Raises:
        CheckpointError: naming the signs and what decides.
    """
    if not family.causal:
        said = re.search(r"llada\W?_?2[._-]?[12]", f"{Path(name).name} {folder.resolve().name}".lower())
        if family.name == "LLaDA2" and said:
            raise CheckpointError(
                f"{name!r} is called {said[0]!r}, and LLaDA2.1 and 2.2 replace tokens that are committed already, or "
                "move them; sinklens decodes as LLaDA2.0 does, which never touches one again. family='LLaDA2' loads it "
                "all the same, decoded so"
            )
        if family.blocks is not None:
            return
        signs = [*_of_names(name, folder, configs[0], IN_BLOCKS)]
        if signs:
            raise CheckpointError(
                f"{name!r} has the layout of {family.name}, and {'; '.join(signs)}, as a model is called that was "
                "trained to see block by block, which sinklens does not compute in this layout; "
                f"family={family.name!r} loads it all the same, seeing both ways"
            )
        return
    if configs[0].get("is_causal") is True:
        return
    signs = [*_of_configs(configs), *_of_names(name, folder, configs[0], WORDS), *_of_tokenizer(tokenizer)]
    if signs:
        others = ", ".join(each.name for each in FAMILIES if not each.causal)
        raise CheckpointError(
            f"{name!r} has the layout of the autoregressive {family.name}, and {'; '.join(signs)}, as a "
            f"diffusion model may: say which it is, family={family.name!r} for the baseline, or that of the "
            f"diffusion model ({others}); or wrap the model that you have loaded yourself, HookedDLM.from_transformers"
        )


def by_name(chosen: Family, name: str, folder: Path, config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint whose config.json says the same of two, of which its name tells: A2D's with "bd3lm".

    Args:
        chosen: What config.json says.
        name: What it is loaded as.
        folder: Where it lies.
        config: Its config.json.
    """
    for family in FAMILIES:
        alike = family.marked and set(family.model_types) & set(chosen.model_types)
        if alike and any(_of_names(name, folder, config, frozenset({family.marked}))):
            return family
    return chosen


def _of_configs(configs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for file, config in zip(("config.json", "generation_config.json"), configs, strict=True):
        if config.get("mask_token_id") is not None:
            yield f"{file} says mask_token_id={shown(config['mask_token_id'])}"
    if configs[0].get("is_causal") is False:
        yield "config.json says is_causal=False"


def _of_names(name: str, folder: Path, config: Mapping[str, Any], words: frozenset[str]) -> Iterator[str]:
    if name not in files.BUNDLED:
        hub = (
            folder.parents[1].name.removeprefix("models--").replace("--", "/")
            if folder.parent.name == "snapshots"
            else ""
        )
        yield from _said("its name is", [Path(name).name, hub or folder.resolve().name], words)
    for field in ("_name_or_path", "_model_name_or_path", "name_or_path"):
        said = str(config.get(field) or "")
        yield from _said(f"config.json names as {field}", [Path(said).name if said[:1] in "/.~" else said], words)
    yield from _said("its README.md says", _of_card(folder / "README.md"), words)


def _said(where: str, texts: Any, words: frozenset[str]) -> Iterator[str]:
    """Where a text has one of the words; that of images, Stable Diffusion, is none of a language model's."""
    for text in texts:
        said = re.findall(r"[a-z0-9]+", re.sub(r"stable[\W_]*diffusion(?![a-z])", "", text.lower()))
        if words & set(said):
            yield f"{where} {shown(text)}"
            return


def _of_card(path: Path) -> list[str]:
    """What a model card says that the model is: its title, and in its head the task, the tags and the base model."""
    if not files.present(path):
        return []
    with path.open(encoding="utf-8", errors="replace") as opened:
        text = opened.read(100_000)
    head = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    said, key = [title[1]] if title else [], ""
    for line in head[1].splitlines() if head else ():
        key = line.split(":")[0] if re.match(r"\w+:", line) else key
        if key in ("pipeline_tag", "tags", "base_model", "model_name"):
            said.append(line.removeprefix(f"{key}:").strip(" -"))
    return said


def _of_tokenizer(tokenizer: Any) -> Iterator[str]:
    if tokenizer is None:
        return
    masks = (
        [tokenizer.mask_token] if getattr(tokenizer, "mask_token", None) else sorted(MASKS & set(tokenizer.get_vocab()))
    )
    if masks:
        yield f"its tokenizer has the mask token {shown(str(masks[0]))}"
