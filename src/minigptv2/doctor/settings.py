"""Checks the config of a run on this machine: disk and file system, recipe and shards, weights, memory."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from minigptv2.doctor.finding import BAD, GOOD, WARNING, Finding
from minigptv2.engine.config import resolve_deepspeed_config
from minigptv2.errors import MiniGPTv2Error
from minigptv2.planner.hardware import RESERVED_GIB
from minigptv2.planner.plan_table import costs_of
from minigptv2.planner.step_time import Samples
from minigptv2.planner.zero_plan import ZeroPlan
from minigptv2.run_config import RunConfig, check_run_config

SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "wekafs", "cifs", "9p", "virtiofs")
"""File systems that all nodes of a cluster usually share."""
SLOW_WRITE_S = 2.0


def check_config(config: RunConfig, world_size: int) -> list[Finding]:
    """The checks of `minigptv2 config`: names, files, batch sizes."""
    return [_guarded("config", lambda: check_run_config(config, world_size), f"valid for {world_size} process(es)")]


def check_recipe(config: RunConfig) -> list[Finding]:
    """The recipe and each of its corpora: manifest, index, presence and sizes of the shards."""
    from minigptv2.data.plan import DataPlan, load_recipe

    try:
        recipe = load_recipe(config.data.recipe)
    except MiniGPTv2Error as error:
        return [Finding(BAD, "recipe", str(error), "fix the recipe; `minigptv2 mix` shows the resulting mixture")]
    findings = [Finding(GOOD, "recipe", f"{config.data.recipe}: {len(recipe.corpora)} corpora")]
    try:
        plan = DataPlan(recipe, config.data.shards, config.seed)
    except (MiniGPTv2Error, OSError) as error:
        do = "build the shards (`minigptv2 shards --help`), or point data.shards at them"
        return [*findings, Finding(BAD, "shards", str(error), do)]
    if plan.shares_images and config.model.attention != "auto":
        findings.append(_check_sharing(config.model.attention))
    samples = sum(len(corpus) for corpus in plan.corpora)
    return [*findings, Finding(GOOD, "shards", f"{samples:,} samples in {len(plan.corpora)} corpora, sizes match")]


def _check_sharing(attention: str) -> Finding:
    """Whether an attention that the config names can compute packs in which pairs share an image."""
    from minigptv2.model.attention import check_shared_images

    return _guarded("attention", lambda: check_shared_images(attention), f"{attention} supports share_images")


def check_weights(config: RunConfig) -> list[Finding]:
    """Base weights and the parent export: presence, complete files, shapes that fit."""
    from minigptv2.model.bases import open_bases
    from minigptv2.model.export import load_info

    findings = []
    try:
        bases = open_bases(config.model)
    except MiniGPTv2Error as error:
        return [Finding(BAD, "base weights", str(error), "see docs/checkpoints.md for where to get them")]
    for base in bases:
        size = sum(_elements(tensor.shape) for tensor in base.tensors.values())
        findings.append(Finding(GOOD, base.part, f"{base.folder}: {len(base.tensors)} tensors, {size / 1e6:,.1f} M"))
    folders = {"vision_encoder": config.model.vision_weights, "language_model": config.model.language_weights}
    for part, given in folders.items():
        if given is None and part not in config.model.trainable and config.init_from is None:
            findings.append(
                Finding(WARNING, part, "frozen, with random weights", "set its model.*_weights, or train it")
            )
    if config.init_from is not None:
        do = "train the previous stage first, or set init_from"
        findings.append(_guarded("init_from", lambda: load_info(str(config.init_from)), str(config.init_from), do))
    return findings


def check_disk(config: RunConfig) -> list[Finding]:
    """Free space for the checkpoints that are kept, and a test write, sync and rename in the run's folder."""
    folder = Path(config.run_dir)
    while not folder.exists():
        folder = folder.parent
    needed = (config.train.keep_checkpoints + 2) * 12 * _trained_elements(config)
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free where {config.run_dir} will be; checkpoints need {needed / 2**30:.2f}"
    do = "free some, lower train.keep_checkpoints, or move run_dir"
    findings = [Finding(GOOD, "disk", text) if free > 1.5 * needed else Finding(BAD, "disk", text, do)]
    findings.append(_check_writing(folder))
    kind = file_system_of(folder)
    nodes = int(os.environ.get("SLURM_NNODES", "1") or 1)
    if kind in ("tmpfs", "ramfs"):
        findings.append(Finding(BAD, "file system", f"{folder} is {kind}: memory", "move run_dir to a disk"))
    elif nodes > 1 and kind not in SHARED:
        findings.append(
            Finding(WARNING, "file system", f"{folder} is {kind} on a job of {nodes} nodes", "run_dir must be shared")
        )
    else:
        findings.append(Finding(GOOD, "file system", f"{kind}{' (shared)' if kind in SHARED else ''}"))
    return findings


def check_memory(config: RunConfig, world_size: int, gpu_bytes: float | None) -> list[Finding]:
    """Compare the predicted memory of this run's JSON and packs with that of a GPU. Empty without a GPU."""
    if gpu_bytes is None:
        return []
    costs = costs_of(config)
    plan = ZeroPlan.of(config.train.deepspeed, resolve_deepspeed_config(config.train, world_size))
    samples = Samples(max_pack_tokens=config.data.max_pack_tokens)
    pack = samples.work(config.data.max_pack_tokens / samples.tokens)
    layers = costs.language.depth if config.model.recompute_layers is None else config.model.recompute_layers
    state = sum(plan.state_bytes(costs.parts, world_size).values()) + RESERVED_GIB * 2**30
    needed = state + costs.activation_bytes(pack, element=plan.element, recomputed_layers=layers)
    text = f"{needed / 2**30:.1f} GiB predicted of {gpu_bytes / 2**30:.0f}, with {layers} layer(s) recomputed"
    do = "choose what `minigptv2 plan` lists as fitting, or lower data.max_pack_tokens"
    return [Finding(GOOD, "memory", text) if needed <= gpu_bytes else Finding(BAD, "memory", text, do)]


def file_system_of(folder: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds `folder`, from /proc/mounts (or the text given); `unknown` elsewhere."""
    if mounts is None:
        file = Path("/proc/mounts")
        mounts = file.read_text() if file.is_file() else ""
    best, kind = -1, "unknown"
    path = str(folder.resolve())
    for line in mounts.splitlines():
        _, mount, type_, *_ = line.split(" ")
        inside = mount == "/" or path == mount or path.startswith(mount + "/")
        if inside and len(mount) > best:
            best, kind = len(mount), type_
    return kind


def _check_writing(folder: Path) -> Finding:
    """Write, sync and rename a file, and compare its modification time with the clock."""
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    began = time.monotonic()
    try:
        with open(probe, "wb") as stream:
            stream.write(b"x" * 2**20)
            stream.flush()
            os.fsync(stream.fileno())
        moved = probe.with_suffix(".moved")
        os.rename(probe, moved)
        skew = abs(moved.stat().st_mtime - time.time())
        moved.unlink()
    except OSError as error:
        probe.unlink(missing_ok=True)
        return Finding(BAD, "writing", f"{folder}: {error}", "set run_dir to a writable folder")
    seconds = time.monotonic() - began
    if skew > 60:
        return Finding(WARNING, "writing", f"the file server's clock is {skew:.0f} s off", "synchronize clocks (NTP)")
    if seconds > SLOW_WRITE_S:
        return Finding(WARNING, "writing", f"1 MiB synced in {seconds:.1f} s", "checkpoints stall; use a faster disk")
    return Finding(GOOD, "writing", f"1 MiB written, synced and renamed in {1000 * seconds:.0f} ms")


def _trained_elements(config: RunConfig) -> int:
    try:
        return sum(part.elements for part in costs_of(config).parts if part.trained)
    except MiniGPTv2Error:  # an unknown spec or tokenizer: the config check reports it
        return 0


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _guarded(about: str, check: Callable[[], object], good: str, do: str = "fix what the message names") -> Finding:
    """Turn a check that raises `MiniGPTv2Error` or `OSError` into a finding."""
    try:
        check()
    except (MiniGPTv2Error, OSError) as error:
        return Finding(BAD, about, str(error), do)
    return Finding(GOOD, about, good)
