"""Configures evaluation during training: the `evaluate` section of a run's YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigptv2.config import Resume, setting


@dataclass
class EvaluateConfig:
    """A fixed set of held-out samples, scored and drawn during training, for the log, `heldout.jsonl` and trackers."""

    shards: str = setting("", resume=Resume.FREE, path=True, environment=True)
    """Folder of held-out shards with one folder per corpus. Empty: no evaluation during training."""
    corpora: list[str] = field(default_factory=list)
    """Corpora to read from that folder."""
    every: int = 0
    """Steps between evaluations. 0: only after the last step."""
    samples: int = 4
    """Samples per corpus that are drawn at each evaluation, with true and predicted boxes."""
    questions: int = 0
    """Samples per corpus that are answered and scored at each evaluation, including the drawn ones. 0: only those."""
    loss_samples: int = 8
    """Samples per corpus whose loss and expected IoU are computed at each log line, without generation. 0: none."""
    keep_best: str = ""
    """Metric whose best model is kept as an export in `best/`: `<corpus>/<metric>`, for example
    `toy_refer/recall_50`. The lowest loss is best, and the highest value of any other metric. Empty: none is kept."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
