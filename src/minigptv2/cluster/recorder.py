"""Records how this start of a run begins and ends, and refuses a start that would continue a crash loop."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from minigptv2 import errors
from minigptv2.cluster.attempts import Attempt, run_journal
from minigptv2.cluster.restart import FINISHED, INTERRUPTED, refuse_crash_loop
from minigptv2.errors import RequeueExit, exit_code_of


class AttemptRecorder:
    """Writes this start to `<run>/attempts.jsonl`. As a context manager it records how the block ends.

    `limit` is the number of starts in a row without a new checkpoint after which the next one is refused (0: never).
    Only the main rank is `active`. The other ranks write nothing.
    """

    def __init__(self, run: Path, limit: int, *, active: bool) -> None:
        self._journal, self._limit, self._active = run_journal(run), limit, active
        self._current: Attempt | None = None
        self.saved_step: int | None = None
        """Step of the newest checkpoint that this start saved."""

    def begin(self, step: int, config: dict[str, Any]) -> None:
        """Record a start from `step`. Raises `CrashLoopError` if it would be one start too many."""
        if not self._active:
            return
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
        refuse_crash_loop(self._journal.read(), step, digest, self._limit)
        job = "_".join(os.environ[key] for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT") if key in os.environ)
        self._current = Attempt(job, step, time.time(), (socket.gethostname(),), config=digest)
        self._journal.append_start(self._current)

    def record_end(self, reason: str, exit_code: int) -> None:
        """Record how this start ends. Only the first call counts. Ctrl-C is no failure, whatever the reason says."""
        attempt, self._current = self._current, None
        reason = INTERRUPTED if exit_code == errors.INTERRUPTED else reason
        if attempt is not None:
            self._journal.append_end(replace(attempt, reason=reason, exit_code=exit_code, saved_step=self.saved_step))

    def __enter__(self) -> AttemptRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.record_end(FINISHED, 0)
        elif isinstance(error, KeyboardInterrupt):
            self.record_end(INTERRUPTED, exit_code_of(error))
        elif isinstance(error, RequeueExit):
            self.record_end(f"stopped: {error}", exit_code_of(error))
        else:
            self.record_end(f"{type(error).__name__}: {error}", exit_code_of(error))
