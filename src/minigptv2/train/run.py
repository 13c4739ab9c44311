"""`train(config)`: builds data, model and engine, joins them, runs the loop, writes the export."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from minigptv2 import __version__
from minigptv2.cluster import distributed
from minigptv2.cluster.recorder import AttemptRecorder
from minigptv2.cluster.signals import StopRequests, stop_listening
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.config import Loaded
from minigptv2.data.loader import StepBatches, StepDataset, iterate_steps
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.engine.config import resolve_deepspeed_config
from minigptv2.engine.saver import CheckpointSaver
from minigptv2.engine.trainer import Trainer
from minigptv2.engine.zero import full_value
from minigptv2.errors import ConfigError
from minigptv2.heldout.monitor import PeriodicEvaluator
from minigptv2.heldout.slice import HeldOutSlice
from minigptv2.model.backbones import vision_spec
from minigptv2.model.bases import names_to_export
from minigptv2.model.export import LineageEntry, save_export, tokenizer_of
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.proof import prove_packing
from minigptv2.predict.predictor import Predictor
from minigptv2.prompt import PromptEncoder
from minigptv2.run_config import RunConfig, check_run_config
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact_all
from minigptv2.tokenizer import Tokenizer
from minigptv2.tracking.log import RunLog
from minigptv2.train.assembly import build_trainer, rehearse, restore
from minigptv2.train.limit import limit_report, recomputed_layers
from minigptv2.train.loop import Edge, run_loop
from minigptv2.train.resume import Start, check_stage_before, find_start


def train(loaded: Loaded[RunConfig], *, fresh: bool = False, resume: bool = False) -> Path:
    """Train the stage that the config describes, from its newest checkpoint if it has one; returns the export folder.

    `fresh` starts over in a used run folder; `resume` fails where there is nothing to resume. Raises `ConfigError`,
    `DataError`, `CheckpointError` or `StepError`, on all ranks.
    """
    config = loaded.value
    check_run_config(config, distributed.world_size_from_environment())
    check_stage_before(config)
    stop = StopRequests(config.train.time_limit_minutes)
    device = distributed.choose_device()
    distributed.start_process_group(device, config.train.timeout_minutes)
    run = Path(config.run_dir)
    attempts = AttemptRecorder(run, config.train.crash_loop_limit, active=distributed.is_main())
    watch = Watchdog(
        run,
        hang_s=60 * config.train.hang_minutes,
        slow_s=60 * config.train.timeout_minutes,
        silence_s=config.train.silence_s,
        before_exit=attempts.record_end,
    )
    try:
        with attempts, watch:  # the watchdog leaves first and says the true cause
            export = _train(loaded, device, stop, watch, attempts, fresh=fresh, resume=resume)
    finally:
        stop_listening()
        distributed.stop_process_group()
    return export


def _train(
    loaded: Loaded[RunConfig],
    device: torch.device,
    stop: StopRequests,
    watch: Watchdog,
    attempts: AttemptRecorder,
    *,
    fresh: bool,
    resume: bool,
) -> Path:
    """Build data, model and engine, join them, run the loop."""
    config = loaded.value
    run = Path(config.run_dir)
    deepspeed_config = resolve_deepspeed_config(config.train, distributed.world_size())
    tokenizer = tokenizer_of(config.model)
    encoder = _prompt_encoder(config, tokenizer)
    plan = _plan(config, encoder)
    start = find_start(loaded, tokenizer, plan, fresh=fresh, resume=resume)
    distributed.on_main(lambda: attempts.begin(start.step, start.known))
    log = RunLog(run, step=start.step, total_steps=config.train.steps, active=distributed.is_main())
    try:
        parent = start.parent
        log.line(f"{config.stage}: " + (f"continues {parent.title}" if parent else "starts from the base weights"))
        watch.set_phase("loading the model")
        layers = recomputed_layers(config, deepspeed_config, device)
        trainer = build_trainer(
            config, deepspeed_config, start, log, vocab_size=tokenizer.vocab_size, device=device, layers=layers
        )
        model = trainer.model
        assert isinstance(model, MiniGPTv2)
        watch.set_phase("before the first step")
        log.line(prove_packing(model, device))
        rehearse(config, trainer, log, layers)
        limit = limit_report(config, deepspeed_config, device, next(model.parameters()).dtype, layers)
        log.line(f"this machine: {limit.rates}")
        watch.set_phase("loading the checkpoint")
        position = restore(trainer, start, config, log)
        _log_mixture(log, plan, "mixture asked", 0)
        steps = _steps(config, plan, encoder, position=position, step=start.step)
        synced = trainer.zero.shards_parameters and distributed.world_size() > 1
        predictor = Predictor(model, tokenizer, synced_ranks=synced)
        heldout = HeldOutSlice(config.evaluate, predictor, max_pack_tokens=config.data.max_pack_tokens)
        gc.collect()
        gc.freeze()  # what is built lives to the end; full collections walked it (11 % of samples while generating)
        edge = Edge(_saver(run, config, log), stop, watch, attempts, start.identity, start.known)
        export = partial(_export, config=config, start=start, trainer=trainer, tokenizer=tokenizer, plan=plan, log=log)
        evaluator = PeriodicEvaluator(heldout, run, export, log, watch, start=start.step)
        position = run_loop(config, trainer, steps, plan, log, evaluator, run, edge, limit, position)
        _log_mixture(log, plan, "mixture realised", position)
        watch.set_phase("exporting")
        return export(RunFolder(run).export)
    finally:
        log.close()


def _saver(run: Path, config: RunConfig, log: RunLog) -> CheckpointSaver:
    return CheckpointSaver(
        run,
        keep=config.train.keep_checkpoints,
        keep_every=config.train.keep_every,
        max_stall_s=config.train.max_save_stall_s,
        log=log.line,
    )


def _prompt_encoder(config: RunConfig, tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(
        tokenizer,
        tokens_per_image=vision_spec(config.model.vision_encoder).tokens_per_image,
        max_tokens=config.data.max_tokens,
    )


def _plan(config: RunConfig, encoder: PromptEncoder) -> DataPlan:
    """The run's data plan. Raises `ConfigError` if the recipe's corpora end before the run does."""
    plan = DataPlan(
        load_recipe(config.data.recipe),
        config.data.shards,
        config.seed,
        global_batch_size=config.train.global_batch_size,
        encoder=encoder,
    )
    needed = config.train.steps * config.train.global_batch_size
    if plan.length is not None and plan.length < needed:
        raise ConfigError(
            f"{config.data.recipe}: all corpora have `epochs` and end after {plan.length} samples, but train.steps="
            f"{config.train.steps} x global_batch_size={config.train.global_batch_size} are {needed}. Set train.steps "
            f"to {plan.length // config.train.global_batch_size} or leave `epochs` out of a line."
        )
    return plan


def _steps(
    config: RunConfig, plan: DataPlan, encoder: PromptEncoder, *, position: int, step: int
) -> Iterator[StepBatches]:
    """This rank's batches of the steps that are left."""
    dataset = StepDataset(
        plan,
        encoder,
        config.data,
        image_size=vision_spec(config.model.vision_encoder).image_size,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return iterate_steps(dataset, position=position, num_steps=config.train.steps - step)


def _log_mixture(log: RunLog, plan: DataPlan, title: str, position: int) -> None:
    """One line: asked shares in percent, or, after `position` samples, the realised ones."""
    if position == 0:
        shares = dict(zip(plan.names, plan.shares, strict=True))
    else:
        shares = {name: count / position for name, count in plan.corpus_counts(0, position).items()}
    log.line(f"{title}: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items()))


def _export(
    folder: Path,
    config: RunConfig,
    start: Start,
    trainer: Trainer,
    tokenizer: Tokenizer,
    plan: DataPlan,
    log: RunLog,
) -> Path:
    """Gather what an export holds (a collective) and write it on the main rank."""
    parent, base_sha256 = start.parent, start.identity.base_sha256
    trained = trainer.trained_weights()
    names = names_to_export(trainer.model, config.model, parent.tensors if parent else {})
    others = [name for name in names if name not in trainer.trainable]
    tensors = trained | {name: full_value(trainer.parameters[name]) for name in others}
    if distributed.is_main():
        entry = {
            "stage": config.stage,
            "steps": trainer.step,
            "skipped": trainer.guard.skipped,
            "seed": config.seed,
            "data_plan": plan.fingerprint(),
            "recipe": config.data.recipe,
            "parent": parent.weights_sha256 if parent else None,
            "base_sha256": base_sha256,
            "versions": {"minigptv2": __version__, "torch": torch.__version__},
            "config": start.known,
        }
        lineage = [*(parent.lineage if parent else ()), LineageEntry.from_json(redact_all(entry))]
        info = save_export(folder, tensors, config.model, tokenizer, lineage, base_sha256=base_sha256)
        log.line(f"export {info.title}")
    return folder
