"""CSV files of images and captions with one change each, written by hand and not by the `csv` module."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minigptv2.corpora.own import OwnOptions
from tests.corpora.fuzz.outcome import Case, Expected
from tests.corpora.fuzz.photos import Photo

WORDS = (
    "a",
    "dog",
    "größer",
    "犬",
    "x,y",
    'the "big" one',
    "tab\there",
    "semi;colon",
    "two\nlines",
    "😀",
    "it's",
    "[0]",
    "<3",
)


@dataclass
class File:
    """Rows of cells as they are written, and the samples that must come of them. Row 0 holds the columns."""

    rows: list[list[str]]
    samples: dict[int, Expected]
    delimiter: str
    fault: str = ""
    retry: OwnOptions | None = OwnOptions(skip_faults=True)
    line_end: str = "\n"
    encoding: str = "utf-8"
    last_line_end: bool = True
    texts: list[str] = field(default_factory=list)
    """The rows as text, in place of `rows`, if a change needs it."""
    data: Callable[[bytes], bytes] = lambda data: data

    def text_of(self, row: list[str], rng: random.Random) -> str:
        return self.delimiter.join(_cell(cell, self.delimiter, rng) for cell in row)

    def first_line(self, number: int) -> int:
        """The line on which a row begins: captions may hold line ends."""
        return 1 + sum(1 + cell_lines(row) for row in self.rows[:number])

    def lose(self, number: int) -> None:
        """Expect an error at the row, and the file without it."""
        self.fault = f"line {self.first_line(number)}"
        del self.samples[number]


def cell_lines(row: list[str]) -> int:
    return sum(cell.count("\n") for cell in row)


def _cell(cell: str, delimiter: str, rng: random.Random) -> str:
    needs_quotes = any(mark in cell for mark in (delimiter, '"', "\n", "\r"))
    return '"' + cell.replace('"', '""') + '"' if needs_quotes or rng.random() < 0.3 else cell


def _file(rng: random.Random, photos: list[Photo]) -> File:
    image_first = rng.random() < 0.8
    rows, samples = [["image", "caption"] if image_first else ["caption", "image"]], {}
    for number, photo in enumerate(rng.sample(photos, rng.randint(1, 5)), 1):
        caption = "A " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))
        rows.append([photo.name, caption] if image_first else [caption, photo.name])
        samples[number] = Expected(photo, answers=[caption])
    return File(rows, samples, rng.choice([",", ",", "\t"]))


def _row(file: File, rng: random.Random) -> tuple[int, int, int]:
    """The number of a row, and the positions of its image and its caption."""
    image = file.rows[0].index("image")
    return rng.randint(1, len(file.rows) - 1), image, 1 - image


def nothing(file: File, rng: random.Random) -> None:
    pass


def change_line_ends(file: File, rng: random.Random) -> None:
    file.line_end, file.last_line_end = rng.choice(["\r\n", "\n"]), rng.random() < 0.5


def change_the_encoding(file: File, rng: random.Random) -> None:
    file.encoding = "utf-8-sig"


def save_as_utf16(file: File, rng: random.Random) -> None:
    file.encoding, file.fault, file.retry = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32"]), "UTF-16", None


def save_as_latin1(file: File, rng: random.Random) -> None:
    """One caption is not UTF-8, the others are ASCII."""
    number, _, caption = _row(file, rng)
    for row, one in file.samples.items():
        one.answers = [f"row {row}"]
        file.rows[row][caption] = f"row {row}"
    file.rows[number][caption] = "größer"
    file.encoding = "latin-1"
    file.lose(number)


def truncate(file: File, rng: random.Random) -> None:
    """Within the last row: an image name that does not exist, or a row of one cell."""
    number, image, caption = len(file.rows) - 1, *_row(file, rng)[1:]
    file.lose(number)
    file.rows[number][caption] = ""
    file.rows[number][image] = file.rows[number][image][:-3]
    file.last_line_end = False


def rename_a_column(file: File, rng: random.Random) -> None:
    place = rng.randint(0, 1)
    file.rows[0][place] = rng.choice(["img", "text", "captions", "Image path", "filename", "title", ""])
    file.fault, file.retry = "line 1: the columns are", None


def repeat_a_column(file: File, rng: random.Random) -> None:
    file.rows[0].append(rng.choice(["image", "caption"]))
    file.fault, file.retry = "line 1: the columns are", None


def add_a_column(file: File, rng: random.Random) -> None:
    for number, row in enumerate(file.rows):
        row.append("width" if number == 0 else "64")
    file.fault, file.retry = "line 1: the columns are", None


def drop_the_columns(file: File, rng: random.Random) -> None:
    file.rows.pop(0)
    file.fault, file.retry = "line 1: the columns are", None


def change_the_delimiter(file: File, rng: random.Random) -> None:
    """`;` as Excel writes it in some countries, or tabs in a .csv."""
    other = rng.choice([";", "|", "," if file.delimiter == "\t" else "\t"])
    file.texts = [other.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in file.rows]
    file.fault, file.retry = "the columns must be image and caption", None


def add_a_cell(file: File, rng: random.Random) -> None:
    number, *_ = _row(file, rng)
    file.rows[number].append(rng.choice(["", "more", "64"]))
    file.lose(number)


def drop_a_cell(file: File, rng: random.Random) -> None:
    number, *_ = _row(file, rng)
    file.rows[number].pop()
    file.lose(number)


def empty_a_cell(file: File, rng: random.Random) -> None:
    number, image, caption = _row(file, rng)
    file.rows[number][rng.choice([image, caption])] = rng.choice(["", " ", "\t \t"])
    file.lose(number)


def forget_quotes(file: File, rng: random.Random) -> None:
    """A delimiter in a caption makes one cell more."""
    number, _, caption = _row(file, rng)
    file.rows[number][caption] = f"one{file.delimiter}two"
    file.texts = [file.text_of(row, rng) for row in file.rows]
    file.texts[number] = file.delimiter.join(file.rows[number])
    file.lose(number)


def forget_a_closing_quote(file: File, rng: random.Random) -> None:
    """The caption runs to the end of the file, so the rows after it are lost with it, and named by their first line."""
    number, image, caption = _row(file, rng)
    for row in file.rows[number:]:
        row[image], row[caption] = row[image], "plain"
    file.texts = [file.text_of(row, rng) for row in file.rows[:number]]
    open_cell = [f"{cell}" if place == image else f'"{cell}' for place, cell in enumerate(file.rows[number])]
    file.texts += [file.delimiter.join(open_cell)]
    file.texts += [file.delimiter.join(row) for row in file.rows[number + 1 :]]
    first = file.first_line(number)
    for lost in range(number, len(file.rows)):
        del file.samples[lost]
    file.fault = f"line {first}"


def leave_blank_lines(file: File, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        file.rows.insert(rng.randint(1, len(file.rows)), [])
    rows = [number for number, row in enumerate(file.rows) if row]
    old = list(file.samples.values())
    file.samples = dict(zip(rows[1:], old, strict=True))


def type_a_mark(file: File, rng: random.Random) -> None:
    number, _, caption = _row(file, rng)
    mark = rng.choice(["<image>", "<Img><ImageHere></Img>", "[caption]", "[INST]", "<|image_pad|>"])
    file.rows[number][caption] = f"{mark} a dog"
    file.lose(number)


def damage_a_character(file: File, rng: random.Random) -> None:
    number, _, caption = _row(file, rng)
    file.rows[number][caption] += rng.choice(["\ufffd", "a\0b"])
    file.fault, file.retry = f"line {file.first_line(number)}", OwnOptions(skip_faults=True)
    del file.samples[number]


def lose_the_photo(file: File, rng: random.Random) -> None:
    number, image, _ = _row(file, rng)
    file.rows[number][image] = rng.choice(["photos/none.jpg", "photos", "http://host/a.jpg", "a\tb.jpg"])
    file.lose(number)


def damage_the_photo(file: File, rng: random.Random) -> None:
    number, image, _ = _row(file, rng)
    name = rng.choice([f"truncated/{file.rows[number][image]}", "page.jpg", "empty.jpg", "folder.jpg"])
    file.rows[number][image] = name
    file.lose(number)
    file.fault = name


def repeat_a_row(file: File, rng: random.Random) -> None:
    """Two captions of one image are two samples."""
    number, *_ = _row(file, rng)
    file.samples[len(file.rows)] = file.samples[number]
    file.rows.append(list(file.rows[number]))


def write_nothing(file: File, rng: random.Random) -> None:
    data = rng.choice([b"", b"\n\n", b"image,caption", b"image\tcaption\n", b"\xef\xbb\xbf", b"\0", b'"'])
    file.data = lambda _: data
    file.fault, file.retry = "my.", None


CHANGES: tuple[Callable[[File, random.Random], None], ...] = (
    *(nothing, change_line_ends, change_the_encoding, save_as_utf16, save_as_latin1, truncate, rename_a_column),
    *(repeat_a_column, add_a_column, drop_the_columns, change_the_delimiter, add_a_cell, drop_a_cell, empty_a_cell),
    *(forget_quotes, forget_a_closing_quote, leave_blank_lines, type_a_mark, damage_a_character, lose_the_photo),
    *(damage_the_photo, repeat_a_row, write_nothing),
)


def draw_case(rng: random.Random, folder: Path, photos: list[Photo]) -> tuple[str, Case]:
    """A file with one change, and the name of the change."""
    file, change = _file(rng, photos), rng.choice(CHANGES)
    change(file, rng)
    texts = file.texts or [file.text_of(row, rng) for row in file.rows]
    text = file.line_end.join(texts) + (file.line_end if file.last_line_end else "")
    data = file.data(text.encode(file.encoding, "replace"))
    samples = {str(file.first_line(number)): one for number, one in file.samples.items()}
    name = f"my.{'tsv' if file.delimiter == chr(9) else 'csv'}"
    return change.__name__, Case(folder / name, data, samples, file.fault, file.retry)
