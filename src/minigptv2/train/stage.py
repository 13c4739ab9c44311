"""Trains one stage: builds data, model and engine, runs the loop and writes the export."""

from __future__ import annotations

import gc
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from minigptv2.cluster import distributed
from minigptv2.cluster.owner import RunOwner
from minigptv2.cluster.recorder import AttemptRecorder
from minigptv2.cluster.signals import StopRequests, stop_listening
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.config import Loaded
from minigptv2.data.objective import MEANINGS, TOKEN
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.engine.config import compute_dtype, resolve_deepspeed_config
from minigptv2.errors import ConfigError
from minigptv2.heldout.monitor import PeriodicEvaluator
from minigptv2.heldout.slice import HeldOutSlice
from minigptv2.model.attention import check_shared_images, choose_attention
from minigptv2.model.backbones import vision_spec
from minigptv2.model.export import tokenizer_of
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.proof import prove_packing
from minigptv2.predict.predictor import Predictor
from minigptv2.prompt import PromptEncoder
from minigptv2.run_config import RunConfig, check_places, check_run_config, doubts_about
from minigptv2.run_folder import RunFolder
from minigptv2.tokenizer import Tokenizer
from minigptv2.tracking.log import RunLog
from minigptv2.tracking.trackers import TrackedRun
from minigptv2.train.assembly import build_trainer, rehearse, restore
from minigptv2.train.ledger import StartLedger
from minigptv2.train.limit import check_ranks, limit_report, recomputed_layers
from minigptv2.train.loop import run_loop
from minigptv2.train.resume import check_stage_before, find_start, refuse_other_order
from minigptv2.train.run import Run

UNCHECKED = "warning: train.check_packing=false: nothing shows that packed samples are independent on this machine"


def train(loaded: Loaded[RunConfig], *, fresh: bool = False, resume: bool = False) -> Path:
    """Train the stage that the config describes and return its export folder.

    Resumes from the newest intact checkpoint of the run folder. `fresh` removes earlier results first. `resume` makes a
    missing checkpoint an error. Raises `ConfigError`, `DataError`, `CheckpointError` or `StepError` on all ranks.
    """
    config = loaded.value
    ledger = StartLedger()
    ledger.end("import")
    check_places(loaded)
    check_run_config(config, distributed.world_size_from_environment())
    check_stage_before(config, fresh=fresh)
    stop = StopRequests(config.train.time_limit_minutes)
    device = distributed.choose_device()
    distributed.start_process_group(device, config.train.timeout_minutes)
    folder = RunFolder(Path(config.run_dir))
    attempts = AttemptRecorder(folder.path, config.train.crash_loop_limit, active=distributed.is_main())
    watch = Watchdog(
        folder.path,
        hang_s=60 * config.train.hang_minutes,
        slow_s=60 * config.train.timeout_minutes,
        silence_s=config.train.silence_s,
        before_exit=attempts.record_end,
    )
    owner = RunOwner(folder.path)
    try:
        distributed.on_main(owner.take)  # before anything is written, failure.json included
        with owner, attempts, watch:  # the watchdog exits first, so that the first cause is recorded
            deepspeed_config = resolve_deepspeed_config(config.train, distributed.world_size())
            tokenizer = tokenizer_of(config.model)
            encoder = _prompt_encoder(config, tokenizer)
            if not fresh:
                refuse_other_order(config)
            plan = _data_plan(config, encoder)
            _check_attention(config, plan, device, deepspeed_config)
            check_ranks(config, deepspeed_config)
            ledger.end("plan")
            start = find_start(loaded, tokenizer, plan, fresh=fresh, resume=resume)
            ledger.end("hashes")
            distributed.on_main(lambda: attempts.begin(start.step, start.known))
            lineage = [entry.as_json() for entry in start.parent.lineage] if start.parent else []
            tracked = TrackedRun(folder, start.step, start.known, lineage)
            with closing(RunLog(tracked, total_steps=config.train.steps, active=distributed.is_main())) as log:
                origin = f"continues {start.parent.title}" if start.parent else "starts from the base weights"
                log.line(f"{config.stage}: {origin}")
                for doubt in doubts_about(config):
                    log.line(f"warning: {doubt}")
                watch.set_phase("loading the model")
                layers = recomputed_layers(config, deepspeed_config, device)
                trainer = build_trainer(
                    config,
                    deepspeed_config,
                    start,
                    log,
                    vocab_size=tokenizer.vocab_size,
                    device=device,
                    layers=layers,
                    ledger=ledger,
                )
                model = trainer.model
                assert isinstance(model, MiniGPTv2)
                watch.set_phase("before the first step")
                log.line(prove_packing(model, device) if config.train.check_packing else UNCHECKED)
                ledger.end("proof")
                rehearse(config, trainer, log, layers, weighted=plan.recipe.objective != TOKEN)
                limit = limit_report(config, deepspeed_config, device, next(model.parameters()).dtype, layers)
                log.line(f"this machine: {limit.rates}")
                ledger.end("rates")
                watch.set_phase("loading the checkpoint")
                position = restore(trainer, start, config, log)
                ledger.end("checkpoint")
                run = Run(
                    config, folder, start, encoder, plan, trainer, log, watch, stop, attempts, limit, ledger, position
                )
                _log_mixture(log, "target mixture", dict(zip(plan.names, plan.shares, strict=True)))
                _log_objective(log, plan)
                run.monitor = _monitor(run, model)
                run_loop(run)
                counts = plan.corpus_counts(0, run.position)
                _log_mixture(log, "actual mixture", {name: count / run.position for name, count in counts.items()})
                watch.set_phase("exporting")
                return run.export(folder.export)
    finally:
        stop_listening()
        distributed.stop_process_group()


def _prompt_encoder(config: RunConfig, tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(
        tokenizer,
        tokens_per_image=vision_spec(config.model.vision_encoder).tokens_per_image,
        max_tokens=config.data.max_tokens,
    )


def _data_plan(config: RunConfig, encoder: PromptEncoder) -> DataPlan:
    """The run's data plan. Raises `ConfigError` if the recipe's corpora end before the run does."""
    plan = DataPlan(
        load_recipe(config.data.recipe),
        config.data.shards,
        config.seed,
        global_batch_size=config.train.global_batch_size,
        encoder=encoder,
        run_once=distributed.on_main,
    )
    needed = config.train.steps * config.train.global_batch_size
    if plan.length is not None and plan.length < needed:
        raise ConfigError(
            f"{config.data.recipe}: every corpus has `epochs`, so the data ends after {plan.length} samples, but "
            f"train.steps={config.train.steps} x global_batch_size={config.train.global_batch_size} needs {needed}. "
            f"Set train.steps to {plan.length // config.train.global_batch_size}, or remove `epochs` from one corpus."
        )
    return plan


def _check_attention(config: RunConfig, plan: DataPlan, device: torch.device, document: dict[str, Any]) -> None:
    """Raise `ConfigError` if the attention cannot run on `device` or cannot compute packs of this recipe."""
    attention = choose_attention(config.model.attention, device, getattr(torch, compute_dtype(document)))
    if plan.shares_images:
        check_shared_images(attention)


def _monitor(run: Run, model: MiniGPTv2) -> PeriodicEvaluator:
    """Evaluation during training. Also excludes everything built so far from garbage collection."""
    config = run.config
    synced = run.trainer.zero.shards_parameters and distributed.world_size() > 1
    predictor = Predictor(model, run.encoder.tokenizer, synced_ranks=synced, refuse_nonfinite=False)
    heldout = HeldOutSlice(config.evaluate, predictor, max_pack_tokens=config.data.max_pack_tokens)
    gc.collect()
    gc.freeze()  # these objects live to the end, and full collections visited them: 11 % of samples while generating
    return PeriodicEvaluator(heldout, run.folder.path, run.export, run.log, run.watch, start=run.start.step)


def _log_mixture(log: RunLog, title: str, shares: dict[str, float]) -> None:
    log.line(f"{title}: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items()))


def _log_objective(log: RunLog, plan: DataPlan) -> None:
    log.line(f"objective {plan.recipe.objective}: {MEANINGS[plan.recipe.objective]}")
    if plan.supervised is not None:
        _log_mixture(log, "target shares of the loss", dict(zip(plan.names, plan.mixture.loss_shares, strict=True)))
        means = zip(plan.names, plan.supervised, strict=True)
        log.line("supervised tokens per sample: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means))
