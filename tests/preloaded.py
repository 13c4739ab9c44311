"""Processes for tests that start at once: forks of servers that have torch, DeepSpeed and the package loaded.

A fresh interpreter spends seconds on imports; a fork spends none. Two servers differ in their hash seed and even ranks
come from one, odd ranks from the other, so that what depends on the order of a set differs between ranks, and fails.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).parent.parent
HASH_SEEDS = ("0", "1")


class PreloadedProcess:
    """A process made by `start`, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: _Server, pid: int) -> None:
        self._server = server
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number if one ended it; None while it runs."""
        return self._server.codes.get(self.pid)

    def poll(self) -> int | None:
        """As `returncode`, looked up now."""
        self._server.read(timeout_s=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises `TimeoutError` after `timeout` seconds."""
        deadline = time.monotonic() + (timeout if timeout is not None else 3600)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            self._server.read(timeout_s=0.1)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """One loaded interpreter. Requests and answers are lines of JSON."""

    def __init__(self, hash_seed: str) -> None:
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environment,
        )
        self.codes: dict[int, int] = {}
        self._pids: list[int] = []
        self._partial = b""

    def fork(self, request: dict[str, Any]) -> PreloadedProcess:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        while not self._pids:
            assert self.process.poll() is None, "the server of preloaded processes ended"
            self.read(timeout_s=1)
        return PreloadedProcess(self, self._pids.pop())

    def read(self, timeout_s: float) -> None:
        """Take in what the server has said."""
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], timeout_s)[0]:
            *lines, self._partial = (self._partial + os.read(self.process.stdout.fileno(), 65536)).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "code" in said:
                    self.codes[said["pid"]] = said["code"]
                else:
                    self.codes.pop(said["pid"], None)  # of an earlier process: the kernel gives numbers out again
                    self._pids.append(said["pid"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


_SERVERS: list[_Server] = []


def start(
    target: str,
    *,
    log: Path,
    environment: dict[str, str],
    number: int = 0,
    argv: tuple[str, ...] = (),
    **arguments: Any,
) -> PreloadedProcess:
    """`module:name` called with keyword `arguments` (JSON) in a new process; what it returns is the exit code.

    `argv` becomes `sys.argv`; output goes to `log`; `environment` is the whole environment, but for the hash seed.
    `number`: which of several, such as the rank; neighbours get different hash seeds.
    """
    if not _SERVERS:
        _SERVERS.extend(_Server(seed) for seed in HASH_SEEDS)
        atexit.register(lambda: [server.close() for server in _SERVERS])
    request = {"target": target, "argv": argv, "log": str(log), "environment": environment, "arguments": arguments}
    return _SERVERS[number % len(_SERVERS)].fork(request)


def start_training(*words: str, log: Path, environment: dict[str, str], rank: int = 0) -> PreloadedProcess:
    """`launch/train.py` with `words`, as a launcher would start it with `environment`."""
    argv = ("launch/train.py", *words)
    return start("minigptv2.cli.train:main", log=log, environment=environment, number=rank, argv=argv)


def _load() -> None:
    """Everything a rank imports, and nothing that starts a thread."""
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  (deepspeed.initialize does; 1.5 s)
    import peft  # noqa: F401
    import torch
    from torch.utils import tensorboard  # noqa: F401
    from transformers import Blip2VisionModel, Dinov2Model, LlamaForCausalLM  # noqa: F401

    import minigptv2.cli.train
    import minigptv2.train  # noqa: F401

    torch.set_num_threads(1)


def _serve() -> dict[str, Any]:
    """Fork for each request and report each end; returns only in a fork, with its request."""
    import gc

    gc.collect()
    gc.freeze()
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: set[int] = set()
    answers = os.dup(1)
    os.dup2(2, 1)
    waiting = b""
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                running.discard(pid)
                _say(answers, {"pid": pid, "code": os.waitstatus_to_exitcode(status)})
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (awake, wake, answers):
                        os.close(descriptor)
                    request: dict[str, Any] = json.loads(line)
                    return request
                running.add(pid)
                _say(answers, {"pid": pid})


def _say(descriptor: int, what: dict[str, int]) -> None:
    os.write(descriptor, json.dumps(what).encode() + b"\n")


def _main() -> NoReturn:
    _load()
    request = _serve()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"] or sys.argv
    module, name = request["target"].split(":")
    sys.exit(getattr(importlib.import_module(module), name)(**request["arguments"]))


if __name__ == "__main__":
    _main()
