"""Tests that a demonstration's folder contains one kind, and that another kind is kept and not used."""

from pathlib import Path

import pytest

from minigptv2.demo.steps import prepare_folder
from minigptv2.errors import ConfigError
from tests.conftest import REPOSITORY


def test_another_kind_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "demo"
    for kind in ("quick", "quick", "whole", "quick", "whole"):
        prepare_folder(output, kind)
        made = sorted(file.name for file in output.iterdir())
        assert made in ([".kind"], [".kind", f"made-{kind}"]), "a run of another kind is still here"
        (output / f"made-{kind}").touch()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "demo",
        "demo-quick-1",
        "demo-quick-2",
        "demo-whole-1",
    ]


def test_another_working_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="repository's own folder"):
        prepare_folder(tmp_path / "demo", "quick")
    assert not (tmp_path / "demo").exists()
