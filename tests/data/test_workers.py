"""Loader processes: in order, and watched."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from minigptv2.data.workers import AHEAD, MAX_RESTARTS, WorkerPool
from minigptv2.errors import DataError


def once(folder: Path, name: str) -> bool:
    """True for the first caller among all processes."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_from_other_processes(workers: int) -> None:
    results = list(WorkerPool(lambda job: (job, os.getpid(), torch.full((2,), job)), range(0, 70, 10), workers, 60))
    assert [job for job, _, _ in results] == list(range(0, 70, 10))
    assert len({pid for _, pid, _ in results}) == workers and os.getpid() not in {pid for _, pid, _ in results}
    assert all(tensor.tolist() == [job, job] for job, _, tensor in results)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work(job: int) -> int:
        if job == 5 and once(tmp_path, "died"):
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    assert list(WorkerPool(work, range(12), 2, 60)) == list(range(12))
    assert "worker 1 died (SIGKILL), at position 5 of the plan; replaced" in capfd.readouterr().err


def test_a_silent_worker_is_replaced_after_its_stack_was_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stands_still(job: int) -> int:
        if job == 3 and once(tmp_path, "hung"):
            time.sleep(600)  # killed after a fraction of a second
        return job

    assert list(WorkerPool(stands_still, range(6), 2, 0.4)) == list(range(6))
    said = capfd.readouterr().err
    assert "returned nothing for 0 s" in said and "in stands_still" in said and "replaced" in said


def test_a_worker_that_always_dies_ends_the_run() -> None:
    with pytest.raises(DataError, match=rf"position 0 of the plan; failed {MAX_RESTARTS + 1} times"):
        list(WorkerPool(lambda job: os._exit(7), range(3), 1, 60))


def test_what_the_work_raises_is_raised_with_its_place() -> None:
    def work(job: int) -> int:
        raise DataError(f"bad job {job}")

    with pytest.raises(DataError, match="bad job 0") as caught:
        list(WorkerPool(work, range(3), 2, 60))
    assert "in a data worker" in caught.value.__notes__[0]


def test_workers_do_not_run_far_ahead_and_end_with_the_iteration(tmp_path: Path) -> None:
    def work(job: int) -> int:
        (tmp_path / f"{job}-{os.getpid()}").touch()  # all in the name: it may be killed before it writes
        return job

    results = iter(WorkerPool(work, range(100), 2, 60))
    assert next(results) == 0 and next(results) == 1
    results.close()  # type: ignore[attr-defined]
    done = list(tmp_path.iterdir())
    assert len(done) <= 2 + 2 * AHEAD
    for pid in {int(file.name.partition("-")[2]) for file in done}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
