"""Builds the model of a run, fills its weights and sets up its trainer, in the order that ZeRO-3 and LoRA require."""

from __future__ import annotations

import time
from typing import Any

import torch

from minigptv2.cluster import distributed
from minigptv2.data.collate import fullest_pack
from minigptv2.engine.config import compute_dtype
from minigptv2.engine.progress import LoadProgress
from minigptv2.engine.saver import restore_checkpoint
from minigptv2.engine.trainer import Trainer
from minigptv2.engine.zero import shape_of, zero_backend
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.model.backbones import vision_spec
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model, without_values
from minigptv2.model.kernels import compile_blocks
from minigptv2.model.weights import named_canonical
from minigptv2.run_config import RunConfig
from minigptv2.tracking.log import RunLog
from minigptv2.train.ledger import StartLedger
from minigptv2.train.meter import peak_memory_mib
from minigptv2.train.resume import Start


def build_trainer(
    config: RunConfig,
    deepspeed_config: dict[str, Any],
    start: Start,
    log: RunLog,
    *,
    vocab_size: int,
    device: torch.device,
    layers: int,
    ledger: StartLedger,
) -> Trainer:
    """The trainer of a model that is filled from the parent export and the base weights.

    Where every rank holds whole parameters, they are built on the device in the dtype of the training, and the files
    are the first values that they get.
    `layers` of the language model are recomputed. Raises `CheckpointError` if weights are missing or do not fit.
    """
    dtype = getattr(torch, compute_dtype(deepspeed_config))
    zero = zero_backend(deepspeed_config)
    construction = zero.construction() if zero.shards_parameters else without_values(device, dtype)
    model = build_model(config.model, vocab_size, construction, device=device, dtype=dtype)
    ledger.end("build")
    began = time.monotonic()
    inherited = (str(start.parent.folder), start.parent.tensors) if start.parent else None
    fill = LoadProgress(sum(_numel(parameter) for parameter in model.parameters()), log.line)
    sources = fill_weights(model, start.bases, inherited, fill, seed=config.seed, shape_of=shape_of)
    _check_bases_named(start, sources)
    model.recompute(layers)
    if config.model.compile_vision:
        compile_blocks(model.vision_encoder)
    trainer = Trainer(model, named_canonical(model), config.train, deepspeed_config, device=device, seed=config.seed)
    model.restore_float32_buffers()
    ledger.end("load")
    _log_model(log, trainer, sources, time.monotonic() - began)
    return trainer


def _check_bases_named(start: Start, sources: dict[str, str]) -> None:
    """Raise `CheckpointError` if the parent export was trained on base weights that this run does not name."""
    for part in start.parent.base_sha256 if start.parent else ():
        if "random" in sources[part]:
            assert start.parent is not None
            raise CheckpointError(
                f"{start.parent.folder} was trained on base weights of {part}, but this run has random ones. Set their "
                f"folder in model.{'vision' if part.startswith('vision') else 'language'}_weights"
            )


def restore(trainer: Trainer, start: Start, config: RunConfig, log: RunLog) -> int:
    """Load the checkpoint, if there is one. Returns the position in the data plan."""
    if start.checkpoint is None:
        return 0
    folder, state = start.checkpoint
    restore_checkpoint(folder, state, trainer)
    log.line(f"resumed from {folder} at step {state.step} of {config.train.steps}")
    for change in start.changes:
        log.line(change)
    return state.position


def rehearse(config: RunConfig, trainer: Trainer, log: RunLog, layers: int, *, weighted: bool) -> None:
    """Process the largest pack once, so that a GPU with too little memory is detected before the first step.

    `weighted`: the recipe's objective gives tokens weights. Raises `ConfigError` if the pack does not fit.
    """
    enabled = trainer.device.type == "cuda" if config.train.rehearse is None else config.train.rehearse
    if not enabled:
        return
    spec = vision_spec(config.model.vision_encoder)
    pack = fullest_pack(
        config.data,
        image_size=spec.image_size,
        tokens_per_image=spec.tokens_per_image,
        global_batch_size=config.train.global_batch_size,
        weighted=weighted,
    )
    tokens, images = pack.counts["tokens"], pack.counts["images"]
    what = f"the largest pack, {tokens} tokens and {images} images, {layers} layer(s) recomputed"
    try:
        trainer.rehearse(pack)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{what}: does not fit this GPU. Lower data.max_pack_tokens={config.data.max_pack_tokens}, raise "
            f"model.recompute_layers, or run `minigptv2 plan`. ({str(error).splitlines()[0]})"
        ) from error
    log.line(f"rehearsed {what}: peak memory {peak_memory_mib() / 1024:.2f} GiB")


def _log_model(log: RunLog, trainer: Trainer, sources: dict[str, str], seconds: float) -> None:
    for part, (held, total) in trainer.held_by_part().items():
        share = 100 * held / total
        log.line(f"{part}: {total:,} parameters, {held:,} held by this rank ({share:.1f} %), from {sources[part]}")
    trained = sum(_numel(p) for p in trainer.trainable.values())
    log.line(
        f"ZeRO stage {trainer.zero.stage} on {distributed.world_size()} process(es), {trained:,} parameters trained, "
        f"model ready in {seconds:.1f} s, peak memory {peak_memory_mib() / 1024:.2f} GiB"
    )


def _numel(parameter: Any) -> int:
    total = 1
    for side in shape_of(parameter):
        total *= side
    return total
