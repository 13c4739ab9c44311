"""`shards build`: every corpus from its files to a folder of shards, counted, the same in parallel."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.sources import CORPORA, Draft, Raw, Rejected
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.plan import DataPlan
from minigptv2.errors import DataError
from minigptv2.record import Turn
from minigptv2.shards.image_files import image_size
from minigptv2.shards.manifest import load_manifest
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.verify import verify_corpus
from tests.conftest import REPOSITORY
from tests.corpora.miniatures import MINIATURES
from tests.corpora.miniatures.files import Miniature, jpeg
from tests.corpora.miniatures.questions import vqa_merged, vqa_official


@pytest.mark.parametrize("miniature", MINIATURES, ids=lambda miniature: miniature.id)
def test_a_build_counts_what_it_read_kept_and_lost(tmp_path: Path, miniature: Miniature) -> None:
    miniature.make(tmp_path)
    corpus = CORPORA[miniature.corpus]
    report = build(corpus, tmp_path, miniature.split, tmp_path / "out", samples_per_shard=1)
    assert report.dropped == {reason: count for reason, count in miniature.dropped.items() if count}
    assert report.read == miniature.annotations + sum(miniature.dropped.values())
    reader = CorpusReader(tmp_path / "out")
    assert len(reader) == miniature.samples
    for sample in range(len(reader)):
        record = reader.record(sample)
        if record.has_image:
            assert Image.open(io.BytesIO(reader.image(sample))).size == (record.width, record.height)
    if corpus.expected[miniature.split] is not None:
        assert "a complete download has" in report.warnings()[0]


def test_the_command_says_what_was_kept_and_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vqa_official("okvqa", "")(tmp_path)
    words = ["shards", "build", "ok_vqa", "--root", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert cli(words) == 0
    told = capsys.readouterr().out
    assert "ok_vqa train: read 7 questions of 9,009 expected" in told
    assert "kept 2 samples in 1 shard," in told and "turns: 3 vqa" in told
    for reason in ("duplicate id", "image file missing", "empty answer", "empty question"):
        assert f"dropped 1: {reason}" in told
    assert "warning: a complete download has 9,009 questions, this one has 7" in told
    page = tmp_path / "out/preview.html"
    assert f"preview {page}: 2 samples as the model sees them; lengths in characters" in told
    shown = page.read_text()
    assert "[vqa]" in shown and shown.count("data:image/jpeg;base64,") == 2
    assert verify_corpus(tmp_path / "out", decode=True) == []


def test_the_list_and_the_documentation_s_table_are_made_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["shards", "list"]) == 0
    listed = capsys.readouterr().out
    for name, row in CORPORA.items():
        (line,) = [line for line in listed.splitlines() if line.split()[0] == name]
        assert row.license in line and row.counted in line
    assert cli(["shards", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["counts"] for name, row in rows.items()} == {n: c.expected for n, c in CORPORA.items()}
    assert cli(["shards", "list", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table in (REPOSITORY / "docs/corpora.md").read_text(), "docs/corpora.md: put `shards list --markdown` in"
    assert all(f"| `{name}` |" in table for name, row in CORPORA.items() if row.has_files)


def test_workers_change_nothing_but_the_time(tmp_path: Path) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    made = [
        build(CORPORA["vqav2"], tmp_path, "train", tmp_path / f"out{workers}", workers=workers, samples_per_shard=1)
        for workers in (0, 2)
    ]
    assert made[0].manifest.fingerprint == made[1].manifest.fingerprint
    assert made[0].dropped == made[1].dropped


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    whole = build(CORPORA["vqav2"], tmp_path, "train", tmp_path / "whole", samples_per_shard=1)

    def interrupted(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
        yield from islice(CORPORA["vqav2"].drafts(raw, split), 2)  # a rejected question, a picture
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(replace(CORPORA["vqav2"], drafts=interrupted), tmp_path, "train", tmp_path / "out", samples_per_shard=1)
    first = tmp_path / "out/vqav2-000000.tar"
    made = first.stat().st_mtime_ns
    assert not (tmp_path / "out/manifest.json").exists()
    again = build(CORPORA["vqav2"], tmp_path, "train", tmp_path / "out", samples_per_shard=1)
    assert first.stat().st_mtime_ns == made, "written once"
    assert again.manifest.fingerprint == whole.manifest.fingerprint and again.dropped == whole.dropped


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (Draft(7, (Turn("caption", answers=("x",)),)), "sample 7: key must be text, got int 7"),  # type: ignore[arg-type]
        (Draft("a", (Turn("caption", answers=(3,)),)), "sample 'a': answers must be text, got int 3"),  # type: ignore[arg-type]
        (Draft("a", (Turn("vqa", 2.5, ("x",)),)), "sample 'a': question must be text, got float 2.5"),  # type: ignore[arg-type]
        (Draft("a", (Turn("captions", answers=("x",)),)), "sample 'a': unknown task 'captions'. The tasks are vqa, "),
        (
            Draft("a", (Turn("caption", answers=("x",)), Turn("vqa", "what?", ("x",)))),
            "sample 'a': has a turn of task 'vqa', but CorpusSpec.tasks lists caption",
        ),
    ],
)
def test_a_mistake_of_a_reader_names_corpus_and_sample(tmp_path: Path, draft: Draft, message: str) -> None:
    corpus = replace(CORPORA["text_caps"], drafts=lambda raw, split: iter([draft]))
    with pytest.raises(DataError, match=re.escape(f"text_caps: {message}")):
        build(corpus, tmp_path, "train", tmp_path / "out")


def test_a_corpus_of_mixed_tasks_may_have_any_task(tmp_path: Path) -> None:
    draft = Draft("a", (Turn("caption", answers=("x",)), Turn("vqa", "what?", ("x",))), jpeg())
    mixed = replace(CORPORA["photographs"], drafts=lambda raw, split: iter([draft]))
    assert build(mixed, tmp_path, "train", tmp_path / "out").manifest.turns == {"caption": 1, "vqa": 1}


@pytest.mark.parametrize("option", ["--per-question", "--per-question=true"])
def test_the_removed_option_names_what_replaces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli(["shards", "build", "vqav2", option, "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
    assert "--per-question was removed" in (told := capsys.readouterr().err) and "sample_by: turn" in told


def test_a_built_corpus_is_sampled_by_question(tmp_path: Path) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    build(CORPORA["vqav2"], tmp_path, "train", tmp_path / "vqav2")
    plan = DataPlan(Recipe(corpora={"vqav2": CorpusShare(ratio=1, task="vqa")}), tmp_path, seed=0)
    questions = [plan.record(sample).turns for sample in plan.samples(0, 3)]
    assert all(len(turns) == 1 for turns in questions) and len({turns[0].question for turns in questions}) == 3


def test_all_builds_what_it_finds_once_and_names_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    vqa_official("okvqa", "")(tmp_path)
    words = ["shards", "build", "all", "--root", str(tmp_path), "--output", str(tmp_path / "shards"), "--workers", "0"]
    assert cli(words) == 0
    told = capsys.readouterr().out
    assert f"2 of {sum(bool(row.stages) for row in CORPORA.values())} corpora are built" in told
    assert "not built: gqa: " in told
    assert sorted(folder.name for folder in (tmp_path / "shards").iterdir()) == ["ok_vqa", "vqav2"]
    assert cli(words) == 0
    assert capsys.readouterr().out.count("already built") == 2
    manifest = tmp_path / "shards/vqav2/manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-5])
    assert cli(words) == 0
    told = capsys.readouterr().out
    assert "damaged or has an older format: building it again" in told and told.count("already built") == 1
    assert manifest.read_bytes() == whole


def test_all_tells_damaged_downloads_from_missing_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    vqa_official("okvqa", "")(tmp_path)
    vqa_merged("aokvqa")(tmp_path)
    annotations = tmp_path / "vqav2/v2_mscoco_train2014_annotations.json"
    annotations.write_bytes(annotations.read_bytes()[:-9])
    (tmp_path / "aokvqa/aokvqa_train.json").write_text('[{"question_id": 7, "question": "what?"}]')
    words = ["shards", "build", "all", "--root", str(tmp_path), "--output", str(tmp_path / "shards"), "--workers", "0"]
    assert cli(words) == 3
    told = capsys.readouterr().out
    assert f"failed: {annotations}: unexpected JSON" in told
    assert "failed: aok_vqa: an annotation, the first one, has an unsupported layout (KeyError" in told
    assert "not built: vqav2" not in told and "not built: gqa: " in told
    assert [folder.name for folder in (tmp_path / "shards").iterdir()] == ["ok_vqa"], "the others do not wait"


def test_a_split_is_not_written_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    output = tmp_path / "shards" / "vqav2"
    build(CORPORA["vqav2"], tmp_path, "train", output)
    before = load_manifest(output).fingerprint
    words = ["--root", str(tmp_path), "--split", "val", "--workers", "0"]
    assert cli(["shards", "build", "vqav2", *words, "--output", str(output)]) == 2
    assert f"{output} holds vqav2 train; build vqav2 val into another --output" in capsys.readouterr().err
    assert cli(["shards", "build", "all", *words, "--output", str(output.parent)]) == 3
    assert f"failed: {output} holds vqav2 train" in capsys.readouterr().out
    assert load_manifest(output).fingerprint == before and load_manifest(output).split == "train"


@pytest.mark.parametrize(
    "words", [["--workers", "-1"], ["--samples-per-shard", "0"], ["--limit", "-3"], ["--bake", "x"]]
)
def test_numbers_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli(["shards", "build", "vqav2", "--output", "nowhere", *words])
    assert stopped.value.code == 2
    assert f"argument {words[0]}: '{words[1]}' is not a whole number of at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vqav3"], "unknown corpus 'vqav3'; did you mean 'vqav2'?"),
        (["vqav2", "--split", "test"], "vqav2 has no split 'test'. Its splits are train, val"),
        (["my.jsonl"], "my.jsonl does not exist"),
    ],
)
def test_wrong_words_are_answered(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert cli(["shards", "build", *words, "--output", "nowhere"]) != 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize("options", [{}, {"progressive": True, "quality": 30}, {"exif": b"Exif\0\0" + b"x" * 900}])
def test_sizes_read_from_headers_are_pillows(format: str, options: dict[str, object]) -> None:
    for size in ((1, 1), (640, 37), (3, 2000)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, format, **options)
        name = "JPEG" if format == "MPO" else format
        assert image_size(buffer.getvalue(), "here") == (name, *size)
    assert image_size(jpeg(), "here") == ("JPEG", 64, 48)
