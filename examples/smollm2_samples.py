"""The text that SmolLM2's adaptation learns from: what the model itself writes, on a few hundred topics.

Half of it answers a request (through the chat template), half of it goes on from an opening. Its own texts are what a
model is at home in; they need no download and are nobody's property.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

TOPICS = """
the sun; the moon; rivers; mountains; the sea; the weather; volcanoes; earthquakes; deserts; forests; islands;
glaciers; Africa; Asia; Europe; South America; North America; Australia; Antarctica; France; Germany; Italy; Spain;
Portugal; Greece; Egypt; Kenya; Nigeria; South Africa; India; China; Japan; Korea; Indonesia; Thailand; Turkey;
Russia; Poland; Sweden; Norway; Finland; Denmark; the Netherlands; Belgium; Switzerland; Austria; Hungary; Ireland;
Scotland; England; Canada; Mexico; Brazil; Argentina; Chile; Peru; Colombia; Cuba; New Zealand; Iran; Iraq; Israel;
Saudi Arabia; Pakistan; Vietnam; the Roman Empire; ancient Greece; the Middle Ages; the Renaissance; the Industrial
Revolution; the First World War; the Second World War; the Cold War; democracy; money; trade; banks; taxes; farming;
bread; cheese; coffee; tea; chocolate; rice; potatoes; apples; cooking; restaurants; football; tennis; chess;
swimming; running; music; the piano; the violin; jazz; opera; painting; sculpture; photography; films; theatre;
poetry; novels; newspapers; libraries; schools; universities; teachers; doctors; hospitals; medicine; vaccines; the
heart; the brain; sleep; dreams; exercise; children; families; friendship; love; anger; courage; honesty; dogs; cats;
horses; cows; sheep; birds; eagles; fish; sharks; whales; insects; bees; ants; spiders; snakes; elephants; lions;
tigers; bears; wolves; trees; flowers; roses; seeds; gardens; water; fire; air; ice; iron; gold; silver; copper;
oxygen; hydrogen; carbon; atoms; molecules; light; sound; electricity; magnets; gravity; energy; heat; time; space;
stars; planets; Mars; Jupiter; galaxies; comets; rockets; aeroplanes; trains; cars; bicycles; ships; bridges; houses;
cities; villages; roads; computers; programming; Python; the internet; telephones; robots; mathematics; numbers;
geometry; algebra; probability; statistics; logic; philosophy; religion; law; crime; police; prisons; war; peace;
kings and queens; presidents; elections; maps; clocks; calendars; letters; languages; English; French; Latin; words;
grammar; stories; fairy tales; myths; jokes; holidays; birthdays; clothes; shoes; wool; cotton; paper; glass; plastic;
wood; stone; paint; colours; red; blue; green; numbers and counting; the alphabet; capital cities; currencies; animals
and their young; opposites; famous inventors; famous scientists; famous painters; famous composers; famous writers;
Newton; Einstein; Darwin; Marie Curie; Shakespeare; Mozart; Leonardo da Vinci; Galileo; Columbus
"""
REQUESTS = [
    "Write a short text about {}.",
    "Tell me about {}.",
    "Explain {} to a child.",
    "Write a story about {}.",
    "Give me five facts about {}.",
    "What is important to know about {}?",
    "Write questions and answers about {}.",
    "Make a list about {}.",
    "Write a dialogue about {}.",
    "Describe {} in detail.",
    "Why does {} matter?",
    "Write a quiz about {}, with the answers.",
    "Summarise the history of {}.",
    "Write an encyclopedia article about {}.",
    "Write a poem about {}.",
    "Write a letter to a friend about {}.",
]
OPENINGS = [
    "{} is",
    "{}\n\n",
    "The history of {}",
    "In this article we look at {}.",
    "Question: What do you know about {}?\nAnswer:",
    "Once upon a time there was",
    "Facts about {}:\n-",
    "Today I want to write about {}.",
    "People often ask about {}.",
    "1. {}",
]
ENDS = (0, 2)  # <|endoftext|>, <|im_end|>


def topics() -> list[str]:
    """What the texts are about."""
    return [topic.strip() for topic in TOPICS.replace("\n", " ").split(";")]


def openings(tokenizer: Any, count: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs: what the model goes on from, and what of that belongs to the text."""
    about = topics()
    for _ in range(count):
        topic = rng.choice(about)
        if rng.random() < 0.5:
            message = {"role": "user", "content": rng.choice(REQUESTS).format(topic)}
            yield tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False), ""
        else:
            text = rng.choice(OPENINGS).format(topic)
            text = text[0].upper() + text[1:]
            yield text, text


@torch.no_grad()
def write(base: str, out: Path, wanted: int, *, together: int = 160, longest: int = 240) -> None:
    """Add texts to a JSONL file ({"ids": [...]} a line) until it holds `wanted` tokens; goes on where it stopped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    held = sum(len(json.loads(line)["ids"]) for line in lines)
    if held >= wanted:
        return
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    count = len(lines)
    with tqdm(total=wanted, initial=held, unit="token", desc=out.name) as bar:
        while bar.n < wanted:
            torch.manual_seed(count)
            pairs = list(openings(tokenizer, together, random.Random(count)))
            given = tokenizer([prompt for prompt, _ in pairs], return_tensors="pt", padding=True)
            rows = model.generate(
                **given,
                do_sample=True,
                temperature=0.9,
                top_k=40,
                max_new_tokens=longest,
                eos_token_id=list(ENDS),
                pad_token_id=ENDS[1],
            )
            with out.open("a", encoding="utf-8") as file:
                for (_, kept), row in zip(pairs, rows[:, given["input_ids"].shape[1] :].tolist(), strict=True):
                    end = next((place for place, token in enumerate(row) if token in ENDS), len(row))
                    ids = (tokenizer(kept)["input_ids"] if kept else []) + row[:end]
                    file.write(json.dumps({"ids": ids}) + "\n")
                    bar.update(len(ids))
                    count += 1
