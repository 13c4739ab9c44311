"""Writes what a user brings besides weights: images with questions, a tokenizer, a recipe and the config of a run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from minigptv2.shipped import find
from minigptv2.tokenizer import train_tokenizer
from tests.full_size.sizes import FullSize

NUM_IMAGES = 8
IMAGE_SIDE = 448
CORPUS = "pictures"
COLORS = ("red", "green", "blue", "gray")


def write_entries(folder: Path) -> Path:
    """Images of IMAGE_SIDE px and one question about each, as a user's own data."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    entries = []
    for number in range(NUM_IMAGES):
        coarse = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        name = f"{number}.jpg"
        Image.fromarray(coarse).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC).save(folder / name)
        question, answer = "What color is the largest patch?", COLORS[number % len(COLORS)]
        entries.append({"image": name, "task": "vqa", "question": question, "answer": answer})
    file = folder / "entries.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def write_tokenizer(folder: Path, pieces: int) -> None:
    """A BPE of `pieces` pieces, trained on the words of the questions and on made-up ones."""
    train_tokenizer(_texts(pieces), folder, pieces)


def _texts(pieces: int) -> Iterator[str]:
    yield from [f"[vqa] What color is the largest patch? {color}" for color in COLORS] * 50
    generator = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    for _ in range(pieces):
        yield " ".join("".join(generator.choices(syllables, k=3)) for _ in range(4))


def write_requests(folder: Path, images: Path) -> tuple[Path, Path]:
    """Two questions for `predict`, and the same with answers for `score`."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, scored = [], []
    for number in range(2):
        turn = {"question": "[vqa] What color is the largest patch?"}
        image = str((images / f"{number}.jpg").resolve())
        asked.append({"image": image, "turns": [turn]})
        scored.append({"image": image, "turns": [turn | {"answer": COLORS[number]}]})
    files = folder / "questions.jsonl", folder / "answers.jsonl"
    for file, lines in zip(files, (asked, scored), strict=True):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def write_stage(folder: Path, model: Path, shards: Path, size: FullSize, steps: int) -> Path:
    """The stage-3 config with the changes that a user without a GPU makes. Returns the YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"corpora": {CORPUS: {"ratio": 1, "task": "vqa"}}}))
    stage = {
        "extends": str(find("launch/configs/stage3_instruct.yaml").resolve()),
        "init_from": str(model),
        "run_dir": str(folder / "run"),
        "model": {
            "vision_encoder": str(model),
            "vision_weights": str(model),
            "language_model": str(model / "language_model"),
            "language_weights": str(model / "language_model"),
            "lora": {"r": size.lora_rank},
            "recompute_layers": size.language.depth,
        },
        "data": {
            "recipe": str(recipe),
            "shards": str(shards),
            "max_tokens": 512 - size.vision.tokens_per_image,
            "max_pack_tokens": 512,
            "num_workers": 0,
        },
        "train": {
            "deepspeed": str(find("deepspeed_configs/zero3_cpu_bf16.json").resolve()),
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "steps": steps,
            "log_every": 1,
            "checkpoint_every": 1,
            "hang_minutes": 30.0,
        },
    }
    file = folder / "stage.yaml"
    file.write_text(yaml.safe_dump(stage))
    return file
