"""Damaged tars and images by the thousand: nothing may be lost without a name, nothing mixed, nothing may crash.

`python -m tests.shards.fuzz --cases 10000 --seed 1` (`make fuzz-data`); `test_fuzz.py` runs a few of the same. The seed
and the number of a case make the case, so what a run finds can be run again alone.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigptv2.corpora.sources import toy
from minigptv2.errors import DataError
from minigptv2.shards.image_files import MAX_PIXELS, check_image, open_image, square
from minigptv2.shards.image_header import PNG_START, png_chunks
from minigptv2.shards.indexing import ScanOptions, scan_shard
from minigptv2.shards.manifest import RECORDS
from minigptv2.shards.reader import CorpusReader, split_name
from minigptv2.shards.tar import BLOCK, Member, find_members
from minigptv2.shards.writer import Sample, write_corpus
from tests.damage import Damage, change_bytes, cut, flip_a_bit, insert_garbage, zero_a_range
from tests.images.making import chunk
from tests.memory import peak_mb, restart_peak

SAMPLES = 6
MEMORY_LIMIT_MB = 500


def _members(data: bytes) -> list[bytes]:
    return [data[member.offset : member.end] for member in find_members(data)]


def _joined(members: list[bytes]) -> bytes:
    return b"".join(members) + bytes(2 * BLOCK)


def lose_a_member(data: bytes, rng: random.Random) -> bytes:
    members = _members(data)
    del members[rng.randrange(len(members))]
    return _joined(members)


def double_a_member(data: bytes, rng: random.Random) -> bytes:
    members = _members(data)
    members.insert(rng.randrange(len(members) + 1), rng.choice(members))
    return _joined(members)


def reorder(data: bytes, rng: random.Random) -> bytes:
    members = _members(data)
    a, b = rng.sample(range(len(members)), 2)
    members[a], members[b] = members[b], members[a]
    return _joined(members)


def shuffle(data: bytes, rng: random.Random) -> bytes:
    members = _members(data)
    rng.shuffle(members)
    return _joined(members)


TAR_DAMAGE: tuple[Damage, ...] = (
    cut,
    change_bytes,
    flip_a_bit,
    zero_a_range,
    insert_garbage,
    lose_a_member,
    double_a_member,
    reorder,
    shuffle,
)


@dataclass
class Verdict:
    """What the cases showed."""

    cases: int = 0
    silent: list[str] = field(default_factory=list)
    kept: int = 0
    lost: int = 0
    unnoticeable: int = 0
    by_damage: Counter[str] = field(default_factory=Counter)


def fuzz_tars(cases: int, seed: int, folder: Path) -> Verdict:
    """Each case damages one tar: half of them after it was indexed, half before."""
    samples = list(toy.samples("refer", SAMPLES, Path(), "val"))
    good = folder / "good"
    write_corpus(samples, good, "good")
    whole = (good / "good-000000.tar").read_bytes()
    verdict = Verdict()
    for case in range(cases):
        rng = random.Random(f"{seed}/{case}")
        damage = rng.choice(TAR_DAMAGE)
        data = damage(whole, rng)
        after = rng.random() < 0.5
        name = f"case {case} ({damage.__name__}, {'after' if after else 'before'} indexing)"
        verdict.cases += 1
        verdict.by_damage[damage.__name__] += 1
        if data == whole:
            continue
        (good / "good-000000.tar").write_bytes(data)
        if after:
            _read_damaged(good, samples, verdict, name)
        else:
            _index_damaged(good / "good-000000.tar", whole, samples, verdict, name)
    return verdict


def _read_damaged(folder: Path, samples: list[Sample], verdict: Verdict, name: str) -> None:
    """Each sample comes out as it was written, or by name."""
    reader = CorpusReader(folder)
    for number, sample in enumerate(samples):
        try:
            record, image = reader.record(number), reader.image(number)
        except DataError as error:
            lost = reader.dropped(number, error)
            verdict.lost += 1
            if not (lost.shard == "good-000000.tar" and lost.key and lost.reason):
                verdict.silent.append(f"{name}: sample {number} lost without a name: {lost}")
            continue
        verdict.kept += 1
        if record != sample.record or image != sample.image:
            verdict.silent.append(f"{name}: sample {number} is not what was written")


def _index_damaged(file: Path, whole: bytes, samples: list[Sample], verdict: Verdict, name: str) -> None:
    """Without an index from before, bytes inside a picture cannot be missed; pairs and losses can."""
    scan = scan_shard(file, ScanOptions("good", RECORDS))
    data = file.read_bytes()
    owner = {_content(whole, member): split_name(member.name)[0] for member in find_members(whole)}
    verdict.kept += len(scan.rows)
    verdict.lost += max(0, SAMPLES - len(scan.rows))
    if len(scan.rows) < SAMPLES and not scan.faults:
        verdict.silent.append(f"{name}: {SAMPLES - len(scan.rows)} samples lost and no fault named")
    keys: set[str] = set()
    for block in scan.rows["block"].tolist():
        pair = []
        for member in find_members(data, block * BLOCK, whole=False):
            key = split_name(member.name)[0]
            if pair and key != pair[0][0]:
                break
            pair.append((key, owner.get(_content(data, member))))
            if len(pair) == 2:
                break
        if pair[0][0] in keys:
            verdict.silent.append(f"{name}: key {pair[0][0]} twice")
        keys.add(pair[0][0])
        owners = {whose for _, whose in pair if whose is not None}
        verdict.unnoticeable += any(whose is None for _, whose in pair)
        if len(owners) > 1 or len(pair) != 2:
            verdict.silent.append(f"{name}: text and image of different samples: {pair}")


def _content(data: bytes, member: Member) -> bytes:
    return data[member.data_offset : member.data_offset + member.size]


def fuzz_images(cases: int, seed: int, bombs: int = 99) -> dict[str, Any]:
    """Decode damaged images in a process of its own; how it ended, what it counted, how its memory grew."""
    command = [
        sys.executable,
        "-m",
        "tests.shards.fuzz",
        "--images-here",
        "--cases",
        str(cases),
        "--seed",
        str(seed),
        "--bombs",
        str(bombs),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"crash": f"exit code {done.returncode}: {done.stderr[-2000:]}"}
    return json.loads(done.stdout)


def _decode_here(cases: int, seed: int, bombs: int) -> dict[str, Any]:
    pictures = [sample.image or b"" for sample in toy.samples("refer", 2, Path(), "val")] + _pictures()
    outcome: Counter[str] = Counter()
    _decode(pictures[0])
    grown = {}
    for case in range(cases):
        rng = random.Random(f"{seed}/image/{case}")
        damage = rng.choice(IMAGE_DAMAGE)
        data = damage(rng.choice(pictures), rng)
        if case == 0:
            before = restart_peak()
        outcome[_decode(data)] += 1
    grown["damaged images"] = round(peak_mb() - before, 1)
    for name, bomb in _bombs(bombs).items():
        before = restart_peak()
        outcome[_decode(bomb)] += 1
        grown[name] = round(peak_mb() - before, 1)
    return {"outcomes": dict(outcome), "grown_mb": grown}


def _decode(data: bytes) -> str:
    """How an image ends. A build's check must accept what is opened, and refuse the rest for the same reason."""
    opened, checked = (_reason(see, data) for see in (open_image, check_image))
    assert opened == checked, f"opening: {opened or 'accepted'}, checking: {checked or 'accepted'}"
    if opened:
        assert opened.startswith("here: ")
        return "refused by name"
    assert square(open_image(data, "here"), 448).shape == (3, 448, 448)
    return "decoded"


def _reason(see: Callable[[bytes, str], object], data: bytes) -> str:
    try:
        see(data, "here")
    except DataError as error:
        return str(error)
    return ""


def reseal(damage: Damage) -> Damage:
    """The damage to a PNG with checksums that hide it, so that it reaches the decoder. Other images: unchanged."""

    def sealed(data: bytes, rng: random.Random) -> bytes:
        if not data.startswith(PNG_START):
            return damage(data, rng)
        chunks = [(kind, data[start : start + length]) for kind, start, length in png_chunks(data)]
        number = rng.choice([index for index, (kind, _) in enumerate(chunks) if kind == b"IDAT"] + [0])
        chunks[number] = (chunks[number][0], damage(chunks[number][1], rng))
        return PNG_START + b"".join(chunk(kind, content) for kind, content in chunks)

    return sealed


def damage_rows(data: bytes, rng: random.Random) -> bytes:
    """A PNG whose rows were changed before they were compressed: filters, missing and additional bytes."""
    if not data.startswith(PNG_START):
        return data
    chunks = [(kind, data[start : start + length]) for kind, start, length in png_chunks(data)]
    rows = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    rows = rng.choice([flip_a_bit, cut, zero_a_range, insert_garbage, change_bytes])(rows, rng)
    packed = zlib.compress(rows) + rng.choice([b"", b"x", bytes(9)])
    at = rng.randrange(len(packed))
    head = [(kind, content) for kind, content in chunks if kind not in (b"IDAT", b"IEND")]
    return PNG_START + b"".join(
        chunk(*one) for one in [*head, (b"IDAT", packed[:at]), (b"IDAT", packed[at:]), (b"IEND", b"")]
    )


def _change_the_head(data: bytes, rng: random.Random) -> bytes:
    return change_bytes(data[:64], rng) + data[64:]


IMAGE_DAMAGE: tuple[Damage, ...] = (
    cut,
    change_bytes,
    flip_a_bit,
    zero_a_range,
    insert_garbage,
    _change_the_head,
    reseal(flip_a_bit),
    reseal(change_bytes),
    reseal(insert_garbage),
    reseal(cut),
    damage_rows,
)


def _pictures() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    made = []
    for mode, kind, options in (
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(buffer, kind, **options)  # type: ignore[arg-type]
        made.append(buffer.getvalue())
    return made


def _bombs(count: int) -> dict[str, bytes]:
    """Small files that ask for much: over the limit of pixels, and just under it in the costliest modes."""
    side = int(MAX_PIXELS**0.5)
    wanted: list[tuple[str, str, tuple[int, int], str, dict[str, object]]] = [
        ("177 megapixels", "1", (13300, 13300), "PNG", {}),
        ("a line of 30 million", "1", (30_000_000, 1), "PNG", {}),
        ("largest RGB png", "RGB", (side, side), "PNG", {}),
        ("largest RGBA png", "RGBA", (side, side), "PNG", {}),
        ("largest 16 bit png", "I;16", (side, side), "PNG", {}),
        ("largest jpeg", "RGB", (side, side), "JPEG", {}),
        ("largest progressive jpeg", "RGB", (side, side), "JPEG", {"progressive": True, "subsampling": 0}),
        ("largest CMYK jpeg", "CMYK", (side, side), "JPEG", {"progressive": True}),
        ("webp over its limit", "RGBA", (side, side), "WEBP", {"lossless": True, "method": 0}),
        ("largest webp", "RGBA", (side // 2, side), "WEBP", {"lossless": True, "method": 0}),
        ("largest LA png", "LA", (side, side), "PNG", {}),
        ("tallest", "RGB", (MAX_PIXELS // 65535, 65535), "PNG", {}),
        ("widest", "RGBA", (65535, MAX_PIXELS // 65535), "PNG", {}),
    ]
    code = (
        "import sys, io\nfrom PIL import Image\nImage.MAX_IMAGE_PIXELS = None\n"
        "Image.new(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3]))).save(sys.stdout.buffer, sys.argv[4], "
        "**__import__('json').loads(sys.argv[5]))"
    )
    made = {}
    for name, mode, (width, height), kind, options in wanted[:count]:  # in other processes: making them takes memory
        words = [mode, str(width), str(height), kind, json.dumps(options)]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True)
        if done.returncode == 0:
            made[name] = done.stdout
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--bombs", type=int, default=99, help="the first so many")
    parser.add_argument("--images-here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.images_here:
        print(json.dumps(_decode_here(args.cases, args.seed, args.bombs)))
        return 0
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        tars = fuzz_tars(args.cases, args.seed, Path(folder))
    print(f"{tars.cases} damaged tars: {len(tars.silent)} silent; {tars.kept} samples kept, {tars.lost} lost by name")
    print(f"  pictures changed before any index knew them, in right pairs: {tars.unnoticeable}")
    print("  " + ", ".join(f"{count} {name}" for name, count in sorted(tars.by_damage.items())))
    for line in tars.silent[:20]:
        print(f"  SILENT {line}")
    images = fuzz_images(args.cases, args.seed, args.bombs)
    if "crash" in images:
        print(f"CRASH {images['crash']}")
        return 1
    grown = images["grown_mb"]
    print(f"{args.cases} damaged images and {len(grown) - 1} bombs: 0 crashes; {images['outcomes']}")
    print(f"  memory of the worker grew by {max(grown.values())} MB at most: {grown}")
    return 0 if not tars.silent and max(grown.values()) <= MEMORY_LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
