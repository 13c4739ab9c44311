"""Holds the parts of one start of a stage: data plan, trainer, log, watchdog, saver. Saves, exports, reports skips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minigptv2 import __version__
from minigptv2.cluster import distributed
from minigptv2.cluster.recorder import AttemptRecorder
from minigptv2.cluster.signals import StopRequests
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.data.loader import StepBatches, StepDataset, iterate_steps
from minigptv2.data.plan import DataPlan
from minigptv2.engine.bundle import keep_bundle
from minigptv2.engine.saver import CheckpointSaver
from minigptv2.engine.trainer import StepReport, Trainer
from minigptv2.engine.zero import full_value
from minigptv2.heldout.monitor import PeriodicEvaluator
from minigptv2.model.backbones import vision_spec
from minigptv2.model.bases import names_to_export
from minigptv2.model.export import ExportContent, LineageEntry, save_export
from minigptv2.prompt import PromptEncoder
from minigptv2.redacted_files import json_lines
from minigptv2.run_config import RunConfig
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact_all
from minigptv2.shards.dropped import Dropped, TooManyDropped, save_unreported_drops
from minigptv2.tracking.log import RunLog
from minigptv2.train.ledger import StartLedger
from minigptv2.train.limit import LimitReport
from minigptv2.train.resume import Start


@dataclass
class Run:
    """One start of a stage. Every rank has one, and all methods but `steps` and `note_drops` are collectives."""

    config: RunConfig
    folder: RunFolder
    start: Start
    encoder: PromptEncoder
    plan: DataPlan
    trainer: Trainer
    log: RunLog
    watch: Watchdog
    stop: StopRequests
    attempts: AttemptRecorder
    limit: LimitReport
    ledger: StartLedger
    position: int
    """Position in the data plan of the next step's first sample."""
    saver: CheckpointSaver = field(init=False)
    monitor: PeriodicEvaluator = field(init=False)
    """Evaluation during training. Set after construction, because it exports through this object."""
    unreported: list[tuple[int, int, Dropped]] = field(default_factory=list)
    """Samples that this rank dropped since the last report, with step and rank."""

    def __post_init__(self) -> None:
        self.saver = CheckpointSaver(
            self.folder.path,
            keep=self.config.train.keep_checkpoints,
            keep_every=self.config.train.keep_every,
            max_stall_s=self.config.train.max_save_stall_s,
            log=self.log.line,
        )

    def steps(self) -> Iterator[StepBatches]:
        """This rank's batches of the remaining steps.

        Raises `TooManyDropped`, after saving what this rank has not reported, if the recipe's limit is exceeded.
        """
        dataset = StepDataset(
            self.plan,
            self.encoder,
            self.config.data,
            image_size=vision_spec(self.config.model.vision_encoder).image_size,
            global_batch_size=self.config.train.global_batch_size,
            micro_batch_size=self.config.train.micro_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        num_steps = self.config.train.steps - self.start.step
        try:
            yield from iterate_steps(dataset, position=self.position, num_steps=num_steps)
        except TooManyDropped as error:
            last = [(self.trainer.step + 1, distributed.rank(), dropped) for dropped in error.dropped]
            save_unreported_drops(self.folder.path, [*self.unreported, *last])
            raise

    def note_drops(self, dropped_samples: Iterable[Dropped]) -> None:
        """Log the samples that this rank dropped in the current step, and keep them for the next report."""
        for dropped in dropped_samples:
            self.log.line(f"dropped {dropped}")
            self.unreported.append((self.trainer.step, distributed.rank(), dropped))

    def save(self, *, wait: bool) -> None:
        """Save a checkpoint of the current step. `wait`: return when it is on the disk."""
        self.watch.set_phase(f"saving after step {self.trainer.step}")
        state = self.trainer.checkpoint_state(self.position, self.start.identity, self.start.known)
        self.stop.record_save(self.saver.save(self.trainer, state, wait=wait))
        self.attempts.saved_step = self.trainer.step

    def record_start(self) -> None:
        """Log the seconds of the start by phase and write them to the run folder."""
        self.log.line(self.ledger.line())
        if distributed.is_main():
            row = {"step": self.trainer.step, "ranks": distributed.world_size(), "seconds": self.ledger.seconds}
            with open(self.folder.startups, "a", encoding="utf-8") as stream:
                stream.write(json_lines([row]))

    def explain_skip(self, report: StepReport, batches: StepBatches) -> None:
        """Log the samples of a skipped step and save it for `minigptv2 replay`.

        Raises `StepError` if too many steps in a row were skipped.
        """
        names = [[self.plan.name_of(sample) for sample in ids] for ids in batches.sample_ids]
        suspects = [name for number in report.suspects for name in names[number]]
        gathered = distributed.gather_on_main((suspects, [name for ids in names for name in ids]))
        found = [name for mine, _ in gathered for name in mine] or [name for _, mine in gathered for name in mine]
        listed = ", ".join(sorted(found))
        self.log.line(f"skipped step {report.step}: {report.skipped}. {len(found)} samples: {listed}")
        keep = self.config.train.guard.keep_bundles
        folder = keep_bundle(self.folder.path, self.trainer, report, batches.batches, names, keep=keep)
        if folder:
            self.log.line(f"saved the skipped step. Replay it with: minigptv2 replay {folder}")
        self.trainer.guard.stop_if_too_many(report.step, report.skipped or "")

    def export(self, folder: Path) -> Path:
        """Gather the trained weights and write them with config and lineage, on the main rank. Returns `folder`."""
        parent, trainer = self.start.parent, self.trainer
        base_sha256 = self.start.identity.base_sha256
        trained = trainer.trained_weights()
        names = names_to_export(trainer.model, self.config.model, parent.tensors if parent else {})
        others = [name for name in names if name not in trainer.trainable]
        gathered = {name: full_value(trainer.parameters[name]) for name in others}
        if distributed.is_main():
            lineage = [*(parent.lineage if parent else ()), self._lineage_entry()]
            tensors = trained | {name: value for name, value in gathered.items() if value is not None}
            content = ExportContent(tensors, self.config.model, self.encoder.tokenizer, lineage, base_sha256)
            info = save_export(folder, content)
            self.log.line(f"export {info.title}")
        return folder

    def _lineage_entry(self) -> LineageEntry:
        parent = self.start.parent
        entry = {
            "stage": self.config.stage,
            "steps": self.trainer.step,
            "skipped": self.trainer.guard.skipped,
            "seed": self.config.seed,
            "data_plan": self.plan.fingerprint(),
            "recipe": self.config.data.recipe,
            "parent": parent.weights_sha256 if parent else None,
            "base_sha256": self.start.identity.base_sha256,
            "versions": {"minigptv2": __version__, "torch": torch.__version__},
            "config": self.start.known,
        }
        return LineageEntry.from_json(redact_all(entry))
