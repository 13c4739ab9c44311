"""Whether a job that ended should be started again: at most so often, only after progress, never in a crash loop.

`<run>/slurm/history.jsonl` gets a line when a job starts working on the run and one when it ends. The decisions are
pure functions of that history. Written by one process, on the batch script's node; imports no torch.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minigptv2.errors import CheckpointError, ConfigError, CrashLoopError, DataError, ExitCode, StepError

HISTORY = "slurm/history.jsonl"
FINAL_ERRORS = {
    int(error.exit_code): error.__name__
    for error in (ConfigError, DataError, CheckpointError, StepError, CrashLoopError)
}
"""Name of the error of each exit code that is final (`ExitCode.final`)."""


@dataclass(frozen=True)
class Limits:
    """When to stop starting again. Set by environment variables of the same names, see docs/slurm.md."""

    restarts: int = 50
    """MINIGPTV2_MAX_RESTARTS: starts again of one job, in all."""
    stalls: int = 3
    """MINIGPTV2_MAX_STALLS: starts in a row that end without a newer checkpoint, though a node or a signal was the
    cause. A crash without a newer checkpoint that no node is to blame for is not tried again at all."""
    node_failures: int = 2
    """MINIGPTV2_NODE_FAILURES: failures after which a node is left out."""


@dataclass(frozen=True)
class Attempt:
    """One start of a job and, once known, its end. `code` is the launcher's exit code, None if nobody saw the end."""

    job: str
    restart: int
    nodes: tuple[str, ...]
    began: float
    start_step: int
    ended: float | None = None
    end_step: int = 0
    code: int | None = None
    asked: bool = False
    """A signal asked it to stop: the time limit was near, or somebody wanted the nodes."""
    failed_nodes: tuple[str, ...] = ()
    reason: str = ""
    """What the log gives as the cause."""

    @property
    def progressed(self) -> bool:
        return self.end_step > self.start_step

    @property
    def planned(self) -> bool:
        return self.asked or self.code == ExitCode.REQUEUE


@dataclass(frozen=True)
class Verdict:
    """`action`: `done`, `again` or `stop`; `exclude`: nodes that a start again must leave out."""

    action: str
    reason: str
    exclude: tuple[str, ...] = ()


def judge(attempts: list[Attempt], limits: Limits) -> Verdict:
    """What to do after the last of one job's attempts, the end of which is known."""
    last = attempts[-1]
    exclude = bad_nodes(attempts, limits)
    how = _how_it_ended(last)
    if last.code == 0:
        return Verdict("done", f"finished at step {last.end_step}")
    if last.code in FINAL_ERRORS:
        return Verdict("stop", f"{how}: retrying would repeat the {FINAL_ERRORS[last.code]}")
    if last.restart >= limits.restarts:
        return Verdict("stop", f"{how}, and it has been started again {limits.restarts} times, the most allowed")
    if last.progressed:
        return Verdict("again", f"{how}; steps {last.start_step} to {last.end_step} are saved", exclude)
    if not (last.planned or last.failed_nodes):
        return Verdict("stop", f"crash loop: {how}, without a newer checkpoint than that of step {last.start_step}")
    stalls = _stalls(attempts)
    if stalls >= limits.stalls:
        why = f"{stalls} starts in a row brought no newer checkpoint than that of step {last.end_step}"
        return Verdict("stop", f"crash loop: {how}; {why}")
    return Verdict("again", f"{how}; no newer checkpoint, try {stalls + 1} of {limits.stalls}", exclude)


def bad_nodes(attempts: list[Attempt], limits: Limits) -> tuple[str, ...]:
    """Nodes that have failed often enough to be left out."""
    failures = Counter(node for attempt in attempts for node in attempt.failed_nodes)
    return tuple(sorted(node for node, count in failures.items() if count >= limits.node_failures))


def _stalls(attempts: list[Attempt]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if attempt.progressed:
            break
        count += 1
    return count


def _how_it_ended(attempt: Attempt) -> str:
    if attempt.planned:
        how = "asked to stop"
    elif attempt.code is None:
        how = "ended without a word (a node failure, or a requeue from outside)"
    else:
        how = f"ended with exit code {attempt.code}"
    if attempt.failed_nodes:
        how += f", node failed: {', '.join(attempt.failed_nodes)}"
    return f"{how} ({attempt.reason})" if attempt.reason else how


def note_start(run: Path, attempt: Attempt) -> None:
    """Write down that a job starts working on the run."""
    _append(run, {"event": "start", **asdict(attempt)})


def note_end(run: Path, attempt: Attempt) -> Attempt:
    """Write down how an attempt ended; returns it with the time filled in."""
    ended = replace(attempt, ended=attempt.ended or time.time())
    _append(run, {"event": "end", **asdict(ended)})
    return ended


def read_attempts(run: Path, job: str) -> list[Attempt]:
    """The attempts of one job on the run, oldest first; a later line of an attempt replaces the earlier."""
    file = run / HISTORY
    attempts: dict[int, Attempt] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # cut short when its node lost power
            continue
        if row.pop("event", None) in ("start", "end") and row["job"] == job:
            attempt = Attempt(**{**row, "nodes": tuple(row["nodes"]), "failed_nodes": tuple(row["failed_nodes"])})
            attempts[attempt.restart] = attempt
    return [attempts[key] for key in sorted(attempts)]


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint folder of a run, 0 without one."""
    folders = (run / "checkpoints").glob("step-*")
    return max((int(folder.name.removeprefix("step-")) for folder in folders), default=0)


def _append(run: Path, row: dict[str, Any]) -> None:
    file = run / HISTORY
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as stream:
        stream.write("\n" if _lacks_newline(file) else "")
        stream.write(json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _lacks_newline(file: Path) -> bool:
    if file.stat().st_size == 0:
        return False
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
