"""Checkpoints on disk, by parameter name: free of world size and ZeRO stage, atomic, hashed, never a pickle.

`<run>/checkpoints/step-00000100/` holds `weights`, `exp_avg`, `exp_avg_sq` (fp32 safetensors of what is trained) and
`state.json`; `checksums.json` covers them all. A folder is written under a temporary name, synced and renamed, so one
with its final name is whole. There is no pointer to tear: the newest whole folder is the one to resume from. Knows no
ranks; `engine/saver.py` does.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigptv2.errors import CheckpointError
from minigptv2.files import HashedFile, sha256_of, sync_folder
from minigptv2.run_folder import RunFolder, checkpoint_step

FORMAT = 2
WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, as torch names it."""
STATE_FILE, CHECKSUM_FILE = "state.json", "checksums.json"


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says beside its tensors.

    `position`: place in the data plan of the next step's first sample. `identity`: hashes of what must be equal on
    resume. `config`: the resolved config by dotted key. `skipped`: steps that changed no weight. `guard`: what the step
    guard remembers.
    """

    step: int
    position: int
    identity: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    guard: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(run: Path, state: CheckpointState, tensors: dict[str, dict[str, Tensor]]) -> Path:
    """Write `tensors` (file stem to name to fp32 CPU tensor) and `state` as one folder, whole or not at all.

    Raises `CheckpointError` naming the file if the disk refuses; what was there before stays as it was.
    """
    folder = RunFolder(run).checkpoint(state.step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    document = json.dumps({"format": FORMAT, **asdict(state)}, indent=1).encode()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        sums = {
            f"{stem}.safetensors": _write_tensors(temporary / f"{stem}.safetensors", named)
            for stem, named in tensors.items()
        }
        sums[STATE_FILE] = _write_bytes(temporary / STATE_FILE, document)
        _write_bytes(temporary / CHECKSUM_FILE, json.dumps(sums, indent=1).encode())
        sync_folder(temporary)
        _remove(folder)  # a damaged one of the same step, which this run did not resume from
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{folder}: not saved: {error.strerror or error} ({error.filename or temporary})") from (
            error
        )
    return folder


def prune_checkpoints(run: Path, *, keep: int, keep_every: int = 0, newest: int | None = None) -> None:
    """Remove all but the newest `keep` and those of each `keep_every` steps (0: none), and what a kill left half done.

    Call it only after a newer one is whole; those beyond step `newest` are damaged: the run did not go on from them.
    """
    folder = RunFolder(run)
    for leftover in folder.unfinished_checkpoints():
        shutil.rmtree(leftover, ignore_errors=True)
    for ahead in folder.checkpoint_folders():
        if newest is not None and checkpoint_step(ahead) > newest:
            _remove(ahead)
    for old in folder.checkpoint_folders()[keep:]:
        if not (keep_every and checkpoint_step(old) % keep_every == 0):
            _remove(old)


def _remove(folder: Path) -> None:
    """Take the name away first, so that no half-removed folder is ever taken for a checkpoint."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def verify_checkpoint(folder: Path) -> None:
    """Raise `CheckpointError` naming the first file that is missing, cut or changed."""
    checksum_file = folder / CHECKSUM_FILE
    try:
        checksums = json.loads(checksum_file.read_bytes())
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in checksums.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{checksum_file}: cannot be read: {error}") from error
    needed = {STATE_FILE, *(f"{stem}.safetensors" for stem in (WEIGHTS, *MOMENTS))}
    if expected.keys() != needed:
        raise CheckpointError(f"{checksum_file}: speaks of {sorted(expected)}, expected {sorted(needed)}")
    for name, (size, sha256) in expected.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        found = file.stat().st_size
        if found != size:
            raise CheckpointError(f"{file}: {found} bytes, {size} were written")
        if sha256_of(file) != sha256:
            raise CheckpointError(f"{file}: its bytes do not match the checksum written with it")


def newest_good_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all match their checksums; each damaged one is reported through `warn`.

    Raises `CheckpointError` when there are checkpoints but none is good: starting over must be asked for.
    """
    candidates = RunFolder(run).checkpoint_folders()
    for folder in candidates:
        try:
            verify_checkpoint(folder)
            return folder
        except (CheckpointError, OSError) as error:
            warn(f"damaged checkpoint skipped: {error}")
    if candidates:
        raise CheckpointError(f"{run}: none of {len(candidates)} checkpoints is whole; --fresh starts over")
    return None


def load_state(folder: Path) -> CheckpointState:
    """The JSON part of a checkpoint."""
    try:
        document = json.loads((folder / STATE_FILE).read_bytes())
        if document.pop("format") != FORMAT:
            raise CheckpointError(f"{folder}: written in another format than {FORMAT}, which this version reads")
        return CheckpointState(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE_FILE}: cannot be read: {error}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from error


def _write_bytes(file: Path, data: bytes) -> dict[str, int | str]:
    stream = HashedFile(file)
    try:
        stream.write(data)
        return stream.finish()
    finally:
        stream.close()


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, int | str]:
    """A safetensors file of fp32 tensors, hashed as it is written. The library's own writer holds the interpreter for
    as long as the disk takes, which would stop training and heartbeats; and it would be read again for the hash."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise CheckpointError(f"{file.name}: {name} is {tensor.dtype} on {tensor.device}, not float32 on the CPU")
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream = HashedFile(file)
    try:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            if tensor.numel():
                stream.write(tensor.contiguous().reshape(-1).numpy().data)
        return stream.finish()
    finally:
        stream.close()
