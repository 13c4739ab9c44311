"""Training on a real Slurm of three nodes: interrupted runs end with the same weights as uninterrupted ones."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigptv2.tracking.log import read_metrics
from tests.conftest import REPOSITORY
from tests.slurm.conftest import Stage, wait_for

pytestmark = pytest.mark.slurm


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "weights.safetensors")


def assert_equal_to_unbroken(stage: Stage, name: str, unbroken: Path) -> None:
    """Equal weights bit for bit, equal losses, and each step once in metrics.jsonl and in TensorBoard."""
    ours, theirs = weights(stage.run_dir(name)), weights(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [row["loss"] for row in read_metrics(stage.run_dir(name))] == [row["loss"] for row in read_metrics(unbroken)]
    assert stage.steps(name) == list(range(1, 61))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(stage.run_dir(name) / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 61))


def test_a_run_writes_a_log_per_rank_and_one_for_the_run(stage: Stage, unbroken: Path) -> None:
    logs = sorted((unbroken / "slurm").glob("*.0/rank-*.log"))
    assert [log.name for log in logs] == ["rank-0.log", "rank-1.log"]
    assert "step 60" in logs[0].read_text()
    text = stage.log("unbroken")
    assert "start 0" in text and "on node1, node2" in text and "finished at step 60" in text
    assert "ZeRO stage 3 on 2 process(es)" in (unbroken / "log.txt").read_text()


def test_the_warning_before_the_time_limit_saves_and_requeues(stage: Stage, unbroken: Path) -> None:
    cache = stage.cluster.folder / "local" / "shards"  # on each node another folder
    number = stage.submit("warned", MINIGPTV2_CACHE=str(cache), MINIGPTV2_CACHE_GIB="0.01")
    stage.wait_for_step("warned", 5)
    stage.cluster.run("scancel", "--batch", "--signal=USR1", number)  # what --signal=B:USR1@600 sends
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    text = stage.log("warned")
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1", text
    assert "asked to stop; steps 0 to" in text and "start 1" in text
    assert_equal_to_unbroken(stage, "warned", unbroken)
    assert not cache.exists()
    for node in ("node1", "node2"):
        assert "toy_refer" in stage.cluster.run("srun", "--nodes=1", f"--nodelist={node}", "ls", cache)


def test_a_run_survives_a_node_that_loses_power(stage: Stage, unbroken: Path) -> None:
    number = stage.submit("powercut")
    stage.wait_for_checkpoint("powercut", 10)
    assert stage.cluster.job(number)["NodeList"] == "node[1-2]"
    stage.cluster.control("kill-node", 2)
    wait_for(lambda: stage.cluster.job(number)["JobState"] != "RUNNING", "the job to end", 120)
    stage.cluster.control("start-node", 2)
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    text = stage.log("powercut")
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1, text
    assert "node failed: node2" in text
    assert_equal_to_unbroken(stage, "powercut", unbroken)


@pytest.mark.slow
def test_a_cut_network_ends_the_job_with_the_nodes_name(stage: Stage, unbroken: Path) -> None:
    number = stage.submit("cut", options=("--nodelist=node1,node2",))
    stage.wait_for_checkpoint("cut", 10)
    stage.cluster.control("cut-node", 2)
    try:
        wait_for(lambda: "RankError" in ranks_said(stage, "cut"), "the ranks to notice", 60)
        wait_for(lambda: stage.cluster.job(number)["JobState"] != "RUNNING", "the job to end", 60)
    finally:
        stage.cluster.control("heal-node", 2)
    said = ranks_said(stage, "cut")
    assert "[rank 1 (node2, pid" in said and "silent for" in said
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    text = stage.log("cut")
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1, text
    assert "node failed: node2" in text
    assert_equal_to_unbroken(stage, "cut", unbroken)


def ranks_said(stage: Stage, name: str) -> str:
    return "".join(log.read_text() for log in sorted((stage.run_dir(name) / "slurm").glob("*.0/rank-*.log")))


def test_a_cancelled_job_leaves_no_process_and_resumes_elsewhere_in_the_same_order(
    stage: Stage, unbroken: Path
) -> None:
    number = stage.submit("cancelled")
    stage.wait_for_step("cancelled", 5)
    stage.cluster.run("scancel", number)
    stage.cluster.wait(number, "CANCELLED")
    wait_for(lambda: stage.cluster.run("squeue", "--noheader") == "", "the job to be gone", 60)
    assert stage.cluster.run("pgrep", "-f", "launch/train.py", check=False) == ""
    assert "start 1" not in stage.log("cancelled")
    saved = stage.steps("cancelled")[-1]
    assert saved < 60
    # on one node instead of two: the same samples in the same order give each step the same loss by task
    number = stage.submit("cancelled", nodes=1)
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    assert job["JobState"] == "COMPLETED", stage.log("cancelled")
    log = (stage.run_dir("cancelled") / "log.txt").read_text()
    assert f"at step {saved} of 60" in log and "ZeRO stage 3 on 1 process(es)" in log
    ours, theirs = stage.losses("cancelled"), stage.losses("unbroken")
    assert len(ours) == 60
    for mine, whole in zip(ours, theirs, strict=True):
        assert mine.keys() == whole.keys()
        assert all(mine[task] == pytest.approx(whole[task], rel=1e-3) for task in whole)


def faulty_python(folder: Path, step: int) -> str:
    """A Python wrapper whose launch/train.py raises at a step."""
    file = folder / "faulty_python"
    file.write_text(f"""#!{sys.executable}
import os, runpy, sys
sys.path[:0] = [{str(REPOSITORY)!r}]
if sys.argv[1] != "launch/train.py":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
from minigptv2.engine.trainer import Trainer
step_as_it_is = Trainer.train_step
def fail(self, batches):
    if self.step == {step}:
        raise RuntimeError("the bug of step {step}")
    return step_as_it_is(self, batches)
Trainer.train_step = fail
sys.argv = sys.argv[1:]
runpy.run_path("launch/train.py", run_name="__main__")
""")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_a_crash_loop_stops_after_its_limit_with_the_reason(stage: Stage, tmp_path: Path) -> None:
    number = stage.submit("crashing", MINIGPTV2_PYTHON=faulty_python(tmp_path, 15))
    job = stage.cluster.wait(number, "FAILED", "COMPLETED")
    text = stage.log("crashing")
    assert job["JobState"] == "FAILED" and job["Restarts"] == "1", text
    assert "again" in text.split("start 1")[0] and "steps 0 to 10 are saved" in text
    assert "crash loop: ended with exit code" in text.split("start 1")[1]
    assert "without a newer checkpoint than that of step 10" in text and "the bug of step 15" in text


@pytest.mark.slow
def test_a_node_that_fails_twice_is_excluded(stage: Stage, unbroken: Path) -> None:
    number = stage.submit("badnode")
    for start, step in enumerate((10, 20)):
        stage.wait_for_checkpoint("badnode", step)
        wait_for(lambda: f"start {start}" in stage.log("badnode"), f"start {start}", 60)  # noqa: B023
        assert stage.cluster.job(number)["NodeList"] == "node[1-2]"
        rank = stage.cluster.run(
            "srun",
            "--overlap",
            "--jobid",
            number,
            "--nodelist=node2",
            "--nodes=1",
            "--ntasks=1",
            "pgrep",
            "-f",
            "launch/train.py",
        ).split()
        stage.cluster.run(
            "srun",
            "--overlap",
            "--jobid",
            number,
            "--nodelist=node2",
            "--nodes=1",
            "--ntasks=1",
            "kill",
            "-KILL",
            *rank,
            check=False,
        )
        wait_for(lambda: stage.cluster.job(number)["JobState"] != "RUNNING", "the job to end", 60)
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    text = stage.log("badnode")
    assert job["JobState"] == "COMPLETED" and job["ExcNodeList"] == "node2" and job["NodeList"] == "node[1,3]", text
    assert "excluded from now on: node2" in text and "start 2" in text
    assert_equal_to_unbroken(stage, "badnode", unbroken)
