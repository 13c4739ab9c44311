"""The box codec."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigptv2.boxes import GRID, Box, iou, is_box_text, parse_boxes, render_box, render_boxes

SIDES = st.integers(1, 5000)


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[Box, int, int]:
    width, height = draw(SIDES), draw(SIDES)
    xs = sorted(draw(st.lists(st.floats(0, width), min_size=2, max_size=2, unique=True)))
    ys = sorted(draw(st.lists(st.floats(0, height), min_size=2, max_size=2, unique=True)))
    return Box(xs[0], ys[0], xs[1], ys[1]), width, height


@given(boxes_in_images())
def test_a_box_survives_text_within_one_grid_cell(case: tuple[Box, int, int]) -> None:
    box, width, height = case
    (back,) = parse_boxes(render_box(box, width, height), width, height)
    for before, after, side in (
        (box.x1, back.x1, width),
        (box.x2, back.x2, width),
        (box.y1, back.y1, height),
        (box.y2, back.y2, height),
    ):
        assert -1e-6 <= before - after <= side / GRID * 1.001


def test_coordinates_are_the_integer_part_as_published() -> None:
    assert render_box(Box(0, 5.99, 33.4, 64), 64, 64) == "{<0><9><52><100>}"


@given(st.lists(boxes_in_images(), min_size=1, max_size=4))
def test_joined_boxes_parse_in_order(cases: list[tuple[Box, int, int]]) -> None:
    width, height = cases[0][1:]
    boxes = [Box(0, 0, width * (i + 1) / len(cases), height) for i in range(len(cases))]
    assert len(parse_boxes(render_boxes(boxes, width, height), width, height)) == len(boxes)


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("{<1><2><30><40>}", True),
        (" {<0><0><100><100>} ", True),
        ("{<30><2><1><40>}", False),
        ("{<1><2><3>}", False),
        ("{<1><2><3><101>}", False),
        ("{<1><2><3><4>}{<1><2><3><4>}", False),
        ("<1><2><3><4>", False),
        ("", False),
    ],
)
def test_well_formed_means_one_box_on_the_grid(text: str, well_formed: bool) -> None:
    assert is_box_text(text) is well_formed


def test_iou_by_hand() -> None:
    a, b = Box(0, 0, 4, 4), Box(2, 2, 6, 6)
    assert iou(a, b) == pytest.approx(4 / 28)
    assert iou(a, a) == 1.0
    assert iou(a, Box(4, 4, 8, 8)) == 0.0


@pytest.mark.parametrize(
    ("box", "word"),
    [
        (Box(0, 0, 11, 5), "leaves"),
        (Box(5, 0, 5, 5), "empty"),
        (Box(float("nan"), 0, 1, 1), "finite"),
        (Box(0, 0, 9, 9), ""),
    ],
)
def test_problems_are_named(box: Box, word: str) -> None:
    problem = box.problem(10, 10)
    assert (word in problem) if problem else word == ""
