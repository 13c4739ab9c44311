"""Prints a benchmark's results and writes them, with machine and versions, to `benchmarks/results/<name>.json`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def machine(packages: list[str]) -> dict[str, Any]:
    """Return the processor, cores, Python and the versions of `packages`."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    gpus = [line.split(":")[1].strip() for line in _gpus()]
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "gpus": gpus,
        "versions": found,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return minimum, median, maximum and count."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "n": len(values)}


def report(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    *,
    packages: list[str],
    notes: list[str],
    more: dict[str, Any] | None = None,
    folder: Path = FOLDER,
) -> None:
    """Print the rows as a table with the notes below it, and write everything as `<folder>/<name>.json`."""
    print(f"\n{title}\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *[[_cell(row.get(column, "")) for column in columns] for row in rows]]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for note in notes:
        print(f"- {note}")
    folder.mkdir(exist_ok=True)
    document = {
        "name": name,
        "title": title,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(packages),
        "rows": rows,
        "notes": notes,
        **(more or {}),
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.is_file() else []


def _gpus() -> list[str]:
    return [
        line
        for file in Path("/proc/driver/nvidia/gpus").glob("*/information")
        for line in _lines(str(file))
        if line.startswith("Model")
    ]
