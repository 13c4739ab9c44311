"""Tests the available memory in the layouts of both versions of Linux control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigptv2.machine_memory import available_memory


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 4,000 KiB left."""
    _write(tmp_path / "proc" / "meminfo", "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable:    4000 kB\n")
    return tmp_path / "proc"


def _limit(folder: Path, names: tuple[str, str], limit: str, used: int, statistics: str) -> None:
    _write(folder / names[0], f"{limit}\n")
    _write(folder / names[1], f"{used}\n")
    _write(folder / "memory.stat", statistics)


NEW, OLD = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_groups_it_is_that_of_the_machine(proc: Path, tmp_path: Path) -> None:
    assert available_memory(proc, tmp_path / "groups") == 4000 << 10


def test_nothing_is_known_without_proc(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "proc", tmp_path / "groups") is None


def test_a_group_above_decides_and_its_page_cache_is_available(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self" / "cgroup", "0::/job_7/step_0\n")
    groups = tmp_path / "groups"
    _limit(groups / "job_7", NEW, "1000000", 900_000, "anon 5\nactive_file 70000\ninactive_file 30000\n")
    _limit(groups / "job_7" / "step_0", NEW, "max", 900_000, "active_file 0\n")
    assert available_memory(proc, groups) == 200_000


def test_the_old_layout_and_a_path_that_a_container_does_not_see(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self" / "cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    groups = tmp_path / "groups"
    statistics = "inactive_file 1\ntotal_active_file 1000\ntotal_inactive_file 2000\n"
    _limit(groups / "memory", OLD, "500000", 450_000, statistics)
    assert available_memory(proc, groups) == 53_000


def test_the_number_that_means_unlimited_does_not_count(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self" / "cgroup", "4:memory:/\n")
    _limit(tmp_path / "groups" / "memory", OLD, "9223372036854771712", 1, "total_active_file 0\n")
    assert available_memory(proc, tmp_path / "groups") == 4000 << 10
