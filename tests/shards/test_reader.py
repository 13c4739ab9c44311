"""Shards, manifest, index and reader."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.corpora.sources import photographs, toy
from minigptv2.errors import DataError
from minigptv2.record import Record, Turn
from minigptv2.shards.image_files import open_image, square
from minigptv2.shards.manifest import INDEX_DTYPE, INDEX_FILE, load_manifest
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.writer import Sample, write_corpus
from tests.conftest import World


@pytest.mark.parametrize("corpus", ["refer", "language"])
def test_records_and_images_come_back_as_written(tmp_path: Path, corpus: str) -> None:
    samples = list(toy.samples(corpus, 23, tmp_path, "train"))
    write_corpus(samples, tmp_path / "c", "c", samples_per_shard=5)
    reader = CorpusReader(tmp_path / "c")
    assert len(reader) == 23 and len(reader.manifest.shards) == 5
    for number, sample in enumerate(samples):
        assert reader.record(number) == sample.record
        if sample.image is not None:
            assert reader.image(number) == sample.image


def test_the_index_takes_sixteen_bytes_a_sample() -> None:
    assert INDEX_DTYPE.itemsize == 16


def test_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    import webdataset

    samples = list(photographs.samples(tmp_path, "train"))[:10]
    write_corpus(samples, tmp_path / "c", "c", samples_per_shard=4)
    files = [str(file) for file in sorted((tmp_path / "c").glob("*.tar"))]
    read = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [row["__key__"] for row in read] == [sample.key for sample in samples]
    for row, sample in zip(read, samples, strict=True):
        assert row[sample.extension] == sample.image
        assert json.loads(row["json"])["image"] == {"width": sample.record.width, "height": sample.record.height}


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    made = [write_corpus(toy.samples("vqa", 10, tmp_path, "val"), tmp_path / n, "c", samples_per_shard=4) for n in "ab"]
    assert made[0].fingerprint == made[1].fingerprint


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_corpus(toy.samples("vqa", 10, tmp_path, "val"), tmp_path / "c", "c", samples_per_shard=4)
    (tmp_path / "c" / "c-000001.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 checked shards \(of 3\) are missing, first c-000001.tar"):
        load_manifest(tmp_path / "c")


def test_a_corpus_that_was_not_built_says_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="minigptv2 shards build gone"):
        load_manifest(tmp_path / "gone")


def test_a_shard_of_another_size_is_named(tmp_path: Path) -> None:
    write_corpus(toy.samples("vqa", 10, tmp_path, "val"), tmp_path / "c", "c", samples_per_shard=4)
    file = tmp_path / "c" / "c-000002.tar"
    file.write_bytes(file.read_bytes()[:-512])
    reader = CorpusReader(tmp_path / "c")
    reader.record(0)
    with pytest.raises(DataError, match="c-000002.tar.*the manifest says"):
        reader.record(9)


def test_an_index_that_was_changed_is_refused(tmp_path: Path) -> None:
    write_corpus(toy.samples("vqa", 6, Path(), "val"), tmp_path / "c", "c", samples_per_shard=3)
    file = tmp_path / "c" / INDEX_FILE
    index = np.load(file)
    index["block"][4] += 1
    np.save(file, index)
    with pytest.raises(DataError, match="does not match the hash in its manifest"):
        CorpusReader(tmp_path / "c")


def test_damaged_bytes_inside_a_record_are_named(tmp_path: Path) -> None:
    write_corpus(toy.samples("vqa", 3, tmp_path, "val"), tmp_path / "c", "c", samples_per_shard=4)
    file = tmp_path / "c" / "c-000000.tar"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'{"turns":[{"task"', b'{"turns":[#"task"', 1))
    reader = CorpusReader(tmp_path / "c")
    with pytest.raises(DataError, match="c-000000.tar / sample 0: the record's checksum is wrong"):
        reader.record(0)
    reader.record(1)


def test_an_image_renamed_to_another_key_is_never_paired(tmp_path: Path) -> None:
    samples = list(toy.samples("refer", 2, tmp_path, "val"))
    write_corpus(samples, tmp_path / "c", "c", samples_per_shard=4)
    file = tmp_path / "c" / "c-000000.tar"
    data = bytearray(file.read_bytes())
    header = data.index(b"val-000001.jpg")
    info = tarfile.TarInfo.frombuf(bytes(data[header : header + 512]), "utf-8", "strict")
    info.name = "val-000000.jpg"
    data[header : header + 512] = info.tobuf()[:512]
    file.write_bytes(bytes(data))
    reader = CorpusReader(tmp_path / "c")
    with pytest.raises(DataError, match="has no image|checksum"):
        reader.image(1)


def test_the_writer_refuses_what_readers_would_refuse(tmp_path: Path) -> None:
    turn = Turn("caption", answers=("x",))
    image = next(iter(toy.samples("refer", 1, tmp_path, "val"))).image
    for sample, words in (
        (Sample("a.b", Record((turn,), 64, 64), image), "neither"),
        (Sample("a", Record((turn,), 64, 64), None), "disagree"),
        (Sample("a", Record((Turn("caption"),), 64, 64), image), "empty answer"),
    ):
        with pytest.raises(DataError, match=words):
            write_corpus([sample], tmp_path / "c", "c", samples_per_shard=4)
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_images_are_squashed_not_cropped() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    pixels = square(image, 8)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8
    assert (pixels[0, :, :3] > 240).all() and (pixels[2, :, 5:] > 240).all()


@pytest.mark.parametrize(("size", "height_first"), [((97, 203), True), ((150, 90), False), ((203, 97), False)])
def test_the_order_of_the_two_passes_is_ours_not_pillows(size: tuple[int, int], height_first: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3), dtype=np.uint8) * 255)
    bicubic = Image.Resampling.BICUBIC
    rows_then_columns = noise.resize((size[0], 112), bicubic).resize((112, 112), bicubic)
    columns_then_rows = noise.resize((112, size[1]), bicubic).resize((112, 112), bicubic)
    ours = square(noise, 112).transpose(1, 2, 0)
    assert np.array_equal(ours, rows_then_columns if height_first else columns_then_rows)
    assert not np.array_equal(rows_then_columns, columns_then_rows)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 4)).save(buffer, "PNG")
    assert open_image(buffer.getvalue(), "x").mode == "RGB"


def test_images_that_are_none_are_named(world: World) -> None:
    good = CorpusReader(world.train / "toy_refer").image(0)
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    for data in (b"", b"GIF89a", good[: len(good) // 2], bomb.getvalue()):
        with pytest.raises(DataError, match="^here: "):
            open_image(data, "here")
