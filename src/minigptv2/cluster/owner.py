"""Gives a run folder to one start at a time, across processes and nodes.

`<run_dir>/owner/` holds one small file per owner, numbered. The start with the highest number owns the folder. Taking
it means to create the next number, which only one of several starts can: exclusive creation is atomic on local and
network file systems, while locks of the file system may be emulated or have no effect. The owner sets the time of its
file every `BEAT_S` seconds. A file says when its owner has released the folder.

Whether an owner is alive is read from the process table where that is possible, and from its heartbeat elsewhere. The
clocks of two nodes are not compared: a start watches whether the heartbeat continues. Only the main rank uses this.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from minigptv2.cluster.processes import host_name, is_running, machine, started_at
from minigptv2.errors import ConfigError, ExitCode
from minigptv2.files import write_atomically
from minigptv2.redacted_files import json_text
from minigptv2.run_folder import RunFolder

BEAT_S = 5.0
"""Seconds between heartbeats."""
STALE_S = 60.0
"""An owner on another node whose heartbeat stays away for this long is dead."""
REQUEUE_STALE_S = 20.0
"""The same, of an earlier start of this job, which the scheduler has ended if it could reach its node."""
_OLD_S = 600.0
"""A heartbeat this old needs no watching. Clocks of nodes differ by less."""
_REQUEUE_S = 120.0
"""How long a requeued job waits for the end of its earlier start, which may be saving."""
_POLL_S = 0.5
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EMLINK)


@dataclass(frozen=True)
class Owner:
    """A start that took a run folder. `machine` is equal for processes that see each other's ids."""

    host: str
    machine: str
    pid: int
    process_start: str
    """When the process started, as the kernel writes it: another process may get its id later."""
    since: float
    """Unix time."""
    job: str = ""
    """Id of the scheduler's job, empty without one."""
    restart: int = 0
    """How often the job has been started again."""
    released: bool = False

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.host}, process {self.pid}{job}, since {since}"

    def is_requeued_as(self, other: Owner) -> bool:
        """Whether `other` is a later start of the same job."""
        return bool(self.job) and self.job == other.job and self.restart < other.restart


@dataclass(frozen=True)
class _Entry:
    """The newest file of a folder of owners. `beat` is its time in ns. `owner` is None for an unreadable file."""

    number: int
    owner: Owner | None = None
    beat: int = 0


def this_process(environment: Mapping[str, str]) -> Owner:
    """This process as an owner. The job and its restarts are those of Slurm or of a named torchrun job."""
    job, restarts = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_RESTART_COUNT", "0")
    if not job and environment.get("TORCHELASTIC_RUN_ID", "none") != "none":
        job, restarts = environment["TORCHELASTIC_RUN_ID"], environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    restart = int(restarts) if restarts.isdigit() else 0
    return Owner(host_name(), machine(), os.getpid(), started_at(os.getpid()) or "", time.time(), job, restart)


class RunOwner:
    """Ownership of a run folder: `take()` it, and release it as a context manager.

    If another start takes the folder, because this process was suspended for longer than `STALE_S`, this process ends
    at once, so that two starts never write the same files.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._folder = RunFolder(run).owners
        self._number = 0
        self._me: Owner | None = None
        self._ended = threading.Event()

    def take(self) -> None:
        """Take the folder, which is made if it does not exist.

        Raises `ConfigError` if a living start owns it, with its host, process and job, and if the folder cannot be
        made or written to. Nothing but the file of the owner is written.
        """
        self._me = this_process(os.environ)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while not self._number:
                newest = _newest(self._folder)
                self._wait_until_free(newest, self._me)
                if (
                    _create(self._file(newest.number + 1), self._me)
                    and _newest(self._folder).number == newest.number + 1
                ):
                    self._number = newest.number + 1
        except OSError as error:
            raise ConfigError(
                f"run_dir={self._run} cannot be used: {error.strerror or error} ({error.filename})"
            ) from error
        for old in range(self._number - 2, 0, -1):  # one older file stays: a slow start may still try its number
            if not self._file(old).is_file():
                break
            self._file(old).unlink(missing_ok=True)
        threading.Thread(target=self._beat, name="run folder", daemon=True).start()

    def __enter__(self) -> RunOwner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._number and self._me is not None and _newest(self._folder).number == self._number:
            try:
                write_atomically(self._file(self._number), _text(self._me, released=True))
            except OSError as problem:  # the process is about to end, which frees the folder too
                print(f"warning: run_dir={self._run} is not marked as free: {problem}", flush=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _wait_until_free(self, seen: _Entry, me: Owner) -> None:
        """Return once the owner that was `seen` is known to be gone, or another one has come.

        Raises `ConfigError` for a living owner. A requeued job waits for its earlier start.
        """
        began = changed_at = time.monotonic()
        beat, alive, warned = seen.beat, False, False
        while seen.number and not _is_free(seen):
            now = time.monotonic()
            requeued = seen.owner is not None and seen.owner.is_requeued_as(me)
            if seen.beat != beat:
                beat, changed_at, alive = seen.beat, now, True
            alive = alive or (seen.owner is not None and seen.owner.machine == me.machine)
            if alive and not (requeued and now - began < _REQUEUE_S):
                raise ConfigError(
                    f"run_dir={self._run} is in use by another start: {seen.owner or 'unknown'}. "
                    "Wait for its end, stop it, or set another run_dir."
                )
            if now - changed_at > (REQUEUE_STALE_S if requeued else STALE_S) and not (
                seen.owner and seen.owner.machine == me.machine
            ):
                return
            if not warned:
                print(f"waiting until {self._run} is free: {seen.owner or 'an unknown start'}", flush=True)
                warned = True
            time.sleep(_POLL_S)
            newest = _newest(self._folder)
            if newest.number != seen.number:
                return
            seen = newest

    def _beat(self) -> None:
        """Set the time of this start's file every `BEAT_S`. End this process if the folder has another owner."""
        mine = self._file(self._number)
        while not self._ended.wait(BEAT_S):
            try:
                newest = _newest(self._folder)
                if newest.number == self._number:
                    os.utime(mine)
            except OSError:  # a server that does not answer now: others see a missing heartbeat
                continue
            if newest.number and newest.number != self._number and not self._ended.is_set():
                print(f"ConfigError: run_dir={self._run} was taken over by {newest.owner}: this start ends", flush=True)
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(ExitCode.CONFIG)


def _is_free(entry: _Entry) -> bool:
    """Whether it is known at once that an owner has ended: released, gone from this machine, or silent for long."""
    silent_s = time.time() - entry.beat / 1e9
    if entry.owner is None:
        return silent_s > BEAT_S  # a start that was killed while it wrote its file
    if entry.owner.released or entry.owner.machine != machine():
        return entry.owner.released or silent_s > _OLD_S
    return not (is_running(entry.owner.pid) and entry.owner.process_start in ("", started_at(entry.owner.pid)))


def _newest(folder: Path) -> _Entry:
    """The file with the highest number. Number 0 without one."""
    numbers = [int(entry.name.removesuffix(".json")) for entry in os.scandir(folder) if entry.name[0].isdigit()]
    if not numbers:
        return _Entry(0)
    file = folder / f"{max(numbers):08d}.json"
    try:
        with open(file, "rb") as stream:  # opening makes a network file system ask its server
            beat, data = os.fstat(stream.fileno()).st_mtime_ns, stream.read()
    except FileNotFoundError:
        return _newest(folder)  # a newer owner removed it
    try:
        row = json.loads(data)
        known = {field.name: row[field.name] for field in fields(Owner) if field.name in row}
        return _Entry(max(numbers), Owner(**known), beat)
    except (ValueError, TypeError):
        return _Entry(max(numbers), None, beat)


def _text(owner: Owner, *, released: bool = False) -> bytes:
    return json_text(asdict(owner) | {"released": released}).encode()


def _create(file: Path, owner: Owner) -> bool:
    """Write a new file with its content, atomically. False if it exists."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(_text(owner))
        os.link(temporary, file)
    except FileExistsError:
        return temporary.stat().st_nlink > 1  # the answer to our own request was lost and it was repeated
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_without_links(file, owner)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_without_links(file: Path, owner: Owner) -> bool:
    """As `_create`, on file systems without hard links. The file is empty for a moment."""
    try:
        with open(file, "xb") as stream:
            stream.write(_text(owner))
    except FileExistsError:
        return False
    return True
