"""Train the bundled models from nothing: one architecture, one toy language, three objectives.

    python examples/train_twins.py                      # all of them, seed 0, about 15 minutes on 2 cores
    python examples/train_twins.py --seeds 0 1 2 --kinds tiny-bdlm   # one of them, three seeds one after the other
    python examples/train_twins.py --seeds 0 1 2 --install 2   # bundle seed 2, with a model card over all three

tiny-dlm learns the LLaDA objective (mask each token with probability t, cross-entropy on masked tokens weighted
1/t), tiny-bdlm the same block by block (BD3-LM, arXiv 2503.09573: a t for each block of 4, which sees itself masked
and the blocks before it clean), tiny-arm next-token prediction. Nothing rewards sinks and no weight is set by hand.
A run that was stopped goes on where it was; logs (one JSON object per line) and checkpoints lie in runs/twins/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import sinklens
from sinklens import files
from sinklens.models.direction import set_direction
from sinklens.models.families.llada import KEY_MAPPING
from sinklens.sinks import Sight, SinkRule, received_attention
from sinklens.tasks import EchoGrammar, echo_tokenizer

KINDS = ("tiny-dlm", "tiny-bdlm", "tiny-arm")
BLOCK = 4  # of tiny-bdlm
LENGTH, BATCH, UPDATES, PEAK_LR = 64, 64, 4000, 3e-3
CHECKPOINTS = (0, 50, 150, 400, 1000, 2000)  # and the last
SHAPE = {"hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GRAMMAR = EchoGrammar()
BUNDLE = Path(sinklens.__file__).parent / "twins"


def new_model(kind: str, seed: int) -> LlamaForCausalLM:
    """An untrained twin: unit-variance embeddings and 1/sqrt(fan-in) matrices; all of them start from one draw."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(GRAMMAR.tokens),
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=GRAMMAR.bos,
        eos_token_id=GRAMMAR.eos,
        pad_token_id=GRAMMAR.eos,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    set_direction(model, causal=kind == "tiny-arm")
    return model


def loss_of(kind: str, model: LlamaForCausalLM, seed: int, step: int) -> tuple[Tensor, int]:
    """The objective on the batch of this step, and how many tokens it had. The batch depends on seed and step alone."""
    rng = np.random.default_rng([seed, step])
    length = LENGTH if rng.random() < 0.5 else int(rng.integers(24, LENGTH + 1))
    tokens = torch.from_numpy(GRAMMAR.sample(BATCH, length, rng))
    if kind == "tiny-arm":
        logits = model(tokens, use_cache=False).logits[:, :-1]
        target = tokens[:, 1:].clone()
        target[(tokens[:, :-1] == GRAMMAR.eos)] = -100  # the first EOS is learned, the padding behind it is not
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100), tokens.numel()
    noise = torch.from_numpy(rng.random((BATCH, 1)))
    t = (noise[:1] + torch.arange(BATCH)[:, None] / BATCH) % 1 * (1 - 1e-3) + 1e-3
    chance = torch.from_numpy(rng.random((BATCH, length)))
    visible = np.where(rng.random((BATCH, 1)) < 0.5, 1, rng.integers(1, length // 2, (BATCH, 1)))
    if kind == "tiny-bdlm":  # each block has its own t, spread evenly over the rows of the batch
        order = np.stack([rng.permutation(BATCH) for _ in range(0, length, BLOCK)], 1)
        t = torch.from_numpy((rng.random(order.shape[1]) + order / BATCH) % 1 * (1 - 1e-3) + 1e-3)
        t = t.repeat_interleave(BLOCK, 1)[:, :length]
    masked = (chance < t) & torch.from_numpy(np.arange(length) >= visible)
    seen = torch.where(masked, GRAMMAR.mask, tokens)
    if kind == "tiny-bdlm":
        logits = block_forward(model, seen, tokens).logits[:, :length]
    else:
        logits = model(seen, use_cache=False).logits
    each = F.cross_entropy(logits[masked], tokens[masked], reduction="none")
    return (each / t.expand_as(tokens)[masked]).sum() / tokens.numel(), tokens.numel()


def block_forward(model: LlamaForCausalLM, seen: Tensor, clean: Tensor, *, patterns: bool = False) -> Any:
    """All blocks at once, each of which sees itself as in `seen`, and the blocks before it clean (arXiv 2503.09573).

    Rows of the output: first those of `seen`, then those of the clean text, whose blocks see clean ones alone.
    """
    length = seen.shape[1]
    block = torch.arange(length) // BLOCK
    before, same = block[:, None] > block, block[:, None] == block
    mask = torch.cat([torch.cat([same, before], 1), torch.cat([torch.zeros_like(same), before | same], 1)])
    places = torch.arange(length).repeat(2)[None]
    both = torch.cat([seen, clean], 1)
    told: Any = mask[None, None]
    if patterns:  # the attention that gives patterns adds its mask to the scores
        told = torch.zeros(told.shape).masked_fill(~told, float("-inf"))
    return model(both, attention_mask=told, position_ids=places, use_cache=False, output_attentions=patterns)


@torch.no_grad()
def measure(kind: str, model: LlamaForCausalLM) -> dict[str, object]:
    """Accuracy at rule-decided positions and sink figures on 64 held-out texts."""
    ids = GRAMMAR.sample(64, LENGTH, np.random.default_rng(10**6))
    tokens, decided = torch.from_numpy(ids), torch.from_numpy(GRAMMAR.decided(ids)[0])
    rule, out = SinkRule(), {}
    model.eval().set_attn_implementation("eager")
    for ratio in (0.0,) if kind == "tiny-arm" else (0.15, 0.5, 0.9):
        masked = torch.from_numpy(np.random.default_rng(5).random(ids.shape) < ratio)
        masked[:, 0] = False
        seen = torch.where(masked, GRAMMAR.mask, tokens)
        if kind == "tiny-bdlm":
            result = block_forward(model, seen, tokens, patterns=True)
            both = torch.stack(result.attentions, 1)[..., :LENGTH, :]
            patterns = both[..., :LENGTH] + both[..., LENGTH:]  # of a key in the block itself, or in one before it
            guess = result.logits[:, :LENGTH].argmax(-1)
        else:
            result = model(seen, use_cache=False, output_attentions=True)
            patterns, guess = torch.stack(result.attentions, 1), result.logits.argmax(-1)
        if kind == "tiny-arm":
            right, where = guess[:, :-1] == tokens[:, 1:], decided[:, 1:]
            idle = torch.from_numpy((GRAMMAR.rule[ids] == 0) & (ids != GRAMMAR.eos) & (np.arange(LENGTH) >= 16))
            share = torch.einsum("blhq,bq->lh", patterns[..., 0], idle.float()) / idle.sum()
            null = (1 / torch.arange(1, LENGTH + 1)).expand(idle.shape)[idle].mean()
            out |= {
                "bos_share": [[round(x, 3) for x in row] for row in share.tolist()],
                "bos_null": round(float(null), 3),
            }
        else:
            right, where = guess == tokens, masked & decided
        sinks = rule(received_attention(patterns))
        where_sinks = {
            name: sinks[mask[:, None, None].expand_as(sinks)].sum().item() for name, mask in classes(seen).items()
        }
        out[f"mask_{ratio}"] = {
            "accuracy": round(right[where].float().mean().item(), 4),
            "sinks_per_layer": [round(x, 3) for x in sinks.float().sum(-1).mean((0, 2)).tolist()],
            "sinks_on": {name: round(count / max(1, int(sinks.sum())), 3) for name, count in where_sinks.items()},
        }
    sight = {
        "tiny-dlm": Sight.of(LENGTH),
        "tiny-arm": Sight.of(LENGTH, "causal"),
        "tiny-bdlm": Sight.of(LENGTH, blocks=BLOCK),
    }[kind]
    out["null_sinks"] = int(rule(sight.null()).sum())
    model.train().set_attn_implementation("sdpa")
    return out


def classes(tokens: Tensor) -> dict[str, Tensor]:
    """Token class masks of Echo texts."""
    special = {"bos": GRAMMAR.bos, "eos": GRAMMAR.eos, "mask": GRAMMAR.mask}
    rule, first = torch.from_numpy(GRAMMAR.rule), GRAMMAR.first_word
    named = {name: tokens == token for name, token in special.items()}
    return named | {
        "word": tokens >= first,
        "trigger": rule[tokens] > 0,
        "mark": (tokens > 2) & (tokens < first) & (rule[tokens] == 0),
    }


def schedule(step: int) -> float:
    """Learning rate: 50 steps of warm-up, flat, linear decay over the last 40 %."""
    return PEAK_LR * min(1, (step + 1) / 50) * max(0.05, min(1, (UPDATES - step) / (0.4 * UPDATES)))


def save(model: LlamaForCausalLM, kind: str, folder: Path) -> None:
    """Write one checkpoint: tiny-dlm in LLaDA's layout, tiny-bdlm in Stable-DiffCoder's, tiny-arm in Llama's."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    special = {"bos_token_id": GRAMMAR.bos, "eos_token_id": GRAMMAR.eos, "pad_token_id": GRAMMAR.eos}
    if kind == "tiny-dlm":
        weights = {to_llada(name): tensor for name, tensor in weights.items()}
        config = {
            "model_type": "llada",
            "architectures": ["LLaDAModelLM"],
            "block_type": "llama",
            "rope": True,
            "alibi": False,
            "activation_type": "silu",
            "layer_norm_type": "rms",
            "weight_tying": False,
            "include_bias": False,
            "include_qkv_bias": False,
            "d_model": SHAPE["hidden_size"],
            "mlp_hidden_size": SHAPE["intermediate_size"],
            "n_layers": SHAPE["num_hidden_layers"],
            "n_heads": SHAPE["num_attention_heads"],
            "n_kv_heads": SHAPE["num_attention_heads"],
            "max_sequence_length": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "vocab_size": len(GRAMMAR.tokens),
            "embedding_size": len(GRAMMAR.tokens),
            "mask_token_id": GRAMMAR.mask,
        }
    else:
        kinds = {  # the baseline's tokenizer has the mask token of its twins, too
            "tiny-arm": {"architectures": ["LlamaForCausalLM"], "is_causal": True},
            "tiny-bdlm": {
                "architectures": ["StableDiffcoderForCausalLM"],
                "block_size": BLOCK,
                "mask_token_id": GRAMMAR.mask,
            },
        }
        config = {
            "model_type": "llama",
            **kinds[kind],
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "vocab_size": len(GRAMMAR.tokens),
            **SHAPE,
        }
    files.write_bytes(folder / "model.safetensors", packed(weights, metadata={"format": "pt"}), None)
    files.write_text(folder / "config.json", json.dumps(config | special | {"dtype": "float32"}, indent=2) + "\n", None)
    echo_tokenizer(GRAMMAR).save_pretrained(folder)


def to_llada(name: str) -> str:
    """The official LLaDA name of a Llama weight: the family's renames, backwards."""
    for pattern, target in KEY_MAPPING.items():
        official = pattern.removeprefix("^").replace("\\.", ".")
        match = re.match(re.escape(target).replace(r"\\1", r"(\d+)"), name)
        if match:
            filled = official.replace(r"(\d+)", match.group(1)) if match.groups() else official
            return filled + name[match.end() :]
    raise KeyError(name)


def train(kind: str, seed: int, root: Path, position: int) -> None:
    """Train one twin; resume from its last saved state."""
    torch.set_num_threads(1)
    folder, log = root / kind, root / f"{kind}.jsonl"
    model = new_model(kind, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01, betas=(0.9, 0.95))
    begin, seconds, seen, state = 0, 0.0, 0, root / f"{kind}-state.safetensors"
    if (folder / "final" / "model.safetensors").is_file():
        return
    if state.is_file():
        begin, seconds, seen = restore(model, optimizer, state)
    bar = tqdm(range(begin, UPDATES), initial=begin, total=UPDATES, desc=f"{kind} seed {seed}", position=position)
    for step in bar:
        started = time.monotonic()
        if step in CHECKPOINTS:
            save(model, kind, folder / f"step-{step}")
        if step % 200 == 0 or step in CHECKPOINTS:
            write(log, {"step": step, "tokens": seen, "seconds": round(seconds), **measure(kind, model)})
        loss, tokens = loss_of(kind, model, seed, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        seen, seconds = seen + tokens, seconds + time.monotonic() - started
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 250 == 249:
            store(model, optimizer, state, step + 1, seconds, seen)
    write(log, {"step": UPDATES, "tokens": seen, "seconds": round(seconds), **measure(kind, model)})
    save(model, kind, folder / "final")


def write(log: Path, line: dict[str, object]) -> None:
    """Append one line to a log."""
    files.append(log, f"{json.dumps(line)}\n".encode())


def store(
    model: LlamaForCausalLM, optimizer: torch.optim.AdamW, path: Path, step: int, seconds: float, seen: int
) -> None:
    """Write model and optimizer atomically (safetensors, no pickle)."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value.contiguous() for name, value in values.items()}
    about = {"step": str(step), "seconds": str(seconds), "tokens": str(seen)}
    files.write_bytes(path, packed(tensors, metadata=about), None)


def restore(model: LlamaForCausalLM, optimizer: torch.optim.AdamW, path: Path) -> tuple[int, float, int]:
    """Read what `store` wrote."""
    from safetensors import safe_open

    tensors = load_file(path)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    adam: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            adam.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": adam, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    return int(meta["step"]), float(meta["seconds"]), int(meta["tokens"])


def install(kinds: Sequence[str], seed: int, seeds: list[int], root: Path) -> None:
    """Copy one seed's models and checkpoints into the package and write the model card over all seeds."""
    for kind in kinds:
        target = BUNDLE / kind
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root / f"seed-{seed}" / kind / "final", target)
        for step in CHECKPOINTS:
            shutil.copytree(root / f"seed-{seed}" / kind / f"step-{step}", target / "checkpoints" / f"step-{step}")
        shutil.copy(root / f"seed-{seed}" / f"{kind}.jsonl", target / "training.jsonl")
    write_card(kinds, seed, seeds, root)


def write_card(kinds: Sequence[str], installed: int, seeds: list[int], root: Path) -> None:
    """Measure every seed's models of these kinds, and untrained ones, with sinklens itself; write twins/README.md.

    What the card says of other kinds stays.
    """
    from sinklens.analysis import rates as metrics
    from sinklens.cli import demo_job as demo
    from sinklens.decoding.run import denoise
    from sinklens.models.hooked_dlm import HookedDLM
    from sinklens.probes import ReceivedAttention
    from sinklens.tasks import Echo

    task, gaps = Echo(64, seed=3), Echo(64, seed=3, gaps=0.5)
    table = []
    for label, source in [*((str(seed), "final") for seed in seeds), (f"{installed}, untrained", "step-0")]:
        folder = root / f"seed-{label.split(',')[0]}"
        for kind in tqdm(kinds, desc=f"card, seed {label}"):
            dlm = HookedDLM.from_pretrained(str(folder / kind / source))
            plan = demo.PLAN.for_causal() if dlm.is_causal else demo.PLAN
            prompts, probe = [task[i].prompt for i in range(len(task))], ReceivedAttention()
            run = denoise(dlm, prompts, plan, probes=[probe], seed=range(len(task)), progress=False)
            scores = [task.score(task[i], text) for i, text in enumerate(run.completions)]
            filled = denoise(dlm, [gaps[i].prompt for i in range(len(gaps))], demo.FILL, progress=False)
            right = [gaps.score(gaps[i], text) for i, text in enumerate(filled.completions)]
            lines = (root / f"seed-{label.split(',')[0]}" / f"{kind}.jsonl").read_text().splitlines()
            log = json.loads(lines[0 if source == "step-0" else -1])
            share = [f"{x:.2f}" for layer in log.get("bos_share", []) for x in layer]
            layers = metrics.per_layer(run.record)
            classes = metrics.token_classes(run.record).set_index("token_class").share_of_sinks
            moves = metrics.movement(run.record)
            table.append(
                {
                    "seed": label,
                    "model": kind,
                    "tokens": f"{log['tokens'] / 1e6:.1f} M",
                    "minutes": round(log["seconds"] / 60, 1),
                    "continuing": _share(scores),
                    "filling in": _share(right),
                    "BOS share of each head": " ".join(share) or "-",
                    "sinks per head and step": " ".join(f"{x:.2f}" for x in layers.sinks),
                    "uniform null": " ".join(f"{x:.2f}" for x in layers.null),
                    "sinks on BOS / mask / word": " / ".join(f"{classes[c]:.2f}" for c in ("bos", "mask", "word")),
                    "Jaccard": " ".join(f"{x:.2f}" for x in moves.jaccard),
                }
            )
    head = "| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0])
    rows = ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in table]
    card = BUNDLE / "README.md"
    before = card.read_text().splitlines() if card.is_file() else []
    rows += [row for row in before if any(f" | {kind} | " in row for kind in {*KINDS} - {*kinds})]
    rows = "\n".join(sorted(rows, key=lambda row: (cells(row)[0], KINDS.index(cells(row)[1]))))
    null = json.loads((BUNDLE / "tiny-arm" / "training.jsonl").read_text().splitlines()[-1])["bos_null"]
    text = CARD.format(seed=installed, table=f"{head}\n{rows}", null=null, **_numbers(), **_blocks())
    files.write_text(card, text, None)


def cells(row: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in row.strip("| ").split("|")]


def _numbers() -> dict[str, object]:
    weights = sum(weight.numel() for weight in new_model("tiny-dlm", 0).parameters())
    shape = {"layers": SHAPE["num_hidden_layers"], "heads": SHAPE["num_attention_heads"], "d": SHAPE["hidden_size"]}
    return {"weights": weights, "updates": UPDATES, "batch": BATCH, "length": LENGTH, "lr": PEAK_LR, **shape}


def _blocks() -> dict[str, object]:
    """What the log of the bundled tiny-bdlm says of its last update."""
    last = json.loads((BUNDLE / "tiny-bdlm" / "training.jsonl").read_text().splitlines()[-1])
    few = last["mask_0.15"]
    accuracy = " / ".join(f"{last[f'mask_{ratio}']['accuracy']:.2f}" for ratio in (0.15, 0.5, 0.9))
    sinks, on_bos = [f"{x:.1f}" for x in few["sinks_per_layer"]], f"{100 * few['sinks_on']['bos']:.0f} %"
    return {"block": BLOCK, "accuracy": accuracy, "first_layer": sinks[0], "last_layer": sinks[-1], "on_bos": on_bos}


def _share(scores: list) -> str:
    total = sum(score.total for score in scores)
    return f"{sum(score.correct for score in scores) / max(total, 1):.3f} of {total}"


CARD = """# tiny-dlm, tiny-bdlm and tiny-arm

Three models of one architecture ({layers} layers, {heads} heads, d_model {d}, {weights:,} weights: RMSNorm, RoPE,
SwiGLU, no biases, untied head), trained on the same batches of the same toy language for the same {updates} updates.
Only the mask of attention and the objective differ.

- **tiny-dlm**: masked diffusion (LLaDA's objective: t uniform in (0, 1), each token masked with probability t,
  cross-entropy on masked tokens weighted 1/t; in half of the rows a prompt stays visible). It sees the whole text.
  Stored in LLaDA's layout.
- **tiny-bdlm**: the same, block by block (the objective of BD3-LM, arXiv 2503.09573): blocks of {block} positions,
  counted from the start of a text, each masked with a t of its own. A block sees itself, masked, and the blocks
  before it, clean; all blocks of a text are learned in one forward over both copies. Stored in Stable-DiffCoder's
  layout.
- **tiny-arm**: next-token prediction. Stored in Llama's layout.

Honestly trained: no weight set by hand, no loss term that rewards sinks. `examples/train_twins.py` makes them from
nothing; the table below is written by it. Bundled is seed {seed}. Checkpoints along the way load with
`HookedDLM.from_pretrained("tiny-dlm", revision="step-400")` (0, 50, 150, 400, 1000, 2000); `training.jsonl` beside each
model logs accuracy and sink figures every 200 updates.

## Data

`sinklens.tasks.Echo`: 48 nonsense words and punctuation follow a fixed bigram grammar; behind the triggers xa ... xy
the next word repeats the last word, behind wa ... wy the last word but one. About 29 % of the positions are decided by
a rule. Batches of {batch} texts of 24 to {length} tokens; batch k of seed s depends on (s, k) alone, so all three see
the same texts. AdamW, peak learning rate {lr}, weight decay 0.01, one thread each.

## What was measured

Accuracy at rule-decided words of held-out texts: continuing a 16-token prompt by 32 sampled tokens (temperature 1; the
diffusion models with one token per step, tiny-bdlm block after block), and filling in masked words (temperature 0;
tiny-arm sees the left context only, tiny-bdlm that and the rest of the word's block). BOS share: attention that
position 0 gets from later (>= 16) non-trigger queries of complete texts, head by head, layer 0 first; uniform attention
would give {null}. Sinks per head and step, by layer, while continuing (epsilon 3, column sums over all queries; arXiv
2510.15731), with the count that uniform attention would give under the model's mask (a causal model's first key passes
without being a sink). Jaccard: overlap of a head's sinks at consecutive steps, by layer.

{table}

## What they show, and what not

- tiny-arm grows a static sink on BOS between updates 50 and 150, in layer 1; how many heads pass one half depends on
  the seed (see the table: two of three seeds have it in at least a quarter of their heads).
- The sinks of tiny-dlm sit on BOS, on [MASK] tokens and on words, and those of layer 1 move from step to step.
- tiny-bdlm, by the log of seed {seed} (.15, .5 or .9 of a text masked, each block seen behind clean ones): accuracy
  {accuracy}; at .15 {first_layer} sinks per head in layer 0 and {last_layer} in layer 1, {on_bos} of them on BOS.
  While it writes, most of the queries that are counted are of finished blocks, whose rows are the same at every later
  step: that sinks by all queries stay says little about the model.
  How many of its sinks are on BOS depends on the seed: see the table. Seed {seed}'s writes worse without the top sink
  of every head (`sinklens demo`), which neither of the others does as much.
- Masking the top-1 sink does the opposite of what is published for 8B models: it costs tiny-dlm a few points (its large
  columns carry information) and tiny-arm nothing (its sink is a pure resting place). `sinklens demo` has the numbers
  for 1, 5 and 10 sinks of all three, with intervals and random controls.
- Tried before settling, on shorter runs: 3 and 4 layers (BOS share above one half in 2 to 4 of 12, and 4 of 16 heads,
  depending on seed), wider MLPs and fewer trigger words (weaker BOS sinks), rules by distance in tokens instead of in
  words (no BOS sink at all).
"""


def main() -> None:
    """Train, or install what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="train for each of these seeds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which of the models")
    parser.add_argument(
        "--install", type=int, metavar="SEED", help="bundle this seed's models, with a card over --seeds"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/twins"), help="where logs and checkpoints go")
    arguments = parser.parse_args()
    if arguments.install is not None:
        install(arguments.kinds, arguments.install, arguments.seeds, arguments.out)
        return
    for seed in arguments.seeds:
        root = arguments.out / f"seed-{seed}"
        root.mkdir(parents=True, exist_ok=True)
        jobs = [
            multiprocessing.Process(target=train, args=(kind, seed, root, i)) for i, kind in enumerate(arguments.kinds)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        if any(job.exitcode for job in jobs):
            raise SystemExit(f"training of seed {seed} stopped; run the same command again to resume")


if __name__ == "__main__":
    main()
