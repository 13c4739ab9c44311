"""The batch scripts without a cluster: what would be submitted, and that the shell has nothing to object to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted(
    path
    for pattern in ("launch/slurm/*.sh", "launch/slurm/*.sbatch", "launch/slurm/srun_as_ssh/ssh", "tests/slurm/*.sh")
    for path in REPOSITORY.glob(pattern)
)


def dry_run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    environment |= {"DRY_RUN": "1", "MINIGPTV2_PYTHON": sys.executable} | variables
    command = [str(REPOSITORY / "launch/slurm/submit_stages.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_dry_run_prints_three_jobs_each_waiting_for_the_one_before() -> None:
    done = dry_run("train.micro_batch_size=1", NODES="2", GPUS="4", SBATCH_OPTIONS="--account=lab --partition=gpu")
    assert done.returncode == 0, done.stderr
    jobs = done.stdout.splitlines()
    assert [job.split()[0] for job in jobs] == [
        f"CONFIG=launch/configs/stage{name}.yaml" for name in ("1_pretrain", "2_multitask", "3_instruct")
    ]
    for job in jobs:
        for word in ("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--account=lab", "--partition=gpu"):
            assert f"'{word}'" in job
        assert job.endswith("'train.micro_batch_size=1'")
    waits = [[word for word in job.split() if "--dependency" in word] for job in jobs]
    assert waits == [[], ["'--dependency=afterok:JOB-OF-stage-1'"], ["'--dependency=afterok:JOB-OF-stage-2'"]]


def test_the_toy_stages_wait_for_their_data_and_ask_for_no_gpu() -> None:
    done = dry_run(TOY="1", NODES="2", OMP_NUM_THREADS="1", UNRELATED_SECRET="abc")
    jobs = done.stdout.splitlines()
    assert len(jobs) == 4, done.stderr
    assert "toy_data.sbatch" in jobs[0] and "'--dependency=afterok:JOB-OF-toy-data'" in jobs[1]
    assert all("'--gpus-per-node=0'" in job for job in jobs[1:])
    assert "OMP_NUM_THREADS" in done.stdout and "UNRELATED_SECRET" not in done.stdout


def test_a_config_that_cannot_work_is_refused_before_anything_is_queued() -> None:
    done = dry_run(NODES="2", GPUS="8")
    assert done.returncode == 2 and done.stdout == ""
    assert "ConfigError: train.global_batch_size=96 is not a multiple of" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_valid_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (apt-get install shellcheck)")
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_stage_asks_for_a_warning_a_requeue_and_a_log_that_goes_on() -> None:
    for number in (1, 2, 3):
        text = (REPOSITORY / f"launch/slurm/stage{number}.sbatch").read_text()
        for option in ("--signal=B:USR1@", "--requeue", "--open-mode=append"):
            assert f"#SBATCH {option}" in text
