"""The GPU runs, rehearsed at tiny size on the CPU: every line but the device's speed."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import sides, trace

from tests import preloaded
from tests.conftest import REPOSITORY

RUNS = ("step", "vision", "numerics", "memory", "plans", "profile", "full_size")


QUICK = ("vision",)
"""Runs that take seconds at their tiny size. `make soak` rehearses all."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if name in os.environ:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in RUNS]
)
def test_a_gpu_run_rehearses_on_the_cpu(name: str, tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed's ZeRO-3 changes torch's linear for good."""
    log = tmp_path / "log"
    target = "tests.benchmarks.test_gpu_runs:rehearse"
    process = preloaded.start(target, log=log, environment=dict(os.environ), name=name, folder=str(tmp_path))
    assert process.wait(240) == 0, log.read_text()[-3000:]
    assert not list((REPOSITORY / "benchmarks" / "results").glob("gpu_*_tiny.json"))


def rehearse(name: str, folder: str) -> None:
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    if name == "profile":
        module.FOLDER = Path(folder)
    rows = module.main(["--tiny"])
    assert rows and all(row["side"] for row in rows), "rows of the table"
    if name == "profile":
        whole = [row for row in rows if row["what"] == "step"]
        assert len(whole) == 2 and all(0 < row["device idle %"] < 100 for row in whole)
        assert {file.name for file in Path(folder).glob("*.png")} == {"zero3_tiny.png", "zero2_tiny.png"}


def test_a_side_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    (row,) = sides.own_process("benchmarks.gpu.vision", "eager attention", ["--tiny"], 120)
    assert row["side"] == "eager attention" and row["median s"] > 0


def test_a_side_that_fails_or_takes_too_long_is_a_row_with_a_note() -> None:
    (row,) = sides.own_process("benchmarks.gpu.absent", "SDPA", [], 60)
    assert (
        row["note"].startswith("failed with exit code 1: ") and "No module named benchmarks.gpu.absent" in row["note"]
    )
    (row,) = sides.own_process("benchmarks.gpu.vision", "SDPA", ["--tiny"], 1)
    assert row["note"] == "not measured: not finished in 1 s"
    (row,) = sides.own_process("benchmarks.gpu.vision", "SDPA", ["--tiny"], 0.5)
    assert row["note"] == "not measured: no time left of 460 s"


def test_the_published_baseline_has_fp16_weights_and_trains_in_float32() -> None:
    from benchmarks.gpu import step

    setting = sides.setting_for(tiny=True)
    for name, side in step.SIDES.items():
        if side.only_cuda:
            continue
        model = step.model_of(side, setting)
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert frozen == {torch.float16 if name.startswith("published") else torch.float32}, name
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_trace_states_idle_time_and_own_time() -> None:
    """Times by hand: the device is busy from 10 to 30 and from 40 to 60 of 100 us."""
    events = [
        {"ph": "X", "cat": "user_annotation", "name": trace.STEP, "ts": 1000, "dur": 100},
        {"ph": "X", "cat": "user_annotation", "name": "forward", "ts": 1005, "dur": 40},
        {"ph": "X", "cat": "kernel", "name": "sm90_gemm", "ts": 1010, "dur": 15},
        {"ph": "X", "cat": "kernel", "name": "flash_fwd", "ts": 1020, "dur": 10},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 1040, "dur": 20},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "forward", "ts": 1010, "dur": 80},
        {"ph": "X", "cat": "kernel", "name": "before the step", "ts": 900, "dur": 20},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1000, "dur": 90},
    ]
    found = trace.parse_trace(events, cuda=True)
    assert found.length == pytest.approx(0.1) and found.idle_share == pytest.approx(0.6)
    assert [span.kind for span in found.device] == ["matrix products", "attention", "copies"]
    assert [name for name, _, _ in found.top_kernels(2)] == ["Memcpy HtoD", "sm90_gemm"]
    nested = [
        events[0],
        {"ph": "X", "cat": "cpu_op", "name": "outer", "ts": 1000, "dur": 50},
        {"ph": "X", "cat": "cpu_op", "name": "inner", "ts": 1010, "dur": 30},
        {"ph": "X", "cat": "cpu_op", "name": "inner", "ts": 1060, "dur": 10},
    ]
    found = trace.parse_trace(nested, cuda=False)
    assert found.idle_share == pytest.approx(0.4)
    top = [(name, pytest.approx(share), calls) for name, share, calls in (("inner", 0.4, 2), ("outer", 0.2, 1))]
    assert found.top_kernels(5) == top


def test_every_run_is_rehearsed_and_claims_nothing_unmeasured() -> None:
    runs = {file.stem for file in Path(sides.__file__).parent.glob("*.py")} - {"__init__", "common", "sides", "trace"}
    assert set(RUNS) == runs
    for file in (REPOSITORY / "benchmarks" / "results").glob("gpu_*.json"):
        assert '"gpus": []' not in file.read_text(), f"{file.name} was written on a machine without a GPU"


def test_a_full_size_run_asks_for_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="needs a GPU; --tiny rehearses"):
        sides.setting_for(tiny=False)
