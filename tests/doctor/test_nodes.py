"""The node check, here with processes of one machine: it passes, or names the ranks and hosts with a problem."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from minigptv2.cluster.rendezvous import free_port
from minigptv2.doctor.nodes import RankInfo, _disagreements
from tests.conftest import REPOSITORY

PROGRAM = """
import sys
from pathlib import Path
from minigptv2.doctor.nodes import check_nodes
from minigptv2.errors import MiniGPTv2Error
try:
    report = check_nodes(Path(sys.argv[1]), seconds=0.3, patience_s=float(sys.argv[2]))
    print(report.text())
    sys.exit(1 if report.problems else 0)
except MiniGPTv2Error as error:
    print(error)
    sys.exit(error.exit_code)
"""


def environment_of(rank: int, world: int, port: int) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM")} | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def start(rank: int, world: int, port: int, folder: Path, patience_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(patience_s)]
    return subprocess.Popen(
        command, env=environment_of(rank, world, port), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )


def test_ranks_that_share_a_folder_pass_and_those_that_do_not_are_named(tmp_path: Path) -> None:
    good, bad, alone = free_port(), free_port(), free_port()
    shared = [start(rank, 2, good, tmp_path / "shared", 60) for rank in range(2)]
    apart = [start(rank, 2, bad, tmp_path / f"own-{rank}", 3) for rank in range(2)]
    lonely = start(0, 3, alone, tmp_path, 3)
    printed = [process.communicate(timeout=120)[0] for process in (*shared, *apart, lonely)]
    assert [process.returncode for process in (*shared, *apart, lonely)] == [0, 0, 1, 1, 9], printed
    assert "rank 1: " in printed[0] and "all-gather of 16384 KiB a rank" in printed[0]
    assert "the nodes can train together" in printed[0] and "sees files of other nodes within" in printed[0]
    assert list((tmp_path / "shared").iterdir()) == []
    assert "PROBLEM: " in printed[2] and "is it the same file system on both?" in printed[2]
    assert "2 of 3 ranks did not start within 3 s: 1, 2" in printed[4]


def test_the_report_of_the_nodes_is_printed_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "minigptv2", "doctor", "--nodes", "--shared", str(tmp_path), "--seconds", "0.3"]
    environment = environment_of(0, 1, free_port())
    done = subprocess.run([*command, "--json"], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == [] and len(report["ranks"]) == 1


def test_different_versions_and_clocks_are_said_with_the_hosts() -> None:
    ranks = [RankInfo(0, "a", "cpu", "torch 2.13", 100.0), RankInfo(1, "b", "cpu", "torch 2.12", 190.0)]
    versions, clocks = _disagreements(ranks)
    assert versions == "versions differ: torch 2.12 on b; torch 2.13 on a"
    assert clocks.startswith("a and b started 90 s apart")
    assert _disagreements(ranks[:1]) == []
