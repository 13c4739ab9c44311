"""What the demonstrations are made of: commands in processes of their own, timed, each failure named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from minigptv2.errors import MiniGPTv2Error

if TYPE_CHECKING:
    from minigptv2.evaluate.heldout import HeldOut


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
    _check([sys.executable, "-m", "minigptv2.cli", *words], environment)


def launch(config: str, words: list[str], processes: int, environment: dict[str, str]) -> None:
    """`deepspeed launch/train.py` on CPU processes. Raises `MiniGPTv2Error` if it fails."""
    launcher = shutil.which("deepspeed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if launcher is None:
        raise MiniGPTv2Error("the deepspeed launcher is not on the PATH; is the package installed?")
    command = [launcher, "--num_accelerators", str(processes), "launch/train.py", "--config", config, *words]
    _check(command, environment | {"DS_ACCELERATOR": "cpu"})  # the demonstrations are made for CPUs


def how_to_ask(output: Path, export: Path, item: HeldOut) -> str:
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
