"""Writes an HTML page that shows samples of a corpus as the model sees them, with warnings about suspicious boxes.

An image is shown as the squashed square, with the boxes parsed from the trained text, so a wrong box is visible. The
prompt is shown as tokenized, with supervised parts marked. Boxes that seem to be in another format or scale give a
warning. The page is a single file that loads nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from minigptv2.batch import IGNORE
from minigptv2.boxes import Box, parse_boxes
from minigptv2.corpora.stats import describe_corpus, spread
from minigptv2.draw import draw_boxes
from minigptv2.errors import DataError
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example, PromptEncoder
from minigptv2.record import Record
from minigptv2.redacted_files import write_text
from minigptv2.shards.image_files import square
from minigptv2.shards.reader import CorpusReader

_MAX_CHECKED = 1000
"""Number of records whose boxes are checked together."""
MIN_BOXES = 20
"""Minimum number of boxes for a warning."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
article { display: flex; gap: 1.2rem; border-top: 1px solid #ddd; padding: 1rem 0 }
article img { width: 20rem; height: 20rem; flex: none }
code { white-space: pre-wrap; font: 13px/1.6 ui-monospace, monospace }
mark { background: #c9f0cf } .i { background: #dde7fb; border-radius: 3px; padding: 0 .3em }
.bad { background: #fbdcdc; padding: .4em .8em } pre { background: #f5f5f5; padding: 1em; overflow: auto }
small { color: #666 }
"""


@dataclass(frozen=True)
class PreviewSummary:
    """The content of a page: number of samples, number of faulty ones among them, and warnings about the corpus."""

    samples: int
    flagged: int
    warnings: list[str]


def write_preview(
    folder: Path, output: Path, encoder: PromptEncoder, *, samples: int, image_size: int
) -> PreviewSummary:
    """Write a page of `samples` samples, evenly spread over the corpus. Faulty samples come first."""
    reader = CorpusReader(folder)
    seen: list[SeenBox] = []
    faults: dict[int, str] = {}
    for sample in spread(len(reader), max(_MAX_CHECKED, samples)):
        try:
            seen += boxes_of(reader.record(sample))
        except DataError as error:
            faults[sample] = str(error)
    warnings = find_box_problems(seen)
    chosen = sorted({*list(faults)[:samples], *spread(len(reader), samples)}, key=lambda n: (n not in faults, n))
    articles, flagged = [], 0
    for sample in chosen[:samples]:
        try:
            article = _article(reader, sample, encoder, image_size)
        except DataError as error:
            article = f'<article><p class="bad">{escape(str(error))}</p></article>'
            flagged += 1
        articles.append(article)
    notes = "".join(f'<p class="bad">{escape(line)}</p>' for line in warnings)
    title = escape(reader.manifest.corpus)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1>{notes}<pre>{escape(describe_corpus(folder, _MAX_CHECKED))}</pre>"
        f"<p>Images are {image_size} x {image_size} px, as the model sees them. Boxes are parsed from the trained "
        f"text. <mark>Supervised</mark> parts carry the loss.</p>{''.join(articles)}</html>"
    )
    write_text(output, page)
    return PreviewSummary(len(articles), flagged, warnings)


def _article(reader: CorpusReader, sample: int, encoder: PromptEncoder, image_size: int) -> str:
    record = reader.record(sample)
    example = encoder.encode(record, Random(sample))
    if example is None:
        raise DataError(f"{reader.where(sample)}: its first question alone fills {encoder.max_tokens} text tokens")
    parts = _parts(example, encoder)
    image = _image(reader, sample, record, " ".join(text for _, text in parts), image_size)
    prompt = "".join(_as_html(kind, text) for kind, text in parts)
    facts = [
        f"{len(example)} tokens, {example.num_supervised} supervised",
        f"{example.num_turns} of {len(record.turns)} turns",
        f"{record.width} x {record.height} px" if record.has_image else "no image",
        *(
            [f"{example.num_cut} tokens after the first {encoder.max_tokens} text tokens are cut"]
            * bool(example.num_cut)
        ),
        *(f"{key}: {value}" for key, value in record.source.items()),
    ]
    return (
        f"<article>{image}<div><b>{escape(reader.where(sample))}</b><br><small>{escape(' · '.join(facts))}</small>"
        f"<p><code>{prompt}</code></p></div></article>"
    )


def _image(reader: CorpusReader, sample: int, record: Record, text: str, side: int) -> str:
    if not record.has_image:
        return ""
    pixels = square(reader.open_image(sample), side)
    drawn = draw_boxes(Image.fromarray(pixels.transpose(1, 2, 0)), [(box, "") for box in parse_boxes(text, side, side)])
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _parts(example: Example, encoder: PromptEncoder) -> list[tuple[str, str]]:
    """Runs of tokens of one kind (`image`, `supervised`, `prompt`) and their text."""
    tokenizer = encoder.tokenizer
    marks = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    kinds = np.where(example.input_ids == IMAGE_PLACEHOLDER, 3, np.where(example.labels != IGNORE, 1, 0))
    kinds = np.where(np.isin(example.input_ids, list(marks)), 4 + kinds, kinds)
    edges = np.flatnonzero(np.diff(kinds, prepend=-1, append=-1))
    parts = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        ids, kind = example.input_ids[start:end].tolist(), int(kinds[start])
        if kind == 3:
            parts.append(("image", f"{len(ids)} image tokens"))
        elif kind >= 4:
            text = "".join(marks[token] for token in ids)
            parts.append(("supervised" if kind == 5 else "prompt", text))
        else:
            parts.append(("supervised" if kind == 1 else "prompt", tokenizer.decode(ids)))
    return parts


def _as_html(kind: str, text: str) -> str:
    if kind == "image":
        return f' <span class="i">{escape(text)}</span> '
    return f"<mark>{escape(text)}</mark> " if kind == "supervised" else f"{escape(text)} "


@dataclass(frozen=True, slots=True)
class SeenBox:
    """A box and the size of its image, in pixels."""

    box: Box
    width: int
    height: int


def boxes_of(record: Record) -> list[SeenBox]:
    """Every box of a record."""
    size = record.width or 1, record.height or 1
    return [SeenBox(box, *size) for turn in record.turns for region in turn.regions for box in region.boxes]


def find_box_problems(boxes: Iterable[SeenBox]) -> list[str]:
    """Why the boxes of a corpus, taken together, look wrong. Empty if they look right or are too few."""
    seen = list(boxes)
    if len(seen) < MIN_BOXES:
        return []
    found = []
    for words, share, rule in _RULES:
        hits = sum(map(rule, seen))
        if hits > share * len(seen):
            found.append(f"{words} ({hits} of {len(seen)} boxes)")
    if not found and (moved := _as_sizes(seen)):
        found.append(moved)
    if not found and (turned := _as_y_first(seen)):
        found.append(turned)
    return found


def _unit(seen: SeenBox) -> bool:
    return max(seen.box.x2, seen.box.y2) <= 1.0


def _on_grid(side: int) -> Callable[[SeenBox], bool]:
    def rule(seen: SeenBox) -> bool:
        whole = all(float(value).is_integer() for value in (seen.box.x1, seen.box.y1, seen.box.x2, seen.box.y2))
        return whole and max(seen.box.x2, seen.box.y2) <= side and max(seen.width, seen.height) > 2 * side

    return rule


_RULES: tuple[tuple[str, float, Callable[[SeenBox], bool]], ...] = (
    ("coordinates are between 0 and 1: normalized, not pixels", 0.5, _unit),
    ("whole numbers up to 100 in far larger images: on the 0..100 grid, not pixels", 0.95, _on_grid(100)),
    ("whole numbers up to 1000 in far larger images: on a 0..1000 grid, not pixels", 0.95, _on_grid(1000)),
)


def _as_sizes(seen: list[SeenBox]) -> str | None:
    """x1 + x2 is less than the image's width only for corners in its left half, but x + width always is."""
    fits = sum(s.box.x1 + s.box.x2 <= s.width and s.box.y1 + s.box.y2 <= s.height for s in seen)
    if fits > 0.95 * len(seen):
        return f"the boxes look like x, y, width, height ({fits} of {len(seen)} would fit as that)"
    return None


def _as_y_first(seen: list[SeenBox]) -> str | None:
    """Correct boxes extend to the end of an image's long side. With y before x they stay within its short side."""
    long = [s for s in seen if max(s.width, s.height) > 1.1 * min(s.width, s.height)]
    within = sum((s.box.x2 if s.width > s.height else s.box.y2) <= min(s.width, s.height) for s in long)
    if len(long) >= MIN_BOXES and within > 0.99 * len(long):
        return f"the boxes look like y before x ({within} of {len(long)} stay within the short side of their image)"
    return None
