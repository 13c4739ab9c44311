"""Tests that text from files and models reaches no terminal with control characters, whatever the command."""

from __future__ import annotations

import io
import json
import shutil
import sys
import unicodedata
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigptv2.cli import main
from minigptv2.secrets import guarded_output
from minigptv2.shards.manifest import MANIFEST_FILE, _own_hash
from minigptv2.terminal_text import one_line, printable, printable_json
from tests.conftest import World
from tests.serve.test_terminal import talk

HOSTILE = (
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[1;1Hfake prompt$",
    "safe\rfake",
    "\x9b31m",
    "\x9d0;owned\x9c",
    "photo\u202egpj.exe",
    "\u2066a\u2069\u200f",
    "\x08\x08\x08",
    "\x7f\x85\u2028\u2029",
    "name\udcff",
)


def controls(text: str) -> list[str]:
    """The characters of a text that a terminal could act on."""
    bidi = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    return [
        one
        for one in text
        if (unicodedata.category(one) in ("Cc", "Zl", "Zp", "Cs") and one not in "\n\t")
        or unicodedata.bidirectional(one) in bidi
        or one in "\u200e\u200f\u061c"
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_escapes(text: str) -> None:
    assert controls(text) and not controls(printable(text))
    assert json.loads(printable_json({text: [text]}, 1)) == {text: [text]} and not controls(printable_json(text))
    assert "\n" not in one_line(f"{text}\n")


@pytest.mark.parametrize("text", ["a dog\n\tin the park", "密码 é ñ", "한국어", "العربية", "x\u00a0y\u3000z"])
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    assert not controls(printable(text)) and not controls(printable_json(text))
    assert json.loads(printable_json({text: text}, 1)) == {text: text}


@pytest.mark.parametrize("text", HOSTILE)
def test_all_output_of_a_command_is_cleaned(text: str) -> None:
    said = io.StringIO()
    with mock.patch.multiple(sys, stdout=said, stderr=said), pytest.raises(SystemExit), guarded_output():
        print(text)
        print(text, file=sys.stderr)
        sys.stdout.writelines([text, text])
        raise ValueError(text)
    assert len(said.getvalue()) > len(text) and not controls(said.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_lineage_of_a_foreign_export(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"stage": text, "steps": 1, "seed": 0, "recipe": text, "parent": text, "versions": {text: text}}
    config = {"format": 1, "model": {}, "sizes": {}, "lineage": [stage], "weights_sha256": None, "base_sha256": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for words in (["lineage", str(tmp_path)], ["lineage", str(tmp_path), "--json"], ["lineage", f"{tmp_path}/{text}"]):
        main(words)
        said = capsys.readouterr()
        assert said.out + said.err and not controls(said.out + said.err)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("command", ["stats", "verify"])
def test_shards_of_a_foreign_corpus(
    text: str, command: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(world.val / "toy_vqa", tmp_path / "corpus"))
    document = json.loads((folder / MANIFEST_FILE).read_bytes()) | {"corpus": text, "license": text, "turns": {text: 8}}
    del document["sha256"]
    (folder / MANIFEST_FILE).write_text(json.dumps(document | {"sha256": _own_hash(document)}))
    for place in (folder, folder / text):
        main(["shards", command, str(place)])
        said = capsys.readouterr()
        assert said.out + said.err and not controls(said.out + said.err)


@pytest.mark.parametrize("text", HOSTILE)
def test_an_error_of_a_chat(text: str) -> None:
    said, _ = talk([f"/image {text}", f"/box {text}"])
    assert "no image" in said and not controls(said)
