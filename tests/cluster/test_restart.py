"""The restart policy and the journals it reads: when a job is restarted, and when it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minigptv2.cluster.attempts import Attempt, newest_step, run_journal, slurm_journal
from minigptv2.cluster.restart import FINAL_ERRORS, RestartLimits, judge
from minigptv2.errors import ConfigError, ExitCode
from minigptv2.run_folder import RunFolder

LIMITS = RestartLimits(restarts=5, stalls=3, node_failures=2)


def attempts(*ends: tuple[int | None, int, str]) -> list[Attempt]:
    """(exit code, step of the newest checkpoint at the end, failed node or empty) of consecutive starts."""
    made, step = [], 0
    for number, (code, end_step, node) in enumerate(ends):
        failed = (node,) if node else ()
        made.append(
            Attempt(
                "7",
                step,
                0.0,
                ("n1", "n2"),
                number,
                ended_at=1.0,
                saved_step=end_step,
                exit_code=code,
                failed_nodes=failed,
            )
        )
        step = end_step
    return made


@pytest.mark.parametrize(
    ("ends", "action", "words"),
    [
        ([(0, 60, "")], "done", "finished at step 60"),
        ([(ExitCode.REQUEUE, 20, "")], "again", "asked to stop; steps 0 to 20 are saved"),
        ([(1, 20, "")], "again", "ended with exit code 1; steps 0 to 20"),
        ([(1, 0, "")], "stop", "crash loop: ended with exit code 1, without a newer checkpoint"),
        ([(1, 20, ""), (1, 20, "")], "stop", "crash loop"),
        ([(1, 20, ""), (1, 30, ""), (1, 30, "")], "stop", "than that of step 30"),
        ([(137, 0, "n2")], "again", "node failed: n2"),
        ([(137, 0, "n2")] * 2, "again", "try 3 of 3"),
        ([(137, 0, "n2")] * 3, "stop", "3 starts in a row brought no newer checkpoint"),
        ([(None, 10, "n1")], "again", "ended with no error reported"),
        ([(None, 0, "")], "stop", "crash loop"),
        ([(ExitCode.REQUEUE, 0, "")] * 3, "stop", "3 starts in a row"),
        ([(2, 0, "")], "stop", "retrying would repeat the ConfigError"),
        ([(3, 40, "")], "stop", "retrying would repeat the DataError"),
        ([(4, 40, "")], "stop", "retrying would repeat the CheckpointError"),
        ([(ExitCode.REQUEUE, 10 * n, "") for n in range(1, 7)], "stop", "restarted 5 times, the most allowed"),
        ([(ExitCode.REQUEUE, 10 * n, "") for n in range(1, 6)], "again", "steps 40 to 50"),
    ],
)
def test_a_job_restarts_after_progress_and_stops_with_the_reason(
    ends: list[tuple[int | None, int, str]], action: str, words: str
) -> None:
    verdict = judge(attempts(*ends), LIMITS)
    assert verdict.action == action, verdict
    assert words in verdict.reason


def test_a_start_that_progressed_is_not_counted_as_a_stall_though_its_checkpoint_is_gone() -> None:
    progressed, failed = attempts((1, 20, ""))[0], attempts((137, 0, "n2"))[0]
    assert "try 2 of 3" in judge([progressed, replace(failed, restart=1)], LIMITS).reason


def test_a_node_that_failed_twice_is_excluded_and_others_are_not() -> None:
    assert judge(attempts((137, 10, "n2"), (137, 20, "n1")), LIMITS).exclude == ()
    assert judge(attempts((137, 10, "n2"), (137, 20, "n1"), (None, 30, "n2")), LIMITS).exclude == ("n2",)


def test_every_final_code_has_its_errors_name() -> None:
    assert set(FINAL_ERRORS) == {int(code) for code in ExitCode if code.final}


def test_a_config_error_is_never_retried_even_after_a_signal() -> None:
    last = replace(attempts((ConfigError.exit_code, 0, ""))[0], asked=True)
    assert judge([last], LIMITS).action == "stop"


def test_a_history_is_read_back_by_job_even_if_its_last_line_was_cut(tmp_path: Path) -> None:
    journal = slurm_journal(tmp_path)
    first, second = attempts((1, 20, "n1"), (0, 40, ""))
    journal.append_start(replace(first, ended_at=None, exit_code=None, saved_step=0, failed_nodes=()))
    assert journal.read()[0].ended_at is None
    other = replace(second, job="8")
    journal.append_start(other)
    journal.append_end(first)
    with open(RunFolder(tmp_path).slurm_history, "a") as stream:
        stream.write('{"event": "start", "jo')
    journal.append_start(second)
    assert journal.read() == [first, other, second]


def test_both_journals_keep_the_keys_that_version_0_1_wrote(tmp_path: Path) -> None:
    slurm = (
        '{"event": "end", "job": "7", "restart": 1, "nodes": ["n1"], "began": 5.0, "start_step": 10, "ended": 9.0, '
        '"end_step": 20, "code": 6, "asked": false, "failed_nodes": ["n1"], "reason": "x"}'
    )
    lines = (
        '{"event": "start", "step": 10, "time": 5.0, "host": "n1", "job": "7_1", "config": "ab"}',
        '{"event": "end", "ended": "RankError: x", "exit_code": 6, "saved_step": 20}',
    )
    (tmp_path / "slurm").mkdir()
    (RunFolder(tmp_path).slurm_history).write_text(slurm + "\n")
    (tmp_path / "attempts.jsonl").write_text("\n".join(lines) + "\n")
    (from_slurm,), (from_run,) = slurm_journal(tmp_path).read(), run_journal(tmp_path).read()
    assert from_slurm == Attempt(
        "7", 10, 5.0, ("n1",), 1, ended_at=9.0, saved_step=20, exit_code=6, failed_nodes=("n1",), reason="x"
    )
    assert from_run == Attempt("7_1", 10, 5.0, ("n1",), config="ab", saved_step=20, exit_code=6, reason="RankError: x")
    again = tmp_path / "again"
    slurm_journal(again).append_end(from_slurm)
    run_journal(again).append_start(from_run)
    run_journal(again).append_end(from_run)
    assert json.loads((RunFolder(again).slurm_history).read_text()) == json.loads(slurm)
    assert [json.loads(line) for line in (again / "attempts.jsonl").read_text().splitlines()] == [
        json.loads(line) for line in lines
    ]


def test_the_newest_step_is_that_of_the_newest_complete_folder(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("step-00000400", "step-00001200", ".step-00001600.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 1200
