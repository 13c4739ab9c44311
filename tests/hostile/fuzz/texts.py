"""Changed texts of somebody else: recipes, configs of runs, and the bodies of requests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from minigptv2.config import render_yaml
from minigptv2.data.plan import load_recipe
from minigptv2.run_config import load_run_config
from minigptv2.serve.config import Limits
from minigptv2.serve.openai_api import parse_chat, parse_json
from tests.conftest import REPOSITORY
from tests.hostile.fuzz.mutations import changed_document, changed_json, damaged
from tests.hostile.fuzz.readers import OneFile

OVERRIDES = ("stage=stage1", "data.recipe=recipe.yaml", "train.steps=10", "train.learning_rate=1e-3")
"""What the common config of the toy stages leaves out."""
YAML_PARTS = (
    "a: &a [*a]",
    "b: !!python/object/apply:os.system ['x']",
    "<<: {a: 1}",
    "${oc.env:HOME}",
    "a: ${a}",
    "? [a]\n: b",
    "---",
    "\t",
    "!!binary x",
    "0o777",
    "1_000",
    "2001-99-99",
    "1:30:00",
    ".inf",
    "~",
    "{" * 2000,
    "- " * 3000,
    "'",
    "|+2",
)


class _YamlFile(OneFile):
    """A YAML file: its values, its text with odd YAML, and its bytes."""

    valid: Path

    def __init__(self, folder: Path) -> None:
        self._file = folder / "a.yaml"
        self._text = self.valid.read_text()
        self._document: Any = yaml.safe_load(self._text)

    def unchanged(self) -> bytes:
        return self._text.encode()

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        kind = rng.random()
        if kind < 0.5:
            name, document = changed_document(self._document, rng)
            return name, yaml.safe_dump(document, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        if kind < 0.7:
            return damaged(self._text.encode(), rng)
        lines = self._text.splitlines()
        at = rng.randrange(len(lines))
        indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
        part = rng.choice(YAML_PARTS)
        line = f"{lines[at].split(':')[0]}: {part}" if rng.random() < 0.5 else indent + part
        lines[at : at + rng.choice([0, 1])] = [line]
        return "odd YAML", "\n".join(lines).encode()


class RecipeFile(_YamlFile):
    """A recipe."""

    valid = REPOSITORY / "data_recipes" / "toy_stage1.yaml"

    def read_file(self, file: Path) -> None:
        load_recipe(file)


class RunConfigFile(_YamlFile):
    """The config of a run."""

    valid = REPOSITORY / "launch" / "configs" / "toy.yaml"

    def read_file(self, file: Path) -> None:
        render_yaml(load_run_config(file, OVERRIDES).value)


class RequestBody:
    """The body of a request to the server."""

    valid = {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "answer briefly"},
            {"role": "user", "content": [{"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a cat"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "text", "text": "where?"},
                ],
            },
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 8,
        "seed": 3,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
    }

    def __init__(self, folder: Path) -> None:
        self._limits = Limits()

    def unchanged(self) -> bytes:
        return json.dumps(self.valid).encode()

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        return changed_json(self.valid, rng)

    def read(self, data: bytes) -> bool:
        json.dumps(repr(parse_chat(parse_json(data), model="tiny", limits=self._limits)))
        return True
