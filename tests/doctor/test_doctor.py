"""`minigptv2 doctor`: every problem is reported with what to do, and a healthy machine passes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.doctor import machine
from minigptv2.doctor import settings as run
from minigptv2.doctor.finding import BAD, GOOD, WARNING, Finding
from minigptv2.run_config import load_run_config
from tests.conftest import REPOSITORY, World


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    return world.write_stage(folder, "corpora: {toy_refer: {ratio: 1, task: refer}}", steps=6)


def found(findings: list[Finding], about: str) -> Finding:
    return next(one for one in findings if one.about == about)


def test_a_valid_run_has_no_bad_finding(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["doctor", "--config", str(config), "--json"]) == 0
    findings = [Finding(**one) for one in json.loads(capsys.readouterr().out)]
    assert {"torch", "deepspeed", "GPUs", "/dev/shm", "config", "disk", "writing", "recipe", "shards"} <= {
        one.about for one in findings
    }
    assert all(one.level != BAD for one in findings) and "40 samples in 1 corpora" in found(findings, "shards").found


@pytest.mark.parametrize(
    ("words", "about", "text"),
    [
        (["data.shards=/nowhere"], "shards", "nowhere"),
        (["train.global_batch_size=7"], "config", "is not a multiple"),
        (["model.language_weights=/nowhere"], "base weights", "/nowhere"),
        (["init_from=/nowhere/export"], "init_from", "/nowhere/export"),
        (["data.recipe=/nowhere.yaml"], "recipe", "/nowhere.yaml"),
        (["run_dir=/proc/run"], "writing", "/proc"),
    ],
)
def test_a_problem_of_a_run_is_reported_and_sets_the_exit_code(
    config: Path, words: list[str], about: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["doctor", "--config", str(config), *words, "--json"]) == 1
    one = found([Finding(**one) for one in json.loads(capsys.readouterr().out)], about)
    assert one.level == BAD and text in one.found and one.do
    assert cli(["doctor", "--config", str(config), *words]) == 1
    assert f"-> {one.do}" in capsys.readouterr().out


@pytest.mark.parametrize("package", list(machine.VERSION_FLOORS))
def test_versions_below_the_floor_are_bad(package: str) -> None:
    floor, hole = machine.VERSION_FLOORS[package]
    major, *rest = machine.parse_version(floor)
    older = f"{major}.{rest[0] - 1}.99" if rest[0] else f"{major - 1}.99.0"
    one = found(machine.check_versions({package: older}), package)
    assert one.level == BAD and hole in one.found and floor in one.do
    assert found(machine.check_versions({package: f"{floor}.1+cu130"}), package).level == GOOD
    assert found(machine.check_versions({}), package).found == "not installed"


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (value, _) in machine.HARMFUL.items()])
def test_debug_settings_are_warnings(name: str, value: str) -> None:
    assert found(machine.check_network({name: value}), name).level == WARNING
    assert machine.check_network({}) == [
        Finding(GOOD, "network settings", "none that slows training or hides failures")
    ]


def test_several_nodes_need_a_named_network() -> None:
    assert found(machine.check_network({}, nodes=2), "NCCL_SOCKET_IFNAME").level == WARNING
    assert machine.check_network({"NCCL_SOCKET_IFNAME": "ib0"}, nodes=2)[0].level == GOOD


def test_a_slurm_job_is_compared_with_its_gpus_and_loaders() -> None:
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 300),
    }
    findings = machine.check_slurm(job, gpus=8, num_workers=4)
    assert found(findings, "Slurm tasks").do.startswith("#SBATCH --ntasks-per-node=8")
    assert found(findings, "Slurm cores").level == WARNING and "minutes left" in found(findings, "Slurm time").found
    assert machine.check_slurm({}, gpus=8) == []


def test_the_file_system_of_a_folder_is_its_nearest_mount() -> None:
    mounts = "a / overlay rw 0 0\nb /scratch lustre rw 0 0\nc /scratch/ram tmpfs rw 0 0\n"
    kinds = [run.file_system_of(Path(path), mounts) for path in ("/x", "/scratch/y", "/scratch/ram/z", "/scratchy")]
    assert kinds == ["overlay", "lustre", "tmpfs", "overlay"]


@pytest.mark.parametrize(("gib", "level"), [(80.0, GOOD), (4.0, BAD)])
def test_memory_is_compared_with_the_plan(gib: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load_run_config("launch/configs/stage3_instruct.yaml").value
    (one,) = run.check_memory(config, 8, gib * 2**30)
    assert one.level == level and "GiB predicted" in one.found
