"""`slurm begin`, `port` and `end`: the steps of `launch/slurm/common.sh` before and after a job's work.

Each prints one line to stdout for the script, and the reason to stderr for users.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import Parser, add_overrides

if TYPE_CHECKING:
    from minigptv2.cluster.attempts import Attempt, Journal
    from minigptv2.cluster.restart import RestartLimits
    from minigptv2.run_config import RunConfig

_VISIBLE_S = 30.0
"""How long a file that another node wrote may take to become visible here."""


def add_arguments(parser: Parser) -> None:
    """Add the commands of `slurm`."""
    steps = parser.add_commands()
    begin = steps.add_parser("begin", help="record a job's start; prints go LOGS, done, stop, or move NODES")
    end = steps.add_parser("end", help="record a job's end; prints done, stop, or again [NODES to exclude]")
    for command in (begin, end):
        command.add_argument("config", metavar="FILE", help="YAML file of the run")
        add_overrides(command)
    end.add_argument("--code", type=int, required=True, help="exit code of the launcher")
    end.add_argument("--asked", action="store_true", help="a signal has asked the job to stop")
    end.add_argument("--launcher-errors", metavar="FILE", help="file with the stderr of srun")
    end.add_argument("--rank-logs", metavar="DIR", help="folder with the logs of the ranks")
    port = steps.add_parser("port", help="print a free port of this node for the rendezvous of the ranks")
    port.set_defaults(run=_port)
    begin.set_defaults(run=_begin)
    end.set_defaults(run=_end)


def _begin(args: argparse.Namespace) -> int:
    from minigptv2.cluster.attempts import Attempt, newest_step, slurm_journal
    from minigptv2.cluster.rendezvous import expand_hosts
    from minigptv2.cluster.restart import bad_nodes, judge
    from minigptv2.cluster.slurm import nodes_that_failed
    from minigptv2.run_folder import RunFolder

    config, limits = _config(args), _limits()
    run, job = Path(config.run_dir), os.environ["SLURM_JOB_ID"]
    journal = slurm_journal(run)
    attempts = _attempts_of(journal, job)
    if attempts and attempts[-1].ended_at is None:
        last = attempts[-1]
        failed = nodes_that_failed(_describe(last.nodes), last.began)
        attempts[-1] = _record_end(journal, last, saved_step=newest_step(run), failed_nodes=tuple(failed))
    nodes = tuple(expand_hosts(os.environ["SLURM_JOB_NODELIST"]))
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    here = Attempt(job, newest_step(run), time.time(), nodes, restart, saved_step=0)
    if attempts:
        verdict = judge(attempts, limits)
        _say(verdict.reason)
        if verdict.action != "again":
            print(verdict.action)
            return 0
    bad = bad_nodes(attempts, limits)
    excluded = [node for node in bad if node in nodes]
    if excluded:
        _say(f"{', '.join(excluded)} failed {limits.node_failures} times: this job is requeued without it")
        print("move", ",".join(bad))
        return 0
    journal.append_start(here)
    _say(f"start {here.restart} of job {job} at step {here.start_step} on {', '.join(nodes)}")
    logs = RunFolder(run).slurm_logs(job, restart)
    logs.mkdir(parents=True, exist_ok=True)
    print("go", logs)
    return 0


def _port(args: argparse.Namespace) -> int:
    from minigptv2.cluster.rendezvous import free_port

    print(free_port())
    return 0


def _end(args: argparse.Namespace) -> int:
    from minigptv2.cluster.attempts import newest_step, slurm_journal
    from minigptv2.cluster.failure import read_failure, start_id
    from minigptv2.cluster.restart import judge
    from minigptv2.cluster.slurm import nodes_blamed_by_srun, nodes_lost_by_srun
    from minigptv2.errors import OTHER_ERROR, ConfigError

    config = _config(args)
    run, job = Path(config.run_dir), os.environ["SLURM_JOB_ID"]
    journal = slurm_journal(run)
    attempts = _attempts_of(journal, job)
    if not attempts:
        raise ConfigError(f"{run}: no start of job {job} is recorded; run `slurm begin` first")
    last, code = attempts[-1], args.code
    if code == 0 and not _finished(config):
        code = OTHER_ERROR
        _say(f"the launcher returned 0, but step {config.train.steps} is not saved and exported: a node may have died")
    messages = Path(args.launcher_errors).read_text(errors="backslashreplace") if args.launcher_errors else ""
    # Slurm also terminates a job whose node failed. That is no request to stop.
    asked = args.asked and not nodes_lost_by_srun(messages)
    reason, failed = "", []
    if code != 0 and not asked:
        failure = read_failure(run, start_id(os.environ))
        if failure is not None:
            reason = failure.summary
        elif args.rank_logs:
            reason = _last_error(Path(args.rank_logs))
        failed = nodes_blamed_by_srun(messages) or (failure.node_of(last.nodes) if failure else [])
    attempts[-1] = _record_end(
        journal,
        last,
        saved_step=newest_step(run),
        exit_code=code,
        asked=asked,
        failed_nodes=tuple(failed),
        reason=reason,
    )
    verdict = judge(attempts, _limits())
    _say(verdict.reason)
    print(verdict.action, ",".join(verdict.exclude))
    return 0


def _attempts_of(journal: Journal, job: str) -> list[Attempt]:
    """The starts of one job, oldest first."""
    return sorted((attempt for attempt in journal.read() if attempt.job == job), key=lambda attempt: attempt.restart)


def _config(args: argparse.Namespace) -> RunConfig:
    from minigptv2.run_config import load_run_config

    return load_run_config(args.config, args.overrides).value


def _limits() -> RestartLimits:
    from minigptv2.cluster.restart import RestartLimits

    known = RestartLimits()
    return RestartLimits(
        restarts=int(os.environ.get("MINIGPTV2_MAX_RESTARTS", known.restarts)),
        stalls=int(os.environ.get("MINIGPTV2_MAX_STALLS", known.stalls)),
        node_failures=int(os.environ.get("MINIGPTV2_NODE_FAILURES", known.node_failures)),
    )


def _record_end(journal: Journal, attempt: Attempt, **end: Any) -> Attempt:
    """Record how an attempt ended: fields of `Attempt`. Returns it with them and the time."""
    from dataclasses import replace

    ended = replace(attempt, ended_at=time.time(), **end)
    journal.append_end(ended)
    return ended


def _describe(nodes: tuple[str, ...]) -> str:
    """The controller's description of the nodes. It knows which are down and when each daemon started."""
    command = ["scontrol", "show", "node", "--oneliner", ",".join(nodes)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout


def _finished(config: RunConfig) -> bool:
    """Whether the last step is saved and exported. What another node wrote may become visible late."""
    from minigptv2.cluster.attempts import newest_step
    from minigptv2.run_folder import RunFolder

    run = Path(config.run_dir)
    deadline = time.monotonic() + _VISIBLE_S
    while not (done := RunFolder(run).export.is_dir() and newest_step(run) >= config.train.steps):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return done


def _last_error(logs: Path) -> str:
    """The last error line of the rank's log that ended first: the cause when no rank wrote `failure.json`."""
    import re

    error = re.compile(r"^(?:\[rank \d+(?: \(.*\))?\] )?[\w.]*(?:Error|Exception|Interrupt)\b.*")
    files = (file for file in logs.rglob("*.log") if file.name != "launcher.log")
    for file in sorted(files, key=lambda path: path.stat().st_mtime):
        lines = [line for line in file.read_text(errors="backslashreplace").splitlines() if error.match(line)]
        if lines:
            return f"{file.relative_to(logs)}: {lines[-1][:300]}"
    return ""


def _say(text: str) -> None:
    print(f"slurm: {text}", file=sys.stderr)
