"""The demonstrations' folder: one kind at a time, and nothing of another is trained on or lost."""

from pathlib import Path

import pytest

from minigptv2.demo.steps import make_room
from minigptv2.errors import ConfigError
from tests.conftest import REPOSITORY


def test_another_kind_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "demo"
    for kind in ("quick", "quick", "whole", "quick", "whole"):
        make_room(output, kind)
        made = sorted(file.name for file in output.iterdir())
        assert made in ([".kind"], [".kind", f"made-{kind}"]), "a run of another kind is still here"
        (output / f"made-{kind}").touch()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "demo",
        "demo-quick-1",
        "demo-quick-2",
        "demo-whole-1",
    ]


def test_elsewhere_it_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="repository's own folder"):
        make_room(tmp_path / "demo", "quick")
    assert not (tmp_path / "demo").exists()
