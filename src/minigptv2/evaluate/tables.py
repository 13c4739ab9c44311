"""Writes the metrics of evaluated benchmarks as tables for the terminal, Markdown and JSON, with published results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigptv2.evaluate.metrics.statistics import auroc, bootstrap, mean_interval
from minigptv2.evaluate.rules import YES, Scored
from minigptv2.evaluate.runner import BenchmarkResult
from minigptv2.redacted_files import write_json, write_text
from minigptv2.tracking.log import finite

RESULTS_FILE, MARKDOWN_FILE = "results.json", "results.md"
_UNSCALED = ("words", "objects", "hallucinated", "phrases")  # counts, not shares


def summary(result: BenchmarkResult) -> dict[str, Any]:
    """The metrics of a benchmark as printed (percent, CIDEr times 100), intervals, groups, and how it was measured.

    The intervals are 95 % bootstrap intervals over images, because questions about one image are not independent. A
    metric that is not defined is None. Published results are given only if this measurement is the published one.
    """
    spec, scored = result.spec, result.scored
    images = [question.sample for question in result.questions]
    headline = spec.scoring.headline
    metrics = {name: _printed(name, value, spec.scale) for name, value in scored.overall.items()}
    published = spec.comparable(result.style)
    return {
        "benchmark": spec.name,
        "title": spec.title,
        "protocol": spec.protocol,
        "split": spec.split,
        "prompt": spec.wording,
        "prompt_style": str(result.style),
        "rule": spec.scoring.name,
        "scoring": spec.scoring.definition,
        "notes": list(result.notes),
        "metric": headline,
        "value": metrics[headline],
        "interval": [spec.scale * end for end in _interval(scored, headline, images)],
        "best": spec.best,
        "questions": len(result.questions),
        "pictures": len(set(images)),
        "figures": metrics,
        "intervals": {"auroc": [spec.scale * end for end in _auroc_interval(scored, images)]}
        if metrics.get("auroc") is not None
        else {},
        "groups": _groups(scored, headline, spec.scale),
        "published": [{"model": one.model, "value": one.value, "where": one.where} for one in published],
        "published_not_shown": ""
        if published or not spec.results
        else _why_not_shown(spec.protocol, str(result.style)),
    }


def _why_not_shown(protocol: str, style: str) -> str:
    return f"protocol {protocol}, prompt style {style}"


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """The table for the terminal: a line per benchmark, with its other metrics, its groups and its prompt below."""
    lines = [
        f"{'benchmark':<26}{'protocol':<11}{'metric':<16}{'value':>8}  {'95 % interval':<17}{'well-formed':>11}"
        f"{'mean IoU':>10}{'questions':>11}  published"
    ]
    for one in summaries:
        lines.append(
            f"{one['benchmark']:<26}{one['protocol']:<11}{one['metric']:<16}{one['value']:>8.2f}  {_ends(one):<17}"
            f"{_value(one, 'well_formed'):>11}{_value(one, 'mean_iou'):>10}{one['questions']:>11}  {_published(one)}"
        )
        others = {n: v for n, v in one["figures"].items() if n not in (one["metric"], "well_formed", "mean_iou")}
        if others:
            lines.append("  " + "  ".join(f"{name} {_number(value)}" for name, value in others.items()))
        for kind, members in one["groups"].items():
            parts = [f"{name} {m['value']:.2f} ({m['questions']})" for name, m in members.items()]
            lines.append(f"  by {kind}: {', '.join(parts)}")
        lines += [
            f"  asked ({one['prompt_style']} prompt style): {one['prompt']}",
            f"  right: {one['scoring']}",
            *(f"  note: {note}" for note in one["notes"]),
        ]
    return "\n".join(lines)


def markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """The same table as Markdown."""
    lines = [
        "| benchmark | protocol | metric | value | 95 % interval | well-formed | mean IoU | questions | published |",
        "|---|---|---|---:|---|---:|---:|---:|---|",
    ]
    for one in summaries:
        lines.append(
            f"| {one['title']} | {one['protocol']} | {one['metric']} | {one['value']:.2f} | {_ends(one)} | "
            f"{_value(one, 'well_formed')} | {_value(one, 'mean_iou')} | {one['questions']} | {_published(one)} |"
        )
    lines += ["", "| benchmark | by | group | value | questions |", "|---|---|---|---:|---:|"]
    for one in summaries:
        for kind, members in one["groups"].items():
            for name, m in members.items():
                lines.append(f"| {one['title']} | {kind} | {name} | {m['value']:.2f} | {m['questions']} |")
    lines += ["", "| benchmark | protocol | prompt style | prompt | an answer is right if |", "|---|---|---|---|---|"]
    for one in summaries:
        lines.append(
            f"| {one['title']} | {one['protocol']} | {one['prompt_style']} | `{one['prompt']}` | {one['scoring']} |"
        )
    lines += ["", *(f"{one['title']}: {note}" for one in summaries for note in one["notes"])]
    return "\n".join(lines).rstrip("\n") + "\n"


def write_tables(summaries: Sequence[dict[str, Any]], output: Path) -> None:
    """Write `results.json` and `results.md` into `output`."""
    write_json(output / RESULTS_FILE, finite(list(summaries)))
    write_text(output / MARKDOWN_FILE, markdown(summaries))


def _printed(name: str, value: float, scale: float) -> float | None:
    if math.isnan(value):
        return None
    return value if name in _UNSCALED else scale * value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(scored: Scored, headline: str, images: Sequence[int]) -> tuple[float, float]:
    if headline == "phrase_recall":
        found, asked = (np.array([one[name] for one in scored.each]) for name in ("found", "phrases"))
        return bootstrap(lambda drawn: float(found[drawn].sum() / asked[drawn].sum()), len(found), groups=images)
    return mean_interval([one[headline] for one in scored.each], groups=images)


def _auroc_interval(scored: Scored, images: Sequence[int]) -> tuple[float, float]:
    scores = np.array([one["score"] for one in scored.each])
    labels = np.array([int(group["answer"] == YES) for group in scored.groups])
    values = lambda drawn: auroc(scores[drawn].tolist(), labels[drawn].tolist())  # noqa: E731
    return bootstrap(values, len(scores), groups=images)


def _groups(scored: Scored, headline: str, scale: float) -> dict[str, dict[str, dict[str, float]]]:
    """For each kind of group, the mean headline metric and the number of questions of its members, largest first."""
    found: dict[str, dict[str, list[float]]] = {}
    for one, groups in zip(scored.each, scored.groups, strict=True):
        for kind, name in groups.items():
            found.setdefault(kind, {}).setdefault(name, []).append(one[headline])
    return {
        kind: {
            name: {"value": scale * sum(values) / len(values), "questions": len(values)}
            for name, values in sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
        }
        for kind, members in found.items()
    }


def _ends(one: dict[str, Any]) -> str:
    return f"{one['interval'][0]:.2f} .. {one['interval'][1]:.2f}"


def _value(one: dict[str, Any], name: str) -> str:
    return _number(one["figures"].get(name))


def _published(one: dict[str, Any]) -> str:
    if not one["published"]:
        return f"not shown ({one['published_not_shown']})" if one["published_not_shown"] else "none"
    values = " / ".join(format(row["value"], "g") for row in one["published"])
    return f"{values} ({one['published'][0]['where']})"
