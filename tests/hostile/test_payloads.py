"""Tests that no hostile file runs code, reads or writes outside its folder, sends anything, or costs much (R19)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.hostile.payload import make_assets
from tests.hostile.table import PAYLOADS

SECONDS, MEGABYTES = 10, 1024
ERROR = re.compile(r"^\w+Error: ", re.MULTILINE)
"""How the one message of a command begins."""
FAULT = re.compile(r"^toy_refer\S*: ", re.MULTILINE)
"""How each fault that `shards verify` finds begins."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each payload did, by name. All run in one process beside the tests, as a command of a user would."""
    assets = tmp_path_factory.mktemp("assets")
    make_assets(assets)
    command = [sys.executable, "-m", "tests.hostile.worker", str(assets)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(PAYLOADS), f"the worker ended after {len(rows)} payloads: {done.stderr[-2000:]}"
    return {row["name"]: row for row in rows}


def test_there_are_a_hundred_payloads_with_names_of_their_own() -> None:
    assert len({payload.name for payload in PAYLOADS}) == len(PAYLOADS) >= 100


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_a_payload_does_no_harm(payload: Any, results: dict[str, dict[str, Any]]) -> None:
    row = results[payload.name]
    assert row["seen"] == row["sprung"] == row["outside"] == row["copied"] == [], row
    assert not row["leaked"], row
    assert "Traceback" not in row["error"] and "panicked" not in row["error"], row["error"]
    if row["code"] != 0 or not payload.harmless:
        assert row["code"] in [int(code) for code in payload.code], row
        errors, faults = (len(kind.findall(row["error"])) for kind in (ERROR, FAULT))
        assert errors == 1 or (errors == 0 and faults >= 1), row["error"]
    assert row["seconds"] < SECONDS and row["grown_mb"] < MEGABYTES, row


def test_nothing_is_left_to_run_for_minutes(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert sum(row["seconds"] for row in results.values()) < 2 * len(PAYLOADS)
