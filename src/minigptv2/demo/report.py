"""The page people look at after training: curves, realised mixtures, held-out scenes and photographs with boxes.

Writes `report.html` (self-contained) and `report.png`.
"""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from minigptv2.demo.scoring import Evaluation
from minigptv2.errors import ConfigError
from minigptv2.heldout.pictures import CARD_STYLE, grid, html_card, html_image, tile
from minigptv2.heldout.samples import HeldOutQuestion
from minigptv2.tracking.log import read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
img { max-width: 100% } .legend b { color: #2ecc40 }
"""


def write_report(
    output: Path,
    stages: dict[str, Path],
    figures: dict[str, Any],
    seconds: dict[str, float],
    *,
    photographs: Evaluation,
    scenes: Evaluation | None = None,
) -> tuple[Path, Path]:
    """`report.html` and `report.png` under `output`. `stages` maps stage names to run folders.

    `figures` maps model names to their figures by task, as in results.json. `scenes` are held-out ones, `photographs`
    were trained on.
    """
    curves = _draw_curves(stages)
    several = {1: "One stage", 3: "Three stages"}.get(len(stages), f"{len(stages)} stages")
    page = [
        f"<!doctype html><meta charset='utf-8'><title>minigptv2 report</title><style>{_STYLE}{CARD_STYLE}</style>",
        f"<h1>{several}, one model</h1>",
        f"<p>{_lineage(seconds)}</p>",
        f"<h2>{'Held-out figures' if scenes else 'Figures on the photographs trained on'}</h2>",
        _html_table(figures),
        "<h2>Training</h2>",
        html_image(curves),
        "<p class='legend'>Below: true boxes in <b>green</b>, predicted ones in other colours; the box of an "
        "[identify] question is white.</p>",
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
    html_file.write_text("\n".join(page))
    _stack(sheets).save(png_file)
    return html_file, png_file


def _draw_curves(stages: dict[str, Path]) -> Image.Image:
    """Loss by task and learning rate over all stages, and the realised mixture of each."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("the report draws with matplotlib: pip install 'minigptv2[demo]'") from error

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (losses, mixtures) = plt.subplots(1, 2, figsize=(15, 5), width_ratios=[3, 2])
    offset = 0
    tasks: dict[str, list[tuple[int, float]]] = {}
    ticks: list[tuple[int, str]] = []
    shares: dict[str, dict[str, float]] = {}
    for stage, run in stages.items():
        rows = read_metrics(run)
        for row in rows:
            for task, value in row["task_loss"].items():
                tasks.setdefault(task, []).append((offset + row["step"], value))
        losses.axvline(offset, color="#bbb", linewidth=1)
        ticks.append((offset, stage))
        offset += rows[-1]["step"]
        shares[stage] = rows[-1]["mixture"]
    for task, points in tasks.items():
        losses.plot(*zip(*points, strict=True), label=task, linewidth=1.2)
    for start, stage in ticks:
        losses.text(start, losses.get_ylim()[1], f" {stage}", va="top", fontsize=9)
    losses.set(xlabel="optimizer step", ylabel="loss per supervised token", title="Loss by task", yscale="log")
    losses.legend(fontsize=8, ncols=2)
    corpora = sorted({name for mixture in shares.values() for name in mixture})
    bottom = [0.0] * len(shares)
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for number, corpus in enumerate(corpora):
        values = [100 * mixture.get(corpus, 0.0) for mixture in shares.values()]
        mixtures.bar(list(shares), values, bottom=bottom, label=corpus, color=colors[number % 20])
        bottom = [b + v for b, v in zip(bottom, values, strict=True)]
    mixtures.set(ylabel="% of samples", title="Realised mixture")
    mixtures.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def _some_of_each_task(evaluation: Evaluation, count: int) -> list[tuple[HeldOutQuestion, str]]:
    """`count` items of each task with an image, with their answers; each task begins where the last one ended, so
    that a small corpus is shown with all its pictures."""
    by_task: dict[str, list[tuple[HeldOutQuestion, str]]] = {}
    for item, answer in zip(evaluation.items, evaluation.answers, strict=True):
        if item.image is not None:
            by_task.setdefault(item.turn.task, []).append((item, answer))
    chosen = []
    for number, pairs in enumerate(by_task.values()):
        chosen += [pairs[(number * count + i) % len(pairs)] for i in range(min(count, len(pairs)))]
    return chosen


def _html_table(figures: dict[str, Any]) -> str:
    names = list(figures)
    rows = [f"<tr><th>task<th>figure{''.join(f'<th>{html.escape(name)}' for name in names)}</tr>"]
    for task, values in figures[names[0]].items():
        for figure in values:
            if figure != "samples":
                cells = "".join(f"<td>{figures[name][task][figure]:.3f}" for name in names)
                rows.append(f"<tr><td>{task}<td>{figure}{cells}</tr>")
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
    """The figures of a run as JSON."""
    file.write_text(json.dumps(document, indent=1))
