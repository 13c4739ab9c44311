"""Reads and appends the two journals of a run's starts: `attempts.jsonl` and `slurm/history.jsonl`.

The main rank writes the first (`recorder`), the batch script's node the second (`cli/slurm.py`): one writer each. Their
JSON keys differ, and files of earlier versions must stay readable, so a `Journal` maps the keys to one `Attempt`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from minigptv2.errors import ExitCode
from minigptv2.redacted_files import json_lines
from minigptv2.run_folder import RunFolder, checkpoint_step


@dataclass(frozen=True)
class Attempt:
    """One start of a run and, once known, its end."""

    job: str
    """Slurm's job id. In `attempts.jsonl` with the restart count appended, and empty outside Slurm."""
    start_step: int
    began: float
    """Unix time."""
    nodes: tuple[str, ...]
    """Every node of the job in the Slurm journal, the main rank's host in `attempts.jsonl`."""
    restart: int = 0
    config: str = ""
    """Hash of the run's config. Empty in the Slurm journal."""
    ended_at: float | None = None
    """Unix time. None while the end is unknown, and always in `attempts.jsonl`."""
    saved_step: int | None = None
    """Step of the newest checkpoint at the end, None while unknown."""
    exit_code: int | None = None
    """Of the launcher in the Slurm journal, of the run in `attempts.jsonl`. None if nobody saw the end."""
    asked: bool = False
    """A signal asked it to stop: the time limit was near, or the nodes were needed."""
    failed_nodes: tuple[str, ...] = ()
    reason: str = ""
    """How it ended or what the ranks reported as the cause."""

    @property
    def progressed(self) -> bool:
        """Whether it left a newer checkpoint than the one it started from."""
        return (self.saved_step or 0) > self.start_step

    @property
    def planned(self) -> bool:
        """Whether it ended because it was asked to stop."""
        return self.asked or self.exit_code == ExitCode.REQUEUE


@dataclass(frozen=True)
class Journal:
    """One journal file. `start_keys` and `end_keys` map fields of `Attempt` to the JSON keys of each kind of line."""

    file: Path
    start_keys: Mapping[str, str]
    end_keys: Mapping[str, str]

    def read(self) -> list[Attempt]:
        """All attempts, oldest first. Skips lines that a kill or a power failure cut short."""
        attempts: list[Attempt] = []
        for line in self.file.read_text().splitlines() if self.file.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            event = row.pop("event")
            values = _parse(row, self.start_keys if event == "start" else self.end_keys)
            known = _index_of(attempts, values, event)
            if known is not None:
                attempts[known] = replace(attempts[known], **values)
            elif values.keys() >= _IDENTITY:
                attempts.append(Attempt(**values))
        return attempts

    def append_start(self, attempt: Attempt) -> None:
        """Append the line of a start."""
        self._append("start", attempt, self.start_keys)

    def append_end(self, attempt: Attempt) -> None:
        """Append the line of an end. It belongs to the newest attempt, or to the one of the same job and restart."""
        self._append("end", attempt, self.end_keys)

    def _append(self, event: str, attempt: Attempt, keys: Mapping[str, str]) -> None:
        row = {"event": event} | {key: _json_value(attempt, field, key) for field, key in keys.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write("\n" if _lacks_newline(self.file) else "")
            stream.write(json_lines([row]))
            stream.flush()
            os.fsync(stream.fileno())


_IDENTITY = {"job", "start_step", "began", "nodes"}
_LISTS = {"nodes", "failed_nodes"}
_RUN_START = {"start_step": "step", "began": "time", "nodes": "host", "job": "job", "config": "config"}
_RUN_END = {"reason": "ended", "exit_code": "exit_code", "saved_step": "saved_step"}
_SLURM_NAMES = {"ended_at": "ended", "saved_step": "end_step", "exit_code": "code"}
_SLURM = {field.name: _SLURM_NAMES.get(field.name, field.name) for field in fields(Attempt) if field.name != "config"}


def run_journal(run: Path) -> Journal:
    """The starts of a run in `attempts.jsonl`, whatever launched them."""
    return Journal(RunFolder(run).attempts, _RUN_START, _RUN_END)


def slurm_journal(run: Path) -> Journal:
    """The starts of a run by Slurm jobs in `slurm/history.jsonl`, with nodes and launcher exit codes."""
    return Journal(RunFolder(run).slurm_history, _SLURM, _SLURM)


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint folder of a run, 0 without one."""
    folders = RunFolder(run).checkpoint_folders()
    return checkpoint_step(folders[0]) if folders else 0


def _index_of(attempts: list[Attempt], values: dict[str, Any], event: str) -> int | None:
    """The attempt that a line updates. Slurm lines name job and restart, other ends belong to the newest attempt."""
    if "restart" in values:
        same = [n for n, a in enumerate(attempts) if (a.job, a.restart) == (values["job"], values["restart"])]
        return same[0] if same else None
    return len(attempts) - 1 if event == "end" and attempts else None


def _parse(row: dict[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    values = {field: row[key] for field, key in keys.items() if key in row}
    for field in _LISTS & values.keys():
        values[field] = (values[field],) if isinstance(values[field], str) else tuple(values[field])
    return values


def _json_value(attempt: Attempt, field: str, key: str) -> Any:
    value = getattr(attempt, field)
    if key == "host":
        return value[0]
    return list(value) if field in _LISTS else value


def _lacks_newline(file: Path) -> bool:
    if file.stat().st_size == 0:
        return False
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
