"""Checks that configs, recipes and DeepSpeed JSONs are found in a source tree, in a wheel and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from minigptv2 import shipped
from minigptv2.cli import main, parse
from minigptv2.shipped import find
from tests.conftest import REPOSITORY

CONFIG_1, CONFIG_2 = "launch/configs/stage1_pretrain.yaml", "launch/configs/toy_stage2.yaml"
CONFIG_3 = "launch/configs/toy_stage3.yaml"
CONFIG = "launch/configs/toy_stage1.yaml"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a package that has a copy of one config beside it."""
    for file in (tmp_path / "copies" / CONFIG, tmp_path / "work" / "mine.yaml"):
        file.parent.mkdir(parents=True)
        file.write_text("")
    (tmp_path / "copies" / "other.yaml").write_text("")
    monkeypatch.setattr(shipped, "COPIES", tmp_path / "copies")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "copies"


def test_a_file_that_exists_comes_before_the_copy(copies: Path) -> None:
    assert find("mine.yaml") == Path("mine.yaml")
    assert find(CONFIG) == copies / CONFIG
    Path(CONFIG).parent.mkdir(parents=True)
    Path(CONFIG).write_text("")
    assert find(CONFIG) == Path(CONFIG)


@pytest.mark.parametrize("path", ["other.yaml", "launch/configs/none.yaml", "launch/configs/../../other.yaml"])
def test_what_is_not_shipped_is_left_as_it_is_given(copies: Path, path: str) -> None:
    assert find(path) == Path(path) and find(copies / "none") == copies / "none"


@pytest.mark.parametrize("path", [CONFIG, "deepspeed_configs/zero3_cpu.json", "data_recipes/stage3_instruct.yaml"])
def test_a_source_tree_is_read_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(path) == REPOSITORY / path
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("")
    assert find(path) == Path(path)


def test_a_config_extends_a_shipped_one_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"extends: {CONFIG}\nstage: mine\n")
    assert main(["config", "mine.yaml"]) == 0


def test_the_folders_are_those_of_the_repository() -> None:
    assert all((REPOSITORY / folder).is_dir() for folder in shipped.FOLDERS)


def test_a_source_distribution_holds_the_shipped_folders(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    build += ["sdist", "--formats", "tar", "--dist-dir", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in shipped.FOLDERS:
        files = [file for file in (REPOSITORY / folder).iterdir() if file.suffix in (".yaml", ".json")]
        assert files and {f"{folder}/{file.name}" for file in files} <= names


def test_a_built_package_works_in_an_empty_folder(tmp_path: Path) -> None:
    """The build step of `setup.py`, then commands that need a config, its base, a recipe and the DeepSpeed JSONs."""
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    for words in (["config", CONFIG], ["mix", "data_recipes/stage2_light.yaml"]):
        command = [sys.executable, "-m", "minigptv2", *words]
        done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "minigptv2", "plan", "--config", "launch/configs/stage1_pretrain.yaml"]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "zero3_hpz.json" in done.stdout, done.stderr


def test_a_missing_config_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "launch/configs/none.yaml"]) == 2
    assert "launch/configs/none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "file"), [("stage1", CONFIG_1), ("toy_stage2", CONFIG_2), ("toy_stage3", CONFIG_3)])
def test_a_config_is_found_by_its_name(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(name) == find(file) != Path(name)
    assert main(["config", name, "--json"]) == main(["config", file, "--json"]) == 0
    Path(name).write_text("stage: mine\n")
    assert find(name) == Path(name)


@pytest.mark.parametrize("name", ["stage", "stage1_", "none", "toy_"])
def test_an_unknown_name_lists_the_configs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", name]) == 2
    assert f"not found: {name}; the package has base, pretrained, stage1_pretrain" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["stage1"],
        ["--config", "stage1"],
        ["data.seed=3", "stage1"],
        ["stage1", "data.seed=3"],
        ["--gpus", "4", "stage1"],
    ],
    ids=str,
)
def test_the_config_is_a_word_or_an_option(words: list[str]) -> None:
    args = parse(["plan", *words])
    assert args.config == "stage1" and args.overrides == [word for word in words if "=" in word]


@pytest.mark.parametrize("words", [[], ["stage1", "stage2"], ["--config", "stage1", "stage2"]], ids=str)
def test_no_config_and_two_configs_are_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["plan", *words]) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert "--config" in capsys.readouterr().err or len(words) > 1


def test_the_files_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "list"]) == 0
    listed = capsys.readouterr().out.split()
    assert main(["configs", "copy", "mine"]) == 0
    copies = sorted(str(file.relative_to("mine")) for file in Path("mine").rglob("*.*"))
    assert copies == sorted(listed) and f"{len(listed)} files" in capsys.readouterr().out
    for name in listed:
        assert Path("mine", name).read_bytes() == (REPOSITORY / name).read_bytes()
    monkeypatch.chdir("mine")
    Path(CONFIG_1).write_text(Path(CONFIG_1).read_text() + "seed: 77\n")
    assert main(["config", CONFIG_1]) == 0 and "77" in capsys.readouterr().out
    Path("deepspeed_configs/zero2.json").unlink()
    assert main(["configs", "copy", "."]) == 2 and not Path("deepspeed_configs/zero2.json").exists()
    assert "exists, and is not overwritten" in capsys.readouterr().err
