"""The composition root: a `RunConfig` to a trained stage. Builds data, model and engine, joins them, runs the loop.

Whatever starts it (`deepspeed launch/train.py`, `torchrun`, `srun`, `make stage1`, plain `python`) ends here.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from minigptv2 import __version__
from minigptv2.config import Loaded, flat_values, render_yaml
from minigptv2.data.dropped import DROPPED_FILE, Dropped, DropReport
from minigptv2.data.fullest import fullest_pack
from minigptv2.data.loader import StepBatches, StepDataset, iterate_steps
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.engine import distributed
from minigptv2.engine.attempts import Attempts
from minigptv2.engine.bundle import keep_bundle
from minigptv2.engine.checkpoint import CheckpointState
from minigptv2.engine.config import load_deepspeed_config, resolve_deepspeed_config
from minigptv2.engine.log import HELDOUT_FILE, RunLog
from minigptv2.engine.movement import Movement
from minigptv2.engine.saver import CheckpointSaver, choose_checkpoint, restore_checkpoint
from minigptv2.engine.sharding import LoadProgress, construction, full_value, shape_of
from minigptv2.engine.signals import StopRequests, stop_listening
from minigptv2.engine.trainer import StepReport, Trainer
from minigptv2.engine.watchdog import Watchdog
from minigptv2.errors import CheckpointError, ConfigError, RequeueExit
from minigptv2.evaluate.looks import BEST_FILE, BEST_FOLDER, Looks
from minigptv2.evaluate.training import HeldOutSlice
from minigptv2.files import wait_until_seen, write_atomically
from minigptv2.model.backbones import vision_row
from minigptv2.model.bases import Base, check_base_hashes, fill_weights, hash_bases, names_to_export, open_bases
from minigptv2.model.build import build_model, sizes_of
from minigptv2.model.export import (
    ExportInfo,
    check_weights_file,
    load_info,
    save_export,
    tokenizer_of,
)
from minigptv2.model.kernels import compile_blocks
from minigptv2.model.proof import prove_packing
from minigptv2.model.weights import named_canonical
from minigptv2.predict.predictor import Predictor
from minigptv2.prompt import PromptEncoder
from minigptv2.run_config import RunConfig, check_identity, check_resume, check_run_config
from minigptv2.secrets import guarded_output, redact, redact_all
from minigptv2.sizing.limit import LimitReport
from minigptv2.sizing.meter import Meter, peak_memory_mib
from minigptv2.sizing.start import limit_report, recomputed_layers
from minigptv2.tokenizer import Tokenizer


def train(loaded: Loaded[RunConfig], *, fresh: bool = False, resume: bool = False) -> Path:
    """Train the stage that the config describes, from its newest checkpoint if it has one; returns the export folder.

    `fresh` starts over in a used run folder; `resume` fails where there is nothing to resume. Raises `ConfigError`,
    `DataError`, `CheckpointError` or `StepError`, on all ranks.
    """
    config = loaded.value
    check_run_config(config, distributed.world_size_from_environment())
    _check_stage_before(config)
    stop = StopRequests(config.train.time_limit_minutes)
    device = distributed.choose_device()
    distributed.start_process_group(device, config.train.timeout_minutes)
    run = Path(config.run_dir)
    attempts = Attempts(run, config.train.crash_loop_limit, active=distributed.is_main())
    watch = Watchdog(
        run,
        hang_s=60 * config.train.hang_minutes,
        slow_s=60 * config.train.timeout_minutes,
        silence_s=config.train.silence_s,
        before_leaving=attempts.ended,
    )
    try:
        with watch, attempts:
            export = _train(loaded, device, stop, watch, attempts, fresh=fresh, resume=resume)
    finally:
        stop_listening()
        distributed.stop_process_group()
    return export


def _train(loaded: Loaded[RunConfig], device: torch.device, stop: StopRequests, watch: Watchdog, attempts: Attempts, *,
           fresh: bool, resume: bool) -> Path:  # fmt: skip
    """Build data, model and engine, join them, run the loop."""
    config = loaded.value
    run = Path(config.run_dir)
    deepspeed_config = resolve_deepspeed_config(config.train, distributed.world_size())
    tokenizer = tokenizer_of(config.model)
    encoder = _prompt_encoder(config, tokenizer)
    plan = DataPlan(
        load_recipe(config.data.recipe), config.data.shards, config.seed,
        global_batch_size=config.train.global_batch_size, encoder=encoder,
    )  # fmt: skip
    _check_plan_reaches(plan, config)
    parent = _load_parent(config)
    bases = open_bases(config.model)
    identity = _identity(config, tokenizer, plan, bases, parent)
    known = _resume_record(loaded, plan)
    checkpoint, changes = _prepare_run_folder(run, config, identity, known, fresh=fresh, resume=resume)
    start = checkpoint[1].step if checkpoint else 0
    distributed.on_main(lambda: attempts.begin(start, known))
    log = RunLog(run, step=start, total_steps=config.train.steps, active=distributed.is_main())
    try:
        log.line(f"{config.stage}: " + (f"continues {parent.title}" if parent else "starts from the base weights"))
        watch.at("loading the model")
        model = build_model(config.model, tokenizer.vocab_size, construction(deepspeed_config))
        began = time.monotonic()
        inherited = (str(parent.folder), parent.tensors) if parent else None
        fill = LoadProgress(sum(_numel(parameter) for parameter in model.parameters()), log.line)
        sources = fill_weights(model, bases, inherited, fill, seed=config.seed, shape_of=shape_of)
        layers = recomputed_layers(config, deepspeed_config, device)
        model.recompute(layers)
        if config.model.compile_vision:
            compile_blocks(model.vision_encoder)
        trainer = Trainer(
            model, named_canonical(model), config.train, deepspeed_config, device=device, seed=config.seed
        )
        model.restore_float32_buffers()
        _log_model(log, trainer, sources, time.monotonic() - began)
        watch.at("before the first step")
        log.line(prove_packing(model, device))
        _rehearse(config, trainer, log, layers)
        limit = limit_report(config, deepspeed_config, device, next(model.parameters()).dtype, layers)
        log.line(f"this machine: {limit.rates}")
        position = 0
        if checkpoint:
            watch.at("loading the checkpoint")
            folder, state = checkpoint
            restore_checkpoint(folder, state, trainer)
            position = state.position
            log.line(f"resumed from {folder} at step {state.step} of {config.train.steps}")
            for change in changes:
                log.line(change)
        _log_mixture(log, plan, "mixture asked", 0)
        steps = _steps(config, plan, encoder, position=position, step=start)
        in_step = trainer.stage == 3 and distributed.world_size() > 1
        predictor = Predictor(model, tokenizer, in_step=in_step)
        heldout = HeldOutSlice(config.evaluate, predictor, max_pack_tokens=config.data.max_pack_tokens)
        gc.collect()
        gc.freeze()  # what is built lives to the end; full collections walked it (11 % of samples while generating)
        edge = _Edge(_saver(run, config, log), stop, watch, attempts, identity, known)

        def export(folder: Path) -> Path:
            return _export(folder, config, known, trainer, tokenizer, parent, plan, identity["base_sha256"], log)

        looks = Looks(heldout, run, export, log, edge.watch, start=start)
        position = _loop(config, trainer, steps, plan, log, looks, run, edge, limit, position)
        _log_mixture(log, plan, "mixture realised", position)
        watch.at("exporting")
        return export(run / "export")
    finally:
        log.close()


def _saver(run: Path, config: RunConfig, log: RunLog) -> CheckpointSaver:
    return CheckpointSaver(
        run,
        keep=config.train.keep_checkpoints,
        keep_every=config.train.keep_every,
        max_stall_s=config.train.max_save_stall_s,
        say=log.line,
    )


@dataclass
class _Edge:
    """What the loop needs at a step's edge: who saves, who asks to stop, who watches, what a checkpoint says."""

    saver: CheckpointSaver
    stop: StopRequests
    watch: Watchdog
    attempts: Attempts
    identity: dict[str, Any]
    config: dict[str, Any]

    def save(self, trainer: Trainer, position: int, *, wait: bool) -> None:
        self.watch.at(f"saving after step {trainer.step}")
        state = CheckpointState(trainer.step, position, self.identity, self.config, **trainer.extra_state())
        self.stop.saved(self.saver.save(trainer, state, wait=wait))
        self.attempts.saved_step = trainer.step


def _loop(config: RunConfig, trainer: Trainer, steps: Iterator[StepBatches], plan: DataPlan, log: RunLog,
          looks: Looks, run: Path, edge: _Edge, limit: LimitReport, position: int) -> int:  # fmt: skip
    """Train to the last step, logging, drawing and saving on the way; returns the position reached in the plan.

    Raises `RequeueExit` on all ranks, after a save, if any of them was asked to stop.
    """
    meter = Meter(limit)
    last = config.train.steps
    movement = Movement(trainer, config.train.guard.movement_steps)
    if asked := edge.stop.agreed():
        raise RequeueExit(f"asked to stop ({asked}) while loading, at step {trainer.step} of {last}; nothing to save")
    report_file = DropReport(run, trainer.step) if distributed.is_main() else None
    losses: list[tuple[int, int, Dropped]] = []
    first = trainer.step
    waited = time.monotonic()
    edge.watch.at(f"data of step {trainer.step}")
    for step_batches in steps:
        meter.data_wait_s += time.monotonic() - waited
        edge.watch.at(f"step {trainer.step}", steady=trainer.step > first)
        report = trainer.train_step(step_batches.batches)
        position = step_batches.position + step_batches.num_samples
        meter.add(report, step_batches)
        for bad in step_batches.dropped:
            log.line(f"dropped {bad}")
            losses.append((trainer.step, distributed.rank(), bad))
        if report.skipped:
            _explain_skip(config, trainer, report, step_batches, plan, log, run)
        done = trainer.step
        movement.check_when_due(trainer, last=done == last)
        log.progress(1, f"loss {report.loss:.3f}")
        if every(done, config.train.log_every) or done == last:
            text, values = meter.summary(report, last - done)
            mixture = plan.corpus_counts(0, position)
            log.line(text)
            shares = {name: n / position for name, n in mixture.items()}
            log.metrics(done, {**values, "mixture": shares, **looks.losses(done)})
            meter = Meter(limit)
        if every(done, config.evaluate.every) or done == last:
            looks.answers(done)
        asked = edge.stop.agreed()
        if every(done, config.train.log_every) or every(done, config.train.checkpoint_every) or done == last or asked:
            _report_losses(report_file, losses)
        if every(done, config.train.checkpoint_every) or done == last or asked:
            edge.save(trainer, position, wait=done == last or bool(asked))
        if asked and done < last:
            log.line(f"asked to stop ({asked}): saved at step {done} of {last}; the same command goes on from there")
            raise RequeueExit(f"stopped at step {done} of {last} ({asked}); start the same command again to go on")
        waited = time.monotonic()
        edge.watch.at(f"data of step {done}", steady=done > first)
    return position


def _explain_skip(config: RunConfig, trainer: Trainer, report: StepReport, step: StepBatches, plan: DataPlan,
                  log: RunLog, run: Path) -> None:  # fmt: skip
    """Name the samples of a discarded step, keep it for `minigptv2 replay`, and stop if it is one too many."""
    names = [[plan.name_of(sample) for sample in ids] for ids in step.sample_ids]
    suspects = [name for number in report.suspects for name in names[number]]
    everywhere = distributed.gather_on_main((suspects, [name for ids in names for name in ids]))
    blamed = [name for mine, _ in everywhere for name in mine] or [name for _, ids in everywhere for name in ids]
    log.line(f"STEP {report.step} DISCARDED: {report.skipped}; {len(blamed)} samples: {', '.join(sorted(blamed))}")
    folder = keep_bundle(run, trainer, report, step.batches, names, config.train.guard.keep_bundles)
    if folder:
        log.line(f"kept whole; run it again with: minigptv2 replay {folder}")
    trainer.guard.stop_if_too_many(report.step, report.skipped or "")


def _report_losses(file: DropReport | None, losses: list[tuple[int, int, Dropped]]) -> None:
    """Every rank's losses since the last time into the run's `dropped.jsonl`. A collective."""
    gathered = distributed.gather_on_main(losses)
    if file is not None:
        file.add(loss for of_rank in gathered for loss in of_rank)
    losses.clear()


def every(step: int, interval: int) -> bool:
    """Whether something done each `interval` steps is due after `step` steps; 0 means never."""
    return interval > 0 and step % interval == 0


def _prompt_encoder(config: RunConfig, tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(
        tokenizer,
        tokens_per_image=vision_row(config.model.vision_encoder).tokens_per_image,
        max_tokens=config.data.max_tokens,
    )


def _check_plan_reaches(plan: DataPlan, config: RunConfig) -> None:
    """Raise `ConfigError` if the recipe's corpora end before the run does."""
    needed = config.train.steps * config.train.global_batch_size
    if plan.length is not None and plan.length < needed:
        raise ConfigError(
            f"{config.data.recipe}: all corpora have `epochs` and end after {plan.length} samples, but train.steps="
            f"{config.train.steps} x global_batch_size={config.train.global_batch_size} are {needed}. Set train.steps "
            f"to {plan.length // config.train.global_batch_size} or leave `epochs` out of a line."
        )


def _steps(config: RunConfig, plan: DataPlan, encoder: PromptEncoder, *, position: int,
           step: int) -> Iterator[StepBatches]:  # fmt: skip
    """This rank's batches of the steps that are left."""
    dataset = StepDataset(
        plan,
        encoder,
        config.data,
        image_size=vision_row(config.model.vision_encoder).image_size,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return iterate_steps(dataset, position=position, num_steps=config.train.steps - step)


def _check_stage_before(config: RunConfig) -> None:
    """Raise `CheckpointError`, before anything is built, where the export this stage starts from is not there."""
    if config.init_from is not None and not Path(config.init_from).is_dir():
        raise CheckpointError(
            f"{config.stage} starts from init_from={config.init_from}, and there is no such export: the stage before "
            "is missing or not finished. Train it first, name another export, or say init_from=null to start without"
        )


def _load_parent(config: RunConfig) -> ExportInfo | None:
    """The export this stage starts from, its file checked; None for a first stage."""
    if config.init_from is None:
        return None
    folder = config.init_from

    def read() -> tuple[ExportInfo, dict[str, int]]:
        info = load_info(folder)
        check_weights_file(info)
        return info, {file.name: file.stat().st_size for file in sorted(info.folder.iterdir()) if file.is_file()}

    parent, files = distributed.on_main(read)
    for name, num_bytes in files.items():  # the stage before may have written them on another node a moment ago
        wait_until_seen(parent.folder / name, num_bytes)
    ours, theirs = sizes_of(config.model), parent.sizes
    pairs = {
        "vision encoder": (ours.vision_encoder, theirs.vision_encoder),
        "language model": (ours.language_model, theirs.language_model),
    }
    if parent.model.lora.r and config.model.lora.r:
        lora = [(m.lora.r, m.lora.alpha, sorted(m.lora.target_modules)) for m in (config.model, parent.model)]
        pairs["LoRA's rank, alpha and modules"] = (lora[0], lora[1])
    for what, (asked, had) in pairs.items():
        if asked != had:
            raise CheckpointError(f"init_from={config.init_from}: its {what} is {had}, this run's is {asked}")
    return parent


def _identity(config: RunConfig, tokenizer: Tokenizer, plan: DataPlan, bases: list[Base],
              parent: ExportInfo | None) -> dict[str, Any]:  # fmt: skip
    """Hashes of the contents that a run must go on with. Raises if the parent was trained on other bases."""
    hashes = distributed.on_main(lambda: hash_bases(bases))
    if parent:
        check_base_hashes(parent.base_sha256, hashes, str(parent.folder), bases)
    return {
        "tokenizer_sha256": tokenizer.sha256,
        "data_plan": plan.fingerprint(),
        "seed": config.seed,
        "init_from": parent.weights_sha256 if parent else None,
        "base_sha256": hashes,
    }


def _resume_record(loaded: Loaded[RunConfig], plan: DataPlan) -> dict[str, Any]:
    """The resolved config by dotted key, with what its recipe and its DeepSpeed JSON say: compared on resume."""
    record = {
        **loaded.flat,
        **flat_values(asdict(plan.recipe), "recipe."),
        **flat_values(load_deepspeed_config(loaded.value.train.deepspeed), "deepspeed."),
    }
    return cast(dict[str, Any], redact_all(record))


def _prepare_run_folder(
    run: Path, config: RunConfig, identity: dict[str, Any], known: dict[str, Any], *, fresh: bool, resume: bool,
) -> tuple[tuple[Path, CheckpointState] | None, list[str]]:  # fmt: skip
    """Write the resolved config and choose the checkpoint to go on from, the same on all ranks (None: from step 0).

    Returns it with its state, and what may and did change since.
    """
    if distributed.is_main():
        if fresh:
            for part in ("checkpoints", "tensorboard", "export", BEST_FOLDER, "bundles"):
                shutil.rmtree(run / part, ignore_errors=True)
            for part in ("metrics.jsonl", HELDOUT_FILE, BEST_FILE, "log.txt", "attempts.jsonl", DROPPED_FILE):
                (run / part).unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    checkpoint = choose_checkpoint(run, lambda text: print(f"warning: {text}", flush=True))
    changes: list[str] = []
    if checkpoint is None:
        if resume:
            raise CheckpointError(f"--resume: there is no checkpoint in {run} to go on from")
    else:
        folder, state = checkpoint
        changes = check_resume(state.config, known, folder)
        check_identity(state.identity, identity, folder)
    if distributed.is_main():
        write_atomically(run / "config.yaml", redact(render_yaml(config)).encode())
    return checkpoint, changes


def _rehearse(config: RunConfig, trainer: Trainer, log: RunLog, layers: int) -> None:
    """Run the fullest pack once, so that memory which does not suffice ends the run before its first step."""
    asked = trainer.device.type == "cuda" if config.train.rehearse is None else config.train.rehearse
    if not asked:
        return
    row = vision_row(config.model.vision_encoder)
    pack = fullest_pack(
        config.data,
        image_size=row.image_size,
        tokens_per_image=row.tokens_per_image,
        global_batch_size=config.train.global_batch_size,
    )
    tokens, images = pack["input_ids"].shape[1], pack["pixel_values"].shape[0]
    what = f"the fullest pack, {tokens} tokens and {images} images, {layers} layer(s) recomputed"
    try:
        trainer.rehearse(pack)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{what}: does not fit this GPU. Lower data.max_pack_tokens={config.data.max_pack_tokens}, raise "
            f"model.recompute_layers, or ask `minigptv2 plan`. ({str(error).splitlines()[0]})"
        ) from error
    log.line(f"rehearsed {what}: peak memory {peak_memory_mib() / 1024:.2f} GiB")


def _log_model(log: RunLog, trainer: Trainer, sources: dict[str, str], seconds: float) -> None:
    for part, (held, total) in trainer.held_by_part().items():
        share = 100 * held / total
        log.line(f"{part}: {total:,} parameters, {held:,} held by this rank ({share:.1f} %), from {sources[part]}")
    trained = sum(_numel(p) for p in trainer.trainable.values())
    log.line(
        f"ZeRO stage {trainer.stage} on {distributed.world_size()} process(es); {trained:,} parameters trained; "
        f"model ready in {seconds:.1f} s, peak memory {peak_memory_mib() / 1024:.2f} GiB"
    )


def _numel(parameter: Any) -> int:
    total = 1
    for side in shape_of(parameter):
        total *= side
    return total


def _log_mixture(log: RunLog, plan: DataPlan, title: str, position: int) -> None:
    """One line: asked shares in percent, or, after `position` samples, the realised ones."""
    if position == 0:
        shares = dict(zip(plan.names, plan.shares, strict=True))
    else:
        shares = {name: count / position for name, count in plan.corpus_counts(0, position).items()}
    log.line(f"{title}: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items()))


def _export(
    folder: Path, config: RunConfig, known: dict[str, Any], trainer: Trainer, tokenizer: Tokenizer,
    parent: ExportInfo | None, plan: DataPlan, base_sha256: dict[str, str], log: RunLog,
) -> Path:  # fmt: skip
    """Gather what an export holds (a collective) and write it on the main rank."""
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
            "config": known,
        }
        lineage = [*(parent.lineage if parent else ()), redact_all(entry)]
        info = save_export(folder, tensors, config.model, tokenizer, lineage, base_sha256=base_sha256)
        log.line(f"export {info.title}")
    return folder


def main(argv: list[str] | None = None) -> int:
    """`launch/train.py`: parse, load the config, train; errors as one message and a non-zero exit code."""
    parser = argparse.ArgumentParser(description="Train one stage of MiniGPT-v2.")
    parser.add_argument("--config", required=True, help="a YAML in launch/configs")
    parser.add_argument("--fresh", action="store_true", help="start over in a used run folder")
    parser.add_argument("--resume", action="store_true", help="fail if there is nothing to resume")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the YAML")
    args = parser.parse_args(argv)
    with guarded_output():
        return _main(args)


def _main(args: argparse.Namespace) -> int:
    from minigptv2.errors import DataError, MiniGPTv2Error
    from minigptv2.run_config import load_run_config

    try:
        distributed.adopt_launcher()
        train(load_run_config(args.config, args.overrides), fresh=args.fresh, resume=args.resume)
    except MiniGPTv2Error as error:
        # Config and checkpoint errors are the same on all ranks and said once; a data error may be one rank's own.
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or isinstance(error, DataError):
            print(f"{f'[rank {rank}] ' if rank else ''}{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0
