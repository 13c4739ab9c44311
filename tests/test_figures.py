"""Checks that the figures of the architecture page are those that the current imports give."""

from __future__ import annotations

import importlib.util
import sys

from tests.conftest import REPOSITORY


def test_the_figures_are_drawn_from_the_current_imports() -> None:
    spec = importlib.util.spec_from_file_location("draw_figures", REPOSITORY / "docs" / "draw_figures.py")
    assert spec is not None and spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = drawing  # dataclasses look their module up
    spec.loader.exec_module(drawing)
    for file_name, content in drawing.figures():
        stored = (REPOSITORY / "docs" / "figures" / file_name).read_text()
        assert stored == content, f"docs/figures/{file_name} is out of date; run python docs/draw_figures.py"
