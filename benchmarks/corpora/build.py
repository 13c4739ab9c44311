"""How fast a corpus is built, beside writing its bytes alone: `make bench-build` (RECORDS=1000000).

The corpus is synthetic: pictures of a given size that lie in one large file, as in the tars that img2dataset
writes, a record of one question or box each. The build is the one of `minigptv2 shards build`: drafts made in one
process, pictures read, sizes taken from their headers, records checked and rendered, tars written with checksums and
hashes in as many processes as there are cores. The floor is those processes writing as many bytes in files of the same
size, each synced as the build syncs its shards, and nothing else. Peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import report
from minigptv2.boxes import Box
from minigptv2.data.build import build
from minigptv2.data.sources.corpus import Corpus
from minigptv2.data.sources.draft import Draft, TarMember
from minigptv2.data.sources.raw import Raw
from minigptv2.record import Region, Turn

_DIFFERENT_PICTURES = 256


def drafts(raw: Raw, split: str, *, pictures: list[TarMember], count: int) -> Iterator[Draft]:
    """`count` drafts, every second a question, every second a box."""
    for number in range(count):
        source = {"id": str(number)}
        if number % 2:
            turn = Turn("vqa", f"How many things are in picture {number}?", ("three", "three", "3"), source=source)
        else:
            place = number % 40
            region = Region((Box(place, 10, place + 30, 60),), (f"thing {number} on the left", "the left one"))
            turn = Turn("refer", regions=(region,), source=source)
        yield Draft(f"{number:08d}", (turn,), pictures[number % len(pictures)], {"corpus": "synthetic", **source})


def write_pictures(file: Path, side: int) -> list[TarMember]:
    """Noise pictures of `side` pixels, one after the other in a file."""
    rng = np.random.default_rng(0)
    members, offset = [], 0
    with open(file, "wb") as stream:
        for _ in range(_DIFFERENT_PICTURES):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
            stream.write(data)
            members.append(TarMember(str(file), offset, len(data)))
            offset += len(data)
    return members


def write_alone(folder: Path, size: int, numbers: range) -> None:
    """The floor: files of `size` bytes, synced and renamed as shards are."""
    data = os.urandom(1 << 20)
    for number in numbers:
        temporary = folder / f".{number}.tmp"
        with open(temporary, "wb") as stream:
            for start in range(0, size, len(data)):
                stream.write(data[: size - start])
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / f"{number}.tar")


def time_floor(folder: Path, total: int, shards: int, workers: int) -> float:
    """Seconds in which `workers` processes write `total` bytes in `shards` files."""
    folder.mkdir()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(workers)))  # started before the clock
        began = time.perf_counter()
        jobs = [pool.submit(write_alone, folder, total // shards, range(n, shards, workers)) for n in range(workers)]
        for job in jobs:
            job.result()
        seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def measure(count: int, side: int, workers: int, folder: Path) -> dict[str, Any]:
    """One row: a build between two floors. Runs in a process of its own, so that peak memory is this build's."""
    pictures = write_pictures(folder / "pictures", side)
    corpus = Corpus(
        name="synthetic", drafts=partial(drafts, pictures=pictures, count=count), tasks=("mixed",),
        expected={"train": count}, license="none", samples_per_shard=1000,
    )  # fmt: skip
    began = time.perf_counter()
    done = build(corpus, folder, "train", folder / "out", workers=workers)
    seconds = time.perf_counter() - began
    assert done.manifest.samples == count and not done.dropped
    total, shards = done.manifest.shards.bytes, len(done.manifest.shards)
    shutil.rmtree(folder / "out")
    floors = [time_floor(folder / "floor", total, shards, workers) for _ in range(2)]
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {
        "records": count,
        "picture KiB": round(sum(p.size for p in pictures) / len(pictures) / 1024, 1),
        "GB": round(total / 1e9, 2),
        "records/s": round(count / seconds),
        "MB/s": round(total / 1e6 / seconds),
        "floor MB/s": round(total / 1e6 / min(floors)),
        "share of the floor %": round(100 * min(floors) / seconds, 1),
        "peak MiB": round(max(resource.getrusage(one).ru_maxrss for one in who) / 1024),
    }


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=128, help="pixels; 128 gives 15 KiB, 448 gives 180")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder for temporary files")
    args = parser.parse_args()
    rows = []
    for count, side in ((args.records // 10, args.side), (args.records, args.side), (args.records // 50, 448)):
        with (
            tempfile.TemporaryDirectory(dir=args.folder) as folder,
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone,
        ):
            rows.append(alone.submit(measure, count, side, args.workers, Path(folder)).result())
            print(rows[-1], flush=True)
    notes = [
        "floor: the same number of processes writing the same bytes, synced per shard, and nothing else",
        "peak memory is that of the largest process: it must not grow with the records",
        "goal: at least 50 % of the floor for 1,000,000 records",
    ]
    report("build", "Building a corpus, beside writing its bytes", rows, packages=["numpy", "pillow"], notes=notes)


if __name__ == "__main__":
    main()
