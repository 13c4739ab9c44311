"""Runs the commands of a user within the time of a phase. The kernel ends them first if memory is low."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.full_size.watch import descendants

FIRST_TO_END = 'echo 1000 > /proc/self/oom_score_adj; exec "$@"'
"""Makes the kernel choose this process, and those that it starts, when memory is short."""
POLL_S = 0.3


class PhaseError(Exception):
    """A phase failed: a command, a check, or a limit."""


class Commands:
    """Starts `minigptv2` commands of one phase. Their output goes to `<folder>/<number>.log`."""

    def __init__(self, folder: Path, cache: Path, limit_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._cache = folder, cache
        self._deadline = time.monotonic() + limit_s
        self._count = 0

    def run(self, *words: str, threads: int = 2) -> str:
        """Run a command to its end. Returns its output. Raises `PhaseError` if it fails or takes too long."""
        process, log = self._start(words, threads)
        try:
            while process.poll() is None:
                self._wait(log)
        finally:
            kill_tree(process)
        if process.returncode != 0:
            raise PhaseError(f"exit code {process.returncode} of minigptv2 {' '.join(words)}\n{_tail(log)}")
        return log.read_text()

    def run_until(self, text: str, *words: str, processes: int) -> str:
        """Run a command until its output has `text`, then kill all its processes at once with `kill -9`."""
        process, log = self._start(words, threads=1 if processes > 1 else 2)
        try:
            while text not in log.read_text():
                if process.poll() is not None:
                    raise PhaseError(f"it ended with {process.returncode} before '{text}'\n{_tail(log)}")
                self._wait(log)
        finally:
            kill_tree(process)
        return log.read_text()

    def _start(self, words: tuple[str, ...], threads: int) -> tuple[subprocess.Popen[bytes], Path]:
        self._count += 1
        log = self._folder / f"{self._count}.log"
        print(f"  minigptv2 {' '.join(words)}  > {log}", flush=True)
        environment = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
            "XDG_CACHE_HOME": str(self._cache),
        }
        command = ["sh", "-c", FIRST_TO_END, "sh", sys.executable, "-m", "minigptv2", *words]
        with open(log, "wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        return process, log

    def _wait(self, log: Path) -> None:
        if time.monotonic() > self._deadline:
            raise PhaseError(f"the time limit of the phase is over\n{_tail(log)}")
        time.sleep(POLL_S)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """`kill -9` for a process and all that it started, all at once, and wait for it."""
    for pid in [process.pid, *descendants(process.pid)]:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-30:])
