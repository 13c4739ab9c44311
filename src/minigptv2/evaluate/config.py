"""What a run's YAML may say about looking at the model while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EvaluateConfig:
    """Pictures of held-out samples with true and predicted boxes, in TensorBoard."""

    shards: str = ""
    """Folder of held-out shards, one folder per corpus; empty: none are looked at."""
    corpora: list[str] = field(default_factory=list)
    """Corpora in it."""
    every: int = 0
    """Steps between looks; 0: only after the last step."""
    samples: int = 4
    """Held-out samples per corpus that are answered and drawn each time."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
