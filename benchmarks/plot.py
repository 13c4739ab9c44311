"""Draws `docs/measured.png` from `benchmarks/results`: `python -m benchmarks.plot`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.results import FOLDER

PICTURE = Path(__file__).parents[1] / "docs" / "measured.png"
OURS = "#d62728"


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return the rows of a benchmark's results."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["rows"]
    return rows


def curves(axes: Any, rows: list[dict[str, Any]], side: str, x: str, y: str, ours: str) -> None:
    """Draw a line for each side."""
    for name in dict.fromkeys(row[side] for row in rows):
        points = [(row[x], row[y]) for row in rows if row[side] == name]
        bold = {"color": OURS, "linewidth": 2.5} if name == ours else {"linewidth": 1.2}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **bold)
    axes.set_xscale("log")
    axes.legend(fontsize=7, frameon=False)


def main() -> None:
    """Draw the figure and save it."""
    figure, places = plt.subplots(2, 2, figsize=(11, 7.2), layout="constrained")
    wire = [row for row in rows_of("engine_wire") if row["ranks"] == 8]
    names = [row["plan"] for row in wire]
    places[0, 0].barh(names, [row["MB between nodes"] for row in wire], color=["#999999", "#777777", OURS, OURS])
    places[0, 0].set_xscale("log")
    places[0, 0].invert_yaxis()
    places[0, 0].set_title("MB between nodes, micro-step, 8 ranks")
    loader = rows_of("data_loader")
    places[0, 1].barh(
        [row["side"].split(" (")[0].replace(", bicubic, float", "") for row in loader],
        [row["images/s"] for row in loader],
        color=[OURS] + ["#999999"] * (len(loader) - 1),
    )
    places[0, 1].invert_yaxis()
    places[0, 1].set_title("Loader: images a second, 448 px")
    curves(places[1, 0], rows_of("data_packing"), "way", "ranks", "balance", "ours")
    places[1, 0].set_xticks([1, 8, 64, 512], ["1", "8", "64", "512"])
    places[1, 0].set_xlabel("ranks")
    places[1, 0].set_title("Mean over largest cost of a micro-step")
    curves(places[1, 1], rows_of("data_growth"), "side", "shards", "first samples s", "minigptv2")
    places[1, 1].set_yscale("log")
    places[1, 1].set_xlabel("shards")
    places[1, 1].set_title("Seconds to the first 32 samples")
    figure.savefig(PICTURE, dpi=80)
    print(PICTURE)


if __name__ == "__main__":
    main()
