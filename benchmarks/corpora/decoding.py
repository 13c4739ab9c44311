"""Measures what decoding every image costs a build: `python -m benchmarks.corpora.decoding`.

The same corpus is built with images decoded, which is the default, and with only headers read (`--fast`), in turn.
The images are photograph-like JPEGs and PNGs of usual sizes, and noise, which is the slowest to decode for its size.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import report
from minigptv2.corpora.build_corpus import BuildOptions, build
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, TarMember
from minigptv2.corpora.raw import Raw
from minigptv2.record import Turn
from minigptv2.shards.shard_file import ImageRules

_DIFFERENT_IMAGES = 64
_ROUNDS = 3


def drafts(raw: Raw, split: str, *, images: list[TarMember], count: int) -> Iterator[Draft]:
    """Yield `count` drafts with a caption each."""
    turn = Turn("caption", answers=("a photograph",))
    for number in range(count):
        yield Draft(f"{number:08d}", (turn,), images[number % len(images)], {"corpus": "synthetic"})


def write_images(file: Path, size: tuple[int, int], format: str, coarse: int) -> list[TarMember]:
    """Write images of `size` one after the other in a file: noise of 1 / `coarse` of the size, enlarged."""
    rng = np.random.default_rng(0)
    members, offset = [], 0
    with open(file, "wb") as stream:
        for _ in range(_DIFFERENT_IMAGES):
            noise = rng.integers(0, 256, (size[1] // coarse, size[0] // coarse, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, format, quality=90)
            stream.write(buffer.getvalue())
            members.append(TarMember(str(file), offset, buffer.tell()))
            offset += buffer.tell()
    return members


def measure(folder: Path, name: str, members: list[TarMember], count: int, workers: int) -> dict[str, Any]:
    """Return one row: the best of several builds with and without decoding."""
    corpus = CorpusSpec(
        name="synthetic",
        drafts=partial(drafts, images=members, count=count),
        tasks=("caption",),
        expected={"train": count},
        license="none",
        samples_per_shard=500,
    )
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(_ROUNDS):
        for decode in (False, True):
            began = time.perf_counter()
            options = BuildOptions(images=ImageRules(decode=decode))
            done = build(corpus, folder, "train", folder / "out", workers=workers, options=options)
            seconds[decode].append(time.perf_counter() - began)
            assert done.manifest.samples == count and not done.dropped
            shutil.rmtree(folder / "out")
    decoded, fast = (count / min(seconds[decode]) for decode in (True, False))
    return {
        "images": name,
        "KiB": round(sum(member.size for member in members) / len(members) / 1024),
        "headers only, images/s": round(fast),
        "decoded, images/s": round(decoded),
        "%": round(100 * decoded / fast),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="folder to write to. Default: the folder for temporary files")
    args = parser.parse_args()
    rows = []
    for name, size, format, coarse, share in (
        ("JPEG 256 x 192", (256, 192), "JPEG", 8, 1),
        ("JPEG 640 x 480", (640, 480), "JPEG", 8, 2),
        ("JPEG 640 x 480 of noise", (640, 480), "JPEG", 1, 8),
        ("PNG 640 x 480", (640, 480), "PNG", 8, 8),
    ):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            members = write_images(Path(folder) / "images", size, format, coarse)
            rows.append(measure(Path(folder), name, members, args.images // share, args.workers))
            print(rows[-1], flush=True)
    notes = [
        f"the best of {_ROUNDS} builds of each kind, in turn",
        "goal: 60 % of the rate with headers only on two cores",
    ]
    packages = ["numpy", "pillow", "simplejpeg"]
    report(
        "build_decoding", "Building a corpus with and without decoding its images", rows, packages=packages, notes=notes
    )


if __name__ == "__main__":
    main()
