"""`slurm begin`, `port` and `end`: what `launch/slurm/common.sh` asks before and after a job's work.

One line to stdout for the script, the reason to stderr for people.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.cli.arguments import Parser, add_overrides

if TYPE_CHECKING:
    from minigptv2.cluster.restart import Attempt, Limits
    from minigptv2.run_config import RunConfig

_VISIBLE_S = 30.0
"""How long a file that another node wrote may take to be seen here."""


def add_arguments(parser: Parser) -> None:
    """Add the commands of `slurm`."""
    steps = parser.add_commands()
    begin = steps.add_parser("begin", help="note a job's start on its run; prints go LOGS, done, stop, or move NODES")
    end = steps.add_parser("end", help="note its end; prints done, stop, or again [NODES to leave out]")
    for command in (begin, end):
        command.add_argument("config", help="the run's YAML")
        add_overrides(command)
    end.add_argument("--code", type=int, required=True, help="the launcher's exit code")
    end.add_argument("--asked", action="store_true", help="a signal asked the job to stop")
    end.add_argument("--launcher-errors", help="what srun wrote to stderr")
    end.add_argument("--rank-logs", help="folder of the ranks' logs")
    port = steps.add_parser("port", help="prints a port of this node at which the ranks can meet")
    port.set_defaults(run=_port)
    begin.set_defaults(run=_begin)
    end.set_defaults(run=_end)


def _begin(args: argparse.Namespace) -> int:
    from minigptv2.cluster.restart import Attempt, bad_nodes, judge, newest_step, note_end, note_start, read_attempts
    from minigptv2.cluster.slurm import expand_hosts, nodes_that_failed

    config, limits = _config(args), _limits()
    run, job = Path(config.run_dir), os.environ["SLURM_JOB_ID"]
    attempts = read_attempts(run, job)
    if attempts and attempts[-1].ended is None:
        last = attempts[-1]
        failed = nodes_that_failed(_describe(last.nodes), last.began)
        attempts[-1] = note_end(run, _ended(last, newest_step(run), code=None, failed=failed))
    nodes = tuple(expand_hosts(os.environ["SLURM_JOB_NODELIST"]))
    here = Attempt(job, int(os.environ.get("SLURM_RESTART_COUNT", "0")), nodes, time.time(), newest_step(run))
    if attempts:
        verdict = judge(attempts, limits)
        _say(verdict.reason)
        if verdict.action != "again":
            print(verdict.action)
            return 0
    leave_out = [node for node in bad_nodes(attempts, limits) if node in nodes]
    if leave_out:
        _say(f"{', '.join(leave_out)} failed {limits.node_failures} times: this job is queued again without it")
        print("move", ",".join(bad_nodes(attempts, limits)))
        return 0
    note_start(run, here)
    _say(f"start {here.restart} of job {job} at step {here.start_step} on {', '.join(nodes)}")
    logs = run / "slurm" / f"{job}.{here.restart}"
    logs.mkdir(parents=True, exist_ok=True)
    print("go", logs)
    return 0


def _port(args: argparse.Namespace) -> int:
    from minigptv2.cluster.rendezvous import free_port

    print(free_port())
    return 0


def _end(args: argparse.Namespace) -> int:
    from minigptv2.cluster.restart import judge, newest_step, note_end, read_attempts
    from minigptv2.cluster.slurm import nodes_blamed_by_ranks, nodes_blamed_by_srun, nodes_lost_by_srun
    from minigptv2.errors import ConfigError

    config = _config(args)
    run = Path(config.run_dir)
    attempts = read_attempts(run, os.environ["SLURM_JOB_ID"])
    if not attempts:
        raise ConfigError(f"{run}: no start of job {os.environ['SLURM_JOB_ID']} is noted; run `slurm begin` first")
    code = args.code
    if code == 0 and not _finished(config):
        code = 1
        _say(f"the launcher returned 0, but step {config.train.steps} is not saved and exported: a node may have died")
    messages = Path(args.launcher_errors).read_text(errors="replace") if args.launcher_errors else ""
    # Slurm terminates a job whose node failed, too: that is not somebody's wish
    asked = args.asked and not nodes_lost_by_srun(messages)
    reason = "" if asked or code == 0 or not args.rank_logs else _cause(Path(args.rank_logs))
    failed = [] if asked or code == 0 else nodes_blamed_by_srun(messages) or nodes_blamed_by_ranks(reason)
    last = _ended(attempts[-1], newest_step(run), code=code, failed=failed, asked=asked, reason=reason)
    attempts[-1] = note_end(run, last)
    verdict = judge(attempts, _limits())
    _say(verdict.reason)
    print(verdict.action, ",".join(verdict.exclude))
    return 0


def _config(args: argparse.Namespace) -> RunConfig:
    from minigptv2.run_config import load_run_config

    return load_run_config(args.config, args.overrides).value


def _limits() -> Limits:
    from minigptv2.cluster.restart import Limits

    known = Limits()
    return Limits(
        restarts=int(os.environ.get("MINIGPTV2_MAX_RESTARTS", known.restarts)),
        stalls=int(os.environ.get("MINIGPTV2_MAX_STALLS", known.stalls)),
        node_failures=int(os.environ.get("MINIGPTV2_NODE_FAILURES", known.node_failures)),
    )


def _ended(
    attempt: Attempt, step: int, *, code: int | None, failed: list[str], asked: bool = False, reason: str = ""
) -> Attempt:
    from dataclasses import replace

    return replace(attempt, end_step=step, code=code, failed_nodes=tuple(failed), asked=asked, reason=reason)


def _describe(nodes: tuple[str, ...]) -> str:
    """What the controller says of the nodes; it knows which are down and when a daemon was started anew."""
    command = ["scontrol", "show", "node", "--oneliner", ",".join(nodes)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout


def _finished(config: RunConfig) -> bool:
    """Whether the run's last step is saved and exported. Another node may have written it, so it may be seen late."""
    from minigptv2.cluster.restart import newest_step
    from minigptv2.run_folder import RunFolder

    run = Path(config.run_dir)
    deadline = time.monotonic() + _VISIBLE_S
    while not (done := RunFolder(run).export.is_dir() and newest_step(run) >= config.train.steps):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return done


def _cause(logs: Path) -> str:
    """The error line of the ranks' logs that came first: the watchdog's if there is one, it names the first cause;
    else that of the log that ended first."""
    import re

    named = re.compile(r"^\[rank \d+ \(.*\)\] .*")
    error = re.compile(r"^(?:\[rank \d+\] )?[\w.]*(?:Error|Exception|Interrupt)\b.*")
    files = sorted(
        (file for file in logs.rglob("*.log") if file.name != "launcher.log"), key=lambda path: path.stat().st_mtime
    )
    for pattern in (named, error):
        for file in files:
            lines = [line for line in file.read_text(errors="replace").splitlines() if pattern.match(line)]
            if lines:
                return f"{file.relative_to(logs)}: {lines[-1][:300]}"
    return ""


def _say(text: str) -> None:
    print(f"slurm: {text}", file=sys.stderr)
