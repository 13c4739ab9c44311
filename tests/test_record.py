"""The record schema."""

import dataclasses

import pytest

from minigptv2.boxes import Box
from minigptv2.corpora.sources import photographs, toy
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, Turn, from_json, to_json
from minigptv2.tasks import validate

REGION = Region((Box(1, 2, 30, 40),), ("the dog",))
GOOD = Record((Turn("refer", regions=(REGION,)),), 64, 48, {"corpus": "test"})


@pytest.mark.parametrize("corpus", toy.CORPORA)
def test_toy_records_survive_json(corpus: str) -> None:
    for sample in toy.samples(corpus, 30, None, "train"):  # type: ignore[arg-type]
        assert from_json(to_json(sample.record), "here") == sample.record


def test_photograph_records_survive_json() -> None:
    samples = list(photographs.samples(None, "train"))  # type: ignore[arg-type]
    assert len({sample.record.source["id"] for sample in samples}) == 15
    for sample in samples:
        assert from_json(to_json(sample.record), sample.key) == sample.record


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (Turn("refr", regions=(REGION,)), "unknown task"),
        (Turn("refer", regions=(Region((Box(1, 2, 65, 4),), ("x",)),)), "leaves the image"),
        (Turn("refer", regions=(Region((Box(9, 2, 5, 4),), ("x",)),)), "inverted"),
        (Turn("refer", regions=(REGION, REGION)), "exactly one region"),
        (Turn("refer", regions=(Region(REGION.boxes, ()),)), "empty phrase"),
        (Turn("vqa", answers=("yes",)), "no question"),
        (Turn("vqa", "what?", ("",)), "empty answer"),
        (Turn("caption"), "empty answer"),
        (Turn("detection"), "at least one region"),
        (Turn("language", "hi", ("ho",)), "has an image"),
        (Turn("grounding", answers=("a dog",), regions=(REGION,)), "no span"),
        (Turn("grounding", None, ("a dog",), (dataclasses.replace(REGION, span=(0, 9)),)), "outside the caption"),
    ],
)
def test_bad_turns_are_named(turn: Turn, words: str) -> None:
    with pytest.raises(DataError, match=f"somewhere: turn 0.*{words}"):
        validate(dataclasses.replace(GOOD, turns=(turn,)), "somewhere")


def test_a_turn_about_an_image_needs_one() -> None:
    with pytest.raises(DataError, match="needs an image"):
        validate(Record((Turn("vqa", "what?", ("x",)),)), "somewhere")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"turns": [{"task": "language", "question": "hi", "answers": "red"}]}',
        b'{"turns": [{"task": "language", "question": 3, "answers": ["red"]}]}',
        b'{"turns": [{"task": "refer", "regions": [{"boxes": [[1,2,3,4]], "phrases": ["x"], "span": []}]}]}',
        b"{}",
        b'{"turns": 3}',
        b'{"turns": [{"task": "refer", "regions": [{}]}]}',
        b"\xff\xfe",
    ],
)
def test_what_is_not_a_record_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="somewhere"):
        from_json(data, "somewhere")


def test_separate_turns_keep_their_ids_and_choices() -> None:
    turns = tuple(Turn("vqa", f"q{n}?", ("a", "b"), choices=("a", "b"), source={"id": str(n)}) for n in range(3))
    record = Record(turns, 64, 48, {"corpus": "test"}, separate=True)
    assert from_json(to_json(record), "here") == record


@pytest.mark.parametrize(
    "field", ['"question": "\\ud83d", "answers": ["x"]', '"question": "x", "answers": ["\\ud83d"]']
)
def test_half_a_surrogate_pair_is_a_data_error(field: str) -> None:
    with pytest.raises(DataError, match="somewhere: not a record: UnicodeEncodeError"):
        from_json(f'{{"turns": [{{"task": "language", {field}}}]}}'.encode(), "somewhere")


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"turns": [{"task": "refer", "regions": [{"span": [0, 1e999]}]}]}'])
def test_what_no_parser_can_hold_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="somewhere: not a record"):
        from_json(data, "somewhere")
