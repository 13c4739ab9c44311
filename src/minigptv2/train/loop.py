"""Runs the training steps, and logs, evaluates, saves and stops between them."""

from __future__ import annotations

import time

from minigptv2.cluster import distributed
from minigptv2.data.loader import truncation_report
from minigptv2.engine.movement import Movement
from minigptv2.engine.trainer import StepReport
from minigptv2.errors import RequeueExit
from minigptv2.shards.dropped import DropReport
from minigptv2.train.meter import Meter
from minigptv2.train.run import Run


def run_loop(run: Run) -> None:
    """Train from `run.position` to the last step.

    Raises `RequeueExit` on all ranks, after saving, if any of them was asked to stop.
    """
    trainer, log, settings = run.trainer, run.log, run.config.train
    first, last = trainer.step, settings.steps
    meter = Meter(run.limit, run.plan.names)
    movement = Movement(trainer, settings.guard.movement_steps)
    if reason := run.stop.poll_all_ranks():
        raise RequeueExit(f"stop requested ({reason}) while loading, at step {first} of {last}. Nothing to save.")
    drop_report = DropReport(run.folder.path, first) if distributed.is_main() else None
    waiting_since = time.monotonic()
    run.watch.set_phase(f"data of step {first}")
    for batches in run.steps():
        meter.data_wait_s += time.monotonic() - waiting_since
        if trainer.step == first:
            run.ledger.end("first batch")
            run.record_start()
        run.watch.set_phase(f"step {trainer.step}", steady=trainer.step > first)
        report = trainer.train_step(batches.batches)
        run.position = batches.position + batches.num_samples
        meter.add(report, batches)
        run.note_drops(batches.dropped)
        if report.skipped:
            run.explain_skip(report, batches)
        step = trainer.step
        movement.check_when_due(trainer, last=step == last)
        log.progress(1, f"loss {report.loss:.3f}")
        log_due = every(step, settings.log_every) or step == last
        if log_due:
            _log_interval(run, meter, report)
            meter = Meter(run.limit, run.plan.names)
        if every(step, run.config.evaluate.every) or step == last:
            run.monitor.evaluate(step)
        reason = run.stop.poll_all_ranks()
        save_due = every(step, settings.checkpoint_every) or step == last or reason is not None
        if log_due or save_due:
            _report_drops(run, drop_report)
        if save_due:
            run.save(wait=step == last or reason is not None)
        if reason and step < last:
            log.line(f"stop requested ({reason}): saved at step {step} of {last}. The same command resumes there.")
            raise RequeueExit(f"stopped at step {step} of {last} ({reason}). Run the same command again to resume.")
        waiting_since = time.monotonic()
        run.watch.set_phase(f"data of step {step}", steady=step > first)


def _log_interval(run: Run, meter: Meter, report: StepReport) -> None:
    """Log the steps since the last log line, with the held-out losses (a collective)."""
    step = run.trainer.step
    text, values = meter.summary(report, run.config.train.steps - step)
    run.log.line(text)
    if meter.truncated:
        run.log.line(truncation_report(run.plan, meter.truncated, run.config.data.max_tokens))
    mixture = {name: count / run.position for name, count in run.plan.corpus_counts(0, run.position).items()}
    run.log.metrics(step, {**values, "mixture": mixture, **run.monitor.losses(step)})


def _report_drops(run: Run, report: DropReport | None) -> None:
    """Move every rank's dropped samples since the last report to `dropped.jsonl`. A collective."""
    gathered = distributed.gather_on_main(run.unreported)
    if report is not None:
        report.add(row for rows in gathered for row in rows)
    run.unreported.clear()


def every(step: int, interval: int) -> bool:
    """Whether something that is done each `interval` steps (0: never) is due after `step` steps."""
    return interval > 0 and step % interval == 0
