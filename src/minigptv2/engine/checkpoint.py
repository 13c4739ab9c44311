"""Checkpoints by parameter name: free of world size and ZeRO stage, atomic, hashed, never a pickle.

`<run>/checkpoints/step-00000100/` holds `weights`, `exp_avg`, `exp_avg_sq` (fp32 safetensors of what is trained) and
`state.json`; `checksums.json` covers them all. A folder is written under a temporary name, synced and renamed, so a
folder with its final name is whole; the newest whole one is the one to resume from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minigptv2.engine import distributed
from minigptv2.engine.trainer import MOMENTS, Trainer
from minigptv2.errors import CheckpointError
from minigptv2.files import finish_file, sha256_of, sync_folder, write_atomically

FORMAT = 1
WEIGHTS = "weights"
STATE_FILE, CHECKSUM_FILE = "state.json", "checksums.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says beside its tensors.

    `position`: place in the data plan of the next step's first sample. `identity`: what must be equal on resume.
    """

    step: int
    position: int
    identity: dict[str, Any]


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run with their final name, newest first."""
    root = run / "checkpoints"
    found = [entry for entry in root.iterdir() if entry.name.startswith(_PREFIX)] if root.is_dir() else []
    return sorted(found, key=lambda entry: int(entry.name.removeprefix(_PREFIX)), reverse=True)


def save_checkpoint(run: Path, trainer: Trainer, state: CheckpointState, *, keep: int) -> Path:
    """Write a checkpoint (a collective: call it on all ranks) and remove all but the newest `keep`."""
    folder = checkpoint_folder(run, state.step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    if distributed.is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    for name, read in _tensor_files(trainer):
        tensors = read()
        if distributed.is_main():
            _save_tensors(tensors, temporary / f"{name}.safetensors")
    if distributed.is_main():
        document = {"format": FORMAT, **state.__dict__}
        write_atomically(temporary / STATE_FILE, json.dumps(document, indent=1).encode())
        files = sorted(path for path in temporary.iterdir())
        checksums = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
        write_atomically(temporary / CHECKSUM_FILE, json.dumps(checksums, indent=1).encode())
        sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
        for old in list_checkpoints(run)[keep:]:
            shutil.rmtree(old)
    distributed.barrier()
    return folder


def verify_checkpoint(folder: Path) -> None:
    """Raise `CheckpointError` naming the first file that is missing, cut or changed."""
    checksum_file = folder / CHECKSUM_FILE
    try:
        checksums = json.loads(checksum_file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checksum_file}: cannot be read: {error}") from error
    for name, expected in checksums.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != expected["bytes"] or sha256_of(file) != expected["sha256"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes do not match the checksum written with it")


def newest_good_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all match their checksums; each damaged one is reported through `warn`.

    Raises `CheckpointError` when there are checkpoints but none is good: starting over must be asked for.
    """
    candidates = list_checkpoints(run)
    for folder in candidates:
        try:
            verify_checkpoint(folder)
            return folder
        except CheckpointError as error:
            warn(f"damaged checkpoint skipped: {error}")
    if candidates:
        raise CheckpointError(f"{run}: none of {len(candidates)} checkpoints is whole; --fresh starts over")
    return None


def load_state(folder: Path) -> CheckpointState:
    """The JSON part of a checkpoint."""
    document = json.loads((folder / STATE_FILE).read_bytes())
    if document.pop("format") != FORMAT:
        raise CheckpointError(f"{folder}: written in another format than {FORMAT}, which this version reads")
    return CheckpointState(**document)


def check_identity(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    """Raise `CheckpointError` for the first key that must be equal on resume and is not, with both values."""
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key):
            raise CheckpointError(
                f"cannot resume from {folder}: {key} was {saved.get(key)!r} and is now {current.get(key)!r}. "
                "Use the same as before, another run_dir, or --fresh to start over."
            )


def restore_checkpoint(folder: Path, trainer: Trainer) -> CheckpointState:
    """Put weights, moments and step of a checkpoint into the trainer; returns its state."""
    state = load_state(folder)
    weights = read_tensors(folder / f"{WEIGHTS}.safetensors")
    if weights.keys() != trainer.trainable.keys():
        odd = sorted(weights.keys() ^ trainer.trainable.keys())
        raise CheckpointError(f"{folder}: trained weights differ from this model's, first {odd[0]}")
    trainer.restore(state.step, weights, {key: read_tensors(folder / f"{key}.safetensors") for key in MOMENTS})
    return state


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from error


def _tensor_files(trainer: Trainer) -> list[tuple[str, Callable[[], dict[str, Tensor]]]]:
    moments = [(key, lambda key=key: trainer.moments(key)) for key in MOMENTS]
    return [(WEIGHTS, trainer.trained_weights), *moments]


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, str(file))
    finish_file(file)
