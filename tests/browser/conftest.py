"""Provides a server, a browser and a visitor. Browser tests are collected where selenium is installed.

`make test-browser` installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from minigptv2.tokenizer import Tokenizer

collect_ignore_glob = [] if find_spec("selenium") else ["*.py"]


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[str]:
    from tests.browser.world import teacher
    from tests.serve.running import running
    from tests.serve.tiny import tiny_predictor

    with running(tiny_predictor(tokenizer), page=True, script=teacher, slow_s=0.03) as address:
        yield address


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.browser.world import draw_picture

    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    draw_picture().save(file)
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.browser.driver import chromium

    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def visitor(browser: Any, server: str, picture: Path) -> Any:
    """A `Visitor` who has chosen the picture."""
    from tests.browser.visitor import Visitor

    made = Visitor(browser, server)
    made.upload(picture)
    return made
