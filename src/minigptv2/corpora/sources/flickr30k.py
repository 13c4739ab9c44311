"""Reads Flickr30k Entities: sentences whose phrases have boxes, as grounded captions and two kinds of detection.

Source: Young et al. 2014, Plummer et al. 2015 (bryanplummer.com/Flickr30kEntities). License: CC BY-NC 4.0
(annotations), Flickr terms (images, on request). Layout: the original one, with `Sentences/<id>.txt` that contain
`[/EN#id/type phrase]`, `Annotations/<id>.xml` with the boxes, lists of images `train.txt`, `val.txt`, `test.txt`, and
`UNRELATED_CAPTIONS`, a list of sentences that the authors found not to describe their image. No boxes are trained with
those. Every mention with a box counts, as the authors count them: a phrase of two sentences is two turns. Captions are
also read from Karpathy's `dataset_flickr30k.json`. All five of an image are kept, as published scores use them.
MiniGPT-4's own lists are read by `filtered_flickr`. Expected images: 29,783 / 1,000 / 1,000, or 29,000 / 1,014 / 1,000
in Karpathy's split. Boxes are counted in turns, for which no number was published.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from minigptv2.boxes import Box
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.corpora.sources import filtered_flickr
from minigptv2.errors import DataError
from minigptv2.record import Region, Turn

_MARKED = re.compile(r"\[/EN#(?P<id>\d+)(?P<types>(?:/[A-Za-z]+)+) (?P<phrase>[^\]]+)\]")
NOT_VISUAL = "0"
"""The id of phrases that are not visible in the image."""
UNRELATED = "sentence not about the picture"


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption without markup. `phrases` are (entity, start, end) in characters of `text`."""

    text: str
    phrases: tuple[tuple[str, int, int], ...]


def parse_sentence(line: str) -> Sentence:
    """Parse a line of a Sentences file into a caption and its phrases."""
    text, phrases, position = "", [], 0
    for match in _MARKED.finditer(line):
        text += line[position : match.start()]
        phrase = one_line(match["phrase"])
        phrases.append((match["id"], len(text), len(text) + len(phrase)))
        text += phrase
        position = match.end()
    whole = text + line[position:]
    lead = len(whole) - len(whole.lstrip())
    return Sentence(whole.strip(), tuple((entity, start - lead, end - lead) for entity, start, end in phrases))


def parse_boxes(file: Path) -> dict[str, tuple[Box, ...]]:
    """Boxes by entity, as edges in pixels. Entities that are the whole scene or have no box are left out.

    The file gives the first and the last pixel of a box, counted from 1. The near edge of the first pixel is its number
    minus one, and the far edge of the last pixel is its number. Raises `DataError` for invalid XML.
    """
    text = file.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # either can make a parser read files
        raise DataError(f"{file}: declares a document type; the original annotations do not")
    boxes: dict[str, list[Box]] = defaultdict(list)
    try:
        for element in ElementTree.fromstring(text).iter("object"):
            corners = element.find("bndbox")
            if corners is not None:
                left, top, right, bottom = (
                    float(corners.findtext(name) or "nan") for name in ("xmin", "ymin", "xmax", "ymax")
                )
                for name in element.findall("name"):
                    boxes[(name.text or "").strip()].append(Box(left - 1, top - 1, right, bottom))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: not an annotation: {error}") from error
    return {entity: tuple(dict.fromkeys(found)) for entity, found in boxes.items()}


def grounded_caption(sentence: Sentence, boxes: dict[str, tuple[Box, ...]]) -> list[Turn]:
    """One turn: the sentence as a grounded caption. Empty if no phrase has a box."""
    regions = _regions(sentence, boxes, spans=True)
    return [Turn("grounding", answers=(sentence.text,), regions=tuple(regions))] if regions else []


def caption_to_phrases(sentence: Sentence, boxes: dict[str, tuple[Box, ...]]) -> list[Turn]:
    """One turn: the sentence as the question, its phrases with boxes as the answer. Empty if no phrase has a box."""
    regions = _regions(sentence, boxes, spans=False)
    return [Turn("detection", sentence.text, regions=tuple(regions))] if regions else []


def phrase_to_boxes(sentence: Sentence, boxes: dict[str, tuple[Box, ...]]) -> list[Turn]:
    """One turn per phrase, with all its boxes."""
    return [Turn("detection", regions=(region,)) for region in _regions(sentence, boxes, spans=False)]


Write = Callable[[Sentence, dict[str, tuple[Box, ...]]], list[Turn]]
"""Converts a sentence and the boxes of its image to turns."""


def _regions(sentence: Sentence, boxes: dict[str, tuple[Box, ...]], *, spans: bool) -> list[Region]:
    return [
        Region(boxes[entity], (sentence.text[start:end],), (start, end) if spans else None)
        for entity, start, end in sentence.phrases
        if entity != NOT_VISUAL and entity in boxes
    ]


def entities(raw: Raw, split: str, *, write: Write) -> Iterator[Draft | Rejected]:
    """One draft per image, with the turns that `write` makes of its sentences, or MiniGPT-4's list for training."""
    filtered = (f"{filtered_flickr.FOLDER}/{filtered_flickr.LISTS[raw.corpus][0]}",) if split == "train" else ()
    listed = raw.find(*_lists(split), minigpt4=filtered)
    if listed.suffix == ".json":
        yield from filtered_flickr.drafts(raw, listed, _pictures(raw))
        return
    sentences, annotations = raw.beside(listed, "Sentences"), raw.beside(listed, "Annotations")
    folder = _pictures(raw)
    unrelated = _unrelated(listed.parent / "UNRELATED_CAPTIONS")
    for key in dict.fromkeys(listed.read_text().split()):
        lines = _lines(sentences, key)
        if isinstance(lines, Rejected):
            yield lines
            continue
        if not (annotations / f"{key}.xml").is_file():
            yield Rejected(key, "annotations missing")
            continue
        boxes = parse_boxes(annotations / f"{key}.xml")
        turns: list[Turn] = []
        for number, line in enumerate(lines, 1):
            made = write(parse_sentence(line), boxes)
            if made and (key, number) in unrelated:
                yield Rejected(f"{key}, sentence {number}", UNRELATED, len(made))
            else:
                turns += made
        if turns:
            source = {"corpus": raw.corpus, "id": key}
            yield Draft(key, tuple(turns), (str(folder / f"{key}.jpg"),), source, separate=True)
        else:
            yield Rejected(key, "no phrase with a box")


def captions(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with all its captions, for evaluation, by Karpathy's split if his file exists."""
    folder = _pictures(raw)
    if raw.has("flickr30k/dataset_flickr30k.json"):
        for _, entry in stream_json(raw.find("flickr30k/dataset_flickr30k.json"), "images"):
            if entry["split"] == split:
                texts = [one_line(sentence["raw"]) for sentence in entry["sentences"]]
                yield _captioned(raw, Path(entry["filename"]).stem, texts, folder)
        return
    listed = raw.find(*_lists(split), "flickr30k/dataset_flickr30k.json")
    sentences = raw.beside(listed, "Sentences")
    for key in dict.fromkeys(listed.read_text().split()):
        lines = _lines(sentences, key)
        if isinstance(lines, Rejected):
            yield lines
        else:
            yield _captioned(raw, key, [parse_sentence(line).text for line in lines], folder)


def _lists(split: str) -> tuple[str, ...]:
    return f"flickr30k/{split}.txt", f"flickr30k/Flickr30kEntities/{split}.txt"


def _lines(sentences: Path, key: str) -> list[str] | Rejected:
    """The sentences of an image. They may contain characters at which `str.splitlines` would split them."""
    file = sentences / f"{key}.txt"
    if not file.is_file():
        return Rejected(key, "sentences missing")
    try:
        return [line.decode() for line in file.read_bytes().splitlines() if line.strip()]
    except UnicodeDecodeError:
        return Rejected(key, "sentences in no known encoding")


def _unrelated(file: Path) -> set[tuple[str, int]]:
    """Image and number, from 1, of the sentences that do not describe their image. Empty if there is no list."""
    rows = file.read_text().splitlines() if file.is_file() else []
    pairs = [row.split() for row in rows if row.strip() and not row.startswith("#")]
    if not all(len(pair) == 2 and pair[1].isdecimal() for pair in pairs):
        raise DataError(f"{file}: each line must be '<image> <number of the sentence>'")
    return {(key, int(number)) for key, number in pairs}


def _captioned(raw: Raw, key: str, texts: list[str], folder: Path) -> Draft:
    turn = Turn("caption", answers=tuple(texts))  # one written twice is a reference twice
    return Draft(key, (turn,), (str(folder / f"{key}.jpg"),), {"corpus": raw.corpus, "id": key})


def _pictures(raw: Raw) -> Path:
    places = ("flickr30k-images", "flickr30k_images", "images")
    return raw.find(*(f"flickr30k/{place}" for place in places), minigpt4=(f"{filtered_flickr.FOLDER}/images",))


_DOWNLOAD = (
    "pictures on request from https://shannon.cs.illinois.edu/DenotationGraph/, annotations.zip, the lists and "
    "UNRELATED_CAPTIONS from https://github.com/BryanPlummer/flickr30k_entities, all in flickr30k/"
)
_LICENSE = "CC BY-NC 4.0 (annotations), Flickr terms (pictures)"


def _row(name: str, title: str, task: str, write: Write) -> CorpusSpec:
    return CorpusSpec(
        name=name,
        title=f"Flickr30k Entities, {title}",
        drafts=partial(entities, write=write),
        tasks=(task,),
        expected={"train": None, "val": None, "test": None},  # pictures are known, their turns are not
        counted="turns",
        train_images=29_783,
        license=_LICENSE,
        stages=(3,),
        download=_DOWNLOAD,
        size="5 GB",
    )


CORPORA = (
    _row("flickr_grounded_caption", "grounded caption", "grounding", grounded_caption),
    _row("flickr_caption_to_phrase", "caption to phrases", "detection", caption_to_phrases),
    _row("flickr_phrase_to_box", "phrase to boxes", "detection", phrase_to_boxes),
    CorpusSpec(
        name="flickr30k_caption",
        title="Flickr30k captions",
        drafts=captions,
        tasks=("caption",),
        expected={"val": None, "test": 1_000},  # val: 1,014 by Karpathy's split, 1,000 by the entities'
        counted="images",
        license=_LICENSE,
        download=f"{_DOWNLOAD}. dataset_flickr30k.json from https://cs.stanford.edu/people/karpathy/deepimagesent/"
        "caption_datasets.zip",
        size="5 GB",
    ),
)
