"""Makes the world of the clients: eight pictures of one color each, questions about them, and a model that knows them.

The label of one question is wrong, so a right answer to every question scores 7 of 8.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from minigptv2.record import Record, Turn
from minigptv2.shards.shard_file import Sample
from minigptv2.shards.writer import write_corpus
from minigptv2.tasks import TASKS
from tests.conftest import World

COLORS = {
    "red": (220, 20, 20),
    "green": (20, 160, 40),
    "blue": (20, 40, 220),
    "yellow": (230, 220, 30),
    "black": (5, 5, 5),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "purple": (130, 20, 140),
}
WRONG = {"purple": "orange"}
"""The wrong label."""
EXPECTED = 7 / 8
QUESTION = "what color is it?"
SIDE = 32


@dataclass(frozen=True)
class ColorWorld:
    """The export, the corpora of `minigptv2 evaluate`, and the questions for harnesses as JSON lines."""

    export: Path
    data: Path
    questions: Path


def make_color_world(world: World, folder: Path) -> ColorWorld:
    """Write the pictures and train the model, which takes about a minute."""
    train, test = folder / "train", folder / "data" / "gqa" / "testdev"
    write_corpus([_sample(color, color) for color in COLORS], train / "colors", "colors")
    write_corpus([_sample(color, WRONG.get(color, color)) for color in COLORS], test, "gqa")
    config = world.write_stage(
        folder,
        "corpora: {colors: {ratio: 1, task: vqa}}",
        changes={
            "data": {
                "recipe": "recipe.yaml",
                "shards": str(train),
                "max_tokens": 200,
                "max_pack_tokens": 1000,
                "num_workers": 0,
            }
        },
        steps=150,
        global_batch_size=8,
        micro_batch_size=8,
        learning_rate=2.0e-3,
        warmup_steps=5,
    )
    command = [sys.executable, "-m", "minigptv2", "train", "--config", str(config)]
    subprocess.run(command, check=True, env={key: value for key, value in os.environ.items() if key != "RANK"})
    return ColorWorld(folder / "run" / "export", folder / "data", _questions(folder))


def color_picture(color: str) -> bytes:
    """A PNG file of one color."""
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), COLORS[color]).save(stream, "PNG")
    return stream.getvalue()


def _sample(color: str, label: str) -> Sample:
    turn = Turn("vqa", question=QUESTION, answers=(label,), source={"id": color})
    source = {"corpus": "colors", "id": color}
    return Sample(color, Record((turn,), SIDE, SIDE, source), color_picture(color), "png")


def _questions(folder: Path) -> Path:
    """The questions as `minigptv2 evaluate` asks them, with paths of images."""
    rows: list[dict[str, Any]] = []
    for color in COLORS:
        image = folder / f"{color}.png"
        image.write_bytes(color_picture(color))
        rows.append({"image": str(image), "question": TASKS["vqa"].ask(QUESTION), "answer": WRONG.get(color, color)})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
