"""Prints the corpora as a table for the terminal, and in Markdown for `docs/corpora.md`."""

from __future__ import annotations

from typing import Any

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.sources import CORPORA

DEMO = "demo"


def stages_of(corpus: CorpusSpec) -> str:
    """`1, 2, 3`, or the purpose of a corpus that no stage uses."""
    return ", ".join(map(str, corpus.stages)) or (corpus.purpose if corpus.has_files else DEMO)


def counts_of(corpus: CorpusSpec) -> str:
    """Annotations by split. `?` if no number was published or some links no longer work."""
    splits = (f"{split} {'?' if count is None else f'{count:,}'}" for split, count in corpus.expected.items())
    return f"{', '.join(splits)} {corpus.counted}"


def as_rows() -> list[dict[str, Any]]:
    """All corpora as plain values."""
    return [
        {
            "name": name,
            "title": corpus.title,
            "tasks": list(corpus.tasks),
            "stages": list(corpus.stages),
            "counts": dict(corpus.expected),
            "counted": corpus.counted,
            "size": corpus.size,
            "license": corpus.license,
            "download": corpus.download,
        }
        for name, corpus in CORPORA.items()
    ]


def as_text() -> str:
    """All corpora, one per line."""
    rows = [("corpus", "tasks", "stages", "size", "license", "counts by split")]
    for name, corpus in CORPORA.items():
        rows.append((name, ", ".join(corpus.tasks), stages_of(corpus), corpus.size, corpus.license, counts_of(corpus)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown() -> str:
    """The corpora that are read from files, with their downloads."""
    columns = ("corpus", "what", "task", "stages", "counts", "size", "license", "where from")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, corpus in CORPORA.items():
        if corpus.has_files:
            cells = (
                f"`{name}`",
                corpus.title,
                ", ".join(corpus.tasks),
                stages_of(corpus),
                counts_of(corpus),
                corpus.size,
                corpus.license,
                corpus.download,
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
