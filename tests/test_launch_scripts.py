"""Checks the batch scripts without a cluster: what they would submit, and that shell and shellcheck accept them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.cluster.rendezvous import EPHEMERAL, free_port
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


def over_pdsh(folder: Path, *commands: str, patience: int, deaf: bool = False) -> tuple[int, float, str]:
    """Run commands as `ssh` steps of one parent, as pdsh does, with a script for srun: code, seconds, stderr."""
    srun = folder / "srun"
    words = 'while [[ $1 == --* ]]; do shift; done\n"$@" & trap "kill $!" TERM; wait $!; wait $!\n'
    if deaf:  # ignores TERM. What it started does not keep this test's pipes open
        words = 'while [[ $1 == --* ]]; do shift; done\ntrap "" TERM\n"$@" >/dev/null 2>&1 & wait $!\n'
    srun.write_text(f"#!/bin/bash\n{words}")
    srun.chmod(0o755)
    ssh = REPOSITORY / "launch/slurm/srun_as_ssh/ssh"
    steps = " ".join(f"'{ssh}' -x -l somebody node{number} '{command}' &" for number, command in enumerate(commands))
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", f"{steps} code=0; for job in $(jobs -p); do wait $job || code=$?; done; exit $code"],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "MINIGPTV2_STOP_OTHERS_AFTER_S": str(patience)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, time.monotonic() - began, done.stderr


def test_a_node_that_fails_over_pdsh_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    """A rank that cannot listen ends at once. The others would wait for it until their rendezvous times out."""
    code, seconds, said = over_pdsh(tmp_path, "sleep 0.2; exit 3", "sleep 300", patience=2)
    assert code != 0 and 2 <= seconds < 20
    assert said.strip() == "node0: exit code 3, and other nodes ran on for 2 s: their steps are stopped"


def test_a_step_that_does_not_hear_is_left_behind(tmp_path: Path) -> None:
    """The job ends when pdsh has no step to wait for, and then Slurm ends what is left of this one."""
    code, seconds, _ = over_pdsh(tmp_path, "sleep 0.2; exit 3", "sleep 30", patience=2, deaf=True)
    assert code != 0 and 4 <= seconds < 20


@pytest.mark.parametrize(
    ("commands", "code"),
    [
        (("exit 3", "sleep 1; exit 6"), 6),  # the others have time to report what they saw
        (("exit 85", "sleep 4; exit 85"), 85),  # a requested stop may take any time
        (("true", "sleep 4"), 0),
        (("exit 3", "exit 3", "exit 3"), 3),
    ],
)
def test_nodes_that_end_by_themselves_are_left_to_it(tmp_path: Path, commands: tuple[str, ...], code: int) -> None:
    ended, seconds, said = over_pdsh(tmp_path, *commands, patience=3)
    assert (ended, said) == (code, "") and seconds < 12


def test_ranks_meet_at_a_port_that_no_outgoing_connection_is_given(tmp_path: Path) -> None:
    first_ephemeral = int(EPHEMERAL.read_text().split()[0])
    assert all(10_000 <= free_port() < first_ephemeral for _ in range(50))
    few = tmp_path / "range"
    few.write_text("10002\t60999\n")
    with socket.socket() as taken:
        taken.bind(("", 10_000))
        assert {free_port(few) for _ in range(20)} == {10_001}
    few.write_text("1024\t65535\n")  # no ports below: any that is free now
    assert free_port(few) > 1024


def test_the_batch_scripts_ask_for_such_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["slurm", "port"]) == 0
    assert int(capsys.readouterr().out) >= 10_000
    assert "MASTER_PORT=$(minigptv2 slurm port)" in (REPOSITORY / "launch/slurm/common.sh").read_text()
