"""Runs jobs in advance in worker processes: returns results in order, and replaces a dead or hung worker.

Job i goes to worker i modulo the number of workers, and each worker runs its jobs in order, so results need no sorting.
A job is a function of its number alone: repeating it in another process gives the same result. Tensors are returned
through shared memory.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import multiprocessing

from minigptv2.errors import DataError

T = TypeVar("T")
AHEAD = 2
"""Number of jobs that a worker receives before its first result is taken."""
MAX_RESTARTS = 3
"""Number of times in a row that a worker is replaced for the same job."""
_PARENT_CHECK_S = 5.0
_STACK_SIGNAL = signal.SIGUSR2


class WorkerPool(Generic[T]):
    """Computes `work(job)` for each of `jobs` in `num_workers` forked processes. Iterating gives results in order.

    A worker that dies, or returns nothing for `timeout_s` seconds, is replaced, and its stack is printed to stderr.
    After MAX_RESTARTS for the same job `DataError` is raised. An exception of `work` is raised here.
    """

    def __init__(
        self, work: Callable[[int], T], jobs: Sequence[int], num_workers: int, timeout_s: float, *, name: str = "data"
    ) -> None:
        self._work = work
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._name = name
        self._folder = tempfile.TemporaryDirectory(prefix="minigptv2-workers-")
        self._workers = [_Worker(work, Path(self._folder.name)) for _ in range(min(num_workers, max(1, len(jobs))))]
        self._given = 0

    def __iter__(self) -> Iterator[T]:
        try:
            for number in range(len(self._jobs)):
                self._give(number)
                yield self._take(number)
        finally:
            self.close()

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.kill()
        self._folder.cleanup()

    def _give(self, taken: int) -> None:
        while self._given < min(len(self._jobs), taken + AHEAD * len(self._workers)):
            self._workers[self._given % len(self._workers)].give(self._jobs[self._given])
            self._given += 1

    def _take(self, number: int) -> T:
        index = number % len(self._workers)
        for attempt in range(MAX_RESTARTS + 1):
            problem, result = self._workers[index].take(self._timeout_s)
            if not problem:
                return result
            text = f"{self._name}: worker {index} {problem}, at position {self._jobs[number]} of the plan"
            self._workers[index].kill()
            if attempt == MAX_RESTARTS:
                raise DataError(f"{text}; failed {attempt + 1} times. Check the file system and the free memory")
            print(f"{text}; replaced", file=sys.stderr, flush=True)
            self._workers[index] = _Worker(self._work, Path(self._folder.name))
            for waiting in range(number, self._given, len(self._workers)):
                self._workers[index].give(self._jobs[waiting])
        raise AssertionError("the last attempt returns or raises")


class _Worker:
    def __init__(self, work: Callable[[int], Any], folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._stack = folder / f"{time.monotonic_ns()}.stack"
        self._process = context.Process(target=_serve, args=(work, theirs, self._stack, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, job: int) -> None:
        try:
            self._connection.send(job)
        except OSError:  # the worker died: it is replaced when its result is due
            return

    def take(self, timeout_s: float) -> tuple[str, Any]:
        """What went wrong with the worker, or an empty text and the next result. Raises what the work raised."""
        ready = wait([self._connection, self._process.sentinel], timeout_s)
        if not ready:
            return f"returned nothing for {timeout_s:.0f} s; its stack:\n{self._read_stack()}", None
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            code = self._process.exitcode or 0
            return f"died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})", None
        if kind == "error":
            raise value
        return "", value

    def kill(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join(5)

    def _read_stack(self) -> str:
        """The stack of the hung process, which Python writes on a signal."""
        os.kill(self._process.pid or 0, _STACK_SIGNAL)
        for _ in range(20):
            if self._stack.is_file() and self._stack.stat().st_size:
                break
            time.sleep(0.05)
        return self._stack.read_text().strip() if self._stack.is_file() else "(no stack: the process does not respond)"


def _serve(work: Callable[[int], Any], connection: Connection, stack: Path, parent: int) -> None:
    """Run jobs until the parent process is gone."""
    # Ignore a scheduler's signals in workers: otherwise they exit and the step being saved fails.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with open(stack, "w") as stream:
        faulthandler.register(_STACK_SIGNAL, file=stream, all_threads=False)
        while True:
            while not connection.poll(_PARENT_CHECK_S):
                if os.getppid() != parent:
                    return
            try:
                job = connection.recv()
            except EOFError:
                return
            try:
                answer = ("ok", work(job))
            except Exception as error:  # noqa: BLE001  # sent to the parent with its traceback
                error.add_note("in a data worker:\n" + traceback.format_exc())
                answer = ("error", error)
            try:
                connection.send(answer)
            except OSError:
                return
