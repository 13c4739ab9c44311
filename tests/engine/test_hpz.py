"""Tests hpZ: the secondary shards of a node hold the loaded weights, not those that the modules were built with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.net import ZERO3, batch, make_trainer, mine
from tests.ranks import run_ranks


def losses(folder: str, zero: dict[str, Any]) -> list[float]:
    """Return the losses of three steps. As in a run, the weights are loaded after the net is built."""
    trainer = make_trainer(Path(folder), zero)
    return [trainer.train_step(mine([batch(step, number) for number in range(4)])).loss for step in range(3)]


def test_hpz_trains_on_the_weights_that_were_loaded(tmp_path: Path) -> None:
    """Uses two groups of two ranks, as on two nodes."""
    found = [
        run_ranks("tests.engine.test_hpz:losses", 4, tmp_path, folder=str(tmp_path), zero=zero)[0]
        for zero in (ZERO3, ZERO3 | {"zero_hpz_partition_size": 2})
    ]
    assert found[0] == found[1]
