"""Checks a few values bit by bit or within rounding, and that files written by version 0.1 are still read.

The whole comparison is `python -m tests.golden record|compare FOLDER`; this is its small committed part. Write
`golden_expected.json` again with `python -m tests.golden small tests/golden_expected.json`, and only if it must change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import minigptv2
from tests.golden.values import REPOSITORY, differences, exact

EXPECTED = REPOSITORY / "tests/golden_expected.json"
TOLERANCE = {"rel": 1e-6, "abs": 1e-6}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads(EXPECTED.read_bytes())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The values of the current code, computed in a process of its own, because training forks it."""
    file = tmp_path_factory.mktemp("golden") / "found.json"
    path = os.pathsep.join((str(Path(minigptv2.__file__).parents[1]), str(REPOSITORY)))
    command = [sys.executable, "-m", "tests.golden", "small", str(file)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_bytes())


def test_twenty_steps_have_the_expected_losses(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(expected["losses"]) == 20 and expected["losses"]["8 loss"] == 0.0, "the eighth step is skipped"
    assert found["losses"] == pytest.approx(expected["losses"], **TOLERANCE)


def test_a_recipe_gives_the_expected_samples(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["sample ids"] == expected["sample ids"] and len(expected["sample ids"]) == 200


def test_shards_have_the_expected_bytes(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["shards"] == expected["shards"]


def test_answers_have_the_expected_likelihoods(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for layout, cases in expected["scores"].items():
        assert len(found["scores"][layout]) == len(cases)
        for ours, theirs in zip(found["scores"][layout], cases, strict=True):
            assert ours == pytest.approx(theirs, **TOLERANCE)


def test_version_0_1_s_export_trains_on(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["old files"]["next stage"] == pytest.approx(expected["old files"]["next stage"], **TOLERANCE)


def test_version_0_1_s_checkpoint_is_refused_because_of_the_order_of_samples(found: dict[str, Any]) -> None:
    """The recipe also has a key that version 0.1 did not have. The message must not be about that key."""
    said = found["old files"]["resumed"]
    assert "minigptv2 0.1 wrote it, and the order of samples changed in 0.2" in said
    assert "init_from=<work>/refused/export" in said and "--fresh" in said and "sample_by" not in said


@pytest.mark.parametrize("name", ["shards", "attempts", "lineage"])
def test_version_0_1_s_shards_journal_and_lineage_are_read(
    found: dict[str, Any], expected: dict[str, Any], name: str
) -> None:
    assert found["old files"][name] == expected["old files"][name]


def test_the_comparison_finds_a_change_of_the_last_bit_and_of_the_type() -> None:
    before = exact({"a": [0.1, 0.2, float("nan")], "b": {"c": 1}})
    assert differences(before, exact({"a": [0.1, 0.2, float("nan")], "b": {"c": 1}})) == []
    assert len(differences(before, exact({"a": [0.1, 0.1 + 0.1000000000000001, float("nan")], "b": {"c": True}}))) == 2
    assert differences(before, exact({"a": [0.1], "d": 1})) == [
        "/b: no longer there",
        "/d: new",
        "/a: 3 values, now 1",
    ]
