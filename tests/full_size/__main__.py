"""Runs the life cycle of a full-size model with random weights: convert, train, kill, resume, export, merge, predict.

    python -m tests.full_size --output DIR [--layers N | --tiny] [--until PHASE] [--again PHASE]

Each finished phase leaves a marker in DIR, so the run can be stopped and continued. The table of phases is printed at
the end and written to `benchmarks/results/full_size.json` for the published sizes, otherwise to DIR.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, report

from tests.full_size import limits
from tests.full_size.commands import Commands, PhaseError
from tests.full_size.phases import PHASES, Job
from tests.full_size.sizes import FULL, TINY, with_layers
from tests.full_size.watch import MemoryWatch

GIB = 1 << 30
PACKAGES = ["torch", "transformers", "peft", "deepspeed", "safetensors"]


def main(argv: list[str] | None = None) -> int:
    """Run the phases that have no marker. Returns 1 if one fails."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that processes of a phase are ended
    size = TINY if args.tiny else with_layers(args.layers) if args.layers else FULL
    job = Job(Path(args.output).resolve(), size)
    markers = job.output / "phases"
    markers.mkdir(parents=True, exist_ok=True)
    _check_size(job)
    names = list(PHASES)
    for name in names[names.index(args.again) :] if args.again else ():
        (markers / f"{name}.json").unlink(missing_ok=True)
    started = time.strftime("%H:%M:%S")
    for name in names[: names.index(args.until) + 1]:
        marker = markers / f"{name}.json"
        if marker.is_file():
            continue
        row = _run_phase(job, name, 0.2 if args.tiny else 2.0)
        if row is None:
            return 1
        marker.write_text(json.dumps(row | {"started": started}))
    rows = [json.loads(file.read_text()) for name in names if (file := markers / f"{name}.json").is_file()]
    return _report(job, rows, whole=len(rows) == len(names))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.full_size", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, help="folder for weights and runs, 40 GB at full size")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--layers", type=int, help="so many layers of full width in both parts")
    size.add_argument("--tiny", action="store_true", help="a tiny model")
    parser.add_argument("--until", choices=list(PHASES), default=list(PHASES)[-1], help="stop after this phase")
    parser.add_argument("--again", choices=list(PHASES), help="repeat this phase and those after it")
    return parser.parse_args(argv)


def _check_size(job: Job) -> None:
    """Refuse a folder that holds phases of a model of another size."""
    file = job.output / "size.json"
    text = json.dumps(job.size.as_json())
    if file.is_file() and file.read_text() != text:
        sys.exit(f"{job.output} holds a model of another size; choose another --output or remove it")
    file.write_text(text)


def _run_phase(job: Job, name: str, interval_s: float) -> dict[str, Any] | None:
    """Run a phase within its limits. Returns its row, or None, after printing the reason, if it failed."""
    limit = limits.FULL[name] if job.size is FULL else limits.SMALLER
    print(f"{name}: {(PHASES[name].__doc__ or '').strip()} (limit {limit.seconds:.0f} s, {limit.gib} GiB)", flush=True)
    logs = job.output / "logs" / name
    commands = Commands(logs, job.output / "cache", limit.seconds)
    began = time.monotonic()
    watch = MemoryWatch(job.output, int(limit.gib * GIB), interval_s)
    try:
        with watch:
            more = PHASES[name](job, commands)
    except PhaseError as error:
        print(f"{name} failed after {time.monotonic() - began:.0f} s: {error}")
        return None
    except OSError:
        traceback.print_exc()
        return None
    row = {
        "phase": name,
        "s": round(time.monotonic() - began, 1),
        "held GiB": round(watch.peak.held / GIB, 2),
        "machine GiB": round(watch.peak.machine / GIB, 2),
        "disk GiB": round(watch.peak.disk / GIB, 2),
        **more,
    }
    print(f"  {row}", flush=True)
    if watch.exceeded:
        print(f"{name} failed: its processes held {row['held GiB']} GiB, more than {limit.gib} GiB")
        return None
    return row


def _report(job: Job, rows: list[dict[str, Any]], *, whole: bool) -> int:
    """Print the table and write it. Returns 1 if a whole run at full size exceeds its limits."""
    starts = {row["started"] for row in rows}
    seconds = sum(row["s"] for row in rows)
    held, machine = (max(row[key] for row in rows) for key in ("held GiB", "machine GiB"))
    disk = max(row["disk GiB"] for row in rows)
    notes = [
        f"{seconds / 60:.1f} minutes; peak memory: {held} GiB of our processes, {machine} GiB of the machine",
        f"peak disk: {disk} GiB",
        "held: PSS of all processes without pages of mapped files",
        "machine: MemTotal - MemAvailable, other programs included",
        f"run in {len(starts)} piece(s)" + ("" if whole else "; not all phases have run"),
    ]
    shown = [{key: value for key, value in row.items() if key != "started"} for row in rows]
    folder = FOLDER if whole and job.size is FULL else job.output
    title = f"Life cycle of {job.size.vision.depth} + {job.size.language.depth} layers with random weights"
    pieces = {"pieces": [[row["phase"] for row in rows if row["started"] == start] for start in sorted(starts)]}
    report("full_size", title, shown, packages=PACKAGES, notes=notes, more=pieces, folder=folder)
    if whole and job.size is FULL and (seconds > limits.TOTAL.seconds or held > limits.TOTAL.gib):
        print(f"over the limit of {limits.TOTAL.seconds / 60:.0f} minutes or {limits.TOTAL.gib} GiB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
