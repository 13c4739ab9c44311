"""Tests that `--fresh` removes everything of earlier starts, or says what it cannot remove."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from minigptv2.engine.checkpoint import prune_checkpoints
from minigptv2.errors import ConfigError
from minigptv2.model.export import new_folder
from minigptv2.run_folder import RunFolder

KEPT = {"stacks/rank0.txt", "slurm/history.jsonl", "config.yaml"}
RESULTS = {
    "checkpoints/step-00000002/state.json",
    "checkpoints/step-00000004/state.json",
    "checkpoints/.step-00000006.tmp/weights.safetensors",
    "tensorboard/events.out.tfevents.1",
    "export/config.json",
    "export/weights.safetensors",
    "best/config.json",
    "bundles/step-00000001/bundle.json",
    "metrics.jsonl",
    "heldout.jsonl",
    "best.json",
    "log.txt",
    "attempts.jsonl",
    "dropped.jsonl",
    "dropped.rank1.jsonl",
    "failure.json",
}


@pytest.fixture
def used(tmp_path: Path) -> RunFolder:
    for name in KEPT | RESULTS:
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    return RunFolder(tmp_path / "run")


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_results_are_removed_and_the_rest_stays(used: RunFolder) -> None:
    used.clear()
    assert files(used.path) == KEPT
    used.clear()  # nothing left to remove


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "export", "best", "bundles"])
def test_a_linked_folder_is_emptied_and_the_link_kept(name: str, used: RunFolder, tmp_path: Path) -> None:
    disk = tmp_path / "disk" / name
    disk.parent.mkdir()
    (used.path / name).rename(disk)
    (used.path / name).symlink_to(disk)
    (disk / "holiday.jpg").write_text("not a result")
    used.clear()
    assert (used.path / name).is_symlink() and files(disk) == {"holiday.jpg"}
    assert files(used.path) == KEPT and not used.checkpoint_folders() and not used.unfinished_checkpoints()


def test_linked_steps_are_removed_with_their_content(used: RunFolder, tmp_path: Path) -> None:
    step, disk = used.checkpoint(4), tmp_path / "disk"
    step.rename(disk)
    step.symlink_to(disk)
    used.clear()
    assert not used.checkpoint_folders() and files(disk) == set() and not os.path.lexists(step)


def test_a_linked_run_folder_and_linked_files(used: RunFolder, tmp_path: Path) -> None:
    used.metrics.rename(tmp_path / "metrics")
    used.metrics.symlink_to(tmp_path / "metrics")
    (tmp_path / "link").symlink_to(used.path)
    RunFolder(tmp_path / "link").clear()
    assert files(used.path) == KEPT and not used.metrics.is_symlink()
    assert (tmp_path / "metrics").read_text() == "old"  # it is not in the run folder


def test_a_file_in_the_place_of_a_folder_is_removed(used: RunFolder) -> None:
    used.clear()
    used.checkpoints.write_text("old")
    used.clear()
    assert not used.checkpoints.exists()


def test_a_link_to_nothing_is_an_error(used: RunFolder, tmp_path: Path) -> None:
    used.checkpoints.rename(tmp_path / "gone")
    used.checkpoints.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="checkpoints is a link to .*nowhere, which does not exist"):
        used.clear()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EBUSY, errno.EPERM])
@pytest.mark.parametrize("name", ["checkpoints/step-00000002/state.json", "export/config.json", "log.txt"])
def test_what_cannot_be_removed_is_named(
    name: str, number: int, used: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only folders and files of other owners. The tests may run as root, whom no mode stops."""
    real = os.unlink

    def unlink(path: str | Path, *, dir_fd: int | None = None) -> None:
        if Path(path).name == Path(name).name:
            raise OSError(number, os.strerror(number), str(path))
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(ConfigError, match=f"--fresh: cannot remove .*{Path(name).name}: {os.strerror(number)}"):
        used.clear()


def test_a_mounted_disk_is_emptied(used: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rmdir

    def rmdir(path: str | Path, *, dir_fd: int | None = None) -> None:
        if Path(path) == used.checkpoints:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    used.clear()
    assert used.checkpoints.is_dir() and files(used.path) == KEPT


def test_old_checkpoints_that_are_links_are_pruned(used: RunFolder, tmp_path: Path) -> None:
    used.checkpoint(2).rename(tmp_path / "disk")
    used.checkpoint(2).symlink_to(tmp_path / "disk")
    prune_checkpoints(used.path, keep=1)
    assert sorted(os.listdir(used.checkpoints)) == ["step-00000004"]
    assert files(tmp_path / "disk") == {"state.json"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_linked_export_is_replaced_behind_its_link(exists: bool, used: RunFolder, tmp_path: Path) -> None:
    disk = tmp_path / "disk" / "export"
    disk.parent.mkdir()
    used.export.rename(disk)
    used.export.symlink_to(disk)
    if not exists:
        disk.rename(tmp_path / "elsewhere")
    with new_folder(used.export) as temporary:
        (temporary / "config.json").write_text("new")
    assert used.export.is_symlink() and files(disk) == {"config.json"}
    assert not list(used.path.glob(".export*")) and not list(disk.parent.glob(".export*"))
