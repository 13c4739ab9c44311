"""hpZ: the second shards that a node keeps hold the weights that were loaded, not those the modules were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.net import ZERO3, batch, make_trainer, mine
from tests.ranks import run_ranks


def losses(folder: str, zero: dict[str, Any]) -> list[float]:
    """Losses of three steps; the net's weights are filled after it was made, as a run's are."""
    trainer = make_trainer(Path(folder), zero)
    return [trainer.train_step(mine([batch(step, number) for number in range(4)])).loss for step in range(3)]


def test_hpz_trains_on_the_weights_that_were_loaded(tmp_path: Path) -> None:
    """Two groups of two ranks, as two nodes."""
    found = [
        run_ranks("tests.engine.test_hpz:losses", 4, tmp_path, folder=str(tmp_path), zero=zero)[0]
        for zero in (ZERO3, ZERO3 | {"zero_hpz_partition_size": 2})
    ]
    assert found[0] == found[1]
