"""Tests the seconds of a start by phase."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minigptv2.train import ledger
from minigptv2.train.ledger import StartLedger


def test_phases_follow_each_other_and_the_first_begins_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 110.0, 110.5])
    monkeypatch.setattr(ledger, "seconds_since_start", lambda: 2.0)
    monkeypatch.setattr(ledger.time, "monotonic", lambda: next(clock))
    start = StartLedger()
    for phase in ("import", "hashes", "import"):
        start.end(phase)
    assert start.seconds == {"import": 5.5, "hashes": 7.0}
    assert start.line() == "start-up: import 5.5 s, hashes 7.0 s, total 12.5 s"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_the_time_before_the_first_line_of_python_counts() -> None:
    code = "import time; time.sleep(0.5); from minigptv2.train.ledger import seconds_since_start as s; print(s())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.5 <= float(output) < 60


def test_without_proc_it_begins_with_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "started_at", lambda pid: None)
    assert ledger.seconds_since_start() == 0.0
