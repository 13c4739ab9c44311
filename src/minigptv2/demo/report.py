"""Writes the report of a demonstration: curves, actual mixtures, held-out scenes and photographs with boxes.

The files are `report.html`, which needs no other file, and `report.png`.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from minigptv2.demo.scoring import Evaluation
from minigptv2.errors import ConfigError
from minigptv2.heldout.pictures import CARD_STYLE, grid, html_card, html_image, tile
from minigptv2.heldout.samples import HeldOutQuestion
from minigptv2.redacted_files import write_json, write_text
from minigptv2.tracking.log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
img { max-width: 100% } .legend b { color: #2ecc40 }
"""


def write_report(
    output: Path,
    stages: dict[str, Path],
    scores: dict[str, Any],
    seconds: dict[str, float],
    *,
    photographs: Evaluation,
    scenes: Evaluation | None = None,
) -> tuple[Path, Path]:
    """Write `report.html` and `report.png` into `output` and return their paths.

    `stages` maps stage names to run folders, and `scores` maps model names to scores by task, as in results.json.
    `scenes` are held-out, and `photographs` were in the training data.
    """
    curves = _draw_curves(stages)
    several = {1: "One stage", 3: "Three stages"}.get(len(stages), f"{len(stages)} stages")
    page = [
        f"<!doctype html><meta charset='utf-8'><title>minigptv2 report</title><style>{_STYLE}{CARD_STYLE}</style>",
        f"<h1>{several}, one model</h1>",
        f"<p>{_lineage(seconds)}</p>",
        f"<h2>{'Held-out scores' if scenes else 'Scores on the photographs of the training data'}</h2>",
        _html_table(scores),
        "<h2>Training</h2>",
        html_image(curves),
        "<p class='legend'>Below, true boxes are <b>green</b>, predicted boxes have other colors, and the box of a "
        "question is white.</p>",
    ]
    sheets = [curves]
    if scenes:
        shown = _some_of_each_task(scenes, 5)
        page += ["<h2>Held-out scenes</h2>", _html_cards(shown)]
        sheets.append(grid([tile(i, a) for i, a in shown], columns=5))
    page += [
        "<h2>Real photographs</h2><p>These photographs were in the training data.</p>",
        _html_cards(_some_of_each_task(photographs, 3 if scenes else len(photographs.items))),
    ]
    sheets.append(grid([tile(i, a) for i, a in _some_of_each_task(photographs, 2 if scenes else 5)], columns=5))
    html_file, png_file = output / "report.html", output / "report.png"
    write_text(html_file, "\n".join(page))
    _stack(sheets).save(png_file)
    return html_file, png_file


def _draw_curves(stages: dict[str, Path]) -> Image.Image:
    """Charts of the loss by task over all stages, and of the actual mixture of each stage."""
    if find_spec("matplotlib") is None:
        raise ConfigError("the report needs matplotlib: pip install 'minigptv2[demo]'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (losses, mixtures) = plt.subplots(1, 2, figsize=(15, 5), width_ratios=[3, 2])
    metrics = {stage: read_metrics(run) for stage, run in stages.items()}
    _plot_losses(losses, metrics)
    _plot_mixtures(mixtures, metrics, plt.get_cmap("tab20").colors)  # type: ignore[attr-defined]
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def _plot_losses(axes: Axes, metrics: dict[str, list[dict[str, Any]]]) -> None:
    """The loss of each task over the steps of all stages, with a line and a label where a stage begins."""
    offset = 0
    tasks: dict[str, list[tuple[int, float]]] = {}
    starts: list[tuple[int, str]] = []
    for stage, lines in metrics.items():
        for line in lines:
            for task, value in line["task_loss"].items():
                tasks.setdefault(task, []).append((offset + line["step"], value))
        axes.axvline(offset, color="#bbb", linewidth=1)
        starts.append((offset, stage))
        offset += lines[-1]["step"]
    for task, points in tasks.items():
        axes.plot(*zip(*points, strict=True), label=task, linewidth=1.2)
    for start, stage in starts:
        axes.text(start, axes.get_ylim()[1], f" {stage}", va="top", fontsize=9)
    axes.set(xlabel="optimizer step", ylabel="loss per supervised token", title="Loss by task", yscale="log")
    axes.legend(fontsize=8, ncols=2)


def _plot_mixtures(axes: Axes, metrics: dict[str, list[dict[str, Any]]], colors: Sequence[Any]) -> None:
    """The actual mixture of each stage as a stacked bar."""
    shares = {stage: lines[-1]["mixture"] for stage, lines in metrics.items()}
    corpora = sorted({name for mixture in shares.values() for name in mixture})
    bottom = [0.0] * len(shares)
    for number, corpus in enumerate(corpora):
        values = [100 * mixture.get(corpus, 0.0) for mixture in shares.values()]
        axes.bar(list(shares), values, bottom=bottom, label=corpus, color=colors[number % 20])
        bottom = [b + v for b, v in zip(bottom, values, strict=True)]
    axes.set(ylabel="% of samples", title="Actual mixture")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _some_of_each_task(evaluation: Evaluation, count: int) -> list[tuple[HeldOutQuestion, str]]:
    """`count` questions of each task with an image, and their answers.

    Each task starts where the previous one ended, so that all images of a small corpus are shown.
    """
    by_task: dict[str, list[tuple[HeldOutQuestion, str]]] = {}
    for item, answer in zip(evaluation.items, evaluation.answers, strict=True):
        if item.image is not None:
            by_task.setdefault(item.turn.task, []).append((item, answer))
    chosen = []
    for number, pairs in enumerate(by_task.values()):
        chosen += [pairs[(number * count + i) % len(pairs)] for i in range(min(count, len(pairs)))]
    return chosen


def _html_table(scores: dict[str, Any]) -> str:
    names = list(scores)
    rows = [f"<tr><th>task<th>metric{''.join(f'<th>{html.escape(name)}' for name in names)}</tr>"]
    for task, values in scores[names[0]].items():
        for metric in values:
            if metric != "samples":
                cells = "".join(f"<td>{scores[name][task][metric]:.3f}" for name in names)
                rows.append(f"<tr><td>{task}<td>{metric}{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _html_cards(pairs: list[tuple[HeldOutQuestion, str]]) -> str:
    return "".join(html_card(item, answer) for item, answer in pairs)


def _lineage(seconds: dict[str, float]) -> str:
    return " &rarr; ".join(f"{html.escape(name)} {value:.0f} s" for name, value in seconds.items())


def _stack(images: list[Image.Image]) -> Image.Image:
    width = max(image.width for image in images)
    sheet = Image.new("RGB", (width, sum(image.height for image in images)), (255, 255, 255))
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def write_results(file: Path, document: dict[str, Any]) -> None:
    """Write the scores of a run as JSON."""
    write_json(file, document)
