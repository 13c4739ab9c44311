"""Properties of redaction: whatever a secret is and whoever renders it, no output and no file holds it.

`REDACTIONS=2000 PROPERTIES=default python -m pytest tests/test_secret_forms.py` tries new values, 2,000 per test.
"""

from __future__ import annotations

import ast
import base64
import html
import io
import json
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigptv2.cluster.attempts import Attempt, run_journal, slurm_journal
from minigptv2.cluster.failure import Failure, write_failure
from minigptv2.redacted_files import write_json, write_text
from minigptv2.run_config import RunConfig
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import HIDDEN, guarded_output, redact, secret_values, sends_secret
from minigptv2.shards.dropped import Dropped, DropReport
from minigptv2.tracking.log import RunLog
from minigptv2.tracking.trackers import TrackedRun
from minigptv2.train.resume import write_config

ALPHABET = "abcXYZ019 _-.~'\"\\\n\t\r:/?#[]@!$&()*+,;=%<>{}|^`éßñ\u00a0密码пар\u2028😀𝔘\x1b\x7f\x85"
SECRETS = st.one_of(
    st.text(ALPHABET, min_size=8, max_size=40),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=8, max_size=24),
    st.lists(st.text("abc12 '\"é", min_size=8, max_size=30), min_size=2, max_size=5).map("\n".join),
    st.text("abcdef0123456789 +/=", min_size=600, max_size=900),
).filter(lambda value: value.strip() in secret_values({"A_TOKEN": value}) and HIDDEN not in value)
HARD = 'it\'s "a\\b"\n\tline two: é密 😀\x1b[0m %41 + a:b@c'


@dataclass(frozen=True)
class Writer:
    """A way to write a text, and to read it back. `read` raises `ValueError` if redaction left no such text."""

    write: Callable[[str], str]
    read: Callable[[str], Any] = str


def yaml_of(**style: Any) -> Writer:
    return Writer(lambda value: yaml.safe_dump({"a": {"key": [value]}}, **style), yaml.safe_load)


WRITERS = {
    "plain": Writer(lambda value: f"connect to {value} failed"),
    "repr": Writer(repr, ast.literal_eval),
    "ascii": Writer(ascii, ast.literal_eval),
    "repr of bytes": Writer(lambda value: repr(value.encode()), ast.literal_eval),
    "repr of repr": Writer(
        lambda value: repr(repr({"a": value})), lambda text: ast.literal_eval(ast.literal_eval(text))
    ),
    "json": Writer(json.dumps, json.loads),
    "json in utf-8": Writer(lambda value: json.dumps({value: 1}, ensure_ascii=False), json.loads),
    "json in json": Writer(lambda value: json.dumps(json.dumps([value])), lambda text: json.loads(json.loads(text))),
    "yaml": yaml_of(),
    "yaml in utf-8": yaml_of(allow_unicode=True),
    "yaml, single quotes": yaml_of(default_style="'"),
    "yaml, double quotes, narrow": yaml_of(default_style='"', width=20),
    "yaml, literal": yaml_of(default_style="|"),
    "yaml, folded": yaml_of(default_style=">", width=24),
    "yaml in json": Writer(lambda value: json.dumps({"m": yaml.safe_dump([value], default_style='"', width=30)})),
    "percent": Writer(lambda value: quote(value, safe=""), unquote),
    "percent, plus": Writer(quote_plus, unquote_plus),
    "percent twice": Writer(lambda value: quote(quote(value)), lambda text: unquote(unquote(text))),
    "html": Writer(html.escape, html.unescape),
    "html, numbers": Writer(lambda value: value.encode("ascii", "xmlcharrefreplace").decode(), html.unescape),
    "names of characters": Writer(lambda value: value.encode("ascii", "namereplace").decode()),
    "shell": Writer(shlex.quote, lambda text: shlex.split(text)),
    "base64": Writer(lambda value: base64.b64encode(value.encode()).decode()),
    "base64 with a name": Writer(lambda value: base64.urlsafe_b64encode(f"me:{value}".encode()).decode()),
    "hexadecimal": Writer(lambda value: value.encode().hex()),
}


def texts_in(value: Any) -> list[str]:
    """All texts in nested plain values, bytes decoded."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_in(part)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in texts_in(item)]
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)]


@pytest.mark.parametrize("name", WRITERS)
@settings(deadline=None, max_examples=int(os.environ.get("REDACTIONS", "12")))
@given(value=SECRETS)
@example(value=HARD)
def test_no_writer_can_hide_a_secret_from_redaction(name: str, value: str) -> None:
    writer = WRITERS[name]
    with mock.patch.dict(os.environ, {"DB_PASS": value}):
        left = redact(writer.write(value))
    assert HIDDEN in left and writer.write(value.strip()) not in left
    try:
        read = writer.read(left)
    except (ValueError, SyntaxError, yaml.YAMLError):
        return
    assert not any(value.strip() in text for text in texts_in(read))


def rendered(value: str) -> list[str]:
    """The secret as each writer writes it, without the text around it."""
    return [value, repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]


def write_everything(run: Path, value: str) -> None:
    """Write each text file of a run, with the secret in each text that can hold one."""
    config = RunConfig(stage=f"s-{value}", run_dir=str(run), init_from=f"/data/{value}/export")
    config.data.shards, config.data.recipe = f"https://h/{value}", value
    write_config(config)
    log = RunLog(TrackedRun(RunFolder(run), 0), total_steps=2, active=True)
    log.line(f"changed on resume: stage was {value!r}")
    log.metrics(1, {"loss": 1.0, value: {value: 2.0}})
    log.heldout(1, {value: 1.0, "note": value})
    log.close()
    error = RuntimeError(value, {"url": value})
    write_failure(run, Failure("1.0", "error", "RuntimeError", str(error), 1, 0, value, f"step {value}"), rank=0)
    for journal in (run_journal(run), slurm_journal(run)):
        journal.append_start(Attempt("1", 0, 0.0, ("a",), reason=str(error)))
        journal.append_end(Attempt("1", 0, 0.0, (value,), exit_code=1, reason=json.dumps(value)))
    DropReport(run, 0).add([(1, 0, Dropped(value, f"{value}.tar", value, f"{error}"))])
    write_json(run / "lineage.json", {"stage": value, "config": {value: [value]}})
    write_text(run / "report.html", f"<p>{html.escape(value)}</p><!-- {value!r} -->")


def files_with(folder: Path, value: str) -> list[str]:
    return [
        file.name
        for file in folder.rglob("*")
        if file.is_file() and any(text.encode() in file.read_bytes() for text in rendered(value))
    ]


@settings(deadline=None, max_examples=int(os.environ.get("REDACTIONS", "8")))
@given(value=SECRETS)
@example(value=HARD)
def test_no_file_of_a_run_holds_a_secret(value: str) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"WANDB_API_KEY": value}):
        with mock.patch.object(sys, "stdout", io.StringIO()):
            write_everything(Path(folder), value)
        assert files_with(Path(folder), value.strip()) == []
        assert HIDDEN in RunFolder(Path(folder)).config.read_text()
        assert yaml.safe_load(RunFolder(Path(folder)).config.read_text())["data"]["recipe"].strip() == HIDDEN


@settings(deadline=None, max_examples=int(os.environ.get("REDACTIONS", "25")))
@given(value=SECRETS)
@example(value=HARD)
def test_no_traceback_holds_a_secret(value: str) -> None:
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"GITLAB_PAT": value}),
        mock.patch.multiple(sys, stdout=said, stderr=said),
        pytest.raises(SystemExit),
        guarded_output(),
    ):
        print("args:", [value], {"k": value.encode()})
        try:
            raise KeyError(value)
        except KeyError as cause:
            traceback.print_exc()
            cause.add_note(f"with {value}")
            raise ValueError(f"{value!r} and {value}") from cause
    assert HIDDEN in said.getvalue()
    assert not any(text in said.getvalue() for text in rendered(value.strip()))


@settings(deadline=None, max_examples=int(os.environ.get("REDACTIONS", "25")))
@given(value=st.text("abcXYZ019-._~'\"\\ :/?#@!$&()*+,;=%é密😀", min_size=8, max_size=40))
def test_no_url_sends_a_secret(value: str) -> None:
    if value.strip() not in secret_values({"A_KEY": value}):
        return
    encoded = quote(value, safe="")
    everything = "".join(f"%{byte:02X}" for byte in value.encode())
    with mock.patch.dict(os.environ, {"A_KEY": value}):
        for url in (
            f"https://h/{encoded}/x",
            f"https://h/x?a={quote_plus(value)}",
            f"https://me:{encoded}@h/x",
            f"https://h/{everything}.tar",
            f"https://h/{quote(encoded)}",
            f"https://h/?b={quote(base64.urlsafe_b64encode(value.encode()).decode())}",
        ):
            assert sends_secret(url), url
        assert not sends_secret("https://example.org/shards/coco?part=2")
