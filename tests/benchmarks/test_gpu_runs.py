"""The GPU runs, rehearsed at tiny size on the CPU: every line but the device's speed."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
from benchmarks.gpu import common

from tests import preloaded
from tests.conftest import REPOSITORY

RUNS = ("step", "vision", "numerics", "memory", "full_size")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if name in os.environ:
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", RUNS)
def test_a_gpu_run_rehearses_on_the_cpu(name: str, tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed's ZeRO-3 changes torch's linear for good."""
    log = tmp_path / "log"
    target = "tests.benchmarks.test_gpu_runs:rehearse"
    process = preloaded.start(target, log=log, environment=dict(os.environ), name=name)
    assert process.wait(240) == 0, log.read_text()[-3000:]
    assert not list((REPOSITORY / "benchmarks" / "results").glob("gpu_*_tiny.json"))


def rehearse(name: str) -> None:
    assert importlib.import_module(f"benchmarks.gpu.{name}").main(["--tiny"]), "rows of the table"


def test_every_run_is_rehearsed_and_claims_nothing_unmeasured() -> None:
    runs = {file.stem for file in Path(common.__file__).parent.glob("*.py")} - {"__init__", "common"}
    assert set(RUNS) <= runs
    for file in (REPOSITORY / "benchmarks" / "results").glob("gpu_*.json"):
        assert '"gpus": []' not in file.read_text(), f"{file.name} was written on a machine without a GPU"


def test_a_full_size_run_asks_for_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="needs a GPU; --tiny rehearses"):
        common.setting_of([], "")
