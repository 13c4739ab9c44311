"""Provides the tools of others, in their own environment, and a server for them. Writes the table of results."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigptv2.predict.predictor import Predictor, load_predictor
from minigptv2.serve.config import Limits
from tests.clients.world import ColorWorld, make_color_world
from tests.conftest import World
from tests.serve.running import running

HERE = Path(__file__).parent
Results = list[tuple[str, str, str]]


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with the environment of the tools (`CLIENTS`), made by `make test-clients`."""
    folder = os.environ.get("CLIENTS")
    if not folder:
        pytest.skip("CLIENTS names no environment of tools: run make test-clients")
    return Path(folder)


@pytest.fixture(scope="session")
def color_world(tools: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> ColorWorld:
    return make_color_world(world, tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="session")
def predictor(color_world: ColorWorld) -> Predictor:
    return load_predictor(str(color_world.export))


@pytest.fixture(scope="session")
def server(predictor: Predictor) -> Iterator[str]:
    with running(predictor, limits=Limits(max_new_tokens=64)) as address:
        yield address


@pytest.fixture(scope="session")
def run_python(tools: Path) -> Callable[..., Any]:
    """Runs a program of `programs/` with the Python of the tools. Returns the JSON on the last line of its output."""

    def run(program: str, *words: str) -> Any:
        command = [str(tools / "bin/python"), str(HERE / "programs" / program), *words]
        return last_json(subprocess.run(command, text=True, capture_output=True, timeout=300, check=False))

    return run


def last_json(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON on the last line of the output."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def version_of(tools: Path) -> Callable[[str], str]:
    """The version of a package in the environment of the tools."""

    def version(package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        command = [str(tools / "bin/python"), "-c", code]
        return subprocess.run(command, text=True, capture_output=True, check=True).stdout.strip()

    return version


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    """Rows (tool, version, what was shown). At the end they become the table in the file that CLIENTS_TABLE names."""
    rows: Results = []
    yield rows
    if file := os.environ.get("CLIENTS_TABLE"):
        write_table(Path(file), rows)


BEGIN, END = "<!-- written by make test-clients -->", "<!-- end -->"


def write_table(file: Path, rows: Results) -> None:
    """Replace the table between the marks of `file`."""
    text = file.read_text()
    before, _, rest = text.partition(BEGIN)
    assert rest, f"{file} has no line {BEGIN}"
    lines = ["| tool | version | result |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in sorted(rows))]
    file.write_text(before + "\n".join([BEGIN, "", *lines, "", END]) + rest.partition(END)[2])
