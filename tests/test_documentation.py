"""Checks that every command of the documentation exists, option by option, and every link, anchor and path.

`make test-docs` runs the commands. Here their words are checked, which is fast.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from minigptv2.cli import build_parser, parse
from tests.documentation import _FENCE, _INLINE, PAGES, REPOSITORY, Command, anchors, blocks, commands, links

COMMANDS = [command for page in PAGES for command in commands(page)]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
SCRIPTS = "".join(file.read_text() for file in sorted((REPOSITORY / "launch" / "slurm").glob("*.sh")))
"""Scripts that `make` starts. They read variables from the environment."""
FOLDERS = ("launch", "data_recipes", "deepspeed_configs", "docs", "src", "tests", "benchmarks")
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[:1] == [program]]


def test_the_pages_have_commands() -> None:
    assert len(of("minigptv2")) > 20 and len(of("make")) > 10


@pytest.mark.parametrize("command", of("minigptv2"), ids=str)
def test_minigptv2_knows_the_words_and_options(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in command.words[1:] if word not in ("...",)]
    if command.whole:
        try:
            parse(words)
        except SystemExit as end:
            assert end.code in (0, None), capsys.readouterr().err
        return
    parser = build_parser()
    while words and words[0] in parser.commands:
        parser = parser.commands[words.pop(0)]
    if parser.commands and words and not words[0].startswith("-"):
        assert words[0].isupper(), f"{parser.prog} has no command {words[0]}"
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= {*parser.options, "--help"}


@pytest.mark.parametrize("command", of("make"), ids=str)
def test_make_knows_the_targets_and_variables(command: Command) -> None:
    targets = {target for line in re.findall(r"^([a-z0-9 _-]+):", MAKEFILE, re.MULTILINE) for target in line.split()}
    for word in command.words[1:]:
        if "=" in word:
            name = word.partition("=")[0]
            assert re.search(rf"\$[({{]?{name}\b|^{name} \?=", MAKEFILE + SCRIPTS, re.MULTILINE), word
        else:
            assert word in targets, word


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.whole], ids=str)
def test_files_of_the_repository_in_commands_exist(command: Command) -> None:
    for word in command.words:
        path = word.rpartition("=")[2]
        if path.split("/")[0] in FOLDERS and "/" in path:
            assert (REPOSITORY / path).exists(), path
    if command.words[:2] == ["python", "-m"] and command.words[2].startswith("benchmarks."):
        assert (REPOSITORY / (command.words[2].replace(".", "/") + ".py")).is_file()


@named
def test_links_and_their_anchors_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@named
def test_paths_in_running_text_exist(page: Path) -> None:
    for text in _INLINE.findall(_FENCE.sub("", page.read_text())):
        if re.fullmatch(r"[\w./-]+", text) and "/" in text and text.split("/")[0] in FOLDERS:
            assert (REPOSITORY / text).exists(), text


@named
def test_code_in_the_pages_is_code(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text()
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_target_for_people_is_told() -> None:
    told = set(re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, re.MULTILINE))
    phony = {name for line in re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}
    assert told <= phony
