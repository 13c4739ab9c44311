"""A real Slurm of three nodes on this machine for the session, and a tiny stage to run on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigptv2.tracking.log import read_metrics
from tests.conftest import REPOSITORY, World

SCRIPT = REPOSITORY / "tests" / "slurm" / "cluster.sh"
NODES = 3
RECIPE = """
corpora:
  toy_refer: {ratio: 2, task: refer}
  toy_conversation: {ratio: 1, task: mixed}
  toy_language: {ratio: 1, task: language}
"""


class Cluster:
    """Commands of a cluster made by `cluster.sh`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))},
            "MINIGPTV2_HOME": str(REPOSITORY),
            "MINIGPTV2_PYTHON": sys.executable,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }

    def control(self, action: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPT), str(self.folder), action, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)

    def run(self, *words: object, check: bool = True, **variables: str) -> str:
        """Run a command in the sandbox. Returns its output."""
        command = ["bash", str(SCRIPT), str(self.folder), "run", *map(str, words)]
        environment = self.environment | variables
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """The controller's description of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", "--oneliner", number)))

    def wait(self, number: str, *states: str, timeout_s: float = 240) -> dict[str, str]:
        """Wait until the job stays in one of the states. Returns its description."""
        wait_for(lambda: self.job(number)["JobState"] in states, f"job {number} to be {states}", timeout_s)
        return self.job(number)


class Stage:
    """A tiny stage: its config, and jobs that train it."""

    def __init__(self, cluster: Cluster, folder: Path, config: Path) -> None:
        self.cluster, self.folder, self.config = cluster, folder, config

    def run_dir(self, name: str) -> Path:
        return self.folder / name

    def log(self, name: str) -> str:
        """The log of the job."""
        file = self.folder / f"{name}.log"
        return file.read_text() if file.is_file() else ""

    def submit(self, name: str, *words: str, nodes: int = 2, options: tuple[str, ...] = (), **variables: str) -> str:
        """Submit a job that trains into the run folder `name`. Returns its number."""
        return self.cluster.run(
            "sbatch",
            "--parsable",
            f"--nodes={nodes}",
            "--gpus-per-node=0",
            "--ntasks-per-node=1",
            "--cpus-per-task=1",
            f"--output={self.folder}/{name}.log",
            *options,
            "launch/slurm/stage1.sbatch",
            f"run_dir={self.run_dir(name)}",
            *words,
            CONFIG=str(self.config),
            **variables,
        ).strip()

    def wait_for_step(self, name: str, step: int) -> None:
        """Wait until the run has logged the step."""
        self.wait_until(name, lambda: self.steps(name)[-1:] >= [step], f"step {step}")

    def wait_for_checkpoint(self, name: str, step: int) -> None:
        """Wait until the run has saved the step."""
        folder = self.run_dir(name) / "checkpoints" / f"step-{step:08d}"
        self.wait_until(name, folder.is_dir, f"checkpoint {step}")

    def wait_until(self, name: str, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, f"{what} of {name}", 180, said=lambda: self.log(name))

    def steps(self, name: str) -> list[int]:
        return [row["step"] for row in read_metrics(self.run_dir(name))]

    def losses(self, name: str) -> list[Any]:
        """Loss by task of each step. Equal for the same samples in the same order."""
        return [row["task_loss"] for row in read_metrics(self.run_dir(name))]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float, said: Callable[[], str] = str) -> None:
    """Wait until the condition holds. `said` returns the log for the message of a timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}: {said()}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    made = Cluster(folder)
    started = made.control("start", NODES)
    if started.returncode:
        made.control("stop")
        pytest.skip(f"cannot start a Slurm cluster here: {started.stderr.strip()[-300:]}")
    yield made
    made.control("stop")
    assert not folder.exists()


@pytest.fixture(scope="session")
def stage(cluster: Cluster, world: World, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("stage")
    config = world.write_stage(
        folder,
        RECIPE,
        steps=60,
        warmup_steps=2,
        checkpoint_every=10,
        log_every=1,
        deepspeed="deepspeed_configs/zero3_cpu.json",
    )
    return Stage(cluster, folder, config)


@pytest.fixture(scope="session")
def unbroken(stage: Stage) -> Path:
    """Run folder of an uninterrupted run on two nodes under ZeRO-3."""
    number = stage.submit("unbroken")
    job = stage.cluster.wait(number, "COMPLETED", "FAILED")
    assert job["JobState"] == "COMPLETED", stage.log("unbroken")
    assert stage.steps("unbroken") == list(range(1, 61))
    return stage.run_dir("unbroken")
