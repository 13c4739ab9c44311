"""A sample of a corpus to an example: which of its turns a visit trains, and whether they share the image."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from minigptv2.data.reader import CorpusReader
from minigptv2.errors import DataError
from minigptv2.prompt import Example, PromptEncoder, share_image
from minigptv2.record import Record


def encode_sample(reader: CorpusReader, sample: int, epoch: int, encoder: PromptEncoder, *, share_images: int,
                  dice: str) -> Example:  # fmt: skip
    """The example of a sample's visit number `epoch`; the wording is drawn by (`dice`, sample, epoch) alone.

    A record of separate turns trains the next `share_images` of them at each visit, round and round in an order of
    its own, so that none comes twice before all came once. Raises `DataError` if the record is bad or nothing of it
    fits into `encoder.max_tokens`.
    """
    record = reader.record(sample)
    draw = Random(f"{dice}/{sample}/{epoch}")
    if record.separate and len(record.turns) > 1:
        example = _of_separate_turns(record, _turns_of_visit(record, epoch, share_images, f"{dice}/{sample}"),
                                     encoder, draw)  # fmt: skip
    else:
        example = encoder.encode(record, draw)
    if example is None:
        raise DataError(f"{reader.where(sample)}: the first turn alone is longer than max_tokens={encoder.max_tokens}")
    return example


def _turns_of_visit(record: Record, epoch: int, count: int, dice: str) -> list[int]:
    order = list(range(len(record.turns)))
    Random(dice).shuffle(order)
    count = min(count, len(order))
    return [order[(epoch * count + number) % len(order)] for number in range(count)]


def _of_separate_turns(record: Record, turns: list[int], encoder: PromptEncoder, draw: Random) -> Example | None:
    """The turns that fit, each as it would be alone, sharing the image if they are several; None if none fits."""
    examples: list[Example] = []
    for number in turns:
        example = encoder.encode(replace(record, turns=(record.turns[number],), separate=False), draw)
        if example is None:
            continue
        joined = share_image([*examples, example]) if examples and example.num_images else example
        if len(joined) <= encoder.max_tokens and (example.num_images or not examples):
            examples.append(example)
    if not examples:
        return None
    return share_image(examples) if len(examples) > 1 else examples[0]
