"""Laws: a record comes back from a tar as it went in; a box from its text within the grid; refer and identify agree."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from minigptv2.boxes import GRID, Box, parse_boxes, render_box
from minigptv2.corpora.draft import Draft, finish
from minigptv2.record import Record, Region, Turn, from_json, to_json
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tasks import TASKS, render_turn, validate
from tests.corpora.miniatures.files import HEIGHT, WIDTH, jpeg

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30)
words = texts.filter(lambda text: text.strip() != "")


@st.composite
def boxes(draw: st.DrawFn, width: int = WIDTH, height: int = HEIGHT) -> Box:
    """A box inside a picture, at least a pixel wide and high."""
    x1 = draw(st.floats(0, width - 1))
    y1 = draw(st.floats(0, height - 1))
    return Box(x1, y1, draw(st.floats(x1 + 1, max(x1 + 1, width))), draw(st.floats(y1 + 1, max(y1 + 1, height))))


@st.composite
def turns(draw: st.DrawFn, task: str) -> Turn:
    """A valid turn of a task."""
    source = draw(st.dictionaries(words, texts, max_size=2))
    answers = tuple(draw(st.lists(words, min_size=1, max_size=3)))
    shape = TASKS[task].shape
    if shape.question:
        return Turn(task, draw(words), answers, choices=tuple(draw(st.lists(texts, max_size=3))), source=source)
    if shape.regions == "none":
        return Turn(task, answers=answers, source=source)
    phrases = tuple(draw(st.lists(words, min_size=1, max_size=3)))
    if shape.regions == "one":
        regions = (Region((draw(boxes()),), phrases),)
        return Turn(task, answers=answers if shape.answers else (), regions=regions, source=source)
    several = st.lists(boxes(), min_size=1, max_size=3).map(tuple)
    if not shape.spans:
        regions = tuple(Region(draw(several), (phrase,)) for phrase in phrases)
        return Turn(task, draw(st.none() | words), regions=regions, source=source)
    caption, regions = "", ()
    for phrase in phrases:
        caption += draw(st.text("ab ", max_size=5))
        regions += (Region(draw(several), (phrase,), (len(caption), len(caption) + len(phrase))),)
        caption += phrase
    return Turn(task, answers=(caption,), regions=regions, source=source)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A valid record about a 64 x 48 picture, or about none."""
    source = draw(st.dictionaries(words, texts, max_size=2))
    if draw(st.booleans()):
        tasks = st.sampled_from([name for name, task in TASKS.items() if task.shape.image])
        found = tuple(draw(turns(draw(tasks))) for _ in range(draw(st.integers(1, 3))))
        return Record(found, WIDTH, HEIGHT, source, draw(st.booleans()))
    found = tuple(draw(turns("language")) for _ in range(draw(st.integers(1, 2))))
    return Record(found, None, None, source, draw(st.booleans()))


@given(st.lists(records(), min_size=1, max_size=5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_records_come_back_from_a_tar_as_they_went_in(made: list[Record], per_shard: int) -> None:
    image = jpeg()
    samples = [Sample(f"k{n}", record, image if record.has_image else None) for n, record in enumerate(made)]
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(samples, Path(folder) / "c", "c", samples_per_shard=per_shard)
        reader = CorpusReader(Path(folder) / "c")
        assert [reader.record(number) for number in range(len(reader))] == made
        assert all(reader.image(n) == image for n, record in enumerate(made) if record.has_image)
    for record in made:
        validate(record, "here")
        assert from_json(to_json(record), "here") == record


@given(st.integers(2, 5000), st.integers(2, 5000), st.data())
@settings(max_examples=100, deadline=None)
def test_boxes_come_back_from_text_within_the_grid(width: int, height: int, data: st.DataObject) -> None:
    box = data.draw(boxes(width, height))
    (said,) = parse_boxes(render_box(box, width, height), width, height)
    for true, back, side in (
        (box.x1, said.x1, width),
        (box.x2, said.x2, width),
        (box.y1, said.y1, height),
        (box.y2, said.y2, height),
    ):
        assert -1e-9 * side <= true - back <= side / GRID * (1 + 1e-9)


@given(boxes(), st.lists(words, min_size=1, max_size=3).map(tuple), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_refer_and_identify_of_one_object_agree(box: Box, phrases: tuple[str, ...], seed: int) -> None:
    region = Region((box,), phrases)
    refer = render_turn(Turn("refer", regions=(region,)), WIDTH, HEIGHT, Random(seed))
    identify = render_turn(Turn("identify", regions=(region,)), WIDTH, HEIGHT, Random(seed))
    assert refer.answer == render_box(box, WIDTH, HEIGHT) and refer.answer in identify.question
    assert identify.answer in phrases and identify.answer in refer.question


@given(
    st.tuples(*[st.floats(-200, 200) | st.sampled_from([float("nan"), float("inf")])] * 4),
    st.none() | st.tuples(st.floats(0.5, 2000), st.floats(0.5, 2000)),
)
@settings(max_examples=100, deadline=None)
def test_whatever_an_annotation_says_a_finished_box_lies_in_its_picture(
    corners: tuple[float, float, float, float], frame: tuple[float, float] | None
) -> None:
    region = Region((Box(*corners),), ("it",))
    sample, lost = finish(Draft("k", (Turn("refer", regions=(region,)),), jpeg(), frame=frame))
    assert (sample is None) == (len(lost) == 1)
    if sample is not None:
        (kept,) = sample.record.turns[0].regions[0].boxes
        assert 0 <= kept.x1 < kept.x2 <= WIDTH and 0 <= kept.y1 < kept.y2 <= HEIGHT
    else:
        assert lost[0].reason.split()[0] in ("box", "empty")
