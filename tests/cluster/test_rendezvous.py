"""Ranks of plain `srun`: node lists, the rank environment and the GPU of a rank."""

from __future__ import annotations

import os

import pytest
import torch

from minigptv2.cluster.distributed import choose_device, gpu_of
from minigptv2.cluster.rendezvous import expand_hosts, rank_environment
from minigptv2.errors import ConfigError

TASK = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[1,3]", ["node1", "node3"]),
        ("a[08-11]", ["a08", "a09", "a10", "a11"]),
        ("a[1-2],b7,c[1,3-4]-ib", ["a1", "a2", "b7", "c1-ib", "c3-ib", "c4-ib"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
    ],
)
def test_a_compressed_node_list_is_expanded(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize("text", ["", "node[1-", "node[a-b]", "node[1-2]]"])
def test_an_invalid_node_list_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="not a list of nodes"):
        expand_hosts(text)


def test_a_task_of_srun_gets_the_variables_of_torch() -> None:
    found = rank_environment(TASK)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("5", "1", "8")
    assert found["MASTER_ADDR"] == "gpu07"
    assert rank_environment(TASK | {"SLURM_PROCID": "0"})["MASTER_PORT"] == found["MASTER_PORT"]
    assert rank_environment(TASK | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != found["MASTER_PORT"]


def test_the_rendezvous_of_the_batch_script_is_kept() -> None:
    found = rank_environment(TASK | {"MASTER_ADDR": "gpu08", "MASTER_PORT": "777"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("gpu08", "777")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TASK | {"RANK": "3"},
        {key: value for key, value in TASK.items() if not key.startswith("SLURM_STEP")},
    ],
)
def test_no_variable_is_set_outside_a_task_of_srun(environment: dict[str, str]) -> None:
    """Without Slurm; under torchrun inside a step; in a batch script, which has SLURM_PROCID=0 and is no rank."""
    assert rank_environment(environment) == {}


def test_a_rank_takes_its_own_gpu_or_the_only_one_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    assert [gpu_of(local, 4) for local in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"rank 4 of its node.*4 GPU"):
        gpu_of(4, 4)
    with pytest.raises(ConfigError):
        gpu_of(1, 1)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert gpu_of(1, 1) == 0


@pytest.mark.parametrize(("visible", "local", "gpu"), [(1, 3, 0), (1, 0, 0), (4, 3, 3)])
def test_local_rank_is_the_number_of_the_gpu_that_srun_shows(
    monkeypatch: pytest.MonkeyPatch, visible: int, local: int, gpu: int
) -> None:
    """Under `srun --gpus-per-task=1` every rank sees one GPU. DeepSpeed opens `cuda:$LOCAL_RANK`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    task = TASK | {"SLURM_LOCALID": str(local), "DS_ACCELERATOR": "cuda"}
    monkeypatch.setattr(os, "environ", task)  # a copy: the variables of a rank must not reach other tests
    assert choose_device() == torch.device("cuda", gpu) == chosen[0]
    assert os.environ["LOCAL_RANK"] == str(gpu)
