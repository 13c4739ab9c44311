"""Reports a recipe's mixture: target and actual shares, epochs, tokens, images, and charts of the mixture over time.

Reads sizes from manifests where shards exist, and from the table of corpora where they do not, so a recipe can be
inspected before anything is downloaded.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigptv2.data.config import Recipe
from minigptv2.data.mixture import Mixture
from minigptv2.data.objective import CORPUS, SAMPLE
from minigptv2.data.plan import measure_corpus
from minigptv2.data.units import Units
from minigptv2.errors import ConfigError
from minigptv2.prompt import PromptEncoder
from minigptv2.redacted_files import write_text
from minigptv2.shards.manifest import MANIFEST_FILE
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import below, is_remote

_SPARKS = " ▁▂▃▄▅▆▇█"
_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d", "#bab0ac")


@dataclass(frozen=True)
class CorpusStats:
    """Samples of a corpus (`sample_by`) and how many of them have an image, from its manifest (`built`) or the table of
    corpora, and means per sample, measured or from the recipe: tokens, supervised tokens, and pairs that share an
    image. None: unknown."""

    samples: int | None
    images: int | None
    tokens: float | None
    built: bool
    supervised: float | None = None
    pairs: float | None = None


@dataclass(frozen=True)
class CorpusSummary:
    """One corpus over a run. `ratio` is the recipe's, None for the corpus's size. `target` and `actual` are shares of
    samples. `epochs` is the mean number of uses of a sample. `ended` is the step at which its epochs are complete.
    `token_share`, `supervised_share` and `objective_share` (of the gradient) are None if they are unknown."""

    name: str
    task: str
    ratio: float | None
    target: float
    actual: float
    samples: int
    epochs: float | None
    tokens: float | None
    images: int | None
    ended: float | None
    token_share: float | None
    supervised_share: float | None
    objective_share: float | None

    @property
    def shares(self) -> tuple[float | None, ...]:
        """The shares of samples, tokens, supervised tokens and objective, as `SHARES` names them."""
        return self.actual, self.token_share, self.supervised_share, self.objective_share


SHARES = ("samples", "tokens", "supervised", "objective")
"""What a corpus has a share of: samples, tokens, supervised tokens, and the gradient."""


@dataclass(frozen=True)
class Mix:
    """The mixture of a run of `steps`. `shares` float64 [columns, corpora]: actual shares in equal parts of the run."""

    rows: list[CorpusSummary]
    steps: int
    global_batch_size: int
    shares: np.ndarray


def collect_stats(
    recipe: Recipe, shards: Path | str, expected: Mapping[str, int], encoder: PromptEncoder | None, seed: int
) -> dict[str, CorpusStats]:
    """Statistics of the recipe's corpora, by name.

    `expected`: samples by corpus, as the recipe samples them, for corpora without shards. Shards behind a URL must
    exist.
    """
    known = {}
    for name, share in recipe.corpora.items():
        folder = below(shards, share.shards or name)
        tokens, supervised, pairs = share.tokens, share.supervised_tokens, 1.0 if share.share_images == 1 else None
        if not is_remote(folder) and not (Path(folder) / MANIFEST_FILE).is_file():
            known[name] = CorpusStats(expected.get(name), None, tokens, False, supervised, pairs)
            continue
        reader = CorpusReader(folder)
        units = Units(name, share, reader)
        if encoder is not None:
            found = measure_corpus(reader, units, encoder, f"{seed}/{name}", precise=True)
            tokens, supervised, pairs = tokens or found.tokens, supervised or found.supervised, found.pairs
        # exact unless some records have images and others do not
        images = round(len(units) * reader.manifest.images / len(reader))
        known[name] = CorpusStats(len(units), images, tokens, True, supervised, pairs)
    return known


def mix(
    recipe: Recipe, corpora: Mapping[str, CorpusStats], *, steps: int, global_batch_size: int, columns: int = 48
) -> Mix:
    """The mixture of a run of `steps`, computed as in training. Raises `ConfigError` if the mixture ends before."""
    known = list(corpora.values())
    tokens = [corpus.tokens or 0.0 for corpus in known] if recipe.unit == "token" else None
    mixture = Mixture(recipe, [corpus.samples for corpus in known], tokens=tokens, global_batch_size=global_batch_size)
    end = steps * global_batch_size
    if mixture.length is not None and mixture.length < end:
        raise ConfigError(
            f"all corpora have `epochs` and end after {mixture.length} samples: steps must be at most "
            f"{mixture.length // global_batch_size} with batch size {global_batch_size}, got {steps}"
        )
    counts, target = mixture.counts(end), mixture.expected(end) / end
    tokens_seen = _amounts(counts, [corpus.tokens for corpus in known])
    supervised_seen = _amounts(counts, [corpus.supervised for corpus in known])
    token_shares, supervised_shares = _shares(tokens_seen), _shares(supervised_seen)
    objective_shares = _shares(_objective(mixture, counts, known))
    rows = []
    for number, (name, corpus) in enumerate(corpora.items()):
        count = int(counts[number])
        ended = mixture.exhausted_at(number) if recipe.corpora[name].epochs is not None else None
        share_of_images = corpus.images / corpus.samples if corpus.images is not None and corpus.samples else None
        rows.append(
            CorpusSummary(
                name,
                recipe.corpora[name].task,
                recipe.corpora[name].ratio,
                float(target[number]),
                count / end,
                count,
                epochs=count / corpus.samples if corpus.samples else None,
                tokens=tokens_seen[number],
                images=round(count * share_of_images) if share_of_images is not None else None,
                ended=ended / global_batch_size if ended is not None and ended <= end else None,
                token_share=token_shares[number],
                supervised_share=supervised_shares[number],
                objective_share=objective_shares[number],
            )
        )
    edges = [end * column // columns for column in range(columns + 1)] if end >= columns else [0, end]
    taken = np.array([mixture.counts(edge) for edge in edges])
    parts = np.diff(taken, axis=0)
    return Mix(rows, steps, global_batch_size, parts / parts.sum(axis=1, keepdims=True))


def _amounts(counts: np.ndarray, means: list[float | None]) -> list[float | None]:
    return [None if mean is None else int(count) * mean for count, mean in zip(counts, means, strict=True)]


def _objective(mixture: Mixture, counts: np.ndarray, corpora: list[CorpusStats]) -> list[float | None]:
    """The loss weight of each corpus over the run, relative to that of the others. None: unknown."""
    objective = mixture.recipe.objective
    if objective == CORPUS:  # whatever the lengths: they cancel in the weights
        return _amounts(counts, list(mixture.loss_shares / mixture.ratio_shares))
    return _amounts(counts, [corpus.pairs if objective == SAMPLE else corpus.supervised for corpus in corpora])


def _shares(amounts: list[float | None]) -> list[float | None]:
    """Each amount as a share of the sum. None for all if one is unknown."""
    known = [amount for amount in amounts if amount is not None]
    total = sum(known)
    if len(known) < len(amounts) or not total:
        return [None] * len(amounts)
    return [float(amount / total) for amount in known]


def shares_by_task(mixed: Mix) -> dict[str, dict[str, float | None]]:
    """The shares of each task of the recipe, by name of the share. None: unknown."""
    tasks: dict[str, dict[str, float | None]] = {}
    for row in mixed.rows:
        sums = tasks.setdefault(row.task, dict.fromkeys(SHARES, 0.0))
        for name, share in zip(SHARES, row.shares, strict=True):
            before = sums[name]
            sums[name] = None if share is None or before is None else before + share
    return tasks


def format_tasks(mixed: Mix) -> str:
    """The shares of the tasks as a table for a terminal, the largest share of the objective, or of samples, first."""
    tasks = shares_by_task(mixed)
    order = sorted(tasks, key=lambda task: -(tasks[task]["objective"] or tasks[task]["samples"] or 0.0))
    lines = [["task", *(f"{name} %" for name in SHARES)]]
    lines += [[task, *(_percent(tasks[task][name]) for name in SHARES)] for task in order]
    return "\n".join(_aligned(lines, left=1))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _aligned(lines: list[list[str]], left: int) -> list[str]:
    """The lines with columns of equal width, the first `left` of them flush left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def format_table(mixed: Mix) -> str:
    """The mixture as a table for a terminal. Each corpus has a sparkline of its share over time, scaled by itself."""
    head = ("corpus", "task", "ratio", "target %", "actual %", "tokens %", "supervised %", "objective %", "samples")
    lines = [[*head, "epochs", "repeats", "images", "ends at step"]]
    strips = ["over time"]
    for number, row in enumerate(mixed.rows):
        strip = mixed.shares[:, number]
        levels = np.ceil(8 * strip / strip.max()).astype(int) if strip.max() else np.zeros(len(strip), dtype=int)
        strips.append("".join(_SPARKS[level] for level in levels))
        lines.append(
            [
                row.name,
                row.task,
                "size" if row.ratio is None else f"{row.ratio:g}",
                f"{100 * row.target:.2f}",
                *(_percent(share) for share in row.shares),
                f"{row.samples:,}",
                "-" if row.epochs is None else f"{row.epochs:.2f}",
                "-" if row.epochs is None else f"{math.ceil(row.epochs)}",
                "-" if row.images is None else f"{row.images:,}",
                "-" if row.ended is None else f"{row.ended:.0f}",
            ]
        )
    return "\n".join(f"{text}  {strip}" for text, strip in zip(_aligned(lines, left=2), strips, strict=True))


def save_chart(mixed: Mix, file: Path, title: str) -> None:
    """Write a chart as `.png` or `.html`: shares of samples over steps, and below them a bar for each of `SHARES`.

    Raises `ConfigError` for other extensions.
    """
    if file.suffix == ".html":
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, _page(mixed, title))
    elif file.suffix == ".png":
        file.parent.mkdir(parents=True, exist_ok=True)
        _draw(mixed, file, title)
    else:
        raise ConfigError(f"{file}: a mixture chart must be a .png or .html file")


def _bands(mixed: Mix, width: float, height: float) -> list[list[tuple[float, float]]]:
    """The outline of each corpus's band in the chart, in pixels from the upper left corner."""
    columns = len(mixed.shares)
    tops = np.concatenate([np.zeros((columns, 1)), np.cumsum(mixed.shares, axis=1)], axis=1)
    x = [(column + 0.5) / columns * width for column in range(columns)]
    x[0], x[-1] = 0.0, width
    return [
        [(at, float(height * tops[column, band])) for column, at in enumerate(x)]
        + [(at, float(height * tops[column, band + 1])) for column, at in reversed(list(enumerate(x)))]
        for band in range(len(mixed.rows))
    ]


def _bar(mixed: Mix, share: int, width: float) -> list[tuple[float, float]] | None:
    """Start and end, in pixels, of each corpus's part of the bar of one of `SHARES`. None if it is unknown."""
    known = [value for row in mixed.rows if (value := row.shares[share]) is not None]
    if len(known) < len(mixed.rows):
        return None
    ends = [0.0, *(float(end) * width for end in np.cumsum(known))]
    return list(zip(ends, ends[1:], strict=False))


def _draw(mixed: Mix, file: Path, title: str) -> None:
    from PIL import Image, ImageDraw, ImageFont

    width, height, left, top = 720, 24 * max(14, len(mixed.rows)), 20, 50
    bars = top + height + 50
    image = Image.new("RGB", (left + width + 320, bars + 34 * len(SHARES) + 10), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    pen.text((left, 15), title, fill="black", font=font)
    for number, (band, row) in enumerate(zip(_bands(mixed, width, height), mixed.rows, strict=True)):
        color = _COLORS[number % len(_COLORS)]
        pen.polygon([(left + x, top + y) for x, y in band], fill=color, outline="white")
        pen.rectangle((left + width + 20, top + 24 * number, left + width + 34, top + 24 * number + 14), fill=color)
        label = f"{row.name} {100 * row.actual:.2f} %"
        pen.text((left + width + 42, top + 24 * number - 2), label, fill="black", font=font)
    pen.text((left, top + height + 12), "step 0", fill="black", font=font)
    pen.text((left + width, top + height + 12), f"{mixed.steps:,}", fill="black", font=font, anchor="ra")
    for number, name in enumerate(SHARES):
        y = bars + 34 * number
        parts = _bar(mixed, number, width)
        pen.text((left + width + 20, y + 4), f"share of {name}", fill="black", font=font)
        if parts is None:
            pen.rectangle((left, y, left + width, y + 26), outline="gray")
            pen.text((left + 8, y + 4), "unknown", fill="gray", font=font)
        for corpus, (start, end) in enumerate(parts or []):
            if end - start >= 1:
                color = _COLORS[corpus % len(_COLORS)]
                pen.rectangle((left + start, y, left + end, y + 26), fill=color, outline="white")
    image.save(file)


def _page(mixed: Mix, title: str) -> str:
    bands = []
    for number, (band, row) in enumerate(zip(_bands(mixed, 900, 420), mixed.rows, strict=True)):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in band)
        name = f"{html.escape(row.name)}: {100 * row.actual:.2f} %"
        color = _COLORS[number % len(_COLORS)]
        bands.append(f'<polygon points="{points}" fill="{color}"><title>{name}</title></polygon>')
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<body style='font-family:sans-serif;margin:2em'>"
        f"<h1>{html.escape(title)}</h1><svg viewBox='0 0 900 420' width=900 height=420>{''.join(bands)}</svg>"
        f"<p>Shares of samples from step 0 to step {mixed.steps:,}, {mixed.global_batch_size} samples a step. "
        f"Hover over a band for its name.</p>{_bars(mixed)}<pre>{html.escape(format_table(mixed))}</pre>"
        f"<pre>{html.escape(format_tasks(mixed))}</pre>"
    )


def _bars(mixed: Mix) -> str:
    """The bars of all `SHARES` as SVG."""
    drawn = []
    for number, name in enumerate(SHARES):
        y, parts = 34 * number, _bar(mixed, number, 760)
        drawn.append(f'<text x="0" y="{y + 18}" font-size="15">{name}{"" if parts else ": unknown"}</text>')
        for corpus, (start, end) in enumerate(parts or []):
            color, row = _COLORS[corpus % len(_COLORS)], mixed.rows[corpus]
            label = f"{html.escape(row.name)}: {_percent(row.shares[number])} % of {name}"
            shape = f'x="{140 + start:.1f}" y="{y}" width="{end - start:.1f}" height="26"'
            drawn.append(f'<rect {shape} fill="{color}" stroke="white"><title>{label}</title></rect>')
    return (
        f"<h2>Shares over the run</h2><svg viewBox='0 0 900 {34 * len(SHARES)}' width=900 height={34 * len(SHARES)}>"
        f"{''.join(drawn)}</svg>"
    )
