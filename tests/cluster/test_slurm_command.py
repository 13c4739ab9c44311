"""`minigptv2 slurm end`: the verdict from the launcher's code, `failure.json` and the ranks' logs. Needs no Slurm."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.cluster.attempts import Attempt, slurm_journal
from minigptv2.cluster.failure import Failure, write_failure
from minigptv2.errors import ExitCode
from tests.conftest import REPOSITORY

LOST = Failure("7.0", "lost", "RankError", "silent for 9 s", int(ExitCode.RANK_LOST), 1, "node2", "step 12", 117)
RANK_LOG = "Traceback (most recent call last):\nValueError: first\nRuntimeError: the last error\nbye\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with one start of job 7 on two nodes."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("MINIGPTV2_START", "7.0")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    slurm_journal(tmp_path).append_start(Attempt("7", 0, time.time(), ("node1", "node2")))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-0.log").write_text(RANK_LOG)
    return tmp_path


def end(run: Path, code: int, *options: str) -> Attempt:
    config = REPOSITORY / "launch" / "configs" / "toy_stage1.yaml"
    words = ["slurm", "end", str(config), f"run_dir={run}", "--code", str(code), f"--rank-logs={run}/logs", *options]
    assert cli(words) == 0
    return slurm_journal(run).read()[-1]


def test_a_lost_rank_names_its_node_and_the_job_is_requeued(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_failure(run, LOST, rank=0)
    last = end(run, 6)
    assert last.failed_nodes == ("node2",) and last.reason == LOST.summary
    printed = capsys.readouterr()
    assert printed.out.split() == ["again"] and "node failed: node2 ([rank 1 (node2, pid 117)]" in printed.err


def test_the_node_that_srun_names_counts_first(run: Path) -> None:
    write_failure(run, LOST, rank=0)
    (run / "launcher.log").write_text("srun: error: node1: task 0: Killed\n")
    assert end(run, 137, f"--launcher-errors={run}/launcher.log").failed_nodes == ("node1",)


def test_an_exception_blames_no_node_and_stops_a_crash_loop(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_failure(run, replace(LOST, kind="error", error="ValueError", message="a bug", exit_code=1), rank=1)
    assert end(run, 1).failed_nodes == ()
    printed = capsys.readouterr()
    assert printed.out.split() == ["stop"] and "crash loop" in printed.err and "ValueError: a bug" in printed.err


@pytest.mark.parametrize("old", [True, False])
def test_without_a_report_of_this_start_the_last_error_line_counts(run: Path, old: bool) -> None:
    if old:
        write_failure(run, replace(LOST, start="6.0"), rank=0)
    last = end(run, 1)
    assert last.failed_nodes == () and last.reason == "rank-0.log: RuntimeError: the last error"


def test_a_job_that_was_asked_to_stop_blames_nobody(run: Path) -> None:
    write_failure(run, LOST, rank=0)
    last = end(run, 85, "--asked")
    assert last.failed_nodes == () and last.reason == "" and last.planned
