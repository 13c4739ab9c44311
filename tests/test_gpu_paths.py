"""Compares `docs/gpu-paths.md` with the sources, and calls what needs a GPU with stand-ins."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minigptv2
from minigptv2.batch import copied_to
from minigptv2.doctor import machine
from minigptv2.train.meter import peak_memory_mib
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "gpu-paths.md"
PACKAGE = Path(minigptv2.__file__).parent
ATTRIBUTES = {"cuda", "is_cuda", "pin_memory", "varlen_attn"}
STRINGS = {"cuda", "nccl"}
MODULES = ("liger_kernel", "flash_attn")


def _asks_for_cuda(node: ast.AST) -> bool:
    """Whether a node of a syntax tree is a condition on CUDA or something that exists there only."""
    if isinstance(node, ast.Attribute):
        return node.attr in ATTRIBUTES
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith(MODULES)
    return isinstance(node, ast.Constant) and node.value in STRINGS


def _functions(tree: ast.AST, name: str = "") -> set[str]:
    """The innermost functions of the tree, or classes, that hold such a node."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(tree):
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        found |= {name} if _asks_for_cuda(child) else set()
        found |= _functions(child, child.name if inner else name)  # type: ignore[attr-defined]
    return found


def _rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_lists_every_function_that_asks_for_cuda() -> None:
    found = {
        (str(file.relative_to(PACKAGE)), function)
        for file in PACKAGE.rglob("*.py")
        for function in _functions(ast.parse(file.read_text()))
    }
    listed = {(file.strip("`"), function.strip("`")) for file, function, *_ in _rows()}
    assert found - listed == set(), "add these functions to docs/gpu-paths.md"
    assert listed - found == set(), "remove these functions from docs/gpu-paths.md"


@pytest.mark.parametrize(
    "code",
    ["x.is_cuda", "d.type == 'cuda'", "torch.cuda.synchronize()", "t.pin_memory()", "varlen.varlen_attn(q)"],
)
def test_a_new_line_for_cuda_is_found(code: str) -> None:
    assert _functions(ast.parse(f"class A:\n    def f(self):\n        return {code}")) == {"f"}


def test_the_tests_and_runs_of_the_page_exist() -> None:
    for _, function, _, tests, runs in _rows():
        for file, name in re.findall(r"`(tests/\S+\.py)::(\w+)`", tests):
            assert f"def {name}(" in (REPOSITORY / file).read_text(), function
        for run in re.findall(r"`(\w+)`", runs):
            assert (REPOSITORY / "benchmarks" / "gpu" / f"{run}.py").is_file(), function
        assert tests and runs, function


def test_a_copy_to_a_gpu_is_from_pinned_memory_and_not_waited_for() -> None:
    calls: list[object] = []

    class Host:
        device = torch.device("cpu")

        def pin_memory(self) -> Host:
            calls.append("pinned")
            return self

        def to(self, target: torch.device, *, non_blocking: bool) -> Host:
            calls.append((target.type, non_blocking))
            return self

    copied_to(Host(), torch.device("cuda", 1))  # type: ignore[arg-type]
    assert calls == ["pinned", ("cuda", True)]
    copied_to(Host(), torch.device("cpu"))  # type: ignore[arg-type]
    assert calls[2:] == [("cpu", True)]


def test_peak_memory_is_that_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("is_initialized", True), ("max_memory_allocated", 3 << 20)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert peak_memory_mib() == 3.0


@pytest.mark.parametrize(
    ("major", "free", "nccl", "levels"),
    [
        (9, 95, (2, 29, 7), ["ok", "ok"]),
        (7, 95, (2, 28, 9), ["BAD", "ok"]),
        (9, 80, (2, 28, 3), ["warning", "warning"]),
    ],
)
def test_the_doctor_describes_gpus(
    major: int, free: int, nccl: tuple[int, ...], levels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(major=major, minor=0, name="a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free << 30, 100 << 30))
    monkeypatch.setattr(torch.cuda, "nccl", SimpleNamespace(version=lambda: nccl))
    findings = machine.check_gpus()
    assert [finding.level for finding in findings] == levels
    assert f"100 GiB, {free} free, sm_{major}0" in findings[0].found
