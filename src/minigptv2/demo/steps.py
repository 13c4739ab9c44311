"""What the demonstrations are made of: commands in processes of their own, timed, each failure named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.cluster.rendezvous import free_port
from minigptv2.errors import ConfigError, MiniGPTv2Error

if TYPE_CHECKING:
    from minigptv2.heldout.samples import HeldOutQuestion


LAUNCHER = "launch/train.py"
KIND_FILE = ".kind"
"""In a demonstration's folder: which one it holds."""


def environment_of(output: Path) -> dict[str, str]:
    """The environment of a demonstration's commands.

    One thread a process, as spinning ones slow each other; and glibc keeps the memory that a step frees for the next
    one instead of handing it back and faulting it in again.
    """
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}
    return {**settings, **os.environ, "DEMO_DIR": str(output)}


def timed(seconds: dict[str, float], name: str, work: Callable[[], None]) -> None:
    """Do the work, say how long it took, and note it in `seconds`."""
    print(f"== {name}", flush=True)
    began = time.monotonic()
    work()
    seconds[name] = round(time.monotonic() - began, 1)
    print(f"== {name}: {seconds[name]:.0f} s", flush=True)


def run(words: list[str], environment: dict[str, str]) -> None:
    """A `minigptv2` command. Raises `MiniGPTv2Error` if it fails."""
    _check([sys.executable, "-m", "minigptv2", *words], environment)


def make_room(output: Path, kind: str) -> None:
    """Have `output` hold this kind of demonstration: another one's (quick, whole) is moved aside, not trained on.

    Raises `ConfigError` outside the repository, whose recipes and launcher are needed.
    """
    if not Path(LAUNCHER).is_file():
        raise ConfigError(f"no {LAUNCHER} here: the demonstrations run in the repository's own folder")
    note = output / KIND_FILE
    held = note.read_text().strip() if note.is_file() else kind
    if held != kind:
        aside = next(name for n in count(1) if not (name := output.with_name(f"{output.name}-{held}-{n}")).exists())
        output.rename(aside)
        print(f"{output} held a {held} demonstration: moved to {aside}, this one begins anew", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{kind}\n")


def launch(config: str, words: list[str], processes: int, environment: dict[str, str]) -> None:
    """`deepspeed launch/train.py` on CPU processes. Raises `MiniGPTv2Error` if it fails."""
    launcher = shutil.which("deepspeed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if launcher is None:
        raise MiniGPTv2Error("the deepspeed launcher is not on the PATH; is the package installed?")
    alone = ["--num_accelerators", str(processes), "--master_port", str(free_port())]  # others may train here, too
    command = [launcher, *alone, LAUNCHER, "--config", config, *words]
    _check(command, environment | {"DS_ACCELERATOR": "cpu"})  # the demonstrations are made for CPUs


def how_to_ask(output: Path, export: Path, item: HeldOutQuestion) -> str:
    """Save an item's picture, and the command that asks about it."""
    assert item.image is not None, "an item with an image"
    item.image.save(output / "scene.png")
    return (
        f'ask: minigptv2 ask --model {export} {output / "scene.png"} "{item.question}" --draw {output / "answer.png"}'
    )


def _check(command: list[str], environment: dict[str, str]) -> None:
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise MiniGPTv2Error(f"exit code {code} from: {' '.join(command)}")
