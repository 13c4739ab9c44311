"""Saves and restores a trainer on all ranks: gathers tensors, writes them in the background, reports errors everywhere.

Only the main rank reads and writes files. The other ranks get what they need from it, so that nothing depends on when a
shared file system shows a file to another node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minigptv2.cluster import distributed
from minigptv2.engine.checkpoint import (
    MOMENTS,
    WEIGHTS,
    CheckpointState,
    load_state,
    newest_good_checkpoint,
    prune_checkpoints,
    read_tensors,
    write_checkpoint,
)
from minigptv2.engine.trainer import Trainer
from minigptv2.engine.zero import shape_of
from minigptv2.errors import CheckpointError
from minigptv2.foreign_files import open_safetensors


@dataclass
class _Write:
    """A background write of the main rank."""

    thread: threading.Thread
    step: int
    began: float
    error: Exception | None = None


class CheckpointSaver:
    """Writes checkpoints in a thread of the main rank. Training waits only while tensors are gathered.

    If the previous checkpoint is still being written, a save waits up to `max_stall_s` and is then left out, which is
    logged. One failed save (a full disk) is logged; a second one in a row, or one with `wait`, raises `CheckpointError`
    on all ranks. `log` receives lines for the log.
    """

    def __init__(
        self, run: Path, *, keep: int, keep_every: int, max_stall_s: float, log: Callable[[str], None]
    ) -> None:
        self._run, self._keep, self._keep_every = run, keep, keep_every
        self._max_stall_s = max_stall_s
        self._log = log
        self._write: _Write | None = None
        self._failures = 0

    def save(self, trainer: Trainer, state: CheckpointState, *, wait: bool) -> float:
        """Save; `wait` until it is on disk. Return the seconds that training was paused. A collective."""
        began = time.monotonic()
        if not self.settle(None if wait else self._max_stall_s):
            self._log(f"skipped checkpoint of step {state.step}: the previous one is still being written")
            return time.monotonic() - began
        tensors = {WEIGHTS: trainer.trained_weights(), **{key: trainer.moments(key) for key in MOMENTS}}
        stall = time.monotonic() - began
        if distributed.is_main():
            work = threading.Thread(target=self._work, args=(state, tensors, stall), name="checkpoint", daemon=True)
            self._write = _Write(work, state.step, time.monotonic())
            work.start()
        if wait:
            self.settle(None, final=True)
        return time.monotonic() - began

    def settle(self, timeout_s: float | None = None, *, final: bool = False) -> bool:
        """Wait for the write in progress, without limit if `timeout_s` is None; return whether it has ended.

        A collective. Raises `CheckpointError` on all ranks if it failed and no later save follows (`final`) or the one
        before failed, too.
        """
        ended, error = distributed.on_main(lambda: self._join(timeout_s))
        if not ended:
            return False
        if error is not None:
            self._failures = self._failures + 1 if error else 0
        if error and (final or self._failures > 1):
            raise CheckpointError(error)
        return True

    def _join(self, timeout_s: float | None) -> tuple[bool, str | None]:
        """Return whether no write is in progress, and the error of the last one: "" for success, None for no write."""
        write = self._write
        if write is None:
            return True, None
        write.thread.join(timeout_s)
        if write.thread.is_alive():
            return False, None
        self._write = None
        return True, str(write.error) if write.error else ""

    def _work(self, state: CheckpointState, tensors: dict[str, dict[str, Tensor]], stall: float) -> None:
        write = self._write
        assert write is not None
        try:
            folder = write_checkpoint(self._run, state, tensors)
            prune_checkpoints(self._run, keep=self._keep, keep_every=self._keep_every, newest=state.step)
            seconds = time.monotonic() - write.began
            self._log(f"saved checkpoint {folder} (training paused {stall:.2f} s, write {seconds:.2f} s)")
        except Exception as error:  # noqa: BLE001  # raised on all ranks when the write is settled
            write.error = error
            self._log(f"failed to save checkpoint: {type(error).__name__}: {error}")


def choose_checkpoint(run: Path, log: Callable[[str], None]) -> tuple[Path, CheckpointState] | None:
    """Return the newest intact checkpoint and its state, read by the main rank; None if there is none. A collective."""

    def read() -> tuple[Path, CheckpointState] | None:
        folder = newest_good_checkpoint(run, log)
        return None if folder is None else (folder, load_state(folder))

    return distributed.on_main(read)


def restore_checkpoint(folder: Path, state: CheckpointState, trainer: Trainer) -> None:
    """Restore weights, moments and step of a checkpoint. A collective; only the main rank reads files."""
    expected = {name: shape_of(parameter) for name, parameter in trainer.trainable.items()}

    def check() -> None:
        for stem in (WEIGHTS, *MOMENTS):
            _check_shapes(folder / f"{stem}.safetensors", expected)

    distributed.on_main(check)
    for stem in (WEIGHTS, *MOMENTS):
        read = read_tensors(folder / f"{stem}.safetensors") if distributed.is_main() else {}
        trainer.set_state(None if stem == WEIGHTS else stem, read, updates=state.step - state.skipped)
    trainer.restore_state(state)


def _check_shapes(file: Path, expected: dict[str, tuple[int, ...]]) -> None:
    opened = open_safetensors(file, CheckpointError, folder=file.parent)
    found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if odd:
        shapes = f"expected {expected.get(odd[0])}, got {found.get(odd[0])}"
        raise CheckpointError(f"{file}: {len(odd)} trained weights do not fit this model, first {odd[0]}: {shapes}")
