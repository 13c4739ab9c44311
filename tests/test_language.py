"""Checks the language of docs, docstrings, comments and messages: banned words, semicolons, sentence length."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BANNED = (
    "house",
    "room",
    "dice",
    "anew",
    "mend",
    "mended",
    "strangers",
    "whoever",
    "spoken",
    "floor by floor",
    "goes on",
    "speaks of",
    "of ours",
    "held against",
    "not to be had",
    "without a word",
    "for want of",
    "takes a blink",
    "step's edge",
    "training's back",
)
BANNED_PATTERN = re.compile(
    rf"(?<![\w-])({'|'.join(re.escape(word) for word in BANNED)})(?![\w-])|: want ", re.IGNORECASE
)
TRAINED_TEXT = ("tasks/", "corpora/sources/toy.py", "corpora/sources/photographs.py", "evaluate/prompts.py")
"""Files whose string literals are text that a model is trained on or asked. Their docstrings are checked."""
MAX_SEMICOLONS_PER_1000_WORDS = 5.0
MAX_SHARE_OF_LONG_SENTENCES = 0.05
LONG_SENTENCE = 30
"""Words."""


def source_files() -> list[Path]:
    return sorted(file for folder in ("src", "launch") for file in (REPOSITORY / folder).rglob("*.py"))


def markdown_files() -> list[Path]:
    folders = [
        file
        for folder in ("docs", "launch", "data_recipes", "deepspeed_configs", "src")
        for file in (REPOSITORY / folder).rglob("*.md")
    ]
    return sorted([*REPOSITORY.glob("*.md"), *folders])


def docstrings(tree: ast.Module) -> dict[int, str]:
    """Line number to text of every string that stands alone as a statement."""
    return {
        node.lineno: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def prose_of(file: Path) -> list[tuple[int, str]]:
    """Line number and text of docstrings, comments and, unless they are trained text, string literals."""
    source = file.read_text()
    tree = ast.parse(source)
    found = list(docstrings(tree).items())
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found.append((token.start[0], token.string))
    if not str(file.relative_to(REPOSITORY)).removeprefix("src/minigptv2/").startswith(TRAINED_TEXT):
        found += [
            (node.lineno, node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        ]
    return found


def words_of(file: Path) -> str:
    """Text of a Markdown file without code blocks and code spans."""
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
    return re.sub(r"`[^`]*`", "code", text)


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_source_uses_plain_words(file: Path) -> None:
    found = [f"line {line}: {match[0]!r}" for line, text in prose_of(file) for match in BANNED_PATTERN.finditer(text)]
    assert not found, f"{file.relative_to(REPOSITORY)}: {'; '.join(sorted(set(found)))}"


@pytest.mark.parametrize("file", markdown_files(), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_documentation_uses_plain_words(file: Path) -> None:
    found = sorted({match[0] for match in BANNED_PATTERN.finditer(words_of(file))})
    assert not found, f"{file.relative_to(REPOSITORY)}: {found}"


def test_documentation_has_few_semicolons() -> None:
    texts = [words_of(file) for file in markdown_files()]
    rate = 1000 * sum(text.count(";") for text in texts) / sum(len(text.split()) for text in texts)
    assert rate < MAX_SEMICOLONS_PER_1000_WORDS, f"{rate:.1f} semicolons per 1,000 words"


def test_documentation_has_few_long_sentences() -> None:
    sentences = []
    for file in sorted((REPOSITORY / "docs").glob("*.md")):
        prose = re.sub(r"^\s*[|#!].*$", "", words_of(file), flags=re.M)
        sentences += [part.split() for part in re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n[-*] ", prose) if part.strip()]
    long = [" ".join(words[:8]) for words in sentences if len(words) > LONG_SENTENCE]
    assert len(long) / len(sentences) < MAX_SHARE_OF_LONG_SENTENCES, long


def test_docstrings_have_few_semicolons() -> None:
    texts = [text for file in source_files() for text in docstrings(ast.parse(file.read_text())).values()]
    rate = 1000 * sum(text.count(";") for text in texts) / sum(len(text.split()) for text in texts)
    assert rate < MAX_SEMICOLONS_PER_1000_WORDS, f"{rate:.1f} semicolons per 1,000 words"
