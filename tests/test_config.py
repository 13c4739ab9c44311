"""Tests what configs, recipes and `key=value` words may say: texts as written, shapes, numbers, paths."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from minigptv2.cli import main
from minigptv2.config import Resume, load_config, render_yaml, setting
from minigptv2.config_values import parse_yaml
from minigptv2.data.plan import load_recipe
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.run_config import RunConfig, check_places, load_run_config


@dataclass
class Inner:
    rate: float = 1.0
    names: list[str] = field(default_factory=list)


@dataclass
class Config:
    count: int = 1
    rate: float = 0.5
    limit: float | None = None
    on: bool = False
    text: str = ""
    place: str = setting("", resume=Resume.FREE, path=True, environment=True)
    numbers: list[float] = field(default_factory=list)
    pairs: list[list[float]] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    many: dict[str, Inner] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)


def value_of(text: str, *words: str) -> Config:
    file = Path("config.yaml")
    file.write_text(text)
    return load_config(Config, file, words).value


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("count=7", 7),
        ("count=010", 10),
        ("count=-3", -3),
        ("rate=1e-3", 1e-3),
        ("rate=3", 3.0),
        ("limit=null", None),
        ("limit=~", None),
        ("limit=", None),
        ("on=yes", True),
        ("on=False", False),
        ("text=1.50", "1.50"),
        ("text=on", "on"),
        ("text=1:30:00", "1:30:00"),
        ("text=0x10", "0x10"),
        ("text=2017-01-01", "2017-01-01"),
        ("text='null'", "null"),
        ("text=a=b", "a=b"),
        ("numbers=[1, 2.5e-1]", [1.0, 0.25]),
        ("pairs=[[0, 1], [010, .5]]", [[0.0, 1.0], [10.0, 0.5]]),
        ("inner[rate]=2", Inner(2.0)),
        ("shares.2017=1", {"2017": 1.0}),
    ],
)
def test_texts_are_read_as_written_and_by_the_type_of_their_field(word: str, expected: Any) -> None:
    key = word.partition("=")[0].partition(".")[0].partition("[")[0]
    assert getattr(load_config(Config, None, [word]).value, key) == expected
    if "." not in word.partition("=")[0] and "[" not in word.partition("=")[0] and not word.endswith("="):
        assert getattr(value_of(word.replace("=", ": ", 1)), key) == expected


@pytest.mark.parametrize(
    "name",
    ["2017", "on", "no", "null", "~", "010", "1.50", "0x1F", "2017-01-01", "1:30", ".inf", "true", "5e3", "1_000"],
)
def test_keys_are_texts_as_written(name: str) -> None:
    assert list(value_of(f"many:\n  {name}: {{rate: 2}}\n  other: {{}}").many) == [name, "other"]
    assert value_of(f"shares: {{{name}: 2}}").shares == {name: 2.0}
    Path("recipe.yaml").write_text(f"corpora:\n  {name}: {{ratio: 1, task: vqa}}\n")
    recipe = load_recipe("recipe.yaml")
    assert list(recipe.corpora) == [name]
    Path("again.yaml").write_text(render_yaml(recipe))
    assert load_recipe("again.yaml") == recipe  # what a run writes is read back


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("count", "1:30:00", "a whole number, got '1:30:00'"),
        ("count", "0x10", "a whole number"),
        ("count", "0b1", "a whole number"),
        ("count", "1e3", "a whole number"),
        ("count", "3.0", "a whole number"),
        ("count", "true", "a whole number"),
        ("count", "[1]", "a whole number, got a list"),
        ("count", "{a: 1}", "a whole number, got a mapping"),
        ("count", "null", "a whole number, got null"),
        ("rate", "1:30:00", "a number, got '1:30:00'"),
        ("rate", "1:30", "a number"),
        ("rate", "fast", "a number"),
        ("rate", ".inf", "a finite number, got inf"),
        ("rate", "-.INF", "a finite number, got -inf"),
        ("rate", ".nan", "a finite number, got nan"),
        ("rate", "nan", "a finite number"),
        ("rate", "infinity", "a finite number"),
        ("rate", "1e999", "a finite number"),
        ("limit", ".inf", "a finite number"),
        ("on", "2", "true or false"),
        ("on", "[true]", "true or false, got a list"),
        ("text", "[a]", "a text, got a list"),
        ("text", "{a: b}", "a text, got a mapping"),
        ("numbers", "1", "a list [a, b], got '1'"),
        ("numbers", "{a: 1}", "a list [a, b], got a mapping"),
        ("numbers", "{0: 1}", "a list, whose items cannot be set one by one"),
        ("numbers", "[1, .nan]", "a finite number"),
        ("pairs", "[[0, .inf]]", "a finite number"),
        ("pairs", "[0, 1]", "a list [a, b], got '0'"),
        ("inner", "[rate]", "a mapping (name: value), got a list"),
        ("inner", "fast", "a mapping (name: value), got 'fast'"),
        ("inner", "null", "a mapping (name: value), got null"),
        ("inner", "{names: own}", "a list [a, b], got 'own'"),
        ("many", "[own]", "a mapping (name: value), got a list"),
        ("many", "{own: 1}", "a mapping (name: value), got '1'"),
        ("many", "{own: [1]}", "a mapping (name: value), got a list"),
        ("many", "{own: {rate: .inf}}", "a finite number"),
        ("shares", "{vqa: .inf}", "a finite number"),
        ("shares", "{vqa: }", "a number, got null"),
    ],
)
def test_wrong_values_are_named_with_file_or_word_and_key(key: str, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as in_file:
        value_of(f"{key}: {text}")
    with pytest.raises(ConfigError) as in_word:
        load_config(Config, None, [f"{key}={text}"])
    for error, where in ((in_file, "config.yaml: "), (in_word, f"command line ({key}={text}): ")):
        said = str(error.value)
        assert said.startswith(where + key) and wanted in said and "\n" not in said


@pytest.mark.parametrize("word", ["numbers.0=1", "numbers[0]=1", "pairs.0.1=3", "inner.names.2=own"])
def test_items_of_a_list_cannot_be_set_one_by_one(word: str) -> None:
    key = word.replace("[", ".").partition(".0" if "0" in word else ".2")[0]
    with pytest.raises(ConfigError, match=f"{key} is a list, whose items cannot be set one by one: write {key}="):
        load_config(Config, None, [word])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: [", "not valid YAML: line"),
        ("count: 1\ncount: 2", "line 2: duplicate key 'count'|line 1: duplicate key 'count'"),
        ("many:\n  1: {}\n  1: {}", "duplicate key '1'"),
        ("[a, b]: 1", "a key must be a text"),
        ("- count: 1", "expected a mapping at the top level, got list"),
        ("count", "expected a mapping at the top level, got str"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("count: !!python/object:os.system x", "not valid YAML"),
        ("count: *unknown", "not valid YAML"),
        ("numbers: &a [*a]", "config.yaml"),
        ("inner: &a\n  names: *a", "recursive"),
        ("rate: ${rate}", "config.yaml"),
        ("rate: ${nowhere}", "config.yaml"),
        ("place: ${oc.env:NOT_A_VARIABLE}", "config.yaml"),
        ("rate: ${", "config.yaml"),
        ("rate: ${text}\ntext: fast", "config.yaml"),
        ("count: !!set {a}", "a whole number"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        ("<!DOCTYPE html><html>", "a web page"),
        ("extends: [a.yaml]", "extends must be the path of a YAML file"),
        ("extends: {a: 1}", "extends must be the path of a YAML file"),
    ],
)
def test_files_that_are_no_config_are_one_error(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        value_of(text)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a: \x00", b"text: \xe9\n", b"\x89PNG\r\n"])
def test_bytes_that_are_no_text_are_one_error(data: bytes) -> None:
    Path("config.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match="config.yaml: not valid YAML"):
        load_config(Config, "config.yaml")


def test_numbers_from_references_are_finite_too() -> None:
    with pytest.raises(ConfigError, match="config.yaml: rate must be a finite number, got nan"):
        value_of("rate: ${text}\ntext: nan")


def test_explicit_tags_read_no_other_base() -> None:
    assert parse_yaml("[!!int 010, !!float 1:30, !!bool on]", "text") == ["010", "1:30", "on"]
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "text")["c"] == {"b": "1", "d": "2"}


@pytest.mark.parametrize("written", ["~/small", "~", "~/", f"~{pwd.getpwuid(os.getuid()).pw_name}/x"])
def test_a_tilde_is_the_home_folder(written: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    quoted = f"'{written}'"
    expected = os.path.expanduser(written)
    assert value_of(f"place: {quoted}").place == value_of("", f"text={quoted}").text == expected
    assert value_of(f"many: {{a: {{names: [{quoted}]}}}}").many["a"].names == [expected]
    monkeypatch.setenv("WHERE", written)
    assert value_of("place: ${oc.env:WHERE}").place == expected
    Path("recipe.yaml").write_text(f"corpora: {{own: {{ratio: 1, shards: {quoted}}}}}")
    assert load_recipe("recipe.yaml").corpora["own"].shards == expected


def test_a_tilde_without_a_home_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no home folder for '~nobody-of-that-name'"):
        value_of("place: ~nobody-of-that-name/x")
    assert value_of("place: a~b/~c").place == "a~b/~c"
    assert value_of("place: ./~/x").place == "./~/x"


def test_a_tilde_in_extends_and_in_the_files_own_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "base.yaml").write_text("count: 5")
    assert value_of("extends: ~/base.yaml").count == load_config(Config, "~/base.yaml").value.count == 5


def test_relative_paths_are_looked_for_beside_the_file_then_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "far" / "data").mkdir(parents=True)
    (tmp_path / "far" / "base.yaml").write_text("place: data\ntext: data")
    loaded = load_config(Config, "far/base.yaml")
    assert (loaded.value.place, loaded.value.text) == ("far/data", "data")
    assert value_of("extends: far/base.yaml").place == "far/data"
    (tmp_path / "data").mkdir()
    assert value_of("extends: far/base.yaml").place == "far/data"
    (tmp_path / "far" / "data").rmdir()
    assert value_of("extends: far/base.yaml").place == "data"
    assert value_of("extends: far/base.yaml", "place=other").place == "other"
    (tmp_path / "base.yaml").write_text("count: 4")
    (tmp_path / "far" / "top.yaml").write_text("extends: base.yaml")
    (tmp_path / "far" / "base.yaml").unlink()
    assert load_config(Config, "far/top.yaml").value.count == 4
    with pytest.raises(
        ConfigError, match=r"extends: no.yaml: config file not found; looked for far/no.yaml and no.yaml"
    ):
        (tmp_path / "far" / "top.yaml").write_text("extends: no.yaml")
        load_config(Config, "far/top.yaml")


RUN = """
stage: s
run_dir: runs/s
model: {vision_encoder: tiny_vit, language_model: tiny_llama, tokenizer: words}
data: {recipe: recipe.yaml, shards: shards}
train: {deepspeed: zero.json, steps: 3, global_batch_size: 4, learning_rate: 1e-3}
"""


@pytest.mark.parametrize("missing", ["words", "recipe.yaml", "shards", "zero.json", "export"])
def test_a_missing_input_is_named_with_both_places(missing: str, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "base.yaml").write_text(RUN + "init_from: export")
    for name in {"words", "recipe.yaml", "shards", "zero.json", "export"} - {missing}:
        (tmp_path / "far" / name).touch()
    loaded = load_run_config("far/base.yaml")
    with pytest.raises(Exception, match=f"={missing} does not exist; looked for far/{missing} and {missing}") as error:
        check_places(loaded)
    assert error.value.exit_code == (4 if missing == "export" else 2)  # type: ignore[attr-defined]
    (tmp_path / missing).touch()
    check_places(load_run_config("far/base.yaml"))


def test_a_stage_takes_the_tokenizer_of_its_parent_when_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN.replace(", tokenizer: words", "") + "init_from: runs/a/export")
    loaded = load_run_config("run.yaml")
    assert loaded.value.model.tokenizer == loaded.flat["model.tokenizer"] == "runs/a/export"
    assert loaded.origins["model.tokenizer"] == "run.yaml"
    assert load_run_config("run.yaml", ["model.tokenizer=words"]).value.model.tokenizer == "words"
    assert load_config(RunConfig, "run.yaml").value.init_from == "runs/a/export"


@pytest.mark.parametrize(
    ("vision", "language", "wanted"),
    [
        (".", "language_model", ("runs/a/export", "runs/a/export/language_model")),
        ("/w/vision", "../llama", ("/w/vision", "runs/a/export/../llama")),
        (None, "/w/llama", (None, "/w/llama")),
        (None, None, (None, None)),
    ],
)
def test_a_stage_takes_the_base_weights_of_its_parent_when_none_are_named(
    vision: str | None, language: str | None, wanted: tuple[str | None, ...], tmp_path: Path
) -> None:
    """Null base weights beside an export that was trained on some were random weights before."""
    (tmp_path / "runs" / "a" / "export").mkdir(parents=True)
    paths = {"vision_weights": vision, "language_weights": language}
    (tmp_path / "runs" / "a" / "export" / "config.json").write_text(json.dumps({"model": paths}))
    (tmp_path / "run.yaml").write_text(RUN + "init_from: runs/a/export")
    loaded = load_run_config("run.yaml")
    model = loaded.value.model
    assert (model.vision_weights, model.language_weights) == wanted
    assert (loaded.flat["model.vision_weights"], loaded.flat["model.language_weights"]) == wanted
    assert load_run_config("run.yaml", ["model.vision_weights=own"]).value.model.vision_weights == "own"
    assert load_run_config("run.yaml", ["init_from=null"]).value.model.language_weights is None


@pytest.mark.parametrize("text", ['{"model": {"vision_weights": 3}}', "[]", "{", '{"model": {"language_weights": []}}'])
def test_a_damaged_config_of_the_parent_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "run.yaml").write_text(RUN + "init_from: .")
    with pytest.raises(CheckpointError, match="config.json"):
        load_run_config("run.yaml")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("corpora: [own]", "recipe.yaml: corpora must be a mapping (name: value), got a list"),
        ("corpora:\n  - own: {ratio: 1}", "recipe.yaml: corpora must be a mapping"),
        ("corpora: own", "recipe.yaml: corpora must be a mapping (name: value), got 'own'"),
        ("corpora: {own: {ratio: .inf}}", "recipe.yaml: corpora.own.ratio must be a finite number"),
        ("corpora: {own: {ratio: 1, schedule: [[0, .nan]]}}", "corpora.own.schedule[0][1] must be a finite number"),
        ("corpora: {own: {ratio: 1, schedule: {0: 1}}}", "corpora.own.schedule is a list"),
        ("tasks: {vqa: .inf}\ncorpora: {own: {ratio: 1, task: vqa}}", "tasks.vqa must be a finite number"),
        ("temperature: .inf\ncorpora: {own: {ratio: 1}}", "temperature must be a finite number"),
        ("corpora: {own: {ratio: 1, epochs: 1:30:00}}", "corpora.own.epochs must be a number, got '1:30:00'"),
    ],
)
def test_wrong_recipes_are_one_line_with_exit_code_2(
    text: str, wanted: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["mix", "recipe.yaml", "--shards", "shards", "--steps", "3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: ") and said.count("\n") == 1 and wanted in said, said


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[]", "the file must be an object {name: value}, got list"),
        ("null", "the file must be an object {name: value}, got NoneType"),
        ('{"zero_optimization": 3}', "zero_optimization must be an object {name: value}, got int"),
        ('{"bf16": true}', "bf16 must be an object {name: value}, got bool"),
        ('{"zero_optimization": {"stage": 3, "reduce_bucket_size": Infinity}}', "reduce_bucket_size must be a finite"),
        ('{"a": [1, NaN]}', "a[1] must be a finite number, got nan"),
        ("{", "not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    ],
)
def test_a_deepspeed_json_of_another_shape_is_one_error(text: str, wanted: str) -> None:
    from minigptv2.engine.config import load_deepspeed_config

    Path("zero.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_deepspeed_config("zero.json")
    assert str(error.value).startswith("zero.json") and wanted in str(error.value)
