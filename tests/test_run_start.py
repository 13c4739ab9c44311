"""Tests how a run starts and stops: the owner of its folder, signals, closed output, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from minigptv2.run_folder import RunFolder, checkpoint_step
from minigptv2.tokenizer import train_tokenizer
from minigptv2.tracking.log import read_metrics
from tests import preloaded
from tests.conftest import World
from tests.preloaded import PreloadedProcess


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    return world.write_stage(
        folder,
        "corpora: {toy_refer: {ratio: 1, task: refer}}",
        steps=3,
        global_batch_size=4,
        micro_batch_size=4,
        warmup_steps=1,
        checkpoint_every=2,
        log_every=1,
    )


def start(config: Path, run: Path, *words: str, log: Path, hangup: bool = True) -> PreloadedProcess:
    """`launch/train.py` in a single process. `hangup=False`: as under nohup."""
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | {"DS_ACCELERATOR": "cpu"}
    argv = ("launch/train.py", "--config", str(config), f"run_dir={run}", *words)
    target = "minigptv2.cli.train:main" if hangup else "tests.test_run_start:under_nohup"
    return preloaded.start(target, log=log, environment=environment, argv=argv)


def under_nohup() -> int:
    """The command, started with SIGHUP ignored."""
    from minigptv2.cli.train import main

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return main()


def finish(config: Path, run: Path, *words: str, tmp_path: Path, expect: int = 0) -> str:
    """Run to the end. Returns the output."""
    process = start(config, run, *words, log=tmp_path / "log")
    assert process.wait(120) == expect, (tmp_path / "log").read_text()[-3000:]
    return (tmp_path / "log").read_text()


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_metrics(run)]


def wait_for_step(run: Path, step: int, process: PreloadedProcess) -> None:
    deadline = time.monotonic() + 90
    while step not in steps(run):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A run that has ended."""
    finish(config, config.parent / "finished", tmp_path=config.parent)
    return config.parent / "finished"


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_two_starts_at_once_do_not_mix(fresh: tuple[str, ...], config: Path, tmp_path: Path) -> None:
    first = start(config, tmp_path / "run", "train.steps=12", *fresh, log=tmp_path / "a")
    second = start(config, tmp_path / "run", "train.steps=12", log=tmp_path / "b")
    codes = [first.wait(120), second.wait(120)]
    assert sorted(codes) == [0, 2]
    said = (tmp_path / "ab"[codes.index(2)]).read_text()
    winner = (first, second)[codes.index(0)]
    assert f"is in use by another start: {os.uname().nodename}, process {winner.pid}, since" in said
    assert said.count("Error") == 1 and "Traceback" not in said
    assert steps(tmp_path / "run") == list(range(1, 13)) and not RunFolder(tmp_path / "run").failure.exists()
    assert len(RunFolder(tmp_path / "run").attempts.read_text().splitlines()) == 2


def test_a_start_beside_a_running_one_leaves_it_alone(config: Path, tmp_path: Path) -> None:
    first = start(config, tmp_path / "run", "train.steps=40", log=tmp_path / "a")
    wait_for_step(tmp_path / "run", 2, first)
    for words in ((), ("--fresh",), ("--resume",)):
        assert "is in use by another start" in finish(config, tmp_path / "run", *words, tmp_path=tmp_path, expect=2)
    first.kill()
    first.wait(30)
    output = finish(config, tmp_path / "run", "train.steps=4", "--fresh", tmp_path=tmp_path)
    assert "resumed" not in output and steps(tmp_path / "run") == [1, 2, 3, 4]  # the dead one is not in the way


def test_fresh_starts_at_step_1_where_checkpoints_are_linked(finished: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    output = finish(config, run, "--fresh", "train.steps=2", tmp_path=tmp_path)
    assert "resumed" not in output and steps(run) == [1, 2]
    assert (run / "checkpoints").is_symlink()
    assert [checkpoint_step(folder) for folder in RunFolder(run).checkpoint_folders()] == [2]
    (run / "checkpoints").unlink()
    (run / "checkpoints").symlink_to(tmp_path / "nowhere")
    assert "which does not exist" in finish(config, run, "--fresh", tmp_path=tmp_path, expect=2)
    said = finish(config, run, "--fresh", f"init_from={run}/export", tmp_path=tmp_path, expect=2)
    assert f"--fresh would remove init_from={run}/export" in said


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_saves_and_the_same_command_goes_on(
    sent: signal.Signals, config: Path, tmp_path: Path
) -> None:
    process = start(config, tmp_path / "run", "train.steps=40", "train.checkpoint_every=40", log=tmp_path / "a")
    wait_for_step(tmp_path / "run", 2, process)
    process.send_signal(sent)
    assert process.wait(60) == 85
    assert f"stop requested ({sent.name}): saved at step" in (tmp_path / "a").read_text()
    saved = checkpoint_step(RunFolder(tmp_path / "run").checkpoint_folders()[0])
    assert 2 <= saved < 40
    finish(config, tmp_path / "run", f"train.steps={saved + 1}", tmp_path=tmp_path)
    assert steps(tmp_path / "run") == list(range(1, saved + 2))


def test_under_nohup_a_closed_terminal_is_ignored(config: Path, tmp_path: Path) -> None:
    process = start(config, tmp_path / "run", "train.steps=6", log=tmp_path / "a", hangup=False)
    wait_for_step(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0 and steps(tmp_path / "run") == list(range(1, 7))


@pytest.mark.parametrize("lines", [0, 3])
def test_a_reader_that_leaves_does_not_end_the_run(lines: int, config: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def head() -> None:
        with open(tmp_path / "pipe", "rb") as stream:
            for _ in range(lines):
                stream.readline()

    reader = threading.Thread(target=head)
    reader.start()
    process = start(config, tmp_path / "run", log=tmp_path / "pipe")
    assert process.wait(120) == 0
    reader.join()
    assert steps(tmp_path / "run") == [1, 2, 3] and RunFolder(tmp_path / "run").export.is_dir()
    assert "export tiny" in RunFolder(tmp_path / "run").log.read_text()


def without_output() -> int:
    """The command, started with all standard files closed (`<&- >&- 2>&-`)."""
    import sys

    from minigptv2.cli.train import main

    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]  # as the interpreter does it
    return main()


def test_closed_standard_files_do_not_end_the_run(config: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | {"DS_ACCELERATOR": "cpu"}
    argv = ("launch/train.py", "--config", str(config), f"run_dir={tmp_path / 'run'}")
    target = "tests.test_run_start:without_output"
    process = preloaded.start(target, log=tmp_path / "log", environment=environment, argv=argv)
    assert process.wait(120) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]


@pytest.mark.parametrize("place", ["stage.yaml/x", "/proc/x", "/dev/null/run"])
def test_a_run_folder_that_cannot_be_made_is_one_line(place: str, config: Path, tmp_path: Path) -> None:
    run = Path(place) if place.startswith("/") else config.parent / place
    said = finish(config, run, tmp_path=tmp_path, expect=2)
    lines = [line for line in said.splitlines() if "Error" in line]
    assert len(lines) == 1 and lines[0].startswith(f"ConfigError: run_dir={run} cannot be used: ")
    assert "Traceback" not in said


def test_a_warm_up_that_is_longer_than_the_run_and_a_missing_check_are_noted(config: Path, tmp_path: Path) -> None:
    words = ("train.warmup_steps=1000", "train.check_packing=false")
    said = finish(config, tmp_path / "run", *words, tmp_path=tmp_path)
    assert "warning: train.check_packing=false: nothing shows that packed samples are independent" in said
    assert "warning: train.warmup_steps=1000 does not end before the run of train.steps=3" in said


def test_options_stand_anywhere(config: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    finish(config, tmp_path / "run", "train.steps=1", "--fresh", "seed=1", tmp_path=tmp_path)
    assert steps(tmp_path / "run") == [1] and "seed: 1" in RunFolder(tmp_path / "run").config.read_text()


def test_the_next_stage_takes_the_tokenizer_of_its_parent_and_refuses_another(
    config: Path, finished: Path, tmp_path: Path
) -> None:
    parent = f"init_from={finished}/export"
    finish(config, tmp_path / "run", parent, "model.tokenizer=null", "train.steps=1", tmp_path=tmp_path)
    assert (tmp_path / "run/export/tokenizer.json").read_bytes() == (finished / "export/tokenizer.json").read_bytes()
    document = json.loads((finished / "export/tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    pieces = {number: piece for piece, number in vocabulary.items()}
    variants = {
        "swapped": ({pieces[300]: 301, pieces[301]: 300}, "the first id that differs is 300"),
        "reversed": ({piece: len(pieces) + 290 - n for n, piece in pieces.items() if n > 290}, "that differs is 291"),
        "renamed": ({"another": 320}, "the first id that differs is 320"),
    }
    for name, (changes, wanted) in variants.items():
        removed = {pieces[320]} if name == "renamed" else set()
        changed = {piece: n for piece, n in (vocabulary | changes).items() if piece not in removed}
        (tmp_path / name).mkdir()
        rest = [merge for merge in document["model"]["merges"] if name != "renamed"]
        model = document["model"] | {"vocab": changed, "merges": rest}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document | {"model": model}))
        words = (parent, f"model.tokenizer={tmp_path / name}")
        said = finish(config, tmp_path / "next", *words, tmp_path=tmp_path, expect=4)
        assert "was trained with another tokenizer" in said and wanted in said, said
    train_tokenizer(["another text of the same length"], tmp_path / "other", len(pieces))
    finish(config, tmp_path / "next", parent, f"model.tokenizer={tmp_path / 'other'}", tmp_path=tmp_path, expect=4)
    (tmp_path / "spaced").mkdir()
    (tmp_path / "spaced/tokenizer.json").write_text(json.dumps(document, indent=3))  # the same, in another layout
    words = (parent, f"model.tokenizer={tmp_path / 'spaced'}", "train.steps=1")
    finish(config, tmp_path / "next", *words, tmp_path=tmp_path)
