"""Tests checkpoints on disk: damage is detected, a failed save leaves the previous checkpoint, old ones are removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2.cli import main as cli
from minigptv2.engine.checkpoint import (
    MOMENTS,
    WEIGHTS,
    CheckpointState,
    load_state,
    newest_good_checkpoint,
    prune_checkpoints,
    read_tensors,
    verify_checkpoint,
    write_checkpoint,
)
from minigptv2.errors import CheckpointError
from minigptv2.run_folder import RunFolder
from tests.engine.net import IDENTITY, ZERO3, batch, make_trainer, mine, snapshot
from tests.ranks import run_ranks

FILES = ("weights.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors", "state.json", "checksums.json")


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return tensors as a run at `step` would save them, different at every step."""
    names = {"a.weight": (3, 5), "b.bias": (7,), "scalar": (), "nothing": (0, 4)}
    return {
        stem: {name: torch.full(shape, float(step + number)) for name, shape in names.items()}
        for number, stem in enumerate((WEIGHTS, *MOMENTS))
    }


def save(run: Path, step: int) -> Path:
    return write_checkpoint(run, CheckpointState(step, 8 * step, IDENTITY), tensors_of(step))


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    verify_checkpoint(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert load_state(folder).position == 56
    for stem, named in tensors_of(7).items():
        read = read_tensors(folder / f"{stem}.safetensors")
        assert read.keys() == named.keys()
        assert all(torch.equal(read[name], value) and read[name].shape == value.shape for name, value in named.items())


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[2 * len(data) // 3] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, zero, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_reported_and_the_previous_checkpoint_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    good, newest = save(tmp_path, 1), save(tmp_path, 2)
    damage(newest / name)
    warnings: list[str] = []
    assert newest_good_checkpoint(tmp_path, warnings.append) == good
    assert len(warnings) == 1 and str(newest) in warnings[0]
    # A flipped byte in checksums.json may be reported for the file whose checksum it is. Other damage is named exactly.
    assert name in warnings[0] or (name == "checksums.json" and damage is flip)
    assert cli(["checkpoint", "verify", str(tmp_path)]) == CheckpointError.exit_code
    said = capsys.readouterr().out
    assert f"intact   {good}" in said and "damaged" in said
    assert cli(["checkpoint", "verify", str(good)]) == 0
    damage(good / name)
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged. Use --fresh to start over"):
        newest_good_checkpoint(tmp_path, warnings.append)


class FullDisk:
    """Counts the calls of `os` that change the disk. From the `fail_at`-th call on they fail, as on a full disk."""

    CALLS = ("open", "write", "fsync", "rename", "mkdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int | None) -> None:
        self.count, self.fail_at = 0, fail_at
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.fail_at is not None and self.count >= self.fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return real(*args, **kwargs)

        return call


def test_a_disk_full_at_any_write_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """Injects the error at every call of a save."""
    save(tmp_path / "counted", 1)
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, None)
        save(tmp_path / "counted", 2)
        sites = disk.count
    assert sites > 15
    renamed = 0
    for site in range(1, sites + 1):
        run = tmp_path / str(site)
        save(run, 1)
        with pytest.MonkeyPatch.context() as patch:
            FullDisk(patch, site)
            with pytest.raises(CheckpointError, match="No space left on device"):
                save(run, 2)
        newest = newest_good_checkpoint(run, pytest.fail)
        assert newest is not None
        step = load_state(newest).step
        renamed += step == 2  # after the rename, only syncing the folder can fail
        assert torch.equal(read_tensors(newest / "weights.safetensors")["b.bias"], tensors_of(step)[WEIGHTS]["b.bias"])
        save(run, 3)  # with free space again, saving works
        prune_checkpoints(run, keep=2)
        assert [path.name for path in sorted((run / "checkpoints").iterdir())][-1] == "step-00000003"
        assert not list((run / "checkpoints").glob(".*"))
    assert renamed <= 2


def test_retention_keeps_the_newest_and_every_nth(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50, 60):
        save(tmp_path, step)
        prune_checkpoints(tmp_path, keep=2, keep_every=30)
    assert [load_state(folder).step for folder in RunFolder(tmp_path).checkpoint_folders()] == [60, 50, 30]


def test_list_and_show_describe_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 3)
    (save(tmp_path, 5) / "state.json").write_text("{")
    assert cli(["checkpoint", "list", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "step-00000003" in said and "damaged" in said
    assert cli(["checkpoint", "show", str(tmp_path / "checkpoints" / "step-00000003")]) == 0
    said = capsys.readouterr().out
    assert "step 3, next sample at position 24" in said and "a.weight [3, 5]" in said
    assert cli(["checkpoint", "list", str(tmp_path), "--json"]) == 0
    damaged, intact = json.loads(capsys.readouterr().out)
    assert intact["step"] == 3 and intact["samples"] == 24 and intact["damage"] is None and intact["bytes"] > 0
    assert damaged["step"] is None and damaged["folder"].endswith("step-00000005") and damaged["damage"]
    assert cli(["checkpoint", "verify", str(tmp_path), "--json"]) == CheckpointError.exit_code
    assert [bool(row["damage"]) for row in json.loads(capsys.readouterr().out)] == [True, False]
    assert cli(["checkpoint", "show", str(tmp_path / "checkpoints" / "step-00000003"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["step"] == 3 and shown["position"] == 24 and shown["tensors"]["a.weight"] == [3, 5]
    assert cli(["checkpoint", "show", str(tmp_path)]) == CheckpointError.exit_code
    assert cli(["checkpoint", "list", str(tmp_path / "nowhere")]) == CheckpointError.exit_code


def train_on(folder: str, zero: dict[str, Any], steps: int, resume: bool, micro_batches: int = 12) -> Any:
    """Train the net to `steps`, from its checkpoint if requested, and save at the end. Returns the new losses."""
    from minigptv2.cluster import distributed
    from minigptv2.engine.saver import CheckpointSaver, choose_checkpoint, restore_checkpoint

    run = Path(folder)
    trainer = make_trainer(run, zero, micro_batches=micro_batches)
    if resume:
        chosen = choose_checkpoint(run, print)
        assert chosen is not None
        restore_checkpoint(*chosen, trainer)
    losses = []
    while trainer.step < steps:
        batches = [batch(trainer.step, number) for number in range(micro_batches)]
        losses.append(trainer.train_step(mine(batches)).loss)
    state = trainer.checkpoint_state(0, IDENTITY, {})
    saver = CheckpointSaver(run, keep=2, keep_every=0, max_stall_s=60, log=lambda text: None)
    saver.save(trainer, state, wait=True)
    end = {name: float(value.double().abs().sum()) for name, value in snapshot(trainer).items()}
    return {"losses": losses, "end": end, "rank": distributed.rank()}


def test_a_run_moves_between_rank_counts_and_zero_stages(tmp_path: Path) -> None:
    """Trains on 2 ranks with ZeRO-3, 1 rank without ZeRO and 3 ranks with ZeRO-2. The reference is one process."""
    legs = [(2, ZERO3), (1, {"stage": 0}), (3, {"stage": 2}), (2, ZERO3)]
    losses: list[float] = []
    for number, (ranks, zero) in enumerate(legs):
        results = run_ranks(
            "tests.engine.test_checkpoint:train_on",
            ranks,
            tmp_path,
            folder=str(tmp_path),
            zero=zero,
            steps=5 * (number + 1),
            resume=number > 0,
        )
        losses += results[0]["losses"]
        assert all(result["losses"] == results[0]["losses"] for result in results)
    (tmp_path / "one").mkdir()
    (whole,) = run_ranks(
        "tests.engine.test_checkpoint:train_on",
        1,
        tmp_path,
        folder=str(tmp_path / "one"),
        zero={"stage": 0},
        steps=20,
        resume=False,
    )
    assert losses == pytest.approx(whole["losses"], abs=1e-5)
    assert results[0]["end"] == pytest.approx(whole["end"], rel=1e-4, abs=1e-6)


def save_on_a_small_disk(folder: str, limit: int) -> Any:
    """Save once, then with a limit on the file size (as a quota has). Returns what each rank saw, and the duration."""
    import resource
    import signal as signals

    from minigptv2.cluster import distributed
    from minigptv2.engine.saver import CheckpointSaver, choose_checkpoint

    run = Path(folder)
    trainer = make_trainer(run, ZERO3)
    trainer.train_step(mine([batch(0, number) for number in range(4)]))
    lines: list[str] = []
    saver = CheckpointSaver(run, keep=2, keep_every=0, max_stall_s=60, log=lines.append)
    saver.save(trainer, CheckpointState(1, 0, IDENTITY), wait=True)
    signals.signal(signals.SIGXFSZ, signals.SIG_IGN)
    if distributed.is_main():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    began = time.monotonic()
    saver.save(trainer, CheckpointState(2, 0, IDENTITY), wait=False)
    saver.settle()  # the first failure is a warning
    errors = []
    for step in (3, 4):
        try:
            saver.save(trainer, CheckpointState(step, 0, IDENTITY), wait=step == 4)
            saver.settle()
        except CheckpointError as error:
            errors.append(str(error))
    seconds = time.monotonic() - began
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    chosen = choose_checkpoint(run, print)
    return {"errors": errors, "seconds": seconds, "lines": lines, "step": chosen[1].step if chosen else None}


def test_all_ranks_agree_that_a_save_failed(tmp_path: Path) -> None:
    """The first failure is a warning, the second in a row an error on every rank. No rank hangs."""
    results = run_ranks(
        "tests.engine.test_checkpoint:save_on_a_small_disk", 2, tmp_path, folder=str(tmp_path), limit=400
    )
    for result in results:
        assert len(result["errors"]) == 2 and all("File too large" in error for error in result["errors"])
        assert result["step"] == 1 and result["seconds"] < 10
    assert any("failed to save checkpoint" in line for line in results[0]["lines"])


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    document = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(document | {"format": 1}))
    with pytest.raises(CheckpointError, match="format 1 is not supported; this version reads 2"):
        load_state(folder)
    shutil.rmtree(folder)


def test_newer_damaged_checkpoints_do_not_displace_intact_ones(tmp_path: Path) -> None:
    """The run resumed at step 10 because 20 and 30 were damaged. Its next save must not count them as newer."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    for step in (20, 30):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "state.json").write_text("{")
    save(tmp_path, 15)
    prune_checkpoints(tmp_path, keep=2, newest=15)
    assert [load_state(folder).step for folder in RunFolder(tmp_path).checkpoint_folders()] == [15, 10]
