"""Runs the chat in a terminal: reads questions, streams answers, and prints or draws their boxes.

Control characters are not printed, so the text of a model cannot control the terminal. Boxes are printed in pixels,
drawn to an image file, or shown as colored half blocks.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from minigptv2.boxes import Box, render_box
from minigptv2.draw import draw_boxes
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request, grounded_phrases
from minigptv2.shards.image_convert import Photo, read_photo
from minigptv2.tasks import BOX_TASK, TASKS
from minigptv2.terminal_text import one_line, printable, unguarded
from minigptv2.typed_marks import asked_question

HELP = """\
/image FILE           start a conversation about another image
/box X1 Y1 X2 Y2      ask what is in a box, given in pixels
/again                answer the last question again
/new                  delete the conversation
/tasks                list the questions of the tasks
/quit                 quit (also Ctrl-D); Ctrl-C stops an answer"""
BLOCK_COLUMNS = 80
"""The most characters in a line of an image shown as half blocks."""


def open_file(path: str) -> Photo:
    """The image at `path`. Raises `DataError` if there is none."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no image {file}")
    return read_photo(file, str(file))


def half_blocks(image: Image.Image, columns: int = BLOCK_COLUMNS) -> str:
    """The image as colored half blocks: each character shows two pixels, one above the other."""
    columns = min(columns, image.width)
    rows = max(1, round(columns * image.height / image.width / 2))
    small = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BICUBIC)
    lines = []
    for row in range(rows):
        cells = [(small.getpixel((x, 2 * row)), small.getpixel((x, 2 * row + 1))) for x in range(columns)]
        lines.append("".join(f"\x1b[38;2;{_rgb(up)};48;2;{_rgb(down)}m▀" for up, down in cells) + "\x1b[0m")
    return "\n".join(lines) + "\n"


def _rgb(pixel: object) -> str:
    assert isinstance(pixel, tuple), "an RGB image has three channels"
    return ";".join(str(int(channel)) for channel in pixel)


@dataclass
class Chat:
    """A conversation about `image`.

    `read` gives the next line and raises `EOFError` at the end, `write` prints, and `write_colors` prints
    control characters too. The boxes of the latest answer are drawn to the file `draw` and, with `blocks`, in the
    terminal.
    """

    predictor: Predictor
    decoding: Decoding
    image: Photo | None
    draw: Path | None = None
    blocks: bool = False
    read: Callable[[str], str] = input
    write: Callable[[str], object] = lambda text: sys.stdout.write(text)
    write_colors: Callable[[str], object] = lambda text: unguarded(sys.stdout).write(text)
    history: list[tuple[str, str]] = field(default_factory=list)
    last_question: str | None = None

    def run(self) -> None:
        """Answer lines until the end of input, /quit, or Ctrl-C at the prompt."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  adds history and editing to `input`

            self._print("Ask about the image. /help lists the commands.\n")
        while True:
            try:
                line = self.read("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                self._print("\n")
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._command(line) if line.startswith("/") else self._answer(line)
            except MiniGPTv2Error as error:
                self._print(f"{printable(str(error))}\n")

    def _print(self, text: str) -> None:
        self.write(text)
        sys.stdout.flush()

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/image":
            self.image, self.history, self.last_question = open_file(rest.strip()), [], None
            self._print(f"{self.image.width} x {self.image.height} px\n")
        elif name == "/box":
            self._answer(BOX_TASK.ask(self._box_text(rest)))
        elif name == "/again":
            self._again()
        elif name == "/new":
            self.history, self.last_question = [], None
        elif name == "/tasks":
            self._print("".join(f"{task.ask('...')}\n" for task in TASKS.values() if task.identifier))
        else:
            self._print(HELP + "\n")

    def _box_text(self, numbers: str) -> str:
        if self.image is None:
            raise DataError("/box needs an image: choose one with /image FILE")
        try:
            x1, y1, x2, y2 = (float(word) for word in numbers.replace(",", " ").split())
        except ValueError as error:
            raise DataError(f"/box must have four numbers, X1 Y1 X2 Y2 in pixels, got '{numbers}'") from error
        box = Box(x1, y1, x2, y2)
        if problem := box.problem(self.image.width, self.image.height):
            raise DataError(f"box {box} {problem}")
        return render_box(box, self.image.width, self.image.height)

    def _again(self) -> None:
        if self.last_question is None:
            raise DataError("there is no question to answer again")
        if self.history and self.history[-1][0] == self.last_question:
            self.history.pop()
        self.decoding = replace(self.decoding, seed=self.decoding.seed + 1)
        self._answer(self.last_question)

    def _answer(self, question: str) -> None:
        """Stream the answer. If Ctrl-C stops it, the part so far stays in the conversation."""
        if not question:
            return
        images = (self.image.image,) if self.image else ()
        question = asked_question(question, "the question", num_images=len(images), is_first=not self.history)
        self.last_question = question
        request = Request(question, images, tuple(self.history))
        answer = ""
        try:
            with closing(self.predictor.stream(request, self.decoding)) as pieces:
                for piece in pieces:
                    answer += piece
                    self._print(printable(piece))
        except KeyboardInterrupt:
            self._print(" [stopped]")
        self._print("\n")
        self.history.append((question, answer))
        if self.image:
            self._show_boxes(answer, self.image)

    def _show_boxes(self, answer: str, image: Photo) -> None:
        """Print the boxes of an answer in pixels, and draw them to the file and in the terminal if requested."""
        boxes = [
            (box, item.phrase) for item in grounded_phrases(answer, (image.width, image.height)) for box in item.boxes
        ]
        for box, phrase in boxes:
            self._print(f"box {box} px" + (f"  {one_line(phrase)}" if phrase else "") + "\n")
        if not boxes or not (self.draw or self.blocks):
            return
        drawn = draw_boxes(image.image, boxes, size=(image.width, image.height))
        if self.draw:
            drawn.save(self.draw)
            self._print(f"wrote {self.draw} with {len(boxes)} box(es)\n")
        if self.blocks:
            self.write_colors(half_blocks(drawn, min(BLOCK_COLUMNS, shutil.get_terminal_size().columns)))
