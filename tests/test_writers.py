"""Tests that every text that the package writes is redacted and harmless for a terminal, or has a reason not to be.

Standard output and standard error are guarded as a whole (`secrets.guarded_output`). Files and JSON are written by
`redacted_files`. A module that writes a file or renders JSON by itself is listed here with its reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.test_contracts import PACKAGE

GUARDED = ("redacted_files.py", "secrets.py", "terminal_text.py", "files.py")
"""The writers themselves."""
DATA = "data keeps its bytes"
NUMBERS = "numbers, hashes and fixed words only"
REDACTED_BEFORE = "the text comes from redacted_files, secrets or terminal_text"

WRITERS = {
    "cli/streams.py": "opens the null device in the place of a closed stream",
    "cluster/attempts.py": REDACTED_BEFORE,
    "cluster/owner.py": REDACTED_BEFORE,
    "cluster/watchdog.py": "the stacks of the interpreter: names of files and functions, no values",
    "convert/adapters.py": DATA,
    "convert/llama.py": DATA,
    "data/workers.py": "the stacks of the interpreter: names of files and functions, no values",
    "doctor/nodes.py": NUMBERS,
    "doctor/settings.py": NUMBERS,
    "evaluate/runner.py": REDACTED_BEFORE,
    "model/base_hashes.py": NUMBERS,
    "model/export.py": DATA,
    "predict/jsonl.py": REDACTED_BEFORE,
    "shards/arrays.py": DATA,
    "shards/cache.py": DATA,
    "shards/indexing.py": REDACTED_BEFORE,
    "shards/manifest.py": REDACTED_BEFORE,
    "shards/remote.py": DATA,
    "shards/writer.py": REDACTED_BEFORE,
    "tokenizer.py": DATA,
    "tracking/log.py": REDACTED_BEFORE,
    "train/resume.py": REDACTED_BEFORE,
    "train/run.py": REDACTED_BEFORE,
}
"""Modules that write files by themselves."""
RENDERERS = {
    "cluster/recorder.py": "a hash of it",
    "cluster/watchdog.py": "a message between the ranks of a run",
    "convert/llama.py": "the config and the index of a model folder, which are data",
    "corpora/own_image.py": "a part of an error, which is printed through the guarded output",
    "data/plan.py": "a hash of it",
    "doctor/nodes.py": "a message between the ranks of a run",
    "engine/checkpoint.py": "the header of a tensor file and its checksums, which are data",
    "evaluate/runner.py": "a hash of it",
    "model/base_hashes.py": "a hash and the state of a file",
    "predict/jsonl.py": "a check that it can be written",
    "serve/access.py": "a reply over HTTP",
    "serve/app.py": "a reply over HTTP",
    "serve/openai_api.py": "a part of an error of HTTP",
    "serve/page.py": "a reply over HTTP",
    "serve/request_error.py": "a part of an error of HTTP",
    "shards/manifest.py": "a hash of it",
    "tokenizer.py": "a tokenizer, which is data",
    "tracking/mlflow.py": REDACTED_BEFORE,
    "tracking/remembered.py": "goes through redacted_files",
}
"""Modules that render JSON by themselves."""
_OPENERS = ("open", "fdopen", "new_file", "HashedFile")
_METHODS = ("write_text", "write_bytes", "write_atomically")


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _opens_for_writing(call: ast.Call) -> bool:
    first = 0 if isinstance(call.func, ast.Attribute) and _name(call) == "open" else 1
    modes = [argument.value for argument in call.args[first:2] if isinstance(argument, ast.Constant)]
    modes += [word.value.value for word in call.keywords if word.arg == "mode" and isinstance(word.value, ast.Constant)]
    return _name(call) in _OPENERS and any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)


def _writes(call: ast.Call) -> bool:
    """Whether a call writes a file without `redacted_files`, whose `write_text` is a function and no method."""
    if isinstance(call.func, ast.Name) and call.func.id == "write_text":
        return False
    return _name(call) in _METHODS or _opens_for_writing(call)


def _renders(call: ast.Call) -> bool:
    return _name(call) in ("dump", "dumps") and isinstance(call.func, ast.Attribute) and _is_json(call.func.value)


def _is_json(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "json"


def _modules_with(found: object) -> set[str]:
    assert callable(found)
    modules = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        if any(map(found, calls)):
            modules.add(str(file.relative_to(PACKAGE)))
    return modules - set(GUARDED)


@pytest.mark.parametrize(("found", "listed"), [(_writes, WRITERS), (_renders, RENDERERS)], ids=["files", "json"])
def test_every_writer_is_guarded_or_has_a_reason(found: object, listed: dict[str, str]) -> None:
    modules = _modules_with(found)
    assert modules - set(listed) == set(), "use minigptv2.redacted_files, or add the module with a reason"
    assert set(listed) - modules == set(), "these modules do not write any more: remove them here"


@pytest.mark.parametrize("reason", [REDACTED_BEFORE])
def test_a_module_that_redacts_before_uses_a_guarded_writer(reason: str) -> None:
    for name in (module for module, why in WRITERS.items() if why == reason):
        text = (PACKAGE / name).read_text()
        names = ("json_text", "json_lines", "redact_all", "guarded", "printable_json", "to_json")
        assert any(f"{one}(" in text for one in names), name


@pytest.mark.parametrize(
    ("source", "writes", "renders"),
    [
        ("file.write_text(text)", True, False),
        ("write_text(file, text)", False, False),
        ("open(file, 'a')", True, False),
        ("file.open('wb')", True, False),
        ("open(file, mode='x')", True, False),
        ("open(file)", False, False),
        ("json.dumps(value)", False, True),
        ("pickle.dumps(value)", False, False),
        ("write_atomically(file, data)", True, False),
    ],
)
def test_the_search_finds_what_writes(source: str, writes: bool, renders: bool) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert (_writes(call), _renders(call)) == (writes, renders)


def test_nothing_is_printed_around_the_guarded_output() -> None:
    """Only these write below the guard, each for colors or cursor movements of its own."""
    used = {str(file.relative_to(PACKAGE)) for file in Path(PACKAGE).rglob("*.py") if "unguarded(" in file.read_text()}
    assert used == {"progress_bars.py", "serve/terminal.py", "terminal_text.py"}
