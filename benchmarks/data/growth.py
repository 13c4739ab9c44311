"""B5, growth with data: time to the first samples and resident memory at 10, 1,000 and 100,000 shards.

Each figure is of a fresh process, after its imports: open the corpus, read 32 records and images in shuffled order.
Beside it webdataset, opening the same tars. The tars are hard links to one tar of four samples.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results import report, spread
from minigptv2.data.manifest import ShardInfo, open_index, parse_manifest, save_manifest
from minigptv2.data.shards import write_corpus
from minigptv2.data.sources import toy

SIZES = (10, 1_000, 100_000)
REPEATS = 3
_LINKS = 50_000
"""ext4 allows 65,000 names of one file."""
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
}


def build(folder: Path, shards: int) -> None:
    """A corpus of so many shards, one tar under many names."""
    write_corpus(toy.samples("refer", 4, Path(), "val"), folder, "c")
    manifest = parse_manifest(folder)
    one, rows = manifest.shards[0], np.array(open_index(folder, manifest))
    names = [f"c-{number:06d}.tar" for number in range(shards)]
    for number, name in enumerate(names[1:], start=1):
        if number % _LINKS == 0:
            shutil.copy(folder / names[0], folder / name)
        else:
            os.link(folder / names[number - number % _LINKS], folder / name)
    infos = [ShardInfo(name, one.bytes, one.sha256, one.samples) for name in names]
    save_manifest(folder, infos, np.tile(rows, shards), corpus="c", images=4 * shards, turns={"refer": 4 * shards})


def measure(side: str, folder: Path) -> tuple[float, float]:
    """Seconds to the first 32 samples, and MB of resident memory that they took."""
    imports, work = _SIDES[side]
    code = _MEASURE.format(imports=imports, work=work)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    return seconds, megabytes


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            build(Path(temporary) / str(size) / "c", size)
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(REPEATS):  # the sides interleaved
            for size in SIZES:
                for side in _SIDES:
                    found.setdefault((side, size), []).append(measure(side, Path(temporary) / str(size)))
    for side in _SIDES:
        first = spread([seconds for seconds, _ in found[side, SIZES[0]]])["median"]
        for size in SIZES:
            times = spread([seconds for seconds, _ in found[side, size]])
            rows.append({
                "side": side, "shards": size, "first samples s": times["median"], "min": times["min"],
                "max": times["max"], "of that at 10": times["median"] / first,
                "memory MB": spread([memory for _, memory in found[side, size]])["median"],
            })  # fmt: skip
    report(
        "data-growth", "B5: first 32 samples and memory by number of shards", rows, packages=["webdataset", "numpy"],
        notes=["goal: at 100,000 shards <= 1.2 x the time at 10 and <= 0.5 s; 16 index bytes a sample",
               "megatron-energon and litdata were not run"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
