"""A small toy world on disk, made once per test session, and helpers to run code in real processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

from minigptv2.corpora.sources import photographs, toy
from minigptv2.corpora.token_texts import rendered_texts
from minigptv2.shards.writer import write_corpus
from minigptv2.tasks import TASKS
from minigptv2.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

torch.set_num_threads(1)
# The same examples each time, so that a failure comes from the change. `PROPERTIES=default make test` draws new ones.
settings.register_profile("fixed_examples", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("PROPERTIES", "fixed_examples"))

REPOSITORY = Path(__file__).parent.parent
REFERENCE = REPOSITORY.parent / "shared" / "reference" / "minigpt_v2_tiny"
TOY_CORPORA = ("weak", "caption", "grounding", "refer", "identify", "vqa", "detection", "conversation", "language")
TOY_TASKS = tuple(task for task in TASKS if task in TOY_CORPORA)
"""The tasks that have a toy corpus. An added task needs none."""


class World:
    """Paths of the small toy world: `shards/train/<corpus>`, `shards/val/<corpus>`, `tokenizer`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shards = root / "shards"
        self.tokenizer_folder = root / "tokenizer"

    @property
    def train(self) -> Path:
        return self.shards / "train"

    @property
    def val(self) -> Path:
        return self.shards / "val"

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_folder)

    def write_stage(self, folder: Path, recipe: str, *, changes: dict[str, Any] | None = None, **train: Any) -> Path:
        """Write `recipe.yaml` and `stage.yaml`, a tiny stage under ZeRO-3 whose run folder is `<folder>/run`.

        `train` holds settings of `train`, and `changes` replaces whole sections or top-level settings.
        """
        (folder / "recipe.yaml").write_text(recipe)
        stage = {
            "stage": "tiny",
            "run_dir": str(folder / "run"),
            "model": {
                "vision_encoder": "tiny_vit",
                "language_model": "tiny_llama",
                "tokenizer": str(self.tokenizer_folder),
                "lora": {"r": 0},
                "trainable": ["vision_encoder", "projector", "language_model"],
            },
            "data": {
                "recipe": "recipe.yaml",
                "shards": str(self.train),
                "max_tokens": 900,
                "max_pack_tokens": 2000,
                "num_workers": 0,
            },
            "train": {
                "deepspeed": str(REPOSITORY / "deepspeed_configs" / "zero3_cpu.json"),
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "learning_rate": 1.0e-3,
                **train,
            },
            **(changes or {}),
        }
        file = folder / "stage.yaml"
        file.write_text(yaml.safe_dump(stage, sort_keys=False))
        return file


def make_world(root: Path) -> World:
    """The small toy world under `root`."""
    made = World(root)
    for corpus in TOY_CORPORA:
        for split, count in (("train", 40), ("val", 8)):
            name = f"toy_{corpus}"
            samples = toy.samples(corpus, count, Path(), split)
            write_corpus(samples, made.shards / split / name, name, samples_per_shard=9)
    write_corpus(photographs.samples(Path(), "train"), made.train / "photographs", "photographs", samples_per_shard=30)
    train_tokenizer(rendered_texts(made.train), made.tokenizer_folder, 640)
    return made


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def tokenizer(world: World) -> Tokenizer:
    return world.tokenizer()
