"""Writes an HTML page of an evaluation: the table, then the worst and random samples with boxes drawn."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from minigptv2.evaluate.runner import BenchmarkResult
from minigptv2.heldout.pictures import CARD_STYLE, html_card
from minigptv2.redacted_files import write_text

PAGE_FILE = "page.html"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } img { max-width: 100% }
b { color: #2ecc40 }
"""


def write_page(
    results: Sequence[BenchmarkResult],
    summaries: Sequence[dict[str, Any]],
    file: Path,
    *,
    samples: int = 12,
    seed: int = 0,
) -> None:
    """Write a page with the `samples` worst and as many random questions of each benchmark, and their metrics."""
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>minigptv2 evaluation</title><style>{_STYLE}{CARD_STYLE}</style>",
        "<h1>Evaluation</h1>",
        _table(summaries),
        "<p>True boxes are <b>green</b>, predicted boxes have other colors, and the box of a question is white.</p>",
    ]
    for result, one in zip(results, summaries, strict=True):
        worst, random = pick(result, samples, seed)
        parts += [
            f"<h2 id='{html.escape(result.spec.name)}'>{html.escape(result.spec.title)}: {one['value']:.2f}</h2>",
            _measured(one),
            f"<h3>Worst {len(worst)}</h3>",
            *(_card(result, i) for i in worst),
            f"<h3>Random {len(random)}</h3>",
            *(_card(result, i) for i in random),
        ]
    write_text(file, "\n".join(parts))


def pick(result: BenchmarkResult, samples: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the worst questions (lowest score, then lowest IoU, ties at random) and of random ones, in order."""
    random, headline = Random(seed), result.spec.scoring.headline
    places = list(range(len(result.questions)))
    tie_breakers = {i: random.random() for i in places}
    each = result.scored.each
    worst = sorted(places, key=lambda i: (each[i][headline], each[i].get("mean_iou", 0.0), tie_breakers[i]))[:samples]
    return worst, sorted(random.sample(places, min(samples, len(places))))


def _table(summaries: Sequence[dict[str, Any]]) -> str:
    rows = ["<tr><th>benchmark<th>protocol<th>metric<th>value<th>95 % interval<th>questions<th>published</tr>"]
    for one in summaries:
        published = " / ".join(f"{p['value']:g}" for p in one["published"])
        published = published or (one["published_not_shown"] and "not shown") or "none"
        low, high = one["interval"]
        rows.append(
            f"<tr><td><a href='#{html.escape(one['benchmark'])}'>{html.escape(one['title'])}</a><td>{one['protocol']}"
            f"<td>{one['metric']}"
            f"<td>{one['value']:.2f}<td>{low:.2f} .. {high:.2f}<td>{one['questions']}<td>{published}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _measured(one: dict[str, Any]) -> str:
    """How the benchmark was measured: protocol, prompt and rule."""
    notes = "".join(f"<br>{html.escape(note)}" for note in one["notes"])
    return (
        f"<p>Protocol {html.escape(one['protocol'])}, {html.escape(one['split']) or 'own'} split, "
        f"{one['prompt_style']} prompt style.<br>Asked: <code>{html.escape(one['prompt'])}</code><br>"
        f"Right: {html.escape(one['scoring'])}{notes}</p>"
    )


def _card(result: BenchmarkResult, place: int) -> str:
    question, prediction = result.questions[place], result.predictions[place]
    metrics = "  ".join(f"{name} {value:.2f}" for name, value in result.scored.each[place].items())
    return html_card(question.with_image(result.reader), prediction.answer, metrics)
