"""Hostile YAML: recipes and run configs of other people."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from minigptv2.errors import ExitCode
from tests.hostile.payload import Payload, words

CONFIG = (ExitCode.CONFIG,)
Make = Callable[[Path], list[str]]
DOUBLED = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 28))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 28))

TEXTS: dict[str, str | bytes] = {
    "27 doubled aliases": DOUBLED,
    "27 doubled merges": MERGED,
    "a value in itself": "corpora: &a {b: *a}",
    "100,000 brackets": "[" * 100_000,
    "60,000 mappings": "{a: " * 25_000,
    "40,000 equal keys": "a: 1\n" * 25_000,
    "300 KB": "x" * 300_000,
    "a call": "!!python/object/apply:os.system ['touch sprung']",
    "a new object": "!!python/object/new:os.system [touch sprung]",
    "a name": "corpora: !!python/name:os.system",
    "a module": "corpora: !!python/module:antigravity",
    "an unknown tag": "corpora: !evil x",
    "no text": b"\xff\xfe\xfd\x00" * 50,
    "a number of 5,000 digits": "corpora: {a: {ratio: " + "9" * 5000 + "}}",
    "a NUL": "corpora: a\0b",
    "many documents": "---\n" * 20_000,
    "a date of year 99999": "corpora: {a: {ratio: 99999-99-99}}",
    "a list as a key": "? [a]\n: b",
    "another shape": "corpora: [[[]]]",
}


def recipe(text: str | bytes) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return words("mix", folder / "recipe.yaml", "--shards", folder / "world/shards/train", "--steps", 1)

    return make


def run_config(text: str | bytes) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return words("config", folder / "run.yaml")

    return make


def pipe_as(command: str) -> Make:
    def make(folder: Path) -> list[str]:
        os.mkfifo(folder / "run.yaml")
        return words(command, folder / "run.yaml", *(["--shards", "x", "--steps", 1] if command == "mix" else []))

    return make


def loop(folder: Path) -> list[str]:
    (folder / "a.yaml").write_text("extends: b.yaml")
    (folder / "b.yaml").write_text("extends: a.yaml")
    return words("config", folder / "a.yaml")


PAYLOADS = [
    *(
        Payload(f"{kind}: {name}", make(text), CONFIG)
        for number, (name, text) in enumerate(TEXTS.items())
        for index, (kind, make) in enumerate({"recipe": recipe, "run config": run_config}.items())
        if index == number % 2 or number < 3
    ),
    Payload("recipe: a named pipe", pipe_as("mix"), CONFIG),
    Payload("run config: a named pipe", pipe_as("config"), CONFIG),
    Payload("run config: files that extend each other", loop, CONFIG),
]
