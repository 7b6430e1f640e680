"""Make SmolLM2-135M a diffusion language model at home, and watch its attention sink dissolve.

    python examples/adapt_smollm2.py samples            # text to learn from: the model's own (an hour on 2 cores)
    python examples/adapt_smollm2.py train              # LoRA and one mask vector (25 minutes for 350 updates)
    python examples/adapt_smollm2.py train --updates 3000 --name long
    python examples/adapt_smollm2.py export runs/smollm2/long   # as an adapter that sinklens loads

The recipe is that of the published adaptations (DiffuLLaMA, arXiv 2410.17891; Dream, arXiv 2508.15487): every layer
sees both ways, the logits stay shifted (row i - 1 predicts position i, so that what the model knows keeps its place),
and the loss is the cross-entropy of masked tokens weighted 1/t. A run that was stopped goes on where it was. Its log
has, every few minutes, what the model can do and where its sinks are, and first what the original could and had: one
JSON object per line, in runs/smollm2/NAME/log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from smollm2_samples import write
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import sinklens as sl
from sinklens.models import adapted, packages
from sinklens.models.families import Family, named
from sinklens.models.special_ids import SpecialIds
from sinklens.tasks.bundled import HERE

MASK = 16  # <empty_output>, which SmolLM2 never learned to use
RUNS = Path("runs/smollm2")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HELD_OUT = 64  # rows that are never learned from
IDS = SpecialIds(mask=MASK, eos=(2, 0), bos=None, pad=2, eot=None)
EARLY = (10, 20, 50, 100, 200)  # updates that are logged however little time they took: the sink dissolves among them


@dataclass(frozen=True)
class Recipe:
    """What decides a run, besides its text.

    Attributes:
        updates: Length of the whole run; the learning rate falls to a tenth until its end.
        rank: Of every LoRA matrix; alpha is twice as much.
        rate: Highest learning rate.
        rows: Rows per update.
        length: Tokens per row.
        shift: Whether row i - 1 predicts position i.
        anneal: Over how many updates the causal mask opens (0: it is open from the start).
        prefix: Share of rows of which a beginning of random length stays visible, as a prompt does.
        seed: Of masks and order.
    """

    updates: int = 350
    rank: int = 16
    rate: float = 1e-3
    rows: int = 8
    length: int = 128
    shift: bool = True
    anneal: int = 0
    prefix: float = 0.0
    seed: int = 0


def family(shift: bool) -> Family:
    """A Llama that sees both ways, and what decodes it."""
    kind = named("SmolLM2-diffusion")
    return kind if shift else replace(kind, shift=False, plan={"sampler": "llada", "remasking": "low_confidence"})


def rows_of(texts: Path, length: int) -> Tensor:
    """All texts end to end (id 0 between them), cut into rows [row, length]."""
    ids: list[int] = []
    with texts.open(encoding="utf-8") as file:
        for line in file:
            ids += [*json.loads(line)["ids"], 0]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def start(folder: str, recipe: Recipe) -> tuple[Any, Any]:
    """The base model with fresh LoRA matrices, and its tokenizer."""
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    embedding = model.get_input_embeddings().weight.data
    embedding[MASK] = embedding.float().mean(0).to(embedding.dtype)
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=LINEAR,
        trainable_token_indices={"embed_tokens": [MASK]},
    )
    return get_peft_model(model, lora), tokenizer


def masked(rows: Tensor, recipe: Recipe, update: int) -> tuple[Tensor, Tensor]:
    """Which tokens of the rows are masked [row, pos], and the share t [row, 1] that was drawn for each row."""
    rng = torch.Generator().manual_seed(recipe.seed * 10**7 + update)
    n, length = rows.shape
    t = (torch.rand(1, generator=rng) + torch.arange(n) / n)[:, None] % 1 * 0.95 + 0.05
    chosen = torch.rand(rows.shape, generator=rng) < t
    visible = torch.where(
        torch.rand(n, 1, generator=rng) < recipe.prefix, torch.randint(1, length - 8, (n, 1), generator=rng), 1
    )
    return chosen & (torch.arange(length) >= visible), t


def opened(recipe: Recipe, update: int, length: int) -> Tensor | None:
    """The attention mask while it opens: each later key is seen with a probability that grows to 1."""
    if update >= recipe.anneal:
        return None
    rng = torch.Generator().manual_seed(recipe.seed * 10**7 + update)
    seen = torch.rand((length, length), generator=rng) < update / recipe.anneal
    return (seen | torch.ones(length, length).tril().bool())[None, None]


def scored(model: Any, rows: Tensor, chosen: Tensor, shift: bool, mask: Tensor | None = None) -> Tensor:
    """Logits [masked tokens, vocabulary], row by row."""
    inner = model.base_model.model if isinstance(model, PeftModel) else model
    hidden = inner.model(torch.where(chosen, MASK, rows), attention_mask=mask, use_cache=False).last_hidden_state
    hidden = torch.cat([hidden[:, :1], hidden[:, :-1]], 1) if shift else hidden
    return inner.lm_head(hidden[chosen])


def loss_of(model: Any, rows: Tensor, recipe: Recipe, update: int) -> Tensor:
    """Masked cross-entropy weighted 1/t, over all tokens of the batch."""
    chosen, t = masked(rows, recipe, update)
    logits = scored(model, rows, chosen, recipe.shift, opened(recipe, update, rows.shape[1]))
    each = F.cross_entropy(logits.float(), rows[chosen], reduction="none")
    return (each / t.expand(rows.shape)[chosen]).sum() / rows.numel()


def learning_rate(recipe: Recipe, update: int) -> float:
    """Thirty updates of warm-up, then down to a tenth in a straight line."""
    return recipe.rate * min(1, (update + 1) / 30) * (1 - 0.9 * update / recipe.updates)


def batches(count: int, recipe: Recipe, first: int) -> Iterator[Tensor]:
    """Indices of rows, one batch per update from `first` on: every row once before any comes again."""
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    per_epoch = count // recipe.rows
    for update in range(first, recipe.updates):
        if update // per_epoch != epoch:
            epoch = update // per_epoch
            order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed * 1000 + epoch))
        at = update % per_epoch * recipe.rows
        yield order[at : at + recipe.rows]


@torch.no_grad()
def measure(dlm: sl.HookedDLM, rows: Tensor, facts: list[dict[str, str]], shift: bool = True) -> dict[str, Any]:
    """What a model can do, and where its sinks are, on texts that it does not learn from."""
    out: dict[str, Any] = {}
    for t in (0.15, 0.5, 0.9):
        chosen = torch.rand(rows.shape, generator=torch.Generator().manual_seed(5)) < t
        chosen[:, 0] = False
        loss = right = 0.0
        for part, hidden in zip(rows.split(8), chosen.split(8), strict=True):
            logits, truth = scored(dlm.original_model, part, hidden, shift).float(), part[hidden]
            loss += F.cross_entropy(logits, truth, reduction="sum").item()
            right += (logits.argmax(-1) == truth).sum().item()
        count = int(chosen.sum())
        out[f"t={t}"] = {"cross_entropy": round(loss / count, 3), "accuracy": round(right / count, 4)}
    for n in (1, 4):
        plan = sl.Plan(new_tokens=n, **dlm.family.plan)
        texts = sl.denoise(dlm, [fact["prompt"] for fact in facts], plan, progress=False).completions
        right = [text.strip().startswith(fact["answer"]) for text, fact in zip(texts, facts, strict=True)]
        out[f"facts, {n} masks"] = sum(right) / len(right)
    return out | {"sinks": sinks(dlm, rows[:16])}


def sinks(dlm: sl.HookedDLM, rows: Tensor) -> dict[str, Any]:
    """Attention of the first token by layer, sinks per head by layer, and what the sinks are."""
    received: dict[int, Tensor] = {}

    def hook(value: Tensor, *, hook: Any) -> None:
        received[hook.layer()] = value.float().clone()

    points = [(f"blocks.{layer}.attn.hook_received", hook) for layer in range(dlm.n_layers)]
    dlm.run_with_hooks(rows, fwd_hooks=points)
    each = torch.stack([received[layer] for layer in range(dlm.n_layers)], 1)  # row, layer, head, key
    found = sl.SinkRule(epsilon=3.0)(each)
    texts = dlm.tokenizer.batch_decode(rows.flatten()[:, None])
    kinds = {
        "newline": torch.tensor(["\n" in text for text in texts]).view(rows.shape),
        "punctuation": torch.tensor([text.strip() in set(".,;:!?") and "\n" not in text for text in texts]),
        "separator": rows == 0,
    }
    kinds = {name: kind.view(rows.shape) for name, kind in kinds.items()}
    first = torch.zeros(rows.shape, dtype=torch.bool)
    first[:, 0] = True
    kinds = {"first": first} | {name: kind & ~first for name, kind in kinds.items()}
    count = max(1, int(found.sum()))
    return {
        "first_token": [round(x, 4) for x in (each[..., 0].mean((0, 2)) / rows.shape[1]).tolist()],
        "per_head": [round(x, 3) for x in found.float().sum(-1).mean((0, 2)).tolist()],
        "on": {
            name: round(found[kind[:, None, None].expand_as(found)].sum().item() / count, 3)
            for name, kind in kinds.items()
        },
    }


def save(path: Path, update: int, model: Any, optimizer: Any = None) -> None:
    """What was learned, and with the optimizer all that the run needs to go on; replaces the file when it is whole."""
    state = {f"weight.{name}": value for name, value in model.named_parameters() if value.requires_grad}
    for number, values in optimizer.state_dict()["state"].items() if optimizer else ():
        state |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    tensors = {name: value.detach().contiguous() for name, value in state.items()}
    save_file(tensors, path.with_suffix(".new"), metadata={"update": str(update)})
    path.with_suffix(".new").replace(path)


def resume(folder: Path, model: Any, optimizer: Any) -> int:
    """The update at which the run goes on."""
    if not (folder / "state.safetensors").exists():
        return 0
    with safe_open(folder / "state.safetensors", "pt") as file:
        update = int(file.metadata()["update"])
    state = load_file(folder / "state.safetensors")
    weights = dict(model.named_parameters())
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        kind, rest = name.split(".", 1)
        if kind == "weight":
            weights[rest].data.copy_(value)
        else:
            number, which = rest.split(".")
            moments.setdefault(int(number), {})[which] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return update


def train(
    base: str, texts: Path, facts: list[dict[str, str]], name: str, recipe: Recipe, minutes: float, keep: list[int]
) -> Path:
    """Train until the recipe's last update, saving and logging every few minutes, and keeping some updates for good."""
    torch.set_flush_denormal(True)  # without it Adam stalls on denormal numbers
    folder = RUNS / name
    rows = rows_of(texts, recipe.length)
    held, rows = rows[-HELD_OUT:], rows[:-HELD_OUT]
    model, tokenizer = start(base, recipe)
    dlm = sl.HookedDLM.from_transformers(model.base_model.model, tokenizer, family(recipe.shift), ids=IDS)
    learned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=recipe.rate, weight_decay=0.0)
    done = resume(folder, model, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe) | {"texts": texts.name, "rows": len(rows)}, indent=1))
    saved, losses = time.time(), []

    def log(update: int, measured: dict[str, Any] | None = None) -> None:
        model.eval()
        line = {"update": update, "causal": measured is not None, "tokens": update * recipe.rows * recipe.length}
        line |= {"loss": round(sum(losses) / len(losses), 4) if losses else None, "seconds": round(time.time() - saved)}
        line |= measured or measure(dlm, held, facts, recipe.shift)
        with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        losses.clear()
        tqdm.write(json.dumps({key: value for key, value in line.items() if key != "sinks"}))

    if done == 0:
        log(0, measure(sl.HookedDLM.from_pretrained(base), held, facts))  # the original, which sees the past only
        log(0)
    bar = tqdm(batches(len(rows), recipe, done), total=recipe.updates, initial=done, desc=name)
    for update, order in enumerate(bar, done):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, rows[order], recipe, update)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, update)
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.2f}")
        if update + 1 in keep:
            save(folder / f"step-{update + 1}.safetensors", update + 1, model)
        if update + 1 in (*EARLY, *keep, recipe.updates) or time.time() - saved > 60 * minutes:
            save(folder / "state.safetensors", update + 1, model, optimizer)
            log(update + 1)
            saved = time.time()
    return folder


def export(base: str, folder: Path, out: Path) -> None:
    """A run's adapter as sinklens loads it (bfloat16, beside what it was trained on), those it kept, and its log.

    Args:
        base: The model that was adapted.
        folder: Of the run.
        out: Folder of adapter.safetensors, step-N.safetensors, log.jsonl and recipe.json.
    """
    recipe = json.loads((folder / "recipe.json").read_text())
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    said = {"base": "smollm2-135m", "base_sha256": adapted.digest_of(whole), "scale": "2.0", "mask": str(MASK)}
    said |= {"recipe": json.dumps(recipe)}
    out.mkdir(parents=True, exist_ok=True)
    for path in (folder / "state.safetensors", *sorted(folder.glob("step-*.safetensors"))):
        with safe_open(path, "pt") as file:
            update = file.metadata()["update"]
        name = path.name if path.stem.startswith("step-") else "adapter.safetensors"
        save_file(adapter_of(path), out / name, metadata=said | {"update": update})
    for name in ("log.jsonl", "recipe.json"):
        shutil.copy(folder / name, out / name)


def loaded(base: str, folder: Path) -> sl.HookedDLM:
    """The model of a run as it would be shipped: its adapter merged into its base in float32, then bfloat16."""
    recipe = json.loads((folder / "recipe.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with TemporaryDirectory() as out:
        export(base, folder, Path(out))
        adapted.merge(model, Path(out) / "adapter.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(base)
    dlm = sl.HookedDLM.from_transformers(model, tokenizer, family(recipe["shift"]), ids=IDS)
    # Calibrated in float32: on its few random tokens an adapted model may differ by a quarter in bfloat16.
    dlm.original_model.to(torch.bfloat16)
    return dlm


def adapter_of(path: Path) -> dict[str, Tensor]:
    """The LoRA matrices A and B of every weight, and the mask's vector, out of what `save` wrote."""
    state = load_file(path)
    tensors = {}
    for name, value in state.items():
        if name.startswith("weight.") and ".lora_" in name:
            matrix, which = name.removeprefix("weight.base_model.model.").split(".lora_")
            tensors[f"{matrix}.{which[0]}"] = value.bfloat16()
        elif name.startswith("weight.") and "trainable_tokens" in name:
            tensors["mask"] = value[0].bfloat16()
    return tensors


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="what `sinklens models get` fetched, or a folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (one, where other work runs beside)")
    jobs = parser.add_subparsers(dest="job", required=True)
    samples = jobs.add_parser("samples", help="let the model write the text that it learns from")
    samples.add_argument("--tokens", type=int, default=1_200_000)
    learn = jobs.add_parser("train", help="train, or go on with a run")
    learn.add_argument("--name", default="short", help="of the run; its folder is runs/smollm2/NAME")
    learn.add_argument("--minutes", type=float, default=5.0, help="between two lines of the log")
    learn.add_argument("--task", type=Path, default=HERE / "facts.jsonl", help="facts to be asked on the way (JSONL)")
    learn.add_argument("--facts", type=int, default=40, help="how many of them")
    learn.add_argument("--keep", type=int, nargs="*", default=[], help="updates whose adapters are kept for good")
    for field in fields(Recipe):
        name, default = field.name, field.default
        if isinstance(default, bool):
            learn.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
        else:
            learn.add_argument(f"--{name}", type=type(default), default=default)
    ship = jobs.add_parser("export", help="the adapter of a run, as sinklens loads it")
    ship.add_argument("folder", type=Path, help="runs/smollm2/NAME")
    ship.add_argument("--out", type=Path, default=RUNS / "adapter", help="a folder")
    for job in (samples, learn):
        job.add_argument("--texts", type=Path, default=RUNS / "own.jsonl", help="the text, JSONL with {'ids': [...]}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = str(packages.find(given.base)) if given.base in packages.PACKAGES else given.base
    if given.job == "samples":
        write(base, given.texts, given.tokens)
    elif given.job == "export":
        export(base, given.folder, given.out)
    else:
        recipe = Recipe(**{field.name: getattr(given, field.name) for field in fields(Recipe)})
        facts = [json.loads(line) for line in given.task.open(encoding="utf-8")][: given.facts]
        train(base, given.texts, facts, given.name, recipe, given.minutes, given.keep)


if __name__ == "__main__":
    main()
