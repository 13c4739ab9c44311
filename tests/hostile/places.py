"""Named pipes, devices, folders and links in place of the files of a folder, and folders in Hugging Face's cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from minigptv2.errors import ExitCode
from tests.hostile.models import LLAMA, command_on_export
from tests.hostile.payload import Payload, from_deepspeed, from_published, words

ERRORS = (ExitCode.CHECKPOINT, ExitCode.CONFIG, ExitCode.DATA)
Make = Callable[[Path], list[str]]


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def outside(file: Path) -> None:
    """A link to a file beside the folder, which holds the canary: a copy of it would show."""
    file.unlink()
    file.symlink_to(next(above for above in file.parents if above.name == "named").parent / "canary")


def moved(file: Path) -> None:
    """The file itself, beside the folder, and a link to it."""
    target = next(above for above in file.parents if above.name == "named").parent / "canary"
    target.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(target)


def inward(file: Path) -> None:
    file.rename(file.with_name("real"))
    file.symlink_to("real")


COMMANDS: dict[str, tuple[str, Make]] = {
    "latest": ("deepspeed/latest", from_deepspeed),
    "shard of the optimizer": ("deepspeed/global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt", from_deepspeed),
    "state of the model": ("deepspeed/global_step2/mp_rank_00_model_states.pt", from_deepspeed),
    "language config": (f"{LLAMA}/config.json", from_published),
    "language weights": (f"{LLAMA}/model.safetensors", from_published),
    "tokenizer": (f"{LLAMA}/tokenizer.json", from_published),
    "export config": ("export/config.json", lambda folder: command_on_export(folder, "lineage")),
    "export weights": ("export/weights.safetensors", lambda folder: command_on_export(folder, "to-peft")),
    "export tokenizer": ("export/tokenizer.json", lambda folder: command_on_export(folder, "merge")),
    "manifest": ("world/shards/train/toy_refer/manifest.json", lambda f: verify(f)),
    "table": ("world/shards/train/toy_refer/shards.npy", lambda f: verify(f)),
    "index": ("world/shards/train/toy_refer/index.npy", lambda f: verify(f)),
    "checkpoint state": ("run/checkpoints/step-00000003/state.json", lambda f: words("checkpoint", "show", f / "run")),
    "checkpoint weights": (
        "run/checkpoints/step-00000003/weights.safetensors",
        lambda f: words("checkpoint", "show", f / "run"),
    ),
}
SPECIAL = {"a named pipe": pipe, "a device": device, "a link outside": moved}


def verify(folder: Path) -> list[str]:
    return words("shards", "verify", folder / "world/shards/train/toy_refer")


def special(path: str, command: Make, change: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> list[str]:
        change(folder / path)
        return command(folder)

    return make


def in_cache(folder: Path) -> list[str]:
    """The language model as Hugging Face's cache lays it out: links from a snapshot to blobs."""
    cache = folder / "models--meta"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((folder / LLAMA).iterdir())):
        shutil.copyfile(file, cache / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return from_published(folder, language_model=snapshot)


def out_of_cache(folder: Path) -> list[str]:
    given = in_cache(folder)
    (folder / "models--meta" / "blobs" / "secret").symlink_to(folder.parent / "canary")
    file = folder / "models--meta" / "snapshots" / "abc" / "generation_config.json"
    file.unlink(missing_ok=True)
    file.symlink_to("../../blobs/secret")
    return given


PAYLOADS = [
    *(
        Payload(f"{kind} as {name}", special(path, command, change), ERRORS)
        for number, (name, (path, command)) in enumerate(COMMANDS.items())
        for index, (kind, change) in enumerate(SPECIAL.items())
        if index < 2 or number % 2 == 0
    ),
    Payload("a link within the folder", special(f"{LLAMA}/config.json", from_published, inward), ERRORS, harmless=True),
    Payload(
        "a named pipe as another shard",
        special(
            f"{LLAMA}/generation_config.json", from_published, lambda f: os.mkfifo(f.with_name("model-2.safetensors"))
        ),
        ERRORS,
    ),
    Payload("Hugging Face's cache", in_cache, ERRORS, harmless=True),
    Payload("a link out of Hugging Face's cache", out_of_cache, ERRORS, harmless=True),
]
