"""Writes and reads `<run_dir>/failure.json`: the first failure of a start, as the rank that reports it knows it.

The batch script's node reads it after a job's work has ended. `start` tells whether the file is of this start.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from minigptv2.cluster.processes import short_name
from minigptv2.redacted_files import write_json
from minigptv2.run_folder import RunFolder

_LENGTH = 300
"""Characters of a message that a one-line summary keeps."""
_REQUIRED = {"kind": str, "error": str, "message": str, "exit_code": int, "rank": int, "host": str, "phase": str}
"""Types of the fields that `failure.json` must have."""


@dataclass(frozen=True)
class Failure:
    """The first failure of a job."""

    start: str
    """The start that failed (`start_id`)."""
    kind: Literal["error", "lost", "hang"]
    """An exception, a rank that stopped sending heartbeats, or a rank that makes no progress."""
    error: str
    """Class name of the exception."""
    message: str
    exit_code: int
    rank: int
    host: str
    phase: str
    """What the rank was doing, for example `step 12`."""
    pid: int | None = None
    """Process of the rank, None if unknown."""

    def __str__(self) -> str:
        place = self.host if self.pid is None else f"{self.host}, pid {self.pid}"
        return f"[rank {self.rank} ({place})] {self.error}: {self.message}"

    @property
    def summary(self) -> str:
        """The failure in one short line."""
        lines = str(self).splitlines()
        return lines[0][:_LENGTH]

    def node_of(self, nodes: tuple[str, ...]) -> list[str]:
        """The one of `nodes` to blame: the host of a lost or hanging rank. Empty for an exception."""
        host = short_name(self.host)
        return [] if self.kind == "error" else [node for node in nodes if short_name(node) == host]


def start_id(environment: Mapping[str, str]) -> str:
    """Identifies this start. Under `launch/slurm/common.sh` it is `job.restart`, which the batch script knows too.

    Otherwise it identifies this process and time, so rank 0 has to share it. Slurm's own variables do not identify a
    start, because one allocation may run several.
    """
    return environment.get("MINIGPTV2_START") or f"{socket.gethostname()}.{os.getpid()}.{time.time():.3f}"


def write_failure(run: Path, failure: Failure, *, rank: int) -> None:
    """Write the failure, replacing one of an earlier start. Called by the rank that reports it.

    The first report of a start stays, because a rank that is cut off may report others as lost later. One exception: a
    rank 0 that reports is alive, so it replaces a report that rank 0 is lost. Raises `OSError` if the folder is not
    writable.
    """
    try:
        known = _load(run, failure.start)
    except (OSError, ValueError):
        known = None  # nobody can read it, so it is replaced
    if known is not None and not (rank == 0 and known.kind == "lost" and known.rank == 0):
        return
    run.mkdir(parents=True, exist_ok=True)
    write_json(RunFolder(run).failure, asdict(failure), writer=f"rank{rank}")


def read_failure(run: Path, start: str) -> Failure | None:
    """The failure of the start `start`, None if the file is missing, belongs to another start or cannot be read.

    The last case is reported on stderr.
    """
    try:
        return _load(run, start)
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"cannot read {RunFolder(run).failure} ({reason}): using the logs of the ranks instead", file=sys.stderr)
        return None


def _load(run: Path, start: str) -> Failure | None:
    """As `read_failure`, but raises `OSError` or `ValueError` if the file cannot be read. Ignores unknown fields."""
    if run.is_dir():
        os.scandir(run).close()  # makes a network file system refresh its cache
    try:
        row = json.loads(RunFolder(run).failure.read_text())
    except FileNotFoundError:
        return None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    if row.get("start") != start:
        return None
    for name, kind in _REQUIRED.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(f"expected {kind.__name__} for '{name}', got {row.get(name)!r}")
    return Failure(**{field.name: row[field.name] for field in fields(Failure) if field.name in row})
