"""The starts of a run and how each ended, in `<run>/attempts.jsonl`: what tells progress from a crash loop.

A start that neither the same error nor a new machine gets past is not worth a tenth try. Written by the main rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from minigptv2.errors import CrashLoopError, RequeueExit, exit_code_of
from minigptv2.secrets import redact

ATTEMPTS_FILE = "attempts.jsonl"
FINISHED, STOPPED, INTERRUPTED, UNKNOWN = "finished", "stopped", "interrupted", "ended without a word"


@dataclass(frozen=True)
class Attempt:
    """One start: the step it began at, its job and host, a hash of its config, and how it ended."""

    step: int
    time: float
    host: str
    job: str
    config: str
    ended: str = UNKNOWN
    exit_code: int | None = None
    saved_step: int | None = None


def read_attempts(run: Path) -> list[Attempt]:
    """All starts of a run, oldest first; a line that a kill cut short is left out."""
    file = run / ATTEMPTS_FILE
    attempts: list[Attempt] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.pop("event") == "start":
            attempts.append(Attempt(**entry))
        elif attempts:
            attempts[-1] = Attempt(**(attempts[-1].__dict__ | entry))
    return attempts


def without_progress(attempts: list[Attempt], step: int, config: str) -> list[Attempt]:
    """The latest starts in a row from `step` with this config that left no newer checkpoint.

    Ended by hand (Ctrl-C) or finished ones are not counted.
    """
    found: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.step != step or attempt.config != config or attempt.ended in (FINISHED, INTERRUPTED):
            break
        found.append(attempt)
    return found


class Attempts:
    """Keeps the record of this start. `with` it: the way the block ends is noted. Ranks but the main one write nothing.

    `limit`: so many starts in a row without a new checkpoint, and the next is refused; 0: none is.
    """

    def __init__(self, run: Path, limit: int, *, active: bool) -> None:
        self._run, self._limit, self._active = run, limit, active
        self._open = False
        self.saved_step: int | None = None

    def begin(self, step: int, config: dict[str, Any]) -> None:
        """Note a start from `step`. Raises `CrashLoopError` instead, if it is one of too many."""
        if not self._active:
            return
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
        failed = without_progress(read_attempts(self._run), step, digest)
        if self._limit and len(failed) >= self._limit:
            last = failed[0]
            raise CrashLoopError(
                f"{len(failed)} starts in a row from step {step} left no newer checkpoint, the last on {last.host}: "
                f"{last.ended}. Mend the cause first. A changed config starts the count anew, train.crash_loop_limit=0 "
                "ends it."
            )
        job = "_".join(os.environ[key] for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT") if key in os.environ)
        self._write(
            {
                "event": "start",
                "step": step,
                "time": time.time(),
                "host": socket.gethostname(),
                "job": job,
                "config": digest,
            }
        )
        self._open = True

    def ended(self, text: str, exit_code: int) -> None:
        """Note how this start ends; the first word counts."""
        if self._open:
            self._open = False
            self._write({"event": "end", "ended": text, "exit_code": exit_code, "saved_step": self.saved_step})

    def __enter__(self) -> Attempts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.ended(FINISHED, 0)
        elif isinstance(error, KeyboardInterrupt):
            self.ended(INTERRUPTED, exit_code_of(error))
        elif isinstance(error, RequeueExit):
            self.ended(f"{STOPPED}: {error}", error.exit_code)
        else:
            self.ended(f"{type(error).__name__}: {error}", exit_code_of(error))

    def _write(self, entry: dict[str, Any]) -> None:
        with open(self._run / ATTEMPTS_FILE, "a") as stream:
            stream.write(redact(json.dumps(entry)) + "\n")
