"""Every corpus from a miniature in its own layout: what is kept, what is left out and why."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shlex
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from minigptv2.boxes import Box
from minigptv2.corpora import img2dataset as tars
from minigptv2.corpora.draft import finish
from minigptv2.corpora.raw import Raw, read_plain_pickle, stream_json
from minigptv2.corpora.sources import CORPORA, Draft, Rejected
from minigptv2.corpora.sources.flickr30k import parse_boxes
from minigptv2.corpora.sources.grit import Thresholds, _reshaped, expression_turns, grounded_turns
from minigptv2.corpora.sources.vqa import VqaQuestion, group, locate_coco, shared
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, from_json, to_json
from minigptv2.shards.image_files import IMAGE_EXTENSIONS
from tests.corpora.miniatures import MINIATURES
from tests.corpora.miniatures.files import Miniature, coco, jpeg, put, tar
from tests.corpora.miniatures.regions import flickr
from tests.corpora.miniatures.web_pairs import pairs


def read(root: Path, corpus: str, split: str) -> tuple[list[Record], Counter[str]]:
    """Records and reasons of a corpus's split."""
    records, reasons = [], Counter()
    for item in CORPORA[corpus].drafts(CORPORA[corpus].raw(root), split):
        sample, lost = finish(item) if isinstance(item, Draft) else (None, [item])
        records += [sample.record] if sample else []
        for one in lost:
            assert isinstance(one, Rejected)
            reasons[one.reason] += one.annotations
    return records, reasons


@pytest.mark.parametrize("miniature", MINIATURES, ids=lambda miniature: miniature.id)
def test_a_miniature_is_read_whole_and_what_is_left_out_is_told(tmp_path: Path, miniature: Miniature) -> None:
    miniature.make(tmp_path)
    records, reasons = read(tmp_path, miniature.corpus, miniature.split)
    assert reasons == Counter(miniature.dropped)
    assert len(records) == miniature.samples
    assert sum(len(r.turns) if r.separate else 1 for r in records) == miniature.annotations
    tasks = set(CORPORA[miniature.corpus].tasks)
    for record in records:
        assert record.source["corpus"] == miniature.corpus
        assert tasks == {"mixed"} or set(record.tasks) <= tasks
        assert from_json(to_json(record), "here") == record


def test_every_corpus_has_a_miniature() -> None:
    made_here = {name for name in CORPORA if name.startswith("toy_")} | {"photographs"}
    assert set(CORPORA) - made_here == {miniature.corpus for miniature in MINIATURES}


@pytest.mark.parametrize("corpus", sorted({miniature.corpus for miniature in MINIATURES}))
def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path, corpus: str) -> None:
    row = CORPORA[corpus]
    with pytest.raises(DataError) as error:
        list(row.drafts(row.raw(tmp_path), next(iter(row.expected))))
    assert str(tmp_path) in str(error.value) and f"Download: {row.download}" in str(error.value)


def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    for number, content in enumerate((Attack(), [{"a": Attack()}], Path("x"), {1, 2})):
        file = tmp_path / f"{number}.p"
        file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(DataError, match=rf"{number}\.p: refers to "):
            read_plain_pickle(file)
    (tmp_path / "cut.p").write_bytes(pickle.dumps([1, "two"], protocol=2)[:-3])
    with pytest.raises(DataError, match="not a plain pickle"):
        read_plain_pickle(tmp_path / "cut.p")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_json_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("minigptv2.corpora.raw._CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text('{"skip": [1, {"x": "]"}], "items": [12, "ä,]", {"k": [1.5e3, null]}], "map": {"a": 1, "b": {}}} ')
    assert list(stream_json(file, "items")) == [("0", 12), ("1", "ä,]"), ("2", {"k": [1500.0, None]})]
    assert list(stream_json(file, "map")) == [("a", 1), ("b", {})]
    assert [name for name, _ in stream_json(file)] == ["skip", "items", "map"]
    with pytest.raises(DataError, match="has no 'nothing'"):
        list(stream_json(file, "nothing"))
    file.write_text('{"items": [1, 2')
    with pytest.raises(DataError, match=r"a\.json: unexpected JSON"):
        list(stream_json(file, "items"))


@pytest.mark.parametrize(
    "corpus, split",
    [
        ("coco_caption", "train"),
        ("flickr30k_caption", "test"),
        ("nocaps", "val"),
        ("text_caps", "train"),
    ],
)
def test_a_reference_given_twice_counts_twice(corpus: str, split: str, tmp_path: Path) -> None:
    next(m for m in MINIATURES if (m.corpus, m.split) == (corpus, split)).make(tmp_path)
    answers = read(tmp_path, corpus, split)[0][0].turns[0].answers
    assert answers.count(answers[0]) == 2


def test_a_caption_that_looks_like_a_list_is_a_caption() -> None:
    caption, chunk = "[[dog] runs", [2, 5, 0.1, 0.1, 0.9, 0.9, 0.9]
    turns = grounded_turns(caption, {"caption": caption, "noun_chunks": f"[{chunk}]"}, Thresholds())
    assert turns[0].regions[0].phrases == ("dog",)
    assert grounded_turns(caption, {"noun_chunks": "[[oops"}, Thresholds()) == ()


def test_overlapping_expressions_are_questions_each_and_overlapping_phrases_one_mark() -> None:
    caption = "a dog near a man"
    spans = [[0, 5, 0.1, 0.1, 0.5, 0.6, 0.9], [0, 16, 0.1, 0.1, 0.6, 0.6, 0.9], [11, 16, 0.5, 0.1, 0.9, 0.9, 0.9]]
    said = [t.regions[0].phrases[0] for t in expression_turns(caption, {"ref_exps": spans}, Thresholds(), "refer")]
    assert said == ["a dog near a man", "a dog", "a man"]
    (grounded,) = grounded_turns(caption, {"noun_chunks": spans}, Thresholds())
    assert [region.span for region in grounded.regions] == [(0, 16)]


def test_flickr_s_boxes_are_edges_of_the_pixels_that_are_named(tmp_path: Path) -> None:
    corners = "<xmin>1</xmin><ymin>3</ymin><xmax>64</xmax><ymax>3</ymax>"
    thing = f"<object><name>7</name><bndbox>{corners}</bndbox></object>"
    (tmp_path / "1.xml").write_text(f"<annotation>{thing}</annotation>")
    assert parse_boxes(tmp_path / "1.xml") == {"7": (Box(0, 2, 64, 3),)}, "all of a picture's third row of pixels"


def test_a_list_of_unrelated_sentences_that_is_something_else_is_named(tmp_path: Path) -> None:
    flickr(False)(tmp_path)
    (tmp_path / "flickr30k/UNRELATED_CAPTIONS").write_text("36,4\n")
    with pytest.raises(DataError, match="UNRELATED_CAPTIONS: each line must be '<image> <number of the sentence>'"):
        read(tmp_path, "flickr_phrase_to_box", "train")


def test_a_list_of_bare_picture_names_keeps_each_expression_with_its_own_box(tmp_path: Path) -> None:
    coco(tmp_path, "train2014/9")
    name = "COCO_train2014_000000000009"
    said = [("left", [1, 1, 9, 9]), ("right", [40, 1, 9, 9]), ("on the left", [1, 1, 9, 9])]
    put(tmp_path / "refcoco/refcoco_val.json", [{"img_id": name, "sents": s, "bbox": b} for s, b in said])
    (record,), reasons = read(tmp_path, "refcoco", "val")
    regions = {turn.source["id"]: turn.regions[0] for turn in record.turns}
    assert regions == {
        name: Region((Box(1, 1, 10, 10),), ("left", "on the left")),
        f"{name}-2": Region((Box(40, 1, 49, 10),), ("right",)),
    }
    assert not reasons


def test_questions_wait_for_their_pictures_in_few_bytes(tmp_path: Path) -> None:
    number = 5000

    def questions() -> Iterator[VqaQuestion]:
        for n in range(number):
            name, *answers = shared((f"COCO_train2014_{n // 5:012d}.jpg", *(f"answer {n % 7}" for _ in range(10))))
            yield VqaQuestion(
                f"{n:09d}", name, f"What is number {n:06d} of so many?", tuple(answers), answer_type="other"
            )

    def held() -> int:
        tracemalloc.start()
        try:
            drafts = group(CORPORA["vqav2"].raw(tmp_path), questions(), locate_coco)
            assert len(list(islice(drafts, 1))) == 1, "all are read and none but the first is given"
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    least = min(held(), held())  # the first may make the interpreter's table of shared texts grow
    assert least < 700 * number, f"{least / number:.0f} bytes a question"


def test_the_mixed_set_of_minigpt_4_is_read_as_cc3m_through_a_link(tmp_path: Path) -> None:
    pairs("cc_sbu", "cc_sbu_dataset", with_json=True)(tmp_path)
    (tmp_path / "cc3m").symlink_to("cc_sbu")
    records, _ = read(tmp_path, "cc3m", "train")
    assert len(records) == 5 and records[0].source["corpus"] == "cc3m"


def test_splits_of_iconqa_without_this_one_are_named(tmp_path: Path) -> None:
    next(m for m in MINIATURES if (m.corpus, m.layout) == ("iconqa", "zip")).make(tmp_path)
    file = tmp_path / "iconqa/iconqa_data/pid_splits.json"
    (tmp_path / "iconqa/iconqa_data/iconqa/val/choose_txt").mkdir(parents=True)
    with pytest.raises(DataError, match="must have choose_txt_val or val, but has choose_txt_test, choose_img"):
        read(tmp_path, "iconqa", "val")
    file.write_text('{"choose_txt_test": ["0", "12"]}')
    with pytest.raises(DataError, match="problem 12 is not in iconqa/iconqa_data/problems.json"):
        read(tmp_path, "iconqa", "test")


CUT = "its json is damaged: Unterminated string starting at: line 1 column 13 (char 12)"


def entries(file: Path, *members: tuple[str, bytes]) -> dict[str, str]:
    """What each key of a tar of these members gives: its caption, or why it is left out."""
    tar(file, *members)
    found = list(tars.entries(file, Raw(file.parent, "x", "")))
    given = dict((one.where, one.reason) if isinstance(one, Rejected) else (one.key, one.caption) for one in found)
    assert len(given) == len(found), "a key is told once"
    return given


@pytest.mark.parametrize(
    ("members", "given"),
    [
        ([("0.jpg", b"A"), ("0.json", b'{"caption": "a"}'), ("0.jpg", b"B")], {"x-0": "two members of one kind"}),
        ([("0.jpg", b"A"), ("0.txt", b"a"), ("0.png", b"B")], {"x-0": "two members of one kind"}),
        (
            [("0.jpg", b"A"), ("0.txt", b"a"), ("1.jpg", b"B"), ("1.txt", b"b"), ("0.txt", b"c")],
            {"x-0": "two members of one kind", "x-1": "b"},
        ),
        ([("0.jpg", b"A"), ("0.json", b'{"caption": "a'), ("0.txt", b"a")], {"x-0": CUT}),
        (
            [("0.jpg", b"A"), ("0.json", b"[1]"), ("0.txt", b"a")],
            {"x-0": "its json is damaged: expected an object, got list"},
        ),
        ([("0.jpg", b"A"), ("0.JSON", b'{"caption": "a"}'), ("0.txt", b"b")], {"x-0": "a"}),
        ([("a/0.jpg", b"A"), ("b/0.txt", b"b")], {"x-a/0": "", "x-b/0": "no image in the tar"}),
    ],
)
def test_a_tar_s_key_has_one_picture_and_one_text_or_is_left_out(
    tmp_path: Path, members: list[tuple[str, bytes]], given: dict[str, str]
) -> None:
    assert entries(tmp_path / "x.tar", *members) == given


def test_a_damaged_json_of_a_corpus_is_counted_and_named(tmp_path: Path) -> None:
    for corpus in ("laion", "grit"):
        tar(tmp_path / corpus / "0.tar", ("0.jpg", jpeg()), ("0.json", b'{"caption": "a'), ("0.txt", b"a"))
    for corpus in ("laion", "grit_caption", "grit_refer"):
        assert read(tmp_path, corpus, "train") == ([], Counter({CUT: 1}))


@pytest.mark.parametrize("seed", range(60))
def test_members_in_any_order_doubled_or_cut_never_give_a_picture_another_s_text(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    members, spoiled = [], set()
    for key in map(str, range(6)):
        copies = 1 + (rng.random() < 0.3)
        for copy in range(copies):
            says = f"{key} {copy}".encode()
            document = json.dumps({"caption": says.decode()}).encode()
            if rng.random() < 0.2:
                document = document[: rng.randrange(len(document))]
                spoiled.add(key)
            texts = [("json", document), ("txt", says)]
            members += [
                (f"{key}.{rng.choice(IMAGE_EXTENSIONS)}", says),
                *((f"{key}.{kind}", text) for kind, text in texts),
            ]
        if copies > 1:
            spoiled.add(key)
    rng.shuffle(members)
    tar(tmp_path / "x.tar", *members)
    given = list(tars.entries(tmp_path / "x.tar", Raw(tmp_path, "x", "")))
    kept = [one for one in given if isinstance(one, tars.Entry)]
    whole = (tmp_path / "x.tar").read_bytes()
    for one in kept:
        assert isinstance(one.image, tars.TarMember)
        assert whole[one.image.offset :][: one.image.size] == one.caption.encode()
    assert {one.key for one in kept} == {f"x-{key}" for key in map(str, range(6)) if key not in spoiled}
    assert len(given) == 6


@pytest.mark.parametrize(
    ("sides", "reshaped"),
    [
        ((512, 384, 1024, 768), False),
        ((512, 768, 333, 500), False),  # 768.77, rounded down as old versions do
        ((512, 769, 333, 500), False),
        ((256, 256, 300, 301), False),  # padded by a pixel, which moves no box
        ((256, 256, 640, 480), True),
        ((256, 256, 100, 103), True),
        ((512, 512, 512, 768), True),
        ((512, 384, None, None), False),
    ],
)
def test_a_picture_of_another_shape_than_the_original_is_told(sides: tuple[int | None, ...], reshaped: bool) -> None:
    names = ("width", "height", "original_width", "original_height")
    assert _reshaped(dict(zip(names, sides, strict=True))) is reshaped


def test_the_commands_printed_for_img2dataset_keep_caption_and_shape() -> None:
    commands = {
        name: shlex.split(command)
        for name, row in CORPORA.items()
        for command in re.findall("`(img2dataset [^`]*)`", row.download)
    }
    assert set(commands) == {name for name, row in CORPORA.items() if "img2dataset" in row.download}
    assert set(commands) >= {"laion", "cc3m", "sbu", "grit_caption", "grit_refer", "grit_identify"}
    for name, words in commands.items():
        options = dict(zip(words[1::2], words[2::2], strict=True))
        assert options["--resize_mode"] == "keep_ratio" and options["--resize_only_if_bigger"] == "True"
        assert options["--output_format"] == "webdataset" and options["--output_folder"] == name.split("_")[0]
        assert {"--url_list", "--url_col", "--caption_col", "--input_format", "--image_size"} <= set(options)
        columns = json.loads(options.get("--save_additional_columns", "[]"))
        assert columns == (["noun_chunks", "ref_exps"] if name.startswith("grit") else [])
