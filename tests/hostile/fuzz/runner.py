"""Runs the cases of a reader, and reports exceptions that are not errors of the package, and what takes too much."""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minigptv2.errors import MiniGPTv2Error
from tests.fuzzing import Found
from tests.hostile.fuzz import corpora, models, texts
from tests.hostile.fuzz.readers import MakeReader
from tests.memory import peak_mb, restart_peak

LIMIT_S, LIMIT_MB = 10, 1024
READERS: dict[str, MakeReader] = {
    "tar": corpora.Tar,
    "index": corpora.Index,
    "table": corpora.Table,
    "turn counts": corpora.TurnCounts,
    "manifest": corpora.ManifestFile,
    "safetensors": models.Safetensors,
    "export config": models.ExportConfig,
    "lineage": models.Lineage,
    "LLaMA config": models.LlamaFolder,
    "checkpoint state": models.CheckpointStateFile,
    "tokenizer.json": models.TokenizerJson,
    "tokenizer.model": models.TokenizerModel,
    "torch": models.TorchFile,
    "old torch": models.OldTorchFile,
    "ZeRO 2": models.ZeroShards,
    "ZeRO 3": models.ZeroThreeShards,
    "recipe": texts.RecipeFile,
    "run config": texts.RunConfigFile,
    "request body": texts.RequestBody,
}


def fuzz(name: str, numbers: Iterable[int], seed: int, folder: Path) -> Found:
    """The cases of a reader with these numbers. `folder` is empty."""
    reader, found = READERS[name](folder), Found()
    for number in numbers:
        change, data = reader.draw(random.Random(f"{seed}/{number}"))
        found.by_change[change.split(":")[0]] += 1
        before, began = restart_peak(), time.monotonic()
        problem = ""
        try:
            with _deadline():
                accepted = reader.read(data)
            found.kept, found.refused = found.kept + accepted, found.refused + (not accepted)
        except MiniGPTv2Error as error:
            found.refused += 1
            problem = "" if str(error) else "an error without a text"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            problem = traceback.format_exc()[-1500:]
        if (grown := peak_mb() - before) > LIMIT_MB:
            problem += f"took {grown:.0f} MB"
        if (took := time.monotonic() - began) > LIMIT_S:
            problem += f"took {took:.1f} s"
        if problem:
            found.wrong.append(f"case {number} ({change}): {problem}\n  {data[:300]!r}")
    return found


@contextmanager
def _deadline() -> Iterator[None]:
    """Ends what takes much longer than the limit."""

    def end(*_: object) -> None:
        raise TimeoutError(f"more than {2 * LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(2 * LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
