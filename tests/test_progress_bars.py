"""Tests that progress bars move the cursor of a terminal, print nothing into files, and are guarded as other output."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest

from minigptv2.cli import main
from minigptv2.progress_bars import progress_bar
from minigptv2.secrets import guarded_output
from tests.conftest import World
from tests.test_terminal_text import HOSTILE, controls

SECRET = "s3cr3t-canary-value"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, title: str, note: str = "") -> str:
    """What a bar with a title and a note writes to stderr."""
    with mock.patch.object(sys, "stderr", stream), guarded_output(), progress_bar(total=2, desc=title) as bar:
        bar.set_postfix_str(note)
        bar.update(1)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_bar_moves_the_cursor_and_its_texts_do_not(text: str) -> None:
    said = shown(Terminal(), text, text.replace("\r", ""))
    assert "\r" in said and "\\r" not in said.replace("safe\\rfake", "")
    assert not controls(said.replace("\r", "").replace("\x1b[A", ""))


@pytest.mark.parametrize("text", [*HOSTILE, "a.tar"])
def test_a_bar_prints_nothing_into_a_file(text: str) -> None:
    assert shown(io.StringIO(), text, text) == ""


def test_a_secret_in_a_title_or_a_note_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_TOKEN", SECRET)
    said = shown(Terminal(), f"reading {SECRET}", f"at {SECRET}")
    assert "reading" in said and SECRET not in said


def test_a_line_is_printed_above_a_bar() -> None:
    stream = Terminal()
    streams = mock.patch.multiple(sys, stdout=stream, stderr=stream)
    with streams, guarded_output(), progress_bar(total=2, desc="steps") as bar:
        bar.update(1)
        bar.write("step 1")
    before, _, _ = stream.getvalue().partition("step 1\n")
    assert before.endswith("\r")  # the bar is cleared before the line is printed


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("action", ["verify", "index", "build"])
def test_commands_on_shards_draw_bars_on_a_terminal_only(
    action: str, terminal: bool, world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = shutil.copytree(world.val / "toy_refer", tmp_path / "toy_refer")
    words = {
        "verify": ["verify", str(corpus), "--workers", "0"],
        "index": ["index", str(corpus), "--workers", "0"],
        "build": ["build", "toy_refer", "--limit", "20", "--output", str(tmp_path / "out"), "--workers", "0"],
    }[action]
    stream = Terminal() if terminal else io.StringIO()
    with mock.patch.object(sys, "stderr", stream):
        assert main(["shards", *words]) == 0
    said = stream.getvalue()
    assert "\\r" not in said and "\\x" not in said
    assert ("\r" in said) is terminal
    assert not controls(said.replace("\r", "").replace("\x1b[A", ""))
