"""Decides whether a run that ended is started again: within a limit, only after progress, never in a crash loop.

The decisions are pure functions of the attempts in a journal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile

from minigptv2.cluster.attempts import Attempt
from minigptv2.errors import CheckpointError, ConfigError, CrashLoopError, DataError, StepError

FINISHED, INTERRUPTED = "finished", "interrupted"
"""Reasons of an end that is no failure: the run is complete, or a user pressed Ctrl-C."""
NOT_REPORTED = "ended with no error reported"
FINAL_ERRORS = {
    int(error.exit_code): error.__name__
    for error in (ConfigError, DataError, CheckpointError, StepError, CrashLoopError)
}
"""Name of the error of each exit code that is final (`ExitCode.final`)."""


@dataclass(frozen=True)
class RestartLimits:
    """When to stop restarting. Set by environment variables of the same names, see docs/slurm.md."""

    restarts: int = 50
    """MINIGPTV2_MAX_RESTARTS: restarts of one job in total."""
    stalls: int = 3
    """MINIGPTV2_MAX_STALLS: starts in a row that end without a newer checkpoint although a node or a signal was the
    cause. A crash without a newer checkpoint and without a failed node is not retried at all."""
    node_failures: int = 2
    """MINIGPTV2_NODE_FAILURES: failures after which a node is excluded."""


@dataclass(frozen=True)
class Verdict:
    """`action` is `done`, `again` or `stop`. `exclude` lists nodes that a restart must not use."""

    action: str
    reason: str
    exclude: tuple[str, ...] = ()


def judge(attempts: list[Attempt], limits: RestartLimits) -> Verdict:
    """What to do after the last of one job's attempts, whose end is known."""
    last = attempts[-1]
    exclude = bad_nodes(attempts, limits)
    how = _how_it_ended(last)
    if last.exit_code == 0:
        return Verdict("done", f"finished at step {last.saved_step}")
    if last.exit_code in FINAL_ERRORS:
        return Verdict("stop", f"{how}: retrying would repeat the {FINAL_ERRORS[last.exit_code]}")
    if last.restart >= limits.restarts:
        return Verdict("stop", f"{how}, and it has been restarted {limits.restarts} times, the most allowed")
    if last.progressed:
        return Verdict("again", f"{how}; steps {last.start_step} to {last.saved_step} are saved", exclude)
    if not (last.planned or last.failed_nodes):
        return Verdict("stop", f"crash loop: {how}, without a newer checkpoint than that of step {last.start_step}")
    stalls = sum(1 for _ in takewhile(lambda attempt: not attempt.progressed, reversed(attempts)))
    if stalls >= limits.stalls:
        why = f"{stalls} starts in a row brought no newer checkpoint than that of step {last.saved_step}"
        return Verdict("stop", f"crash loop: {how}; {why}")
    return Verdict("again", f"{how}; no newer checkpoint, try {stalls + 1} of {limits.stalls}", exclude)


def without_progress(attempts: list[Attempt], step: int, config: str) -> list[Attempt]:
    """The latest starts in a row from `step` with this config that left no newer checkpoint, newest first.

    A start that finished or that a user interrupted ends the row.
    """
    found: list[Attempt] = []
    for attempt in reversed(attempts):
        same = attempt.start_step == step and attempt.config == config
        if not same or attempt.reason in (FINISHED, INTERRUPTED):
            break
        found.append(attempt)
    return found


def refuse_crash_loop(attempts: list[Attempt], step: int, config: str, limit: int) -> None:
    """Raise `CrashLoopError` if `limit` starts in a row from `step` left no newer checkpoint. 0 refuses nothing."""
    failed = without_progress(attempts, step, config)
    if not limit or len(failed) < limit:
        return
    last = failed[0]
    raise CrashLoopError(
        f"{len(failed)} starts in a row from step {step} left no newer checkpoint, the last on {last.nodes[0]}: "
        f"{last.reason or NOT_REPORTED}. Fix the cause first. A changed config resets the count, and "
        "train.crash_loop_limit=0 disables this check."
    )


def bad_nodes(attempts: list[Attempt], limits: RestartLimits) -> tuple[str, ...]:
    """Nodes that have failed often enough to be excluded."""
    failures = Counter(node for attempt in attempts for node in attempt.failed_nodes)
    return tuple(sorted(node for node, count in failures.items() if count >= limits.node_failures))


def _how_it_ended(attempt: Attempt) -> str:
    if attempt.planned:
        how = "asked to stop"
    elif attempt.exit_code is None:
        how = f"{NOT_REPORTED} (a node failure, or a requeue from outside)"
    else:
        how = f"ended with exit code {attempt.exit_code}"
    if attempt.failed_nodes:
        how += f", node failed: {', '.join(attempt.failed_nodes)}"
    return f"{how} ({attempt.reason})" if attempt.reason else how
