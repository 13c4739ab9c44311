"""Reads and writes checkpoints on disk, by parameter name, independent of world size and ZeRO stage.

`<run>/checkpoints/step-00000100/` holds `weights`, `exp_avg` and `exp_avg_sq` (fp32 safetensors of what is trained) and
`state.json`. `checksums.json` covers them all. A folder is written under a temporary name, synced and renamed, so that
one with its final name is complete. The newest intact folder is the one to resume from. Nothing is pickled. This module
knows no ranks; `engine/saver.py` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigptv2.engine.guard import GuardState
from minigptv2.errors import CheckpointError
from minigptv2.files import HashedFile, remove_or_report, remove_tree, sync_folder
from minigptv2.foreign_files import open_regular, open_safetensors, read_json
from minigptv2.redacted_files import json_text
from minigptv2.run_folder import RunFolder, checkpoint_step

FORMAT = 2
WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, as torch names it."""
STATE_FILE, CHECKSUM_FILE = "state.json", "checksums.json"


@dataclass(frozen=True)
class Identity:
    """What must be equal on resume besides the config: hashes of contents, and the seed."""

    tokenizer_sha256: str
    data_plan: str
    """Fingerprint of the data plan."""
    seed: int
    init_from: str | None
    """Hash of the weights of the parent export, or None."""
    base_sha256: dict[str, str]
    """Hash of the base weights by part."""
    sample_order: int = 1
    """Version of the order of samples (`data.plan.SAMPLE_ORDER`). Checkpoints of version 0.1 do not state it."""


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds besides its tensors.

    `position` is the position in the data plan of the next step's first sample. `config` is the resolved config, the
    recipe and the DeepSpeed JSON by dotted key. `skipped` counts the skipped steps.
    """

    step: int
    position: int
    identity: Identity
    config: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    guard: GuardState = field(default_factory=GuardState)

    def as_json(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> CheckpointState:
        """Return the state that `as_json` was made of. Raises `TypeError` or `KeyError` for another document."""
        values = {key: value for key, value in document.items() if key != "format"}
        values |= {"identity": Identity(**values["identity"]), "guard": GuardState(**values["guard"])}
        state = cls(**values)
        counts = (state.step, state.position, state.skipped)
        if not isinstance(state.config, dict) or not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError("step, position and skipped must be whole numbers, config an object")
        return state


def write_checkpoint(run: Path, state: CheckpointState, tensors: dict[str, dict[str, Tensor]]) -> Path:
    """Write `tensors` (file stem to name to fp32 CPU tensor) and `state` atomically as one folder; return it.

    Raises `CheckpointError` naming the file if writing fails. Existing checkpoints are not changed then.
    """
    folder = RunFolder(run).checkpoint(state.step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    document = json_text(state.as_json()).encode()
    try:
        remove_tree(temporary)
        temporary.mkdir(parents=True)
        sums = {
            f"{stem}.safetensors": _write_tensors(temporary / f"{stem}.safetensors", named)
            for stem, named in tensors.items()
        }
        sums[STATE_FILE] = _write_bytes(temporary / STATE_FILE, document)
        _write_bytes(temporary / CHECKSUM_FILE, json.dumps(sums, indent=1).encode())
        sync_folder(temporary)
        _remove(folder)  # a damaged checkpoint of the same step, from which this run did not resume
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        remove_or_report(temporary)
        reason = f"{error.strerror or error} ({error.filename or temporary})"
        raise CheckpointError(f"{folder}: failed to save: {reason}") from error
    return folder


def prune_checkpoints(run: Path, *, keep: int, keep_every: int = 0, newest: int | None = None) -> None:
    """Remove all checkpoints except the newest `keep`, those of every `keep_every` steps (0: none), and leftovers.

    Call it only after a newer checkpoint is complete. Those after step `newest` are removed: they are damaged, so that
    the run did not resume from them.
    """
    folder = RunFolder(run)
    for leftover in folder.unfinished_checkpoints():
        _discard(leftover)
    for ahead in folder.checkpoint_folders():
        if newest is not None and checkpoint_step(ahead) > newest:
            _remove(ahead)
    for old in folder.checkpoint_folders()[keep:]:
        if not (keep_every and checkpoint_step(old) % keep_every == 0):
            _remove(old)


def _remove(folder: Path) -> None:
    """Rename the folder before removing it, so that a partly removed folder never looks like a checkpoint."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.old")
        _discard(hidden)
        os.rename(folder, hidden)
        _discard(hidden)


def _discard(folder: Path) -> None:
    """Remove a folder that is never read again, or the link to one. What cannot be removed now is tried again later."""
    with suppress(OSError):
        remove_tree(folder)


def verify_checkpoint(folder: Path) -> None:
    """Raise `CheckpointError` naming the first file that is missing, truncated or changed."""
    checksum_file = folder / CHECKSUM_FILE
    checksums = read_json(checksum_file, CheckpointError, folder=folder)
    try:
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in checksums.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{checksum_file}: cannot be read: {error}") from error
    needed = {STATE_FILE, *(f"{stem}.safetensors" for stem in (WEIGHTS, *MOMENTS))}
    if expected.keys() != needed:
        raise CheckpointError(f"{checksum_file}: lists {sorted(expected)}, expected {sorted(needed)}")
    for name, (size, sha256) in expected.items():
        file = folder / name
        if not os.path.lexists(file):
            raise CheckpointError(f"{file}: missing")
        with open_regular(file, CheckpointError, folder=folder) as stream:
            found = os.fstat(stream.fileno()).st_size
            if found != size:
                raise CheckpointError(f"{file}: expected {size} bytes, got {found}")
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise CheckpointError(f"{file}: checksum mismatch")


def newest_good_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint, or None if there is none; report each damaged one through `warn`.

    Raises `CheckpointError` if all checkpoints are damaged, so that a run never starts over unasked.
    """
    candidates = RunFolder(run).checkpoint_folders()
    for folder in candidates:
        try:
            verify_checkpoint(folder)
            return folder
        except (CheckpointError, OSError) as error:
            warn(f"skipping damaged checkpoint: {error}")
    if candidates:
        raise CheckpointError(f"{run}: all {len(candidates)} checkpoints are damaged. Use --fresh to start over.")
    return None


def load_state(folder: Path) -> CheckpointState:
    """Return the JSON part of a checkpoint. Raises `CheckpointError` if it cannot be read."""
    document = read_json(folder / STATE_FILE, CheckpointError, folder=folder)
    try:
        if document["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: format {document['format']} is not supported; this version reads {FORMAT}"
            )
        return CheckpointState.from_json(document)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / STATE_FILE}: cannot be read: {error}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, on the CPU. Raises `CheckpointError` if it cannot be read."""
    handle = open_safetensors(file, CheckpointError, folder=file.parent)
    return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  # not a dictionary


def _write_bytes(file: Path, data: bytes) -> dict[str, int | str]:
    stream = HashedFile(file)
    try:
        stream.write(data)
        return stream.finish()
    finally:
        stream.close()


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, int | str]:
    """Write fp32 tensors as a safetensors file and hash them on the way; return its size and SHA-256.

    The library's own writer holds the interpreter lock while the disk writes, which would stop training and heartbeats,
    and the file would have to be read again for the hash.
    """
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
