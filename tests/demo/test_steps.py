"""Tests that a demonstration's folder contains one kind, and that another kind is kept and not used."""

from pathlib import Path

from minigptv2.demo.steps import prepare_folder


def test_another_kind_is_moved_aside(tmp_path: Path) -> None:
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
