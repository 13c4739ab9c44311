"""`failure.json`: one report per start, read back for that start only, and the node it blames."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minigptv2.cluster.attempts import Attempt, run_journal
from minigptv2.cluster.failure import Failure, read_failure, start_id, write_failure
from minigptv2.errors import ExitCode
from minigptv2.run_folder import RunFolder
from minigptv2.shards.dropped import Dropped, read_report, save_unreported_drops

LOST = Failure("7.1", "lost", "RankError", "silent for 9 s", int(ExitCode.RANK_LOST), 1, "node2", "step 12", 117)
BUG = replace(LOST, kind="error", error="ValueError", message="a bug\nin two lines", exit_code=1)


def test_a_failure_is_read_back_for_its_own_start_only(tmp_path: Path) -> None:
    assert read_failure(tmp_path / "run", "7.1") is None
    write_failure(tmp_path / "run", LOST, rank=0)
    assert read_failure(tmp_path / "run", "7.1") == LOST
    assert read_failure(tmp_path / "run", "7.2") is None


def test_the_first_report_of_a_start_stays_and_the_next_start_replaces_it(tmp_path: Path) -> None:
    write_failure(tmp_path, LOST, rank=0)
    write_failure(tmp_path, BUG, rank=1)
    assert read_failure(tmp_path, "7.1") == LOST
    write_failure(tmp_path, replace(BUG, start="7.2"), rank=1)
    assert read_failure(tmp_path, "7.2") == replace(BUG, start="7.2")


def test_rank_0_replaces_the_report_that_it_is_lost(tmp_path: Path) -> None:
    """Rank 1 is cut off and reports rank 0, which lives and reports rank 1."""
    write_failure(tmp_path, replace(LOST, rank=0, host="node1", pid=None), rank=1)
    write_failure(tmp_path, LOST, rank=0)
    assert read_failure(tmp_path, "7.1") == LOST


def test_a_lost_or_hanging_rank_blames_its_node_and_an_exception_does_not() -> None:
    nodes = ("node1", "node2")
    assert LOST.node_of(nodes) == replace(LOST, kind="hang").node_of(nodes) == ["node2"]
    assert replace(LOST, host="node2.cluster.example").node_of(nodes) == ["node2"]
    assert LOST.node_of(("node1.cluster.example", "node2.cluster.example")) == ["node2.cluster.example"]
    assert replace(LOST, host="10.0.0.1").node_of(("10.0.0.2", "10.0.0.1")) == ["10.0.0.1"]
    assert BUG.node_of(nodes) == replace(LOST, host="elsewhere").node_of(nodes) == []


def test_the_text_names_rank_host_and_error() -> None:
    assert str(LOST) == "[rank 1 (node2, pid 117)] RankError: silent for 9 s"
    assert str(replace(LOST, rank=0, host="node1", pid=None)) == "[rank 0 (node1)] RankError: silent for 9 s"
    assert BUG.summary == "[rank 1 (node2, pid 117)] ValueError: a bug"


def test_a_start_has_the_batch_scripts_id_or_one_of_its_own() -> None:
    """Two runs of `srun` in one allocation share Slurm's variables, and are two starts."""
    assert start_id({"SLURM_JOB_ID": "7", "MINIGPTV2_START": "7.2"}) == "7.2"
    first = start_id({"SLURM_JOB_ID": "7"})
    time.sleep(0.002)
    assert first != start_id({"SLURM_JOB_ID": "7"}) and first != "7.0"


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def refuse(source: Path, target: Path) -> None:
        seen.append(source.name)
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        write_failure(tmp_path, LOST, rank=3)
    assert socket.gethostname() in seen[0] and str(os.getpid()) in seen[0] and seen[0].endswith(".rank3.tmp")
    assert list(tmp_path.iterdir()) == []


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_TOKEN", "correct-horse-battery")
    write_failure(tmp_path, replace(BUG, message="403 for correct-horse-battery"), rank=0)
    assert json.loads((RunFolder(tmp_path).failure).read_text())["message"] == "403 for [secret]"


def test_secrets_with_quotes_and_signed_urls_leave_valid_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON escapes quotes, backslashes and non-ASCII characters, so secrets are replaced before it is encoded."""
    secret = 'p\\ss"wörd-è'
    monkeypatch.setenv("STORE_PASSWORD", secret)
    message = f'403 for "https://store/a.tar?part=2&sig=abc" with {secret}'
    hidden = '403 for "https://store/a.tar?part=2&sig=[secret]" with [secret]'
    write_failure(tmp_path, replace(BUG, message=message), rank=0)
    failure = read_failure(tmp_path, BUG.start)
    assert failure is not None and failure.message == hidden
    journal = run_journal(tmp_path)
    journal.append_start(Attempt("7", 0, 0.0, ("node1",)))
    journal.append_end(Attempt("7", 0, 0.0, ("node1",), reason=message, exit_code=1))
    assert journal.read()[-1].reason == hidden
    save_unreported_drops(tmp_path, [(3, 1, Dropped("toy", "", "k", message))])
    assert [row["reason"] for row in read_report(RunFolder(tmp_path).dropped_of_rank(1))] == [hidden]


@pytest.mark.parametrize("content", ['{"start": "7.1", "kind": "lo', "null", '{"start": "7.1"}', "\xff"])
def test_a_damaged_file_is_reported_in_one_line_and_replaced(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path).failure.write_bytes(content.encode("latin-1"))
    assert read_failure(tmp_path, "7.1") is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "cannot read" in lines[0] and "using the logs of the ranks" in lines[0]
    write_failure(tmp_path, LOST, rank=0)
    assert read_failure(tmp_path, "7.1") == LOST


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    write_failure(tmp_path, LOST, rank=0)
    file = RunFolder(tmp_path).failure
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpu": 3}))
    assert read_failure(tmp_path, "7.1") == LOST
