"""Saves a skipped step for `minigptv2 replay`: every rank's batches, the sample names, the weights before the step.

`<run>/bundles/step-00000012/` holds `bundle.json`, `weights.safetensors`, `config.yaml`, and per rank `rank0.json` and
`rank0.safetensors`. `minigptv2 replay` runs it on one machine, without the data and the other ranks.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from minigptv2.batch import MicroBatch
from minigptv2.cluster import distributed
from minigptv2.engine.checkpoint import read_tensors
from minigptv2.engine.trainer import StepReport, Trainer
from minigptv2.errors import CheckpointError
from minigptv2.files import remove_or_report
from minigptv2.foreign_files import read_json
from minigptv2.redacted_files import write_json
from minigptv2.run_folder import RunFolder

BUNDLE_FILE, WEIGHTS_FILE, CONFIG_FILE = "bundle.json", "weights.safetensors", "config.yaml"


@dataclass(frozen=True)
class KeptMicroBatch:
    """One micro-batch of a saved step: its rank, its number on that rank, its tensors, the names of its samples."""

    rank: int
    number: int
    inputs: dict[str, Tensor]
    samples: list[str]


@dataclass(frozen=True)
class Bundle:
    """A saved step. `about` holds step, reason, seed, world_size, loss, gradient_norm, supervised and weight."""

    about: dict[str, Any]
    micro_batches: list[KeptMicroBatch]
    weights: dict[str, Tensor]
    folder: Path


def keep_bundle(
    run: Path,
    trainer: Trainer,
    report: StepReport,
    batches: list[MicroBatch],
    samples: list[list[str]],
    *,
    keep: int,
) -> Path | None:
    """Save the step that was just skipped, if the run has fewer than `keep` saved ones; return its folder.

    A collective. Return None if there are enough, or if saving failed, which is logged and does not stop training.
    """
    run_folder = RunFolder(run)
    room = distributed.on_main(lambda: len(run_folder.bundle_folders()) < keep)
    if not room:
        return None
    folder = run_folder.bundle(report.step)
    weights = trainer.trained_weights()
    failed = False
    try:
        _write(folder, run, trainer, report, batches, samples=samples, weights=weights)
    except (OSError, SafetensorError) as error:
        print(f"[rank {distributed.rank()}] {folder}: failed to save the step: {error}", flush=True)
        failed = True
    if distributed.any_over_ranks([failed])[0]:
        if distributed.is_main():
            remove_or_report(folder)
        return None
    return folder


def _write(
    folder: Path,
    run: Path,
    trainer: Trainer,
    report: StepReport,
    batches: list[MicroBatch],
    *,
    samples: list[list[str]],
    weights: dict[str, Tensor],
) -> None:
    """Write this rank's part of a bundle; the main rank also writes the weights, the config and the description."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rank = distributed.rank()
    tensors = {
        f"{number}/{key}": value.contiguous()
        for number, batch in enumerate(batches)
        for key, value in batch.inputs_on(torch.device("cpu")).items()
    }
    save_file(tensors, str(folder / f"rank{rank}.safetensors"))
    write_json(folder / f"rank{rank}.json", {"samples": samples, "suspects": report.suspects})
    if distributed.is_main():
        save_file(weights, str(folder / WEIGHTS_FILE))
        if RunFolder(run).config.is_file():
            shutil.copyfile(RunFolder(run).config, folder / CONFIG_FILE)
        about = {
            "step": report.step,
            "reason": report.skipped,
            "seed": trainer.seed,
            "loss": report.loss,
            "gradient_norm": report.gradient_norm,
            "world_size": distributed.world_size(),
            "supervised": report.supervised,
            "weight": report.weight,
        }
        write_json(folder / BUNDLE_FILE, about)


def load_bundle(folder: Path) -> Bundle:
    """Return a saved step. Raises `CheckpointError` naming what is missing or damaged."""
    try:
        about = read_json(folder / BUNDLE_FILE, CheckpointError, folder=folder)
        micro_batches = [
            KeptMicroBatch(rank, number, batch, samples)
            for rank in range(about["world_size"])
            for number, (batch, samples) in enumerate(_rank_batches(folder, rank))
        ]
        return Bundle(about, micro_batches, read_tensors(folder / WEIGHTS_FILE), folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: not a saved step: {type(error).__name__}: {error}") from error


def _rank_batches(folder: Path, rank: int) -> list[tuple[dict[str, Tensor], list[str]]]:
    samples = read_json(folder / f"rank{rank}.json", CheckpointError, folder=folder)["samples"]
    batches: list[dict[str, Tensor]] = [{} for _ in samples]
    for name, tensor in read_tensors(folder / f"rank{rank}.safetensors").items():
        number, key = name.split("/", 1)
        batches[int(number)][key] = tensor
    return list(zip(batches, samples, strict=True))
