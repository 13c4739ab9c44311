"""When a job is started again, and when it is not: decisions over a history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minigptv2.cluster.restart import (
    FINAL_ERRORS,
    HISTORY,
    Attempt,
    Limits,
    judge,
    newest_step,
    note_end,
    note_start,
    read_attempts,
)
from minigptv2.errors import ConfigError, ExitCode

LIMITS = Limits(restarts=5, stalls=3, node_failures=2)


def attempts(*ends: tuple[int | None, int, str]) -> list[Attempt]:
    """(exit code, step of the newest checkpoint at the end, failed node or empty) of starts one after the other."""
    made, step = [], 0
    for number, (code, end_step, node) in enumerate(ends):
        failed = (node,) if node else ()
        made.append(Attempt("7", number, ("n1", "n2"), 0.0, step, 1.0, end_step, code, False, failed))
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
        ([(None, 10, "n1")], "again", "ended without a word"),
        ([(None, 0, "")], "stop", "crash loop"),
        ([(ExitCode.REQUEUE, 0, "")] * 3, "stop", "3 starts in a row"),
        ([(2, 0, "")], "stop", "retrying would repeat the ConfigError"),
        ([(3, 40, "")], "stop", "retrying would repeat the DataError"),
        ([(4, 40, "")], "stop", "retrying would repeat the CheckpointError"),
        ([(ExitCode.REQUEUE, 10 * n, "") for n in range(1, 7)], "stop", "started again 5 times, the most allowed"),
        ([(ExitCode.REQUEUE, 10 * n, "") for n in range(1, 6)], "again", "steps 40 to 50"),
    ],
)
def test_a_job_goes_on_after_progress_and_stops_with_the_reason(
    ends: list[tuple[int | None, int, str]], action: str, words: str
) -> None:
    verdict = judge(attempts(*ends), LIMITS)
    assert verdict.action == action, verdict
    assert words in verdict.reason


def test_a_node_that_failed_twice_is_left_out_and_others_are_not() -> None:
    assert judge(attempts((137, 10, "n2"), (137, 20, "n1")), LIMITS).exclude == ()
    assert judge(attempts((137, 10, "n2"), (137, 20, "n1"), (None, 30, "n2")), LIMITS).exclude == ("n2",)


def test_every_final_code_has_its_errors_name() -> None:
    assert set(FINAL_ERRORS) == {int(code) for code in ExitCode if code.final}


def test_an_operators_mistake_is_never_tried_again_even_after_a_signal() -> None:
    last = replace(attempts((ConfigError.exit_code, 0, ""))[0], asked=True)
    assert judge([last], LIMITS).action == "stop"


def test_a_history_is_read_back_by_job_even_if_its_last_line_was_cut(tmp_path: Path) -> None:
    first, second = attempts((1, 20, "n1"), (0, 40, ""))
    note_start(tmp_path, replace(first, ended=None, code=None, end_step=0, failed_nodes=()))
    assert read_attempts(tmp_path, "7")[0].ended is None
    note_end(tmp_path, first)
    note_start(tmp_path, replace(second, job="8"))
    with open(tmp_path / HISTORY, "a") as stream:
        stream.write('{"event": "start", "jo')
    note_start(tmp_path, second)
    assert read_attempts(tmp_path, "7") == [first, second]
    assert [attempt.job for attempt in read_attempts(tmp_path, "8")] == ["8"]


def test_the_newest_step_is_that_of_the_newest_whole_folder(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("step-00000400", "step-00001200", ".step-00001600.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 1200
