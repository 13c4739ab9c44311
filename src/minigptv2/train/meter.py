"""Sums up the steps since the last log line, and returns them as a log line and as metrics."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from minigptv2.data.loader import StepBatches, input_bound
from minigptv2.data.objective import Composition
from minigptv2.data.plan import SampleId
from minigptv2.engine.trainer import StepReport
from minigptv2.model.costs import Work
from minigptv2.tasks import TASKS
from minigptv2.train.limit import LimitReport


def peak_memory_mib() -> float:
    """Peak memory in MiB, of the GPU if there is one, otherwise of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Meter:
    """Sums over the steps since the last log line, which are compared with `limit`.

    `corpora` names the corpora whose shares the log sums of the steps hold (`data.objective`).
    """

    limit: LimitReport | None = None
    corpora: Sequence[str] = ()
    began: float = 0.0
    steps: int = 0
    loss: float = 0.0
    samples: int = 0
    tokens: int = 0
    images: int = 0
    supervised: int = 0
    weight: float = 0.0
    dropped: int = 0
    truncated: list[tuple[SampleId, int]] = field(default_factory=list)
    """The samples whose text was cut, with the number of tokens cut."""
    skipped: int = 0
    micro_batches: int = 0
    squares: float = 0.0
    data_wait_s: float = 0.0
    data_stages: dict[str, float] = field(default_factory=dict)
    task_loss: tuple[float, ...] = field(default_factory=lambda: (0.0,) * len(TASKS))
    task_tokens: tuple[float, ...] = field(default_factory=lambda: (0.0,) * len(TASKS))
    log_sums: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def add(self, report: StepReport, batches: StepBatches) -> None:
        """Add one step."""
        self.steps += 1
        self.dropped += len(batches.dropped)
        self.truncated += batches.truncated
        for stage, value in batches.seconds.items():
            self.data_stages[stage] = self.data_stages.get(stage, 0.0) + value
        self.micro_batches += len(batches.batches)
        if report.skipped:  # its loss may be NaN
            self.skipped += 1
            return
        self.samples += batches.num_samples
        self.tokens += report.tokens
        self.images += report.images
        self.supervised += report.supervised
        self.squares += sum_of_squares(batch.inputs["segment_ids"] for batch in batches.batches)
        self.weight += report.weight
        self.loss += report.loss * report.weight
        self.log_sums = tuple(
            map(sum, zip(self.log_sums or (0.0,) * len(report.log_sums), report.log_sums, strict=True))
        )
        pairs = zip(self.task_loss, report.task_loss, report.task_tokens, strict=True)
        self.task_loss = tuple(total + mean * count for total, mean, count in pairs)
        self.task_tokens = tuple(a + b for a, b in zip(self.task_tokens, report.task_tokens, strict=True))

    def summary(self, report: StepReport, steps_left: int) -> tuple[str, dict[str, Any]]:
        """The log line and the metrics of these steps."""
        seconds = max(1e-9, time.monotonic() - self.began)
        tasks = {
            name: loss / count
            for name, loss, count in zip(TASKS, self.task_loss, self.task_tokens, strict=True)
            if count
        }
        loss = self.loss / self.weight if self.weight else 0.0
        composition = Composition.from_sums(self.log_sums, len(self.corpora)) if self.log_sums else None
        minutes_left = steps_left * seconds / self.steps / 60
        memory = peak_memory_mib()
        share = self._share(seconds)
        text = (
            f"step {report.step + 1}  loss {loss:.4f}  lr {report.learning_rate:.2e}  norm {report.gradient_norm:.2f}  "
            f"{self.samples / seconds:.1f} samples/s  {self.tokens / seconds:.0f} tokens/s  "
            f"{input_bound(self.data_wait_s / seconds, self.data_stages)}  {memory / 1024:.1f} GiB  "
            f"{minutes_left:.1f} min left  | " + "  ".join(f"{name} {value:.3f}" for name, value in tasks.items())
        )
        if composition is not None:
            shares = composition.shares_of_tasks().items()
            text += "  | objective " + "  ".join(f"{name} {100 * share:.1f} %" for name, share in shares)
        if share is not None:
            text += f"  | {share}"
        values = {
            "loss": loss,
            "task_loss": tasks,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "throughput": {
                "samples_per_s": self.samples / seconds,
                "tokens_per_s": self.tokens / seconds,
                "images_per_s": self.images / seconds,
                "step_s": seconds / self.steps,
                "data_wait_share": self.data_wait_s / seconds,
            },
            "data_seconds": self.data_stages,
            "dropped": self.dropped,
            "truncated": len(self.truncated),
            "skipped_steps": self.skipped,
            "memory_mib": memory,
        }
        if composition is not None:
            values["objective_share"] = composition.shares_of_loss(self.corpora)
            values["sample_share"] = composition.shares_of_samples(self.corpora)
        return text, values | ({"limit": share.values()} if share is not None else {})

    def _share(self, seconds: float) -> Any:
        if self.limit is None or not self.tokens:
            return None
        # Squares are counted on this rank only. Its packs are balanced with those of the other ranks.
        work = Work(self.tokens, self.images, self.images, self.squares * self.limit.ranks, self.supervised)
        return self.limit.share(
            work, steps=self.steps, micro_batches=self.micro_batches, seconds=seconds, data_wait_s=self.data_wait_s
        )


def sum_of_squares(segments: Iterable[torch.Tensor]) -> float:
    """Sum of the squared lengths of all samples in packs with `segment_ids` [1, L], without padding (segment 0)."""
    total = 0.0
    for segment_ids in segments:
        lengths = torch.bincount(segment_ids.flatten())[1:].double()
        total += float((lengths * lengths).sum())
    return total
