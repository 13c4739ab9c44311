"""The number of separate turns of each sample: written, indexed, verified, mirrored, and absent in old corpora."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minigptv2.cli import main as cli
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.plan import DataPlan, SampleId
from minigptv2.errors import DataError
from minigptv2.files import sha256_of
from minigptv2.record import Record, Turn
from minigptv2.shards import shard_file
from minigptv2.shards.indexing import index_corpus
from minigptv2.shards.manifest import INDEX_FILE, MANIFEST_FILE, TABLE_FIELDS, TABLE_FILE, _own_hash, load_manifest
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.turn_counts import TURNS_FILE
from minigptv2.shards.verify import verify_corpus
from minigptv2.shards.writer import CorpusOptions, Sample, write_corpus
from tests.conftest import REPOSITORY

SIZES = (3, 1, 2, 5, 1, 1, 4)
OLD = REPOSITORY / "tests" / "fixtures" / "v0_1" / "train"


def samples(sizes: tuple[int, ...] = SIZES, *, separate: bool = True) -> list[Sample]:
    return [
        Sample(f"{n}", Record(tuple(Turn("language", f"ask {m}", ("yes",)) for m in range(size)), separate=separate))
        for n, size in enumerate(sizes)
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(samples(), tmp_path / "c", "c", samples_per_shard=3)
    return tmp_path / "c"


def rewrite(folder: Path, **facts: object) -> None:
    """Change facts of a manifest, which stays valid."""
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    document |= facts
    del document["sha256"]
    document = {key: value for key, value in document.items() if value != "absent"}
    (folder / MANIFEST_FILE).write_text(json.dumps({**document, "sha256": _own_hash(document)}))


def make_old(folder: Path) -> None:
    """Take away what version 0.1 did not write."""
    table = np.load(folder / TABLE_FILE)
    np.save(folder / TABLE_FILE, table[list(TABLE_FIELDS)].astype([(n, table.dtype[n]) for n in TABLE_FIELDS]))
    (folder / TURNS_FILE).unlink(missing_ok=True)
    rewrite(folder, turn_counts_sha256="absent", shards_sha256=sha256_of(folder / TABLE_FILE))


def test_counts_are_cumulative_within_each_shard_and_the_table_has_the_totals(corpus: Path) -> None:
    stored = np.load(corpus / TURNS_FILE)
    assert stored.dtype == "<u4" and stored.tolist() == [3, 4, 6, 5, 6, 7, 4]
    table = np.load(corpus / TABLE_FILE)
    assert table["turns"].tolist() == [6, 7, 4] and table["samples"].tolist() == [3, 3, 1]
    manifest = load_manifest(corpus)
    assert manifest.turn_counts_sha256 == sha256_of(corpus / TURNS_FILE)
    assert manifest.shards.turn_starts.tolist() == [0, 6, 13, 17]


@pytest.mark.parametrize(("sizes", "separate"), [((1, 1, 1, 1), True), ((3, 1, 2), False)])
def test_corpora_without_several_separate_turns_have_no_counts(
    tmp_path: Path, sizes: tuple[int, ...], separate: bool
) -> None:
    write_corpus(samples(), tmp_path / "c", "c")
    write_corpus(samples(sizes, separate=separate), tmp_path / "c", "c")
    assert not (tmp_path / "c" / TURNS_FILE).exists() and not list(tmp_path.rglob(".*.tmp"))
    assert np.load(tmp_path / "c" / TABLE_FILE).dtype.names == TABLE_FIELDS
    assert load_manifest(tmp_path / "c").turn_counts_sha256 == ""
    reader = CorpusReader(tmp_path / "c")
    assert reader.turn_counts is None and verify_corpus(tmp_path / "c", decode=True) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_indexing_writes_the_counts_that_the_build_wrote(corpus: Path, workers: int) -> None:
    before = {name: (corpus / name).read_bytes() for name in (TURNS_FILE, TABLE_FILE, INDEX_FILE, MANIFEST_FILE)}
    manifest, faults = index_corpus(corpus, "c", workers=workers)
    assert faults == [] and manifest is not None
    assert {name: (corpus / name).read_bytes() for name in before} == before


def test_a_dropped_sample_has_no_count(tmp_path: Path) -> None:
    bad = Sample("bad", Record((Turn("nonsense", "x", ("y",)),) * 2, separate=True))
    write_corpus([*samples()[:2], bad, *samples()[2:]], tmp_path / "c", "c", on_dropped=lambda _: None)
    assert np.diff(np.load(tmp_path / "c" / TURNS_FILE), prepend=0).tolist() == list(SIZES)


def test_an_interrupted_build_of_the_former_format_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        yield from samples()
        raise KeyboardInterrupt

    with monkeypatch.context() as before:
        before.setattr(shard_file, "_FORMAT_OF_BUILD", 2)
        with pytest.raises(KeyboardInterrupt):
            write_corpus(broken(), tmp_path / "c", "c", samples_per_shard=3)
    for entry in (tmp_path / "c" / ".building").glob("*.json"):  # as that version wrote it
        document = json.loads(entry.read_bytes())
        del document["turn_counts"]
        entry.write_text(json.dumps(document))
    write_corpus(samples(), tmp_path / "c", "c", samples_per_shard=3)
    assert np.diff(CorpusReader(tmp_path / "c").turn_counts.of_shard(0), prepend=0).tolist() == [3, 1, 2]


def spoil_file(folder: Path) -> None:
    counts = np.load(folder / TURNS_FILE)
    counts[0] -= 1
    np.save(folder / TURNS_FILE, counts)


def spoil_consistently(folder: Path) -> None:
    spoil_file(folder)
    rewrite(folder, turn_counts_sha256=sha256_of(folder / TURNS_FILE))


def spoil_total(folder: Path) -> None:
    counts = np.load(folder / TURNS_FILE)
    counts[5] += 1
    np.save(folder / TURNS_FILE, counts)
    rewrite(folder, turn_counts_sha256=sha256_of(folder / TURNS_FILE))


def spoil_order(folder: Path) -> None:
    counts = np.load(folder / TURNS_FILE)
    counts[4] = 3
    np.save(folder / TURNS_FILE, counts)
    rewrite(folder, turn_counts_sha256=sha256_of(folder / TURNS_FILE))


def shorten(folder: Path) -> None:
    np.save(folder / TURNS_FILE, np.load(folder / TURNS_FILE)[:-1])


def remove(folder: Path) -> None:
    (folder / TURNS_FILE).unlink()


def forget(folder: Path) -> None:
    rewrite(folder, turn_counts_sha256="")


@pytest.mark.parametrize(
    ("spoil", "decode", "words"),
    [
        (spoil_file, False, "turns.npy: does not match the hash in its manifest"),
        (spoil_consistently, True, "the record has 3 separate turns, the turn counts state 2"),
        (spoil_total, False, "turns.npy states 8 turns, the shard table 7"),
        (spoil_order, False, "turns.npy states a sample without turns"),
        (shorten, False, "turns.npy: .6,. entries, manifest.json says 7"),
        (remove, False, "turns.npy: cannot be read: .*`minigptv2 shards index` writes it again"),
        (forget, False, "column 'turns' and turn_counts_sha256 of manifest.json disagree"),
    ],
)
def test_verify_names_wrong_counts(corpus: Path, spoil: Callable[[Path], None], decode: bool, words: str) -> None:
    assert verify_corpus(corpus, decode=True) == []
    spoil(corpus)
    faults = verify_corpus(corpus, decode=decode)
    assert faults
    with pytest.raises(AssertionError, match=words):
        raise AssertionError("; ".join(map(str, faults)))
    index_corpus(corpus, "c")
    assert verify_corpus(corpus, decode=True) == []


def test_verify_compares_the_counts_of_every_shard_in_processes(corpus: Path) -> None:
    spoil_consistently(corpus)
    assert [fault.key for fault in verify_corpus(corpus, decode=True, workers=2)] == ["#0", "#1"]


def plan_of(folder: Path, *corpora: str, **line: str) -> DataPlan:
    return DataPlan(Recipe(corpora={name: CorpusShare(ratio=1, **line) for name in corpora}), folder, seed=1)


@pytest.mark.parametrize("corpus", ["toy_refer", "toy_language"])
def test_a_corpus_of_version_0_1_with_one_turn_per_sample_needs_no_counts(corpus: str) -> None:
    assert CorpusReader(OLD / corpus).manifest.turn_counts_sha256 is None
    assert {sample.part for sample in plan_of(OLD, corpus).samples(0, 30)} == {0}


def test_a_corpus_of_version_0_1_with_more_turns_is_refused_until_it_is_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "toy_conversation"
    shutil.copytree(OLD / "toy_conversation", folder)
    with pytest.raises(DataError) as caught:
        plan_of(tmp_path, "toy_conversation")
    said = str(caught.value)
    assert said.startswith("corpus 'toy_conversation' is sampled by turn, but built by version 0.1")
    assert f"Run `minigptv2 shards index` on {folder}: it writes the counts" in said and "sample_by: image" in said
    by_image = plan_of(tmp_path, "toy_conversation", sample_by="image").samples(0, 10)
    assert cli(["shards", "index", str(folder)]) == 0
    assert plan_of(tmp_path, "toy_conversation").samples(0, 10) == by_image  # its turns are not separate
    assert load_manifest(folder).corpus == "toy_conversation"


def test_all_old_corpora_of_a_recipe_are_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(OLD / "toy_conversation", tmp_path / name)
    shutil.copytree(OLD / "toy_refer", tmp_path / "c")
    with pytest.raises(DataError) as caught:
        plan_of(tmp_path, "a", "b", "c")
    assert "corpora 'a', 'b' are sampled by turn" in str(caught.value)
    assert f"on {tmp_path / 'a'} and on {tmp_path / 'b'}: it writes" in str(caught.value)


def test_indexing_an_old_corpus_adds_the_counts_and_keeps_what_the_build_knew(tmp_path: Path) -> None:
    options = CorpusOptions(license="CC0", split="val", bake_side=24)
    bad = Sample("bad", Record((Turn("nonsense", "x", ("y",)),)))
    write_corpus(
        [*samples(), bad], tmp_path / "c", "c", samples_per_shard=3, options=options, on_dropped=lambda _: None
    )
    built = load_manifest(tmp_path / "c")
    make_old(tmp_path / "c")
    with pytest.raises(DataError, match="did not store how many separate turns each sample has"):
        plan_of(tmp_path, "c")
    assert cli(["shards", "index", str(tmp_path / "c"), "--workers", "0"]) == 0
    assert load_manifest(tmp_path / "c") == built
    assert len(plan_of(tmp_path, "c").units[0]) == sum(SIZES)


def test_the_size_of_a_unit_is_found_without_reading_shards(corpus: Path) -> None:
    units = plan_of(corpus.parent, "c").units[0]
    for file in corpus.glob("*.tar"):
        file.write_bytes(b"")
    found = [units.locate(unit) for unit in range(len(units))]
    assert found == [(sample, part) for sample, size in enumerate(SIZES) for part in range(size)]


def test_a_sample_id_of_a_corpus_without_turns_is_as_before() -> None:
    assert SampleId(0, 3, 1) == SampleId(0, 3, 1, part=0)
