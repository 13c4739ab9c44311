"""Measures time to the first samples and resident memory at 10, 1,000 and 100,000 shards.

Each measurement is from a new process after its imports: open the corpus, read 32 records and images in shuffled order.
The tars are hard links to one tar of four samples, which webdataset reads too. The chunks of litdata are hard links to
one chunk of the same four samples. energon refuses duplicate keys and therefore has its own tars.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.results import report, spread
from minigptv2.corpora.sources import toy
from minigptv2.shards.manifest import INDEX_DTYPE, IndexWriter, ShardInfo, open_index, parse_manifest, save_manifest
from minigptv2.shards.writer import write_corpus

SIZES = (10, 1_000, 100_000)
REPEATS = 7
_LINKS = 50_000
"""Hard links per file. ext4 allows 65,000."""
_MEASURE = """
import time, sys, resource
from pathlib import Path
def memory(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) / 1024
{imports}
before, began = memory(), time.perf_counter()
{work}
print(time.perf_counter() - began, memory() - before)
"""
_SIDES = {
    "minigptv2": (
        "from minigptv2.data.plan import DataPlan\nfrom minigptv2.data.config import Recipe, CorpusShare",
        "plan = DataPlan(Recipe(corpora={'c': CorpusShare(ratio=1)}), Path(sys.argv[1]), seed=1)\n"
        "reader = plan.corpora[0]\n"
        "for sample in plan.samples(0, 32): reader.record(sample.sample), reader.image(sample.sample)",
    ),
    "webdataset (resampled)": (
        "import webdataset",
        "from itertools import islice\nlast = int(Path(sys.argv[1]).name) - 1\n"
        "files = f'{sys.argv[1]}/c/c-{{000000..{last:06d}}}.tar'\n"
        "list(islice(webdataset.WebDataset(files, resampled=True, shardshuffle=True), 32))",
    ),
    "litdata": (
        "import litdata",
        "samples = litdata.StreamingDataset(f'{sys.argv[1]}/litdata', shuffle=True)\n"
        "from itertools import islice\nlist(islice(samples, 32))",
    ),
    "energon": (
        "from megatron import energon",
        "from itertools import islice\n"
        "class Raw(energon.DefaultTaskEncoder):\n"
        "    decoder = None\n"
        "    cookers = [energon.Cooker(energon.stateless(lambda sample: sample))]\n"
        "    def batch(self, samples): return samples\n"
        "data = energon.get_train_dataset(f'{sys.argv[1]}/energon', batch_size=1, shuffle_buffer_size=None,\n"
        "    max_samples_per_sequence=None, task_encoder=Raw(),\n"
        "    worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0))\n"
        "list(islice(iter(energon.get_loader(data)), 32))",
    ),
}
_MOST = {"energon": 1_000}
"""Largest size of the sides that are not measured at every size."""


def link(file: Path, names: list[Path]) -> None:
    """Link `file` under all `names`, with a new copy when the file system allows no more links."""
    for number, name in enumerate(names):
        first = names[number - number % _LINKS]
        if name != first:
            os.link(first, name)
        elif name != file:
            shutil.copy(file, name)


def build(folder: Path, shards: int) -> None:
    """A corpus of so many shards, one tar under many names."""
    write_corpus(toy.samples("refer", 4, Path(), "val"), folder, "c")
    manifest = parse_manifest(folder)
    one, rows = manifest.shards[0], np.array(open_index(folder, manifest))
    names = [f"c-{number:06d}.tar" for number in range(shards)]
    link(folder / names[0], [folder / name for name in names])
    infos = [ShardInfo(name, one.bytes, one.sha256, one.samples) for name in names]
    with IndexWriter(folder) as index:
        for _ in names:
            index.append(rows, np.ones(len(rows)))
        save_manifest(folder, infos, index, corpus="c", images=4 * shards, turns={"refer": 4 * shards})


def build_litdata(folder: Path, shards: int) -> None:
    """Write litdata's chunks of the same four samples: one chunk under many names."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="32MB")
    for number, sample in enumerate(toy.samples("refer", 4, Path(), "val")):
        writer.add_item(number, {"jpg": sample.image, "json": b"{}"})
    writer.done()
    writer.merge(1)
    index = json.loads((folder / "index.json").read_text())
    chunk = index["chunks"][0]
    names = [f"chunk-{number:06d}.bin" for number in range(shards)]
    link(folder / chunk["filename"], [folder / name for name in names])
    index["chunks"] = [{**chunk, "filename": name} for name in names]
    (folder / "index.json").write_text(json.dumps(index))


def build_energon(folder: Path, shards: int) -> float:
    """Write tars of the same four images under unique keys and prepare them for energon. Returns the seconds."""
    folder.mkdir()
    images = [sample.image or b"" for sample in toy.samples("refer", 4, Path(), "val")]
    for number in range(shards):
        with tarfile.open(folder / f"c-{number:06d}.tar", "w") as tar:
            for place, image in enumerate(images):
                for extension, data in (("jpg", image), ("json", b"{}")):
                    member = tarfile.TarInfo(f"{4 * number + place:08d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    command = [
        sys.executable,
        "-m",
        "megatron.energon.cli.main",
        "prepare",
        str(folder),
        "--non-interactive",
        "--split-ratio",
        "1,0,0",
        "--sample-type",
        "CrudeWebdataset",
        "--num-workers",
        "2",
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def measure(side: str, folder: Path) -> tuple[float, float]:
    """Return the seconds to the first 32 samples and the MB of resident memory that they took."""
    imports, work = _SIDES[side]
    code = _MEASURE.format(imports=imports, work=work)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    return seconds, megabytes


def main() -> None:
    """Print and write the table."""
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            folder = Path(temporary) / str(size)
            build(folder / "c", size)
            build_litdata(folder / "litdata", size)
            if size <= _MOST["energon"]:
                seconds = build_energon(folder / "energon", size)
                notes.append(f"energon's preparation of {size} tars of four samples took {seconds:.0f} s, not counted")
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(REPEATS):  # the sides interleaved
            for size in SIZES:
                for side in _SIDES:
                    if size <= _MOST.get(side, SIZES[-1]):
                        found.setdefault((side, size), []).append(measure(side, Path(temporary) / str(size)))
    for side, size in sorted(found, key=lambda key: (list(_SIDES).index(key[0]), key[1])):
        first = spread([seconds for seconds, _ in found[side, SIZES[0]]])["median"]
        times = spread([seconds for seconds, _ in found[side, size]])
        rows.append(
            {
                "side": side,
                "shards": size,
                "first samples s": times["median"],
                "min": times["min"],
                "max": times["max"],
                "of that at 10": times["median"] / first,
                "memory MB": spread([memory for _, memory in found[side, size]])["median"],
            }
        )
    most = rows[len(SIZES) - 1]
    met = float(most["of that at 10"]) <= 1.2 and float(most["first samples s"]) <= 0.5
    extra = 1000 * (float(most["first samples s"]) - float(rows[0]["first samples s"]))
    notes += [
        f"the increase of {extra:.1f} ms comes from permuting the shards, summing their counts and checking 64 files",
        f"goal: at {SIZES[-1]:,} shards <= 1.2 x the time at 10 and <= 0.5 s: {'met' if met else 'MISSED'}",
        f"the index holds {INDEX_DTYPE.itemsize} bytes per sample (goal 16)",
    ]
    report(
        "data_growth",
        "First 32 samples and memory by number of shards",
        rows,
        packages=["webdataset", "litdata", "megatron-energon", "numpy"],
        notes=notes,
    )


if __name__ == "__main__":
    main()
