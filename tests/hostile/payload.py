"""What a hostile payload is, and the good files that payloads are made from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minigptv2.config import render_yaml
from minigptv2.errors import ExitCode
from tests.conftest import make_world
from tests.stand_ins import VISION_OPTIONS, lora_on, random_export, write_deepspeed, write_published, write_stock_llama

SECRET = "canary-9f31c7"
"""The content of the file beside the folder of a payload, and of a variable of the environment."""


@dataclass(frozen=True)
class Payload:
    """A hostile folder and the command of a user who reads it. `code`: the exit codes that an error may have.

    `make` gets a folder of good files (`Assets`) of its own and returns the words of the command. `harmless` payloads
    may also succeed: nothing of the hostile part is used.
    """

    name: str
    make: Callable[[Path], list[str]]
    code: tuple[ExitCode, ...]
    harmless: bool = False


def words(*given: object) -> list[str]:
    return [str(word) for word in given]


class Trap:
    """An object whose unpickling creates the file `sprung` in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch sprung",)


def make_assets(root: Path) -> None:
    """In `root`: `world`, `llama`, `export`, `published`, `deepspeed`, `run`, all small and good."""
    world = make_world(root / "world")
    tokenizer = world.tokenizer()
    llama = write_stock_llama(root / "llama", tokenizer)
    config = lora_on(llama)
    random_export(root / "export", config, tokenizer)
    write_deepspeed(root / "deepspeed", config, tokenizer)
    data = {"recipe": "recipe.yaml", "shards": "shards", "max_tokens": 100}
    train = {"steps": 2, "global_batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-2, "deepspeed": "zero.json"}
    run = {"stage": "theirs", "run_dir": "runs/x", "data": data, "train": train, "model": asdict(config)}
    (root / "deepspeed" / "config.yaml").write_text(render_yaml(run))
    (root / "published").mkdir()
    write_published(root / "published", tokenizer)
    write_checkpoint_of(root / "run")
    image = next((world.train / "photographs").glob("*.tar"))
    shutil.copyfile(image, root / "photographs.tar")


def write_checkpoint_of(run: Path) -> Path:
    """A small checkpoint of a run."""
    from minigptv2.engine.checkpoint import MOMENTS, WEIGHTS, CheckpointState, Identity, write_checkpoint

    identity = Identity(
        **{name: "x" for name in ("tokenizer_sha256", "data_plan")},
        seed=0,
        init_from=None,
        base_sha256={},
    )
    tensors = {stem: {"a.weight": torch.ones(3)} for stem in (WEIGHTS, *MOMENTS)}
    return write_checkpoint(run, CheckpointState(3, 12, identity, {"a": 1}), tensors)


def change_json(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | changes))


def from_published(folder: Path, **changed: Path) -> list[str]:
    published = folder / "published"
    files = {
        "vision": published / "eva_vit_g.pth",
        "language-model": published / "Llama-2-7b-chat-hf",
        "checkpoint": published / "minigptv2_checkpoint.pth",
    } | {name.replace("_", "-"): file for name, file in changed.items()}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    return ["convert", "from-published", *options, *VISION_OPTIONS, "--output", str(folder / "out")]


def from_deepspeed(folder: Path, *more: str) -> list[str]:
    return words("convert", "from-deepspeed", folder / "deepspeed", "--output", folder / "out", *more)
