"""Writing corpora: the same bytes by any number of workers, over interruptions; losses named; images baked or not."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.corpora.sources import toy
from minigptv2.errors import ConfigError, DataError
from minigptv2.files import sha256_of
from minigptv2.record import Record, Turn
from minigptv2.shards.dropped import Dropped, read_report, summarize
from minigptv2.shards.image_files import open_image, square
from minigptv2.shards.manifest import INDEX_DTYPE, INDEX_FILE, IndexWriter, load_manifest
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.shard_file import BUILD_FOLDER
from minigptv2.shards.writer import CorpusOptions, Rejected, Sample, write_corpus
from tests.conftest import REPOSITORY
from tests.shards.finishing import open_file


def contents(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_byte(tmp_path: Path, workers: int) -> None:
    for name, count in (("alone", 0), ("several", workers)):
        write_corpus(toy.samples("refer", 25, Path(), "val"), tmp_path / name, "c", samples_per_shard=4, workers=count)
    assert contents(tmp_path / "several") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "alone")) == 7 + 3


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    write_corpus(toy.samples("refer", 40, Path(), "val"), tmp_path / "whole", "c", samples_per_shard=4)
    code = textwrap.dedent("""
        import itertools, sys, os, signal
        from pathlib import Path
        from minigptv2.shards import shard_file, writer
        from minigptv2.corpora.sources import toy
        from minigptv2.record import to_json
        stored = itertools.count()
        def store(record):
            if next(stored) == 22:  # in the middle of the sixth shard
                os.kill(os.getpid(), signal.SIGKILL)
            return to_json(record)
        shard_file.to_json = store
        writer.write_corpus(toy.samples("refer", 40, Path(), "val"), Path(sys.argv[1]), "c", samples_per_shard=4)
    """)
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="no manifest"):
        CorpusReader(tmp_path / "c")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "c").glob("*.tar")}
    assert len(before) == 5 and len(list((tmp_path / "c").glob(".c-000005.tar.*.tmp"))) == 1
    write_corpus(toy.samples("refer", 40, Path(), "val"), tmp_path / "c", "c", samples_per_shard=4)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "c").glob("*.tar")}
    assert all(after[name] == mtime for name, mtime in before.items()), "a whole shard was written again"
    assert not (tmp_path / "c" / BUILD_FOLDER).exists()


def test_a_resumed_build_of_other_samples_reuses_nothing_stale(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield from list(toy.samples("refer", 8, Path(), "val"))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_corpus(broken(), tmp_path / "c", "c", samples_per_shard=4)
    samples = list(toy.samples("refer", 12, Path(), "train"))
    write_corpus(samples, tmp_path / "c", "c", samples_per_shard=4)
    reader = CorpusReader(tmp_path / "c")
    assert [reader.record(n) for n in range(12)] == [sample.record for sample in samples]


def test_a_smaller_build_leaves_no_shards_of_a_larger_one(tmp_path: Path) -> None:
    for count in (12, 4):
        write_corpus(toy.samples("vqa", count, Path(), "val"), tmp_path, "c", samples_per_shard=4)
    assert sorted(file.name for file in tmp_path.glob("*.tar")) == ["c-000000.tar"]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_finished_by_the_workers(tmp_path: Path, workers: int) -> None:
    samples = list(toy.samples("refer", 9, Path(), "val"))
    items = []
    for sample in samples:
        items.append((sample.key, sample.record, str(tmp_path / f"{sample.key}.jpg")))
        (tmp_path / f"{sample.key}.jpg").write_bytes(sample.image or b"")
    (tmp_path / f"{samples[4].key}.jpg").unlink()
    told: list[Dropped] = []
    manifest = write_corpus(
        items,
        tmp_path / "c",
        "c",
        samples_per_shard=2,
        workers=workers,
        options=CorpusOptions(finish=open_file),
        on_dropped=told.append,
    )
    reader = CorpusReader(tmp_path / "c")
    kept = [sample for number, sample in enumerate(samples) if number != 4]
    assert [reader.image(n) for n in range(8)] == [sample.image for sample in kept]
    assert [reader.key(n) for n in range(8)] == [sample.key for sample in kept]
    assert told == [Dropped("c", "c-000002.tar", samples[4].key, "image file missing", 3)] and manifest.dropped == 3


def test_pictures_that_were_put_in_place_are_taken_by_the_next_start(tmp_path: Path) -> None:
    samples = list(toy.samples("refer", 4, Path(), "val"))
    items = [(sample.key, sample.record, str(tmp_path / f"{sample.key}.jpg")) for sample in samples]
    with pytest.raises(DataError, match="nothing to write: most dropped as 'image file missing', first .*val-000000"):
        write_corpus(
            items,
            tmp_path / "c",
            "c",
            samples_per_shard=2,
            options=CorpusOptions(finish=open_file),
            on_dropped=lambda one: None,
        )
    assert len(read_report(tmp_path / "c" / "dropped.jsonl")) == 4, "what was lost is told, even of nothing kept"
    for sample in samples:
        (tmp_path / f"{sample.key}.jpg").write_bytes(sample.image or b"")
    write_corpus(
        items,
        tmp_path / "c",
        "c",
        samples_per_shard=2,
        options=CorpusOptions(finish=open_file),
        on_dropped=lambda one: None,
    )
    assert len(CorpusReader(tmp_path / "c")) == 4


def test_a_shard_with_a_picture_that_is_still_missing_is_not_written_again(tmp_path: Path) -> None:
    """Where links have died nearly every shard has one: an interrupted build would start over."""
    samples = list(toy.samples("refer", 6, Path(), "val"))
    items = [(sample.key, sample.record, str(tmp_path / f"{sample.key}.jpg")) for sample in samples]
    for sample in samples[1:3] + samples[4:]:
        (tmp_path / f"{sample.key}.jpg").write_bytes(sample.image or b"")

    def interrupted() -> Iterator[object]:
        yield from items[:4]
        raise KeyboardInterrupt

    def write(what: Iterable[object]) -> None:
        write_corpus(
            what,
            tmp_path / "c",
            "c",
            samples_per_shard=2,
            options=CorpusOptions(finish=open_file),
            on_dropped=lambda one: None,
        )

    with pytest.raises(KeyboardInterrupt):
        write(interrupted())
    first, second = (tmp_path / "c" / f"c-00000{number}.tar" for number in (0, 1))
    made = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    (tmp_path / f"{samples[3].key}.jpg").write_bytes(samples[3].image or b"")  # of the second shard only
    write(items)
    assert first.stat().st_mtime_ns == made[0] and second.stat().st_mtime_ns != made[1]
    assert len(CorpusReader(tmp_path / "c")) == 5


def test_a_refused_picture_counts_all_its_questions(tmp_path: Path) -> None:
    good, other = toy.samples("vqa", 2, Path(), "val")
    twice = replace(other.record, turns=other.record.turns[:1] * 7, separate=True)
    told: list[Dropped] = []
    write_corpus([good, Sample("text", twice, b"GIF89a")], tmp_path / "c", "c", on_dropped=told.append)
    assert [one.count for one in told] == [7]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_a_build_without_litter(tmp_path: Path, workers: int) -> None:
    """A small shard reaches the disk only when it is closed."""
    limited = [
        sys.executable,
        "-c",
        textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from minigptv2.shards.writer import write_corpus
        from minigptv2.corpora.sources import toy
        if __name__ == "__main__":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
            write_corpus(toy.samples("refer", 20, Path(), "val"), Path(sys.argv[1]), "c", workers=int(sys.argv[2]))
    """),
        str(tmp_path / "c"),
        str(workers),
    ]
    told = subprocess.run(limited, cwd=REPOSITORY, capture_output=True, text=True)
    assert told.returncode != 0 and "File too large" in told.stderr, told.stderr
    assert [file.name for file in (tmp_path / "c").iterdir()] == [BUILD_FOLDER]


def test_an_index_that_no_longer_fits_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{INDEX_FILE}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(RuntimeError, match="the build's own"), IndexWriter(tmp_path) as index:
        index.append(np.zeros(5, dtype=INDEX_DTYPE), np.ones(5))
        raise RuntimeError("the build's own")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_is_not_written_over_by_another_split(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Sample]:
        yield from toy.samples("refer", 4, Path(), "train")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(interrupted(), tmp_path / "c", "c", options=CorpusOptions(split="train"), samples_per_shard=2)
    kept = contents(tmp_path / "c" / BUILD_FOLDER)
    for name, split in (("c", "val"), ("d", "train")):
        with pytest.raises(ConfigError, match=f"holds an unfinished build of c train: finish it, build {name} {split}"):
            write_corpus(
                toy.samples("refer", 4, Path(), "val"),
                tmp_path / "c",
                name,
                options=CorpusOptions(split=split),
                samples_per_shard=2,
            )
    assert contents(tmp_path / "c" / BUILD_FOLDER) == kept and "c-000000.tar.json" in kept
    write_corpus(
        toy.samples("refer", 6, Path(), "train"),
        tmp_path / "c",
        "c",
        options=CorpusOptions(split="train"),
        samples_per_shard=2,
    )
    assert load_manifest(tmp_path / "c").split == "train" and not (tmp_path / "c" / BUILD_FOLDER).exists()


def test_two_builds_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[Sample]:
        for number, sample in enumerate(toy.samples("refer", 6, Path(), "val")):
            if number == 4:
                with pytest.raises(DataError, match="another build is writing there"):
                    write_corpus(toy.samples("vqa", 3, Path(), "val"), tmp_path / "c", "c")
            yield sample

    write_corpus(meanwhile(), tmp_path / "c", "c", samples_per_shard=2)
    reader = CorpusReader(tmp_path / "c")
    assert [reader.record(number).tasks for number in range(6)] == [("refer",)] * 6


def test_a_source_that_cannot_be_read_leaves_a_finished_corpus_as_it_is(tmp_path: Path) -> None:
    def nothing() -> Iterator[Sample]:
        raise DataError("no such folder")
        yield

    write_corpus(toy.samples("refer", 4, Path(), "val"), tmp_path / "c", "c")
    before = contents(tmp_path / "c")
    with pytest.raises(DataError, match="no such folder"):
        write_corpus(nothing(), tmp_path / "c", "c")
    assert contents(tmp_path / "c") == before and len(CorpusReader(tmp_path / "c")) == 4


def bad_samples() -> list[Sample | Rejected]:
    good = list(toy.samples("refer", 3, Path(), "val"))
    turn = Turn("caption", answers=("x",))
    return [
        good[0],
        Rejected("listed-twice", "the annotation file has it twice"),
        Sample("no-image", good[1].record, None),
        Sample("not-an-image", good[1].record, b"GIF89a"),
        Sample("other-size", Record((turn,), 640, 480), good[1].image),
        Sample("empty", Record((Turn("caption"),), 64, 64), good[1].image),
        Sample("a.b", Record((turn,), 64, 64), good[1].image),
        Sample("x" * 99, Record((turn,), 64, 64), good[1].image),
        good[2],
        good[2],
    ]


def test_what_cannot_be_stored_is_counted_and_named(tmp_path: Path) -> None:
    told: list[Dropped] = []
    manifest = write_corpus(bad_samples(), tmp_path / "c", "c", samples_per_shard=3, on_dropped=told.append)
    assert (manifest.samples, manifest.dropped) == (2, 8)
    assert len(CorpusReader(tmp_path / "c")) == 2
    reasons = {row["key"]: row["reason"] for row in read_report(tmp_path / "c" / "dropped.jsonl")}
    assert reasons == {one.key: one.reason for one in told} and len(told) == 8
    for key, words in {
        "listed-twice": "twice",
        "no-image": "disagree",
        "not-an-image": "a GIF image; convert it",
        "other-size": "640 x 480",
        "empty": "empty answer",
        "a.b": "neither",
        "x" * 99: "does not fit",
        "val-000002": "duplicate key",
    }.items():
        assert words in reasons[key], (key, reasons[key])
    assert sum(summarize(told).values()) == 8


@pytest.mark.parametrize("number", range(1, 10))
def test_without_a_listener_the_first_loss_stops_the_build(tmp_path: Path, number: int) -> None:
    samples = bad_samples()
    if number == 8:
        return  # the good one between
    with pytest.raises(DataError):
        write_corpus([samples[8], samples[number]], tmp_path / "c", "c")
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_baked_images_are_what_the_model_would_see(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((150, 90), Image.Resampling.BICUBIC).save(buffer, "PNG")
    record = Record((Turn("caption", answers=("noise",)),), 150, 90)
    write_corpus([Sample("a", record, buffer.getvalue())], tmp_path / "c", "c", options=CorpusOptions(bake_side=56))
    reader = CorpusReader(tmp_path / "c")
    stored = open_image(reader.image(0), "x")
    assert stored.size == (56, 56) and reader.manifest.baked_side == 56 and reader.record(0) == record
    seen = square(open_image(buffer.getvalue(), "x"), 56).astype(int)
    differences = np.abs(square(stored, 56) - seen)
    assert differences.mean() < 2 and differences.max() <= 12


def test_the_index_is_written_as_numpy_writes_it(tmp_path: Path) -> None:
    """It grows on the disk, shard by shard; a reader of any version maps it."""
    write_corpus(toy.samples("refer", 25, Path(), "val"), tmp_path / "c", "c", samples_per_shard=4)
    file = tmp_path / "c" / INDEX_FILE
    rows = np.load(file)
    np.save(tmp_path / "saved.npy", rows)
    assert rows.shape == (25,) and rows.dtype == INDEX_DTYPE
    assert file.read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_progress_counts_every_sample_once(tmp_path: Path) -> None:
    counted: list[int] = []
    write_corpus(toy.samples("vqa", 10, Path(), "val"), tmp_path, "c", samples_per_shard=4, progress=counted.append)
    assert counted == [4, 4, 2]


def test_the_manifest_is_small_and_says_what_is_there(tmp_path: Path) -> None:
    write_corpus(
        toy.samples("refer", 9, Path(), "val"),
        tmp_path,
        "c",
        samples_per_shard=4,
        options=CorpusOptions(license="mine"),
    )
    document = json.loads((tmp_path / "manifest.json").read_text())
    assert document["samples"] == document["images"] == 9 and document["num_shards"] == 3
    assert document["turns"] == {"refer": 9} and document["license"] == "mine"
    assert document["bytes"] == sum(os.path.getsize(file) for file in tmp_path.glob("*.tar"))


def test_only_reasons_that_differ_are_masked() -> None:
    """A summary of one reason says which key or number it was."""
    dropped = [Dropped("c", "", "a", reason) for reason in ("key 'x' is unknown", "cut after 5 %", "cut after 61 %")]
    assert summarize(dropped) == {"cut after … %": 2, "key 'x' is unknown": 1}
