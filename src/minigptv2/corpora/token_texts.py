"""Yields the texts of the samples of several corpora, as they are tokenized, for training a small tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from minigptv2.errors import DataError
from minigptv2.prompt import prompt_texts
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import render_turn

_SAMPLES_PER_CORPUS = 800
_DRAWS_OF_SMALL = 8
"""Number of times that samples of small corpora are rendered, so that their words have enough weight."""


def rendered_texts(shards: Path) -> Iterator[str]:
    """Prompt parts and answers of up to 800 samples of every corpus under `shards`, with drawn wordings.

    Raises `DataError` if there is no corpus.
    """
    folders = sorted(folder for folder in shards.iterdir() if folder.is_dir()) if shards.is_dir() else []
    if not folders:
        raise DataError(f"no corpora under {shards}")
    for folder in folders:
        reader = CorpusReader(folder)
        visits = _DRAWS_OF_SMALL if len(reader) < _SAMPLES_PER_CORPUS else 1
        for sample in range(min(len(reader), _SAMPLES_PER_CORPUS)):
            record = reader.record(sample)
            for visit in range(visits):
                draw = Random(f"tokenizer/{folder.name}/{sample}/{visit}")
                spoken = [render_turn(turn, record.width or 0, record.height or 0, draw) for turn in record.turns]
                yield from prompt_texts(spoken, has_image=record.has_image)
