"""Tests that a server gives memory back to the system that large requests took."""

from __future__ import annotations

import platform
import threading

import pytest

from minigptv2.predict.predictor import Predictor
from minigptv2.serve import heap
from minigptv2.serve.heap import trim_heap
from tests.memory import restart_peak
from tests.serve.running import running

PIECES, PIECE_BYTES = 100_000, 600


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory and can be asked for it")
def test_freed_memory_is_given_back() -> None:
    pieces = [bytes(PIECE_BYTES) for _ in range(PIECES)]
    last = pieces[-1]  # the heap cannot shrink below what is still used
    before = restart_peak()
    pieces.clear()
    trim_heap()
    assert before - restart_peak() > 0.8 * PIECES * PIECE_BYTES / 2**20, len(last)


def test_a_server_trims_its_heap_while_it_runs(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Semaphore(0)
    monkeypatch.setattr(heap, "TRIM_EVERY_S", 0.01)
    monkeypatch.setattr(heap, "trim_heap", trimmed.release)
    with running(predictor):
        assert all(trimmed.acquire(timeout=10) for _ in range(3))


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    trim_heap()
