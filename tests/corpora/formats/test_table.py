"""Tests tables of `datasets`, pandas and pyarrow: what becomes of their columns, and which error each mistake is."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from datasets import DatasetDict
from pyarrow import feather
from pyarrow import parquet as pq

from minigptv2.boxes import Box
from minigptv2.corpora.formats.table import read
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader
from tests.corpora.formats.datasets import build, write
from tests.corpora.formats.tables import CAPTIONS, captioned, conversations, detections, images, plain, questions
from tests.corpora.miniatures.files import jpeg


def records(folder: Path) -> list[Record]:
    reader = CorpusReader(folder / "out")
    return [reader.record(number) for number in range(len(reader))]


def table(folder: Path, **columns: Any) -> Path:
    """A Parquet file of these columns beside the image `a.jpg`."""
    write(folder, {"a.jpg": 1})
    pq.write_table(pa.table(columns), folder / "my.parquet")
    return folder / "my.parquet"


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_form_holds_its_images_and_captions(tmp_path: Path, name: str) -> None:
    path, make = CAPTIONS[name]
    make(tmp_path / path)
    assert build(tmp_path / path) == 0
    reader = CorpusReader(tmp_path / "out")
    assert [(one.turns[0].task, one.turns[0].answers) for one in records(tmp_path)] == [
        ("caption", (f"Card {number}.",)) for number in range(3)
    ]
    assert [reader.image(number) for number in range(3)] == [jpeg(number) for number in range(3)]


def test_answers_of_vqav2_are_all_accepted_and_its_other_columns_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions().to_parquet(tmp_path / "my.parquet")
    assert build(tmp_path / "my.parquet") == 0
    told = capsys.readouterr().out
    turns = records(tmp_path)[0].turns
    assert (turns[0].task, turns[0].question, turns[0].answers) == ("vqa", "What color?", ("red", "blue"))
    assert "passed over column 'multiple_choice_answer' in 3 of the rows" in told
    assert "passed over column 'question_id' in 3 of the rows" in told


def test_objects_are_boxes_of_x_y_width_height_with_names_of_classes(tmp_path: Path) -> None:
    detections().to_parquet(tmp_path / "my.parquet")
    assert build(tmp_path / "my.parquet", "--negatives", "1") == 0
    regions = [turn.regions[0] for turn in records(tmp_path)[0].turns]
    assert [(one.phrases, one.boxes) for one in regions] == [
        (("cat",), (Box(5, 6, 25, 36),)),
        (("dog",), (Box(10, 8, 40, 44),)),
        (("bird",), ()),
    ]


def test_messages_with_an_image_column_are_conversations(tmp_path: Path) -> None:
    conversations().save_to_disk(tmp_path / "my")
    assert build(tmp_path / "my") == 0
    turn = records(tmp_path)[0].turns[0]
    assert (turn.task, turn.question, turn.answers) == ("conversation", "Hi?", ("Ho.",))
    assert CorpusReader(tmp_path / "out").image(2) == jpeg(2)


def test_rows_with_a_task_are_the_entries_of_json_lines(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        image=["a.jpg", "a.jpg", None],
        task=["refer", "vqa", "language"],
        phrase=["the dog", None, None],
        question=[None, "What?", "Say A."],
        answer=[None, ["dog"], ["A"]],
        boxes=[[[10.0, 12.0, 32.0, 24.0]], None, None],
    )
    assert build(path) == 0
    assert [[turn.task for turn in one.turns] for one in records(tmp_path)] == [["refer"], ["vqa"], ["language"]]
    assert records(tmp_path)[0].turns[0].regions[0].boxes == (Box(10, 12, 32, 24),)


@pytest.mark.parametrize(
    "value",
    [
        jpeg(1),
        {"bytes": jpeg(1), "path": "elsewhere.jpg"},
        {"bytes": None, "path": "a.jpg"},
        "a.jpg",
        "data:image/jpeg;base64," + base64.b64encode(jpeg(1)).decode(),
        [jpeg(1)],
        [{"bytes": jpeg(1), "path": None}],
    ],
)
def test_an_image_is_bytes_a_path_an_object_or_a_list_of_one(tmp_path: Path, value: Any) -> None:
    assert build(table(tmp_path, image=[value], caption=["x"])) == 0
    assert CorpusReader(tmp_path / "out").image(0) == jpeg(1)


@pytest.mark.parametrize("name", ["answers", "text", "caption", "captions", "sentences", "answer"])
def test_a_usual_name_of_captions_holds_the_answers(tmp_path: Path, name: str) -> None:
    assert build(table(tmp_path, image=["a.jpg"], **{name: [["One.", "Two."]]})) == 0
    assert records(tmp_path)[0].turns[0].answers == ("One.", "Two.")


@pytest.mark.parametrize("word", [("image=img", "answer=label"), ("image=img", "--columns", "answer=label")])
def test_columns_of_other_names_are_given(tmp_path: Path, word: tuple[str, ...]) -> None:
    path = table(tmp_path, img=[jpeg(1)], label=["a dog"])
    assert build(path, "--columns", *word) == 0
    assert records(tmp_path)[0].turns[0].answers == ("a dog",)


@pytest.mark.parametrize(
    ("columns", "words", "advice"),
    [
        ({"img": [jpeg(1)], "caption": ["x"]}, [], "column 'img' holds images and is not used: name it with --columns"),
        ({"mask": [jpeg(1)]}, [], "'mask' holds images and is not used: leave it out with --columns unused=mask"),
        ({"picture": ["a.jpg"]}, [], "unknown column 'picture' (the columns are image, caption, picture)"),
        ({"style": ["x"]}, [], "--ignore-extra passes over such columns"),
        ({"text": ["x"]}, [], "the columns caption, text may each be the answer: choose one"),
        ({}, ["imge=image"], "--columns: unknown key 'imge'; did you mean 'image'?"),
        ({}, ["image=img"], "no column 'img', which --columns names; the columns are image, caption"),
        ({"img": ["a.jpg"]}, ["image=img", "image=image"], "--columns gives 'image' two columns, img and image"),
        ({"phrase": ["x"]}, [], "do not say what is trained; expected image and answer"),
        ({"caption": [None]}, [], "row 1: column 'caption' is null"),
        ({"image": [None]}, [], "row 1: column 'image' is null"),
        ({"image": pa.array([None], pa.string())}, [], "row 1: column 'image' is null"),
        ({"caption": [7]}, [], "row 1: answer is 7; expected a text, or a list of texts, none of them empty (answer"),
        ({"caption": [[" "]]}, [], "none of them empty"),
        ({"caption": [[["x"]]]}, [], "row 1: answer is"),
        ({"caption": [{"score": 1}]}, [], "row 1: column 'caption': an answer has the keys"),
        ({"caption": pa.array([0], pa.date32())}, [], "row 1: column 'caption': a value of the type date"),
        ({"image": [3]}, [], "row 1: image is 3; expected the path"),
        ({"image": [["a.jpg", "a.jpg"]]}, [], "row 1: image has 2 images"),
        ({"image": [b"<html>no</html>"]}, [], "row 1: a web page"),
        ({"image": [jpeg(1)[:-300]]}, [], "row 1: truncated"),
        ({"image": ["gone.jpg"]}, [], "row 1: image file missing; looked for"),
        ({"image": ["http://x/a.jpg"]}, [], "row 1: image is the URL"),
        ({"caption": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())}, [], "row 1: column 'caption': not UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_row_and_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], words: list[str], advice: str
) -> None:
    base: dict[str, Any] = {"image": ["a.jpg"], "caption": ["x"]}
    if "img" in columns and not words:
        del base["image"]
    path = table(tmp_path, **{**base, **columns})
    assert build(path, *(["--columns", *words] if words else [])) in (2, 3)
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objects", "advice"),
    [
        ([{"bbox": [1.0, 2.0, 3.0], "category": "cat"}], "row 1: object 1: bbox is [1.0, 2.0, 3.0]; expected four"),
        ([{"bbox": [1.0, 2.0, 0.0, 3.0], "category": "cat"}], "row 1: object 1: bbox is"),
        ([{"bbox": [1.0, 2.0, 9.0, 9.0], "category": 3}], "row 1: object 1: category is 3, a number without a name"),
        ([{"bbox": [1.0, 2.0, 9.0, 9.0], "category": " "}], 'row 1: object 1: category is " "; expected a text'),
        ([{"bbox": [1.0, 2.0, 9.0, 9.0], "kind": "cat"}], "row 1: object 1 has the unknown key 'kind'"),
        ({"bbox": [[1.0, 2.0, 9.0, 9.0]], "category": ["cat", "dog"]}, "lists have different lengths"),
        ([{"bbox": [90.0, 2.0, 9.0, 9.0], "category": "cat"}], "leave"),
    ],
)
def test_a_mistake_in_objects_names_the_row_and_the_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], objects: Any, advice: str
) -> None:
    assert build(table(tmp_path, image=["a.jpg"], objects=[objects])) == 3
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda data: data[:-40], "truncated: its end is missing"),
        (lambda data: data[: len(data) // 2], "truncated: its end is missing"),
        (lambda data: b"", "got an empty file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "got a Git LFS pointer"),
        (lambda data: b"<!DOCTYPE html><html>", "got a web page"),
        (lambda data: b"PARE" + data[4:], "is encrypted"),
        (lambda data: data[:-4] + b"PARE", "is encrypted"),
        (lambda data: data[:-30] + bytes(22) + data[-8:], "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_a_damaged_file_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, change: Any, advice: str
) -> None:
    path = tmp_path / f"my.{suffix}"
    if suffix == "parquet":
        pq.write_table(plain(), path)
    elif suffix == "feather":
        feather.write_feather(plain(), path)
    else:
        captioned().save_to_disk(tmp_path / "disk")
        path.write_bytes((tmp_path / "disk/data-00000-of-00001.arrow").read_bytes())
    if "encrypted" in advice and suffix != "parquet" or advice == "cannot be read" and suffix != "feather":
        return
    path.write_bytes(change(path.read_bytes()))
    assert build(path) == 3
    told = capsys.readouterr().err
    assert "my." in told and advice in told and "Traceback" not in told


@pytest.mark.parametrize(
    "name", ["datasets.parquet", "checksums.parquet", "lz4.feather", "plain.feather", "disk.arrow"]
)
def test_changed_bytes_are_rows_or_an_error_and_never_end_the_process(tmp_path: Path, name: str) -> None:
    """Most changes are in the schema and the footer, where pyarrow trusts what it reads."""
    path = tmp_path / name
    if name == "datasets.parquet":
        detections().to_parquet(path)
    elif name == "sums.parquet":
        pq.write_table(plain(), path, compression="zstd", write_page_checksum=True)
    elif name == "disk.arrow":
        questions().save_to_disk(tmp_path / "disk")
        path.write_bytes((tmp_path / "disk/data-00000-of-00001.arrow").read_bytes())
    else:
        feather.write_feather(plain(), path, compression="lz4" if name == "lz4.feather" else "uncompressed")
    data, outcomes = path.read_bytes(), Counter[str]()
    for number in range(150):
        draw, changed = Random(number), bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.choice([draw.randrange(600), -1 - draw.randrange(3000), draw.randrange(len(data))])
            changed[place % len(data)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            outcomes["rows"] += bool(list(read(path, Raw(tmp_path, "my", ""))))
        except DataError as error:
            outcomes["error"] += str(path) in str(error)
    assert sum(outcomes.values()) == 150 and outcomes["rows"] > 10 and outcomes["error"] > 10


def test_a_column_name_that_is_not_utf8_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, inner in enumerate(("answ\u00e4", "x")):
        made = pa.table({"image": [jpeg(1)], "b\u00e4r" if inner == "x" else "caption": [{inner: "y"}]})
        feather.write_feather(made, tmp_path / f"{number}.feather", compression="uncompressed")
        path = tmp_path / f"{number}.feather"
        path.write_bytes(path.read_bytes().replace("\u00e4".encode(), b"\xff\xfe"))
        assert build(path) == 3
        assert f"{number}.feather: cannot be read: 'utf-8' codec" in capsys.readouterr().err


def test_an_encrypted_column_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow.parquet import encryption

    class Keys(encryption.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, key: bytes, name: str) -> bytes:
            return base64.b64decode(key)

    config = encryption.EncryptionConfiguration("a", column_keys={"b": ["caption"]}, plaintext_footer=True)
    factory = encryption.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    pq.write_table(plain(), tmp_path / "my.parquet", encryption_properties=properties)
    assert build(tmp_path / "my.parquet") == 3
    assert "my.parquet: has encrypted columns: write it without encryption" in capsys.readouterr().err


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pa.table({"image": [bytes(1 << 20)] * 48, "caption": ["x"] * 48})
    pq.write_table(rows, tmp_path / "my.parquet", compression="zstd", use_dictionary=False)
    assert build(tmp_path / "my.parquet") == 3
    assert "row group 1 grows to 48.0 MiB, more than 200 times the size of the file" in capsys.readouterr().err


def test_a_batch_that_states_too_much_memory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stated size of a compressed buffer is changed, as a bomb would have it."""
    path = tmp_path / "my.feather"
    feather.write_feather(pa.table({"image": [bytes(100_000)], "caption": ["x"]}), path, compression="zstd")
    stated = (100_000).to_bytes(8, "little")
    assert stated in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(stated, (1 << 40).to_bytes(8, "little")))
    assert build(path) == 3
    assert "batch 1 takes 1,048,576.0 MiB in memory, the limit is 1,024.0 MiB" in capsys.readouterr().err


def test_large_row_groups_are_read_in_batches(tmp_path: Path) -> None:
    from minigptv2.corpora.formats.table_file import BATCH_BYTES, batches, open_table

    noise = [bytes([number]) * 100 + jpeg(number) * 1500 for number in range(60)]  # 60 MiB in one row group
    pq.write_table(pa.table({"image": noise}), tmp_path / "my.parquet", compression="none")
    sizes = [batch.nbytes for batch in batches(open_table(tmp_path / "my.parquet"), ["image"])]
    assert len(sizes) > 1 and max(sizes) < 2 * BATCH_BYTES


def test_the_split_of_a_saved_dataset_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DatasetDict({"train": captioned(), "validation": captioned(2)}).save_to_disk(tmp_path / "my")
    assert build(tmp_path / "my", "--split", "val") == 0 and len(records(tmp_path)) == 2
    assert "split 'train' is not read: --split train builds it" in capsys.readouterr().out


def test_missing_parts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my").mkdir()
    captioned().to_parquet(tmp_path / "my/train-00001-of-00003.parquet")
    assert build(tmp_path / "my") == 3
    assert "2 of 3 parts are missing, the first is train-00000-of-00003" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["train.parquet", "more.parquet"], "more.parquet says no split, beside files of train"),
        (["a/train.parquet", "b/train.parquet"], "split 'train' is in several folders, a, b: pass one of them"),
        (["val.parquet"], "has no split 'train': its splits are val"),
    ],
)
def test_files_whose_split_is_not_clear_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], advice: str
) -> None:
    for name in files:
        (tmp_path / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(plain(), tmp_path / "my" / name)
    assert build(tmp_path / "my") == 3
    assert advice in capsys.readouterr().err


def test_parts_with_other_columns_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my").mkdir()
    pq.write_table(plain(), tmp_path / "my/part-0.parquet")
    pq.write_table(plain().rename_columns(["image", "text"]), tmp_path / "my/part-1.parquet")
    assert build(tmp_path / "my") == 3
    assert "part-1.parquet: its columns differ from those of part-0.parquet: caption, text" in capsys.readouterr().err


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["image", "image"])
    pq.write_table(twice, tmp_path / "my.parquet")
    assert build(tmp_path / "my.parquet") == 3
    assert "the column 'image' occurs 2 times" in capsys.readouterr().err


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path, image=["a.jpg"], caption=["x"])
    monkeypatch.setattr("minigptv2.corpora.formats.table_file.find_spec", lambda name: None)
    assert build(path) == 2
    assert "pip install 'minigptv2[tables]'" in capsys.readouterr().err


def test_columns_are_for_tables_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"my.csv": "image,caption\na.jpg,x\n", "a.jpg": 1})
    assert build(tmp_path / "my.csv", "--columns", "image=image") == 2
    assert "--columns names columns of tables" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build(tmp_path / "my.csv", "--columns", "image")
    assert "'image' is not KEY=COLUMN" in capsys.readouterr().err


def test_images_of_a_table_are_upright_like_files(tmp_path: Path) -> None:
    from tests.corpora.fuzz.photos import write_photos

    photos = [photo for photo in write_photos(tmp_path) if photo.orientation == 6]
    data = [(tmp_path / photo.name).read_bytes() for photo in photos]
    pq.write_table(pa.table({"image": data, "caption": ["x"] * len(data)}), tmp_path / "my.parquet")
    assert build(tmp_path / "my.parquet") == 0
    sizes = [(one.width, one.height) for one in records(tmp_path)]
    assert sizes == [(photo.width, photo.height) for photo in photos]


def test_class_numbers_without_a_class_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    made = Dataset.from_dict(
        {"image": images(2), "label": [0, -1]},
        features=Features({"image": ImageFeature(), "label": ClassLabel(names=["cat"])}),
    )
    made.to_parquet(tmp_path / "my.parquet")
    assert build(tmp_path / "my.parquet", "--columns", "answer=label") == 3
    assert "row 2: column 'label' is null" in capsys.readouterr().err
