"""Tests the terminal chat: turns, commands, boxes, drawings, and that answers cannot control the terminal."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from minigptv2.boxes import Box, iou
from minigptv2.draw import PREDICTED_COLORS
from minigptv2.errors import ConfigError
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.serve.config import Access
from minigptv2.serve.terminal import Chat, half_blocks
from minigptv2.shards.image_convert import Photo
from tests.browser.world import PLACES, draw_picture, teacher
from tests.model.tiny import save_tiny_export


class ScriptedPredictor:
    """Streams the answer of the teacher, word by word."""

    def stream(self, request: Request, decoding: Decoding) -> Generator[str, None, None]:
        self.last = (request, decoding)
        yield from re.split(r"(?<= )", teacher(request))


def talk(lines: list[str], *, image: Image.Image | None = None, **options: Any) -> tuple[str, ScriptedPredictor]:
    """The printed text of a conversation of `lines`, and the model that answered it."""
    said, waiting, model = [], iter(lines), ScriptedPredictor()

    def read(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration as end:
            raise EOFError from end

    photo = None if image is None else Photo(image, *image.size)
    Chat(model, Decoding(), photo, read=read, write=said.append, write_colors=said.append, **options).run()  # type: ignore[arg-type]
    return "".join(said), model


def test_turns_know_each_other_and_boxes_are_printed_and_drawn(tmp_path: Path) -> None:
    lines = ["what about the green one?", "and where is it?"]
    said, model = talk(lines, image=draw_picture(), draw=tmp_path / "out.png")
    assert model.last[0].history == (("what about the green one?", "you asked about green"),)
    match = re.search(r"box \(([^)]*)\) px", said)
    assert match and iou(Box(*map(float, match[1].split(", "))), PLACES["green"]) > 0.9
    assert f"wrote {tmp_path / 'out.png'} with 1 box(es)" in said
    colors = Image.open(tmp_path / "out.png").convert("RGB").getcolors(2**20) or []
    assert PREDICTED_COLORS[0] in [color for _, color in colors]


def test_commands(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    draw_picture().save(file)
    place = PLACES["blue"]
    lines = [
        "/box 1 2 3 4",
        f"/image {file}",
        f"/box {place.x1} {place.y1} {place.x2} {place.y2}",
        "/again",
        "/new",
        "/help",
        "/tasks",
        "/box 1 2 x 4",
        "/box 9 9 2 2",
        f"/image {tmp_path / 'none.png'}",
        "/again",
        "",
        "/quit",
        "never read",
    ]
    said, model = talk(lines)
    assert "/box needs an image" in said and "640 x 480 px" in said
    assert said.count("the blue one\n") == 2 and "/image FILE" in said
    assert "[detection] ..." in said and "must have four numbers" in said and "empty or inverted" in said
    assert "no image" in said and "there is no question to answer again" in said and "never" not in said
    request, decoding = model.last
    assert request.history == () and decoding.seed == 1 and request.question.startswith("[identify] what is in {<")


def test_half_blocks_have_the_colors_of_the_image() -> None:
    rows = half_blocks(draw_picture(), 32).splitlines()
    assert len(rows) == 12 and all(row.count("▀") == 32 for row in rows)
    assert "\x1b[38;2;220;30;30" in rows[3] and "\x1b[38;2;30;60;220" in rows[3]


@pytest.mark.parametrize("value", ["kitty", "iterm"])
def test_a_removed_graphics_protocol_names_the_file_option(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    from minigptv2.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["chat", "--model", "nowhere", "--show", value])
    assert ended.value.code == 2 and "--draw FILE" in capsys.readouterr().err


def test_boxes_are_shown_in_the_terminal() -> None:
    said, _ = talk(["[refer] the red one"], image=draw_picture(), blocks=True)
    assert "▀" in said and "box (" in said


def test_ctrl_c_stops_an_answer_and_keeps_its_first_part() -> None:
    class Interrupted(ScriptedPredictor):
        def stream(self, request: Request, decoding: Decoding) -> Generator[str, None, None]:
            self.last = (request, decoding)
            yield "red "
            if not request.history:
                raise KeyboardInterrupt

    said, model, lines = [], Interrupted(), iter(["first", "second", "/quit"])
    Chat(model, Decoding(), None, read=lambda _: next(lines), write=said.append).run()  # type: ignore[arg-type]
    assert "[stopped]" in "".join(said) and model.last[0].history == (("first", "red "),)


@pytest.fixture(scope="module")
def export(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk."""
    return save_tiny_export(tmp_path_factory.mktemp("served"), predictor.tokenizer.path, seed=1)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "minigptv2", *words]


def test_the_chat_command_answers_lines_from_a_pipe(export: Path, tmp_path: Path) -> None:
    draw_picture().save(tmp_path / "picture.png")
    words = command("chat", "--model", str(export), str(tmp_path / "picture.png"), "--max-new-tokens", "8")
    done = subprocess.run(
        words, input="[vqa] what is it?\n/again\n/nonsense\n", capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") >= 3 and "/image FILE" in done.stdout and not done.stderr


def test_the_serve_command_serves_until_it_is_terminated(export: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a long password\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = command("serve", "--model", str(export), "--port", str(port), "--password-file", str(tmp_path / "password"))
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"export: page http://127.0.0.1:{port}/")
        for _ in range(1000):
            try:
                reply = httpx.get(f"http://127.0.0.1:{port}/v1/models", auth=("", "a long password"))
                break
            except httpx.TransportError:
                assert process.poll() is None
        assert reply.json()["data"][0]["id"] == "export"
    finally:
        process.terminate()
        assert process.wait(timeout=30) in (0, -15)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--host", "0.0.0.0"], "there is no password"),
        (["--port", "99999"], "--port must be 1 to 65535, got 99999"),
        (["--examples", "none.jsonl"], "none.jsonl"),
        (["--password-file", "none"], "none"),
        (["--model", "none"], "none"),
    ],
)
def test_a_server_that_cannot_start_gives_the_reason_in_one_line(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigptv2.cli import main

    monkeypatch.delenv("MINIGPTV2_PASSWORD", raising=False)
    assert main(["serve", "--model", "nowhere", *words]) in (1, 2, 4)
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1


def test_an_occupied_port_is_named_before_a_model_is_loaded() -> None:
    from minigptv2.cli.serve import _check_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="already in use"):
            _check_port(Access(port=taken.getsockname()[1]))
