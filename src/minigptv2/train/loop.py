"""The loop of a stage: steps, and what happens at their edges: log, held-out looks, checkpoints, requests to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigptv2.cluster import distributed
from minigptv2.cluster.recorder import AttemptRecorder
from minigptv2.cluster.signals import StopRequests
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.data.loader import StepBatches
from minigptv2.data.plan import DataPlan
from minigptv2.engine.bundle import keep_bundle
from minigptv2.engine.checkpoint import Identity
from minigptv2.engine.movement import Movement
from minigptv2.engine.saver import CheckpointSaver
from minigptv2.engine.trainer import StepReport, Trainer
from minigptv2.errors import RequeueExit
from minigptv2.heldout.monitor import PeriodicEvaluator
from minigptv2.run_config import RunConfig
from minigptv2.shards.dropped import Dropped, DropReport, TooManyDropped, save_unreported_drops
from minigptv2.tracking.log import RunLog
from minigptv2.train.limit import LimitReport
from minigptv2.train.meter import Meter


@dataclass
class Edge:
    """What the loop needs at a step's edge: who saves, who asks to stop, who watches, what a checkpoint says."""

    saver: CheckpointSaver
    stop: StopRequests
    watch: Watchdog
    attempts: AttemptRecorder
    identity: Identity
    config: dict[str, Any]

    def save(self, trainer: Trainer, position: int, *, wait: bool) -> None:
        self.watch.set_phase(f"saving after step {trainer.step}")
        state = trainer.checkpoint_state(position, self.identity, self.config)
        self.stop.record_save(self.saver.save(trainer, state, wait=wait))
        self.attempts.saved_step = trainer.step


def run_loop(
    config: RunConfig,
    trainer: Trainer,
    steps: Iterator[StepBatches],
    plan: DataPlan,
    log: RunLog,
    evaluator: PeriodicEvaluator,
    run: Path,
    edge: Edge,
    limit: LimitReport,
    position: int,
) -> int:
    """Train to the last step, logging, drawing and saving on the way; returns the position reached in the plan.

    Raises `RequeueExit` on all ranks, after a save, if any of them was asked to stop.
    """
    meter = Meter(limit)
    last = config.train.steps
    movement = Movement(trainer, config.train.guard.movement_steps)
    if asked := edge.stop.poll_all_ranks():
        raise RequeueExit(f"asked to stop ({asked}) while loading, at step {trainer.step} of {last}; nothing to save")
    report_file = DropReport(run, trainer.step) if distributed.is_main() else None
    losses: list[tuple[int, int, Dropped]] = []
    first = trainer.step
    waited = time.monotonic()
    edge.watch.set_phase(f"data of step {trainer.step}")
    for step_batches in _telling_last_losses(steps, run, trainer, losses):
        meter.data_wait_s += time.monotonic() - waited
        edge.watch.set_phase(f"step {trainer.step}", steady=trainer.step > first)
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
            log.metrics(done, {**values, "mixture": shares, **evaluator.losses(done)})
            meter = Meter(limit)
        if every(done, config.evaluate.every) or done == last:
            evaluator.evaluate(done)
        asked = edge.stop.poll_all_ranks()
        if every(done, config.train.log_every) or every(done, config.train.checkpoint_every) or done == last or asked:
            _report_losses(report_file, losses)
        if every(done, config.train.checkpoint_every) or done == last or asked:
            edge.save(trainer, position, wait=done == last or bool(asked))
        if asked and done < last:
            log.line(f"asked to stop ({asked}): saved at step {done} of {last}; the same command goes on from there")
            raise RequeueExit(f"stopped at step {done} of {last} ({asked}); start the same command again to go on")
        waited = time.monotonic()
        edge.watch.set_phase(f"data of step {done}", steady=done > first)
    return position


def _telling_last_losses(
    steps: Iterator[StepBatches], run: Path, trainer: Trainer, losses: list[tuple[int, int, Dropped]]
) -> Iterator[StepBatches]:
    """The steps; where this rank loses too much to go on, what it had not reported yet is kept first."""
    try:
        yield from steps
    except TooManyDropped as stop:
        rank = distributed.rank()
        save_unreported_drops(run, [*losses, *((trainer.step + 1, rank, loss) for loss in stop.dropped)])
        raise


def _explain_skip(
    config: RunConfig, trainer: Trainer, report: StepReport, step: StepBatches, plan: DataPlan, log: RunLog, run: Path
) -> None:
    """Name the samples of a discarded step, keep it for `minigptv2 replay`, and stop if it is one too many."""
    names = [[plan.name_of(sample) for sample in ids] for ids in step.sample_ids]
    suspects = [name for number in report.suspects for name in names[number]]
    everywhere = distributed.gather_on_main((suspects, [name for ids in names for name in ids]))
    blamed = [name for mine, _ in everywhere for name in mine] or [name for _, ids in everywhere for name in ids]
    log.line(f"STEP {report.step} DISCARDED: {report.skipped}; {len(blamed)} samples: {', '.join(sorted(blamed))}")
    folder = keep_bundle(run, trainer, report, step.batches, names, keep=config.train.guard.keep_bundles)
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
