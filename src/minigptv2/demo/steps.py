"""Runs the steps of a demonstration: commands in their own processes, with their durations and failures."""

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
from minigptv2.errors import MiniGPTv2Error
from minigptv2.redacted_files import write_text

if TYPE_CHECKING:
    from minigptv2.heldout.samples import HeldOutQuestion


KIND_FILE = ".kind"
"""The file in a demonstration's folder that names its kind."""


def environment_of(output: Path) -> dict[str, str]:
    """The environment of a demonstration's commands.

    Each process has one thread, because busy-waiting threads slow each other down. glibc keeps the memory that a step
    frees for the next step, instead of returning it to the system and paging it in again.
    """
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}
    return {**settings, **os.environ, "DEMO_DIR": str(output)}


def timed(seconds: dict[str, float], name: str, work: Callable[[], None]) -> None:
    """Do the work, print its duration, and store it in `seconds`."""
    print(f"== {name}", flush=True)
    began = time.monotonic()
    work()
    seconds[name] = round(time.monotonic() - began, 1)
    print(f"== {name}: {seconds[name]:.0f} s", flush=True)


def run(words: list[str], environment: dict[str, str]) -> None:
    """Run a `minigptv2` command. Raises `MiniGPTv2Error` if it fails."""
    _check([sys.executable, "-m", "minigptv2", *words], environment)


def prepare_folder(output: Path, kind: str) -> None:
    """Make `output` the folder of this kind of demonstration. A folder of another kind (quick, whole) is renamed."""
    note = output / KIND_FILE
    held = note.read_text().strip() if note.is_file() else kind
    if held != kind:
        aside = next(name for n in count(1) if not (name := output.with_name(f"{output.name}-{held}-{n}")).exists())
        output.rename(aside)
        print(f"renamed {output}, which contains a {held} demonstration, to {aside}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    write_text(note, f"{kind}\n")


def launch(config: str, words: list[str], processes: int, environment: dict[str, str]) -> None:
    """Train on CPU processes by the deepspeed launcher. Raises `MiniGPTv2Error` if it fails."""
    launcher = shutil.which("deepspeed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if launcher is None:
        raise MiniGPTv2Error("the deepspeed launcher is not on the PATH. Install it with: pip install deepspeed")
    alone = [
        "--num_accelerators",
        str(processes),
        "--master_port",
        str(free_port()),
    ]  # other runs may use the default port
    program = ["--no_local_rank", "--module", "minigptv2", "train"]  # an installed package has no `launch/train.py`
    command = [launcher, *alone, *program, "--config", config, *words]
    _check(command, environment | {"DS_ACCELERATOR": "cpu"})  # the demonstrations run on CPUs


def how_to_ask(output: Path, export: Path, item: HeldOutQuestion) -> str:
    """The command that asks about an item, whose image is saved."""
    assert item.image is not None, "the item has an image"
    item.image.save(output / "scene.png")
    return (
        f'ask: minigptv2 ask --model {export} {output / "scene.png"} "{item.question}" --draw {output / "answer.png"}'
    )


def _check(command: list[str], environment: dict[str, str]) -> None:
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise MiniGPTv2Error(f"exit code {code} from: {' '.join(command)}")
