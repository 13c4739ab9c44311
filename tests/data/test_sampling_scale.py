"""A corpus of very many turns, made of its manifest only: opening, the first samples and memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigptv2.shards.manifest import INDEX_DTYPE, INDEX_FILE, IndexWriter, ShardInfo, save_manifest

PER_SHARD = 1000
MEASURE = """
import json, sys, time
from pathlib import Path
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.plan import DataPlan

def resident_mib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

def timed(work):
    began = time.process_time()  # of this process alone: other tests may run on the same cores
    return work(), time.process_time() - began

line = CorpusShare(ratio=1, share_images=int(sys.argv[2]))
recipe = Recipe(shuffle_window=16, corpora={"many": line})
before = resident_mib()
plan, opening = timed(lambda: DataPlan(recipe, Path(sys.argv[1]), seed=1))
first, first_batch = timed(lambda: plan.samples(0, 96))
middle, far_batch = timed(lambda: plan.samples(7 * len(plan.units[0]) // 2, 96))
assert len(set(first)) == 96 and max(one.part for one in first + middle) > 0
found = {"opening": opening, "first_batch": first_batch, "far_batch": far_batch, "mib": resident_mib() - before}
print(json.dumps({"units": len(plan.units[0]), **found}))
"""


def write_manifest(folder: Path, turns: int) -> None:
    """A corpus of `turns` turns, 1 to 99 per sample, whose shards and index hold nothing."""
    folder.mkdir()
    cycle = np.tile(np.arange(1, 100), 11)[:PER_SHARD]
    cycle[-1] += 50 * PER_SHARD - cycle.sum()
    rng = np.random.default_rng(0)
    shards = turns // (50 * PER_SHARD)
    infos = [ShardInfo(f"many-{number:06d}.tar", 1, "0" * 64, PER_SHARD) for number in range(shards)]
    rows = np.zeros(PER_SHARD, dtype=INDEX_DTYPE)
    with IndexWriter(folder) as index:
        for info in infos:
            (folder / info.file).touch()
            index.append(rows, rng.permutation(cycle))
        save_manifest(folder, infos, index, corpus="many", images=shards * PER_SHARD, turns={"refer": turns})


def measure(shards: Path, share_images: int) -> dict[str, float]:
    """Seconds and MiB of a new process, after its imports."""
    command = [sys.executable, "-c", MEASURE, str(shards), str(share_images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("turns", [1_000_000, 100_000_000])
def test_opening_and_the_first_batch_do_not_depend_on_the_number_of_turns(tmp_path: Path, turns: int) -> None:
    write_manifest(tmp_path / "many", turns)
    found = min((measure(tmp_path, 1) for _ in range(2)), key=lambda one: one["opening"] + one["first_batch"])
    print(f"{turns:,} turns, {(tmp_path / 'many' / INDEX_FILE).stat().st_size / 2**20:.0f} MiB of index: {found}")
    assert found["units"] == turns
    assert found["opening"] < 0.1 and found["first_batch"] < 0.1 and found["far_batch"] < 0.1
    assert found["mib"] < 200


def test_groups_of_turns_read_all_counts_once(tmp_path: Path) -> None:
    write_manifest(tmp_path / "many", 10_000_000)
    found = measure(tmp_path, 4)
    print(found)
    assert 2_500_000 < found["units"] < 3_000_000
    assert found["opening"] < 0.5 and found["first_batch"] < 0.1 and found["mib"] < 200
