"""Measures the speed of building a corpus and of only writing its bytes: `make bench-build` (RECORDS=1000000).

The corpus is synthetic: images of a given size in one large file, as in the tars of img2dataset, and one record with a
question or a box for each. The build is that of `minigptv2 shards build --fast`: one process makes drafts, and as many
processes as cores read images, take sizes from headers, check and render records, and write tars with checksums and
hashes. `decoding` measures what decoding the images adds. The build is compared with the same processes writing as many
bytes in files of the same size: plainly, with pages freed as the build frees them, and with all work of a build except
records. Peak memory is that of the largest process.
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
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import report
from minigptv2.boxes import Box
from minigptv2.corpora.build_corpus import BuildOptions, build
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, TarMember
from minigptv2.corpora.raw import Raw
from minigptv2.files import HashedFile
from minigptv2.record import Region, Turn
from minigptv2.shards import tar
from minigptv2.shards.shard_file import ImageRules

_DIFFERENT_PICTURES = 256
_ROUNDS = 2


def drafts(raw: Raw, split: str, *, images: list[TarMember], count: int) -> Iterator[Draft]:
    """Yield `count` drafts, alternately a question and a box."""
    for number in range(count):
        source = {"id": str(number)}
        if number % 2:
            turn = Turn("vqa", f"How many things are in picture {number}?", ("three", "three", "3"), source=source)
        else:
            place = number % 40
            region = Region((Box(place, 10, place + 30, 60),), (f"thing {number} on the left", "the left one"))
            turn = Turn("refer", regions=(region,), source=source)
        yield Draft(f"{number:08d}", (turn,), images[number % len(images)], {"corpus": "synthetic", **source})


def write_images(file: Path, side: int) -> list[TarMember]:
    """Write noise images of `side` pixels, one after the other in a file."""
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


def write_plainly(folder: Path, size: int, numbers: range, images: list[TarMember]) -> None:
    """Write files of `size` bytes, synced and renamed as shards are. Takes as long as `cp` or `tar`."""
    data = os.urandom(1 << 20)
    for number in numbers:
        with open(folder / f".{number}.tmp", "wb") as stream:
            for start in range(0, size, len(data)):
                stream.write(data[: size - start])
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(folder / f".{number}.tmp", folder / f"{number}.tar")


def write_freeing(folder: Path, size: int, numbers: range, images: list[TarMember]) -> None:
    """Do the same and free the pages of each piece, as the build does."""
    data = os.urandom(HashedFile.PIECE)
    for number in numbers:
        descriptor = os.open(folder / f".{number}.tmp", os.O_WRONLY | os.O_CREAT)
        for start in range(0, size, len(data)):
            os.write(descriptor, data[: size - start])
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        os.replace(folder / f".{number}.tmp", folder / f"{number}.tar")


def write_without_records(folder: Path, size: int, numbers: range, images: list[TarMember]) -> None:
    """Read, checksum, hash and write images without any record. A build cannot be faster."""
    source = os.open(images[0].file, os.O_RDONLY)
    per_file = size * len(images) // sum(tar.BLOCK + tar.padded(image.size) for image in images)
    rest = bytes(max(0, size - sum(images[n % len(images)].size for n in range(per_file))) // per_file)
    for number in numbers:
        hashed = HashedFile(folder / f".{number}.tmp", evict_page_cache=True)
        stream = io.BufferedWriter(hashed, HashedFile.PIECE)
        for at in range(per_file):
            image = images[at % len(images)]
            data = os.pread(source, image.size, image.offset)
            zlib.crc32(rest, zlib.crc32(data))
            stream.write(data)
            stream.write(rest)
        stream.flush()
        hashed.finish()
        os.replace(folder / f".{number}.tmp", folder / f"{number}.tar")
    os.close(source)


def timed(
    write: Callable[[Path, int, range, list[TarMember]], None],
    folder: Path,
    total: int,
    shards: int,
    workers: int,
    images: list[TarMember],
) -> float:
    """Return the seconds in which `workers` processes write `total` bytes in `shards` files."""
    folder.mkdir()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(workers)))  # started before the time is measured
        began = time.perf_counter()
        numbers = [range(n, shards, workers) for n in range(workers)]
        jobs = [pool.submit(write, folder, total // shards, some, images) for some in numbers]
        for job in jobs:
            job.result()
        seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def measure(count: int, side: int, workers: int, folder: Path) -> dict[str, Any]:
    """Return one row: builds and comparisons in turn. Run it in its own process, so peak memory is the build's."""
    images = write_images(folder / "pictures", side)
    corpus = CorpusSpec(
        name="synthetic",
        drafts=partial(drafts, images=images, count=count),
        tasks=("mixed",),
        expected={"train": count},
        license="none",
        samples_per_shard=1000,
    )
    seconds: dict[str, list[float]] = {name: [] for name in ("build", "plain", "freeing", "no records")}
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        options = BuildOptions(images=ImageRules(decode=False))
        done = build(corpus, folder, "train", folder / "out", workers=workers, options=options)
        seconds["build"].append(time.perf_counter() - began)
        assert done.manifest.samples == count and not done.dropped
        total, shards = done.manifest.shards.bytes, len(done.manifest.shards)
        shutil.rmtree(folder / "out")
        for name, write in (
            ("plain", write_plainly),
            ("freeing", write_freeing),
            ("no records", write_without_records),
        ):
            seconds[name].append(timed(write, folder / "alone", total, shards, workers, images))
    best = {name: min(times) for name, times in seconds.items()}
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {
        "records": count,
        "picture KiB": round(sum(p.size for p in images) / len(images) / 1024, 1),
        "GB": round(total / 1e9, 2),
        "records/s": round(count / best["build"]),
        "MB/s": round(total / 1e6 / best["build"]),
        "plain MB/s": round(total / 1e6 / best["plain"]),
        "% of plain": round(100 * best["plain"] / best["build"], 1),
        "freeing MB/s": round(total / 1e6 / best["freeing"]),
        "% of freeing": round(100 * best["freeing"] / best["build"], 1),
        "no records MB/s": round(total / 1e6 / best["no records"]),
        "% of no records": round(100 * best["no records"] / best["build"], 1),
        "peak MiB": round(max(resource.getrusage(one).ru_maxrss for one in who) / 1024),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=128, help="pixels; 128 gives 15 KiB, 448 gives 180")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="folder to write to. Default: the folder for temporary files")
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
        "plain: the same number of processes writing the same bytes, synced per shard, and nothing else",
        "freeing: the same, and written pages are freed at once, as in the build",
        "no records: images are read, checksummed, hashed, written and freed without records; no build can be faster",
        f"the best of {_ROUNDS} rounds of all four in turn, of each",
        "peak memory is that of the largest process; it must not grow with the number of records",
        "goal: at least 50 % of writing the bytes alone for 1,000,000 records",
    ]
    report("build", "Building a corpus, beside writing its bytes", rows, packages=["numpy", "pillow"], notes=notes)


if __name__ == "__main__":
    main()
