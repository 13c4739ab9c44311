"""The chat in a terminal: questions in, streamed answers out, boxes in pixels, in a drawing, or in the terminal itself.

Nothing that the model says can steer the terminal: control characters are not printed. Pictures go out by the protocols
of kitty or iTerm2, or as half blocks in colour.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from minigptv2.boxes import Box, render_box
from minigptv2.draw import draw_boxes
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.shards.image_files import open_photo
from minigptv2.tasks import BOX_TASK, TASKS, GroundedPhrase, segments

HELP = """\
/image FILE           begin a conversation about another picture
/box X1 Y1 X2 Y2      ask what is in a box, given in pixels
/again                answer the last question once more
/new                  forget what was said
/tasks                how to ask for each task
/quit                 end (also Ctrl-D); Ctrl-C stops an answer"""
CHUNK = 4096
"""Base64 characters of one piece of a picture (kitty's graphics protocol)."""
BLOCK_COLUMNS = 80


def open_file(path: str) -> Image.Image:
    """The picture at `path`. Raises `DataError` if there is none."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no image {file}")
    return open_photo(file.read_bytes(), str(file))


def picture_mode(asked: str, environment: dict[str, str]) -> str:
    """How to show pictures: as `asked`, or, for auto, as the terminal says in its variables that it can."""
    if asked != "auto":
        return asked
    program = environment.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    return "iterm" if program in ("iTerm.app", "WezTerm") else "none"


def printable(text: str) -> str:
    """`text` without what could steer a terminal: control characters become a question mark in a diamond."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def picture_escapes(image: Image.Image, mode: str, columns: int = BLOCK_COLUMNS) -> str:
    """What shows `image` when printed, in a terminal of `mode` (kitty, iterm or blocks)."""
    if mode == "blocks":
        return _blocks(image, columns)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    if mode == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(stream.getvalue())};preserveAspectRatio=1:{data}\x07\n"
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    keys = ["a=T,f=100,"] + [""] * (len(parts) - 1)
    more = [1] * (len(parts) - 1) + [0]
    return "".join(f"\x1b_G{k}m={m};{part}\x1b\\" for k, m, part in zip(keys, more, parts, strict=True)) + "\n"


def _blocks(image: Image.Image, columns: int) -> str:
    """Two pixels a character: the upper one in the ink of a half block, the lower one in its ground."""
    columns = min(columns, image.width)
    rows = max(1, round(columns * image.height / image.width / 2))
    small = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BICUBIC)
    lines = []
    for row in range(rows):
        cells = [(small.getpixel((x, 2 * row)), small.getpixel((x, 2 * row + 1))) for x in range(columns)]
        lines.append("".join(f"\x1b[38;2;{_rgb(up)};48;2;{_rgb(down)}m▀" for up, down in cells) + "\x1b[0m")
    return "\n".join(lines) + "\n"


def _rgb(pixel: object) -> str:
    assert isinstance(pixel, tuple), "an RGB picture has three channels"
    return ";".join(str(int(channel)) for channel in pixel)


@dataclass
class Chat:
    """A conversation about `image`. `read` gives the next line and raises `EOFError` at the end; `write` prints."""

    predictor: Predictor
    decoding: Decoding
    image: Image.Image | None
    draw: Path | None = None
    mode: str = "none"
    read: Callable[[str], str] = input
    write: Callable[[str], object] = sys.stdout.write
    history: list[tuple[str, str]] = field(default_factory=list)
    asked: str | None = None

    def run(self) -> None:
        """Until the end of input, /quit, or Ctrl-C at the prompt."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  gives `input` a history and editing

            self._say("Ask about the picture; /help lists the commands.\n")
        while True:
            try:
                line = self.read("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                self._say("\n")
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._command(line) if line.startswith("/") else self._answer(line)
            except MiniGPTv2Error as error:
                self._say(f"{error}\n")

    def _say(self, text: str) -> None:
        self.write(text)
        sys.stdout.flush()

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/image":
            self.image, self.history, self.asked = open_file(rest.strip()), [], None
            self._say(f"{self.image.width} x {self.image.height} px\n")
        elif name == "/box":
            self._answer(BOX_TASK.ask(self._box_text(rest)))
        elif name == "/again":
            self._again()
        elif name == "/new":
            self.history, self.asked = [], None
        elif name == "/tasks":
            self._say("".join(f"{task.ask('...')}\n" for task in TASKS.values() if task.identifier))
        else:
            self._say(HELP + "\n")

    def _box_text(self, numbers: str) -> str:
        if self.image is None:
            raise DataError("a box is of a picture: /image FILE first")
        try:
            x1, y1, x2, y2 = (float(word) for word in numbers.replace(",", " ").split())
        except ValueError as error:
            raise DataError(f"/box {numbers}: want four numbers, X1 Y1 X2 Y2 in pixels") from error
        box = Box(x1, y1, x2, y2)
        if problem := box.problem(self.image.width, self.image.height):
            raise DataError(f"box {box} {problem}")
        return render_box(box, self.image.width, self.image.height)

    def _again(self) -> None:
        if self.asked is None:
            raise DataError("nothing was asked yet")
        if self.history and self.history[-1][0] == self.asked:
            self.history.pop()
        self.decoding = Decoding(**{**vars(self.decoding), "seed": self.decoding.seed + 1})
        self._answer(self.asked)

    def _answer(self, question: str) -> None:
        """Stream the answer; what was said when it is stopped by Ctrl-C stays in the conversation."""
        if not question:
            return
        self.asked = question
        request = Request(question, (self.image,) if self.image else (), tuple(self.history))
        said = ""
        try:
            with closing(self.predictor.stream(request, self.decoding)) as pieces:
                for piece in pieces:
                    said += piece
                    self._say(printable(piece))
        except KeyboardInterrupt:
            self._say(" [stopped]")
        self._say("\n")
        self.history.append((question, said))
        if self.image:
            self._show(said, self.image)

    def _show(self, answer: str, image: Image.Image) -> None:
        """The boxes of an answer: in pixels, in the drawing, in the terminal."""
        grounded = [piece for piece in segments(answer, *image.size) if isinstance(piece, GroundedPhrase)]
        boxes = [(box, piece.phrase) for piece in grounded for box in piece.boxes]
        for box, phrase in boxes:
            self._say(f"box {box} px" + (f"  {printable(phrase)}" if phrase else "") + "\n")
        if not boxes:
            return
        if self.draw:
            draw_boxes(image, boxes).save(self.draw)
            self._say(f"drawn {len(boxes)} box(es) in {self.draw}\n")
        if self.mode != "none":
            columns = min(BLOCK_COLUMNS, shutil.get_terminal_size().columns)
            shown = draw_boxes(image, boxes)
            shown.thumbnail((960, 960))
            self._say(picture_escapes(shown, self.mode, columns))
