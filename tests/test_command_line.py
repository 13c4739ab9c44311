"""Checks the command line: which files it imports, what it accepts and refuses, old spellings and completion."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from minigptv2 import __version__
from minigptv2.cli import COMMANDS, build_parser, main, parse
from minigptv2.cli.arguments import PATHS, Parser, at_least, column, names, not_negative, positive
from minigptv2.errors import ConfigError
from tests.conftest import REPOSITORY, World

WITHOUT_PATHS = {
    *("COMMAND", "QUESTION", "NAME", "N", "K", "S", "GIB", "GB/S", "PIXELS", "SIDE", "key=value", "{blocks,none}"),
    *("[BENCHMARK=]NAME", "MEGAPIXELS", "KEY=COLUMN"),
}
"""Metavars of arguments that are no files or folders."""
WITHOUT_METAVAR = {
    *("gpu", "host", "dtype", "seed", "local_rank", "license", "port", "code", "tag", "top_p", "device", "name"),
    *("temperature", "split"),
}
"""The same, of arguments that have no metavar."""
NOT_COUNTS = ("--seed", "--code", "--port", "--local_rank", "--show")
"""A seed may be negative, the code is the launcher's, `serve` checks its port itself, and --show is no number."""
OTHER_TYPES = (None, float, positive, not_negative, names, column, Path)


def parsers(parser: Parser) -> Iterator[Parser]:
    """A parser and those of its commands."""
    yield parser
    for below in parser.commands.values():
        yield from parsers(below)


def test_every_count_has_a_least_value() -> None:
    counts = [
        action
        for parser in parsers(build_parser())
        for action in parser.arguments
        if action.type not in OTHER_TYPES
        and action.metavar not in PATHS
        and not set(NOT_COUNTS) & set(action.option_strings)
    ]
    assert len(counts) > 30
    for action in counts:
        assert callable(action.type)
        with pytest.raises(argparse.ArgumentTypeError, match="'-1' is not a whole number of at least [01]"):
            action.type("-1")


def test_every_option_and_command_has_a_help_text() -> None:
    assert all(command.help for command in COMMANDS)
    missing = [
        f"{parser.prog} {argument.option_strings or argument.dest}"
        for parser in parsers(build_parser())
        for argument in parser.arguments
        if not argument.help
    ]
    assert not missing


@pytest.mark.parametrize(("least", "text"), [(1, "0"), (0, "-1"), (1, "two"), (0, "1.5"), (0, "")])
def test_a_number_below_the_least_is_named(least: int, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a whole number of at least {least}"):
        at_least(least)(text)
    assert at_least(least)(str(least)) == least


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast", ""])
def test_a_measure_is_finite_and_above_nothing(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a number above 0"):
        positive(text)
    assert positive("0.5") == 0.5 and not_negative("0") == 0


def test_zero_where_it_means_something_is_taken() -> None:
    """No request waits for a batch, and the samples have no images."""
    words = parse(["serve", "--model", "m", "--max-waiting", "0"])
    assert words.max_waiting == 0
    assert parse(["plan", "--config", "c", "--images", "0"]).images == 0


def test_every_command_has_a_file_of_its_name_and_every_file_a_command() -> None:
    folder = REPOSITORY / "src" / "minigptv2" / "cli"
    shared = {"__init__", "__main__", "arguments", "shards_build", "streams"}
    assert {file.stem for file in folder.glob("*.py")} - shared == {command.name for command in COMMANDS}


def test_the_help_imports_no_command_and_a_command_only_its_own_file() -> None:
    code = (
        "import sys; from minigptv2.cli import parse\n"
        "try: parse({words})\n"
        "except SystemExit: print(*sorted(set(sys.modules)))"
    )

    def imported(*words: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", code.format(words=words)], capture_output=True, text=True, check=True
        )
        return set(done.stdout.splitlines()[-1].split())

    files = {f"minigptv2.cli.{command.name}" for command in COMMANDS}
    heavy = {"torch", "transformers", "deepspeed", "omegaconf", "numpy", "PIL"}
    assert not imported("--help") & (files | heavy)
    for command in COMMANDS:
        modules = imported(command.name, "--help")
        assert modules & files <= {f"minigptv2.cli.{command.name}", "minigptv2.cli.ask"} and not modules & heavy


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["shards", "bild"], "unknown command 'bild'; did you mean 'build'?"),
        (["xyzzy"], "unknown command 'xyzzy'\n"),
        (["plan", "--confg", "c"], "--config"),
        (["plan", "--config", "c", "--gpu-per-node", "8"], "'--gpu-per-node'; did you mean '--gpus-per-node'?"),
        ([], "COMMAND"),
    ],
)
def test_a_mistyped_word_is_corrected(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_options_and_words_come_in_any_order() -> None:
    orders = (
        ["plan", "a=1", "--config", "c", "b=2", "--gpus", "4"],
        ["plan", "--gpus", "4", "--config", "c", "a=1", "b=2"],
    )
    for words in orders:
        args = parse(words)
        assert (args.config, args.gpus, args.overrides) == ("c", 4, ["a=1", "b=2"])
    assert parse(["plan", "--config", "c"]).overrides == []
    assert parse(["chat", "--model", "m"]).image is None
    assert parse(["chat", "--model", "m", "photo.jpg", "--beams", "2"]).image == "photo.jpg"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["shards", "build", "x", "--output", "o", "--size", "7"], {"samples_per_shard": 7}),
        (["shards", "build", "x", "--output", "o", "--size=7"], {"samples_per_shard": 7}),
        (["shards", "build", "x", "--output", "o", "--skip-bad"], {"skip_faults": True}),
        (["shards", "stats", "x", "--shards"], {"per_shard": True}),
        (["serve", "--model", "m", "--max-batch", "3"], {"max_batch_size": 3}),
        (["evaluate", "--benchmark", "a,b"], {"benchmark": ["a", "b"]}),
    ],
)
def test_an_old_spelling_is_still_taken(old: list[str], new: dict[str, object]) -> None:
    args = vars(parse(old))
    assert {key: args[key] for key in new} == new


def test_names_are_repeated_or_joined_by_commas() -> None:
    words = ["evaluate", "--benchmark", "a", "--benchmark", "b,c", "--corpus", "x", "--corpus", "y"]
    assert parse(words).benchmark == ["a", "b", "c"] and parse(words).corpus == ["x", "y"]
    assert parse(["evaluate"]).benchmark == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command.name in script for command in COMMANDS) and "--gpus-per-node" in script
    files = {"bash": "plan___config_COMPGEN=_shtab_compgen_files", "zsh": "--config[YAML file of the run]:FILE:_files"}
    assert files[shell] in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_the_package_is_a_program() -> None:
    for module in ("minigptv2", "minigptv2.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == __version__


def test_processes_start_torchrun_in_place_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def execv(program: str, words: list[str]) -> NoReturn:
        assert program == words[0] == sys.executable
        raise SystemExit(" ".join(words[1:]))

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as started:
        main(["train", "a=1", "--config", "c.yaml", "--processes", "2", "--fresh"])
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2"
    assert started.value.code == f"{launcher} -m minigptv2 train --config c.yaml --fresh a=1"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with pytest.raises(SystemExit) as started:
            main(["train", "--config", "~/c.yaml", "--processes", "2"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "--signals_to_handle SIGTERM,SIGINT,SIGQUIT -m minigptv2 train" in str(started.value.code)
    assert str(started.value.code).endswith(f"--config {Path.home()}/c.yaml")


def test_a_rank_of_a_launcher_starts_no_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "--config", "c.yaml", "--processes", "2"]) == ConfigError.exit_code
    assert "leave --processes out" in capsys.readouterr().err


def test_config_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["config", "--json", "launch/configs/toy_stage1.yaml", "--world-size", "2", "train.steps=7"]) == 0
    keys = json.loads(capsys.readouterr().out)
    assert keys["train.steps"] == {"value": 7, "from": "command line (train.steps=7)"}
    assert keys["train.crash_loop_limit"] == {"value": 5, "from": "default"}


def path_arguments() -> list[tuple[str, argparse.Action]]:
    """Every argument that is a file or folder, with the command."""
    return [
        (parser.prog, action)
        for parser in parsers(build_parser())
        for action in parser.arguments
        if action.metavar in PATHS
    ]


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(path_arguments()) > 40
    for command, action in path_arguments():
        assert callable(action.type)
        assert str(action.type("~/x/~")) == f"{tmp_path}/x/~", (command, action.dest)
        assert str(action.type("a/~")) == "a/~"
        with pytest.raises(argparse.ArgumentTypeError, match="there is no home folder for '~nobody-of-that-name'"):
            action.type("~nobody-of-that-name/x")


def test_a_url_is_refused_by_every_command_that_takes_a_file_or_folder() -> None:
    accepting = set()
    for command, action in path_arguments():
        assert callable(action.type)
        for url in ("http://host/a//b", "https://host/a?x=1", "s3://bucket/a", "file:///a"):
            try:
                assert action.type(url) == url  # with both slashes
                accepting.add(f"{command} --{action.dest}")
            except argparse.ArgumentTypeError as error:
                assert str(error).startswith(f"{url} is a URL, but this command takes a file or folder")
    assert accepting == {"minigptv2 mix --shards"}


def test_every_argument_is_known_to_be_a_path_or_not() -> None:
    """A new argument for a file or folder must use one of the metavars of `PATHS`."""
    for parser in parsers(build_parser()):
        for action in parser.arguments:
            known = action.nargs == 0 or action.choices or action.metavar in (*PATHS, *WITHOUT_PATHS)
            assert known or action.dest in WITHOUT_METAVAR, (parser.prog, action.dest, action.metavar)


@pytest.mark.parametrize(
    "words",
    [
        ["shards", "build", "own.jsonl", "--output", "file/x"],
        ["shards", "build", "own.jsonl", "--output", "/proc/x"],
        ["tokenizer", "--shards", "shards", "--output", "file/x"],
        ["shards", "preview", "shards/own", "--tokenizer", "words", "--output", "file/x.html"],
        ["shards", "verify", "shards/own", "--report", "file/x"],
        ["mix", "recipe.yaml", "--shards", "shards", "--steps", "2", "--output", "file/x.html"],
    ],
)
def test_an_output_that_cannot_be_made_is_one_line(
    words: list[str], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    line = {"image": "a.png", "task": "vqa", "question": "What color?", "answer": "black"}
    Path("own.jsonl").write_text(json.dumps(line) + "\n")
    Path("file").touch()
    Path("recipe.yaml").write_text("corpora: {own: {ratio: 1, task: vqa}}")
    if words[:2] != ["shards", "build"]:
        assert main(["shards", "build", "own.jsonl", "--output", "shards/own"]) == 0
    Path("words").symlink_to(world.tokenizer_folder)
    capsys.readouterr()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert main(words) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if "Error" in text]
    assert len(said) == 1 and said[0].startswith("ConfigError: "), said
    assert any(reason in said[0] for reason in ("Not a directory", "No such file", "File exists")), said
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_options_and_overrides_come_in_any_order() -> None:
    words = ["--config", "c.yaml", "train.steps=1", "--fresh", "seed=1", "--resume", "data.shards=x"]
    for command, more in (("train", words), ("doctor", ["a=1", "--config", "c.yaml", "b=2", "--json", "c=3"])):
        args = parse([command, *more])
        assert args.overrides == [word for word in more if "=" in word]
    assert parse(["config", "a=1", "--json", "b=2"]).overrides == ["b=2"]  # the first word is the file
    assert parse(["slurm", "end", "c.yaml", "a=1", "--code", "3", "b=2"]).overrides == ["a=1", "b=2"]
    assert parse(["plan", "a=1", "--config", "c.yaml", "b=2"]).overrides == ["a=1", "b=2"]
