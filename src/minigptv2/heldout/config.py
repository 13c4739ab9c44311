"""What a run's YAML may say about looking at the model while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EvaluateConfig:
    """A fixed held-out slice, scored and drawn while the run goes on: in the log, `metrics.jsonl` and TensorBoard."""

    shards: str = ""
    """Folder of held-out shards, one folder per corpus; empty: none are looked at."""
    corpora: list[str] = field(default_factory=list)
    """Corpora in it."""
    every: int = 0
    """Steps between looks; 0: only after the last step."""
    samples: int = 4
    """Held-out samples per corpus that are drawn each time, with true and predicted boxes."""
    questions: int = 0
    """Held-out samples per corpus that are answered and scored each time, those drawn among them; 0: those alone."""
    loss_samples: int = 8
    """Held-out samples per corpus whose loss, and expected IoU of boxes, is taken at each log line, without
    generating; 0: none."""
    keep_best: str = ""
    """Figure whose best look is kept as an export in `best/`: `<corpus>/<figure>` such as `toy_refer/recall_50`. A loss
    is best when lowest, all others when highest. Empty: none is kept."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
