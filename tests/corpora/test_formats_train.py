"""Datasets that public tools wrote: built, verified and trained for two steps. `write_exports` drew their scene."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.shards.reader import CorpusReader
from minigptv2.tokenizer import Tokenizer
from tests.corpora.formats import tables
from tests.corpora.own_data import HERE
from tests.corpora.training import STEP, one_step
from tests.public.tools import unpack

CAT, LIGHT = ("cat", (5, 6, 25, 36)), ("traffic light", (10, 8, 40, 44))
THREE = [[CAT], [CAT, LIGHT], [CAT]]
TWO = THREE[:2]
"""The split `train` of the tools that write splits."""
BOXES = [
    ("datumaro_yolo", "", TWO),
    ("datumaro_yolo", "obj.data", TWO),
    ("datumaro_yolo_ultralytics", "", TWO),
    ("datumaro_yolo_ultralytics", "data.yaml", TWO),
    ("datumaro_voc_detection", "", TWO),
    ("datumaro_coco_instances", "annotations/instances_train.json", TWO),
    ("supervision_yolo", "", THREE),
    ("supervision_voc", "", THREE),
    ("label_studio_yolo", "", THREE),
    ("label_studio_voc", "", THREE),
    ("labelimg_yolo", "", THREE),
    ("labelimg_voc", "", THREE),
]
CAPTIONS = [
    ("datumaro_coco_captions", "annotations/captions_train.json", [2, 2]),
    ("img2dataset_files", "", [1, 1, 1]),
]
"""Archive, path in it, and the number of captions of each image."""


def built(folder: Path, archive: str, path: str) -> CorpusReader:
    """The corpus of an archive, in which `verify` finds no fault."""
    return built_from(unpack(archive, folder) / path, folder)


def built_from(place: Path, folder: Path) -> CorpusReader:
    """The corpus of a dataset, in which `verify` finds no fault."""
    assert cli(["shards", "build", str(place), "--output", str(folder / "shards/my"), *HERE]) == 0
    assert cli(["shards", "verify", str(folder / "shards/my"), "--workers", "0"]) == 0
    return CorpusReader(folder / "shards/my")


def train_two_steps(folder: Path, tokenizer: Tokenizer, model: MiniGPTv2) -> None:
    recipe = Recipe(corpora={"my": CorpusShare(ratio=1, task="mixed")})
    for number in range(2):
        drawn, step = one_step(recipe, folder / "shards", tokenizer, model, number)
        assert drawn["my"] == STEP and step.dropped == []


@pytest.mark.parametrize(("archive", "path", "images"), BOXES)
def test_boxes_of_a_tool_are_built_verified_and_trained(
    tmp_path: Path,
    tokenizer: Tokenizer,
    model: MiniGPTv2,
    archive: str,
    path: str,
    images: list[list[tuple[str, tuple[float, ...]]]],
) -> None:
    reader = built(tmp_path, archive, path)
    found = []
    for record in map(reader.record, range(len(reader))):
        regions = [turn.regions[0] for turn in record.turns]
        found.append([(region.phrases[0], region.boxes[0]) for region in regions])
        assert all(turn.task == "detection" and len(turn.regions[0].boxes) == 1 for turn in record.turns)
    assert [[name for name, _ in boxes] for boxes in found] == [[name for name, _ in boxes] for boxes in images]
    for boxes, right in zip(found, images, strict=True):
        for (_, box), (_, corners) in zip(boxes, right, strict=True):
            assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx(corners, abs=1.0)  # VOC's tools differ by a pixel
    train_two_steps(tmp_path, tokenizer, model)


@pytest.mark.parametrize(("archive", "path", "captions"), CAPTIONS)
def test_captions_of_a_tool_are_built_verified_and_trained(
    tmp_path: Path, tokenizer: Tokenizer, model: MiniGPTv2, archive: str, path: str, captions: list[int]
) -> None:
    reader = built(tmp_path, archive, path)
    answers = [reader.record(number).turns[0].answers for number in range(len(reader))]
    colors = ("red", "green", "blue")
    assert answers == [
        (f"A {color} card.", f"A card that is {color}.")[:count] for color, count in zip(colors, captions, strict=False)
    ]
    train_two_steps(tmp_path, tokenizer, model)


@pytest.mark.parametrize("name", tables.CAPTIONS)
def test_a_table_of_captions_is_built_verified_and_trained(
    tmp_path: Path, tokenizer: Tokenizer, model: MiniGPTv2, name: str
) -> None:
    path, write = tables.CAPTIONS[name]
    write(tmp_path / path)
    assert len(built_from(tmp_path / path, tmp_path)) == 3
    train_two_steps(tmp_path, tokenizer, model)


@pytest.mark.parametrize("task", tables.TASKS)
def test_a_table_of_a_task_is_built_verified_and_trained(
    tmp_path: Path, tokenizer: Tokenizer, model: MiniGPTv2, task: str
) -> None:
    tables.TASKS[task]().to_parquet(tmp_path / "my.parquet")
    reader = built_from(tmp_path / "my.parquet", tmp_path)
    assert {turn.task for turn in reader.record(0).turns} == {task}
    train_two_steps(tmp_path, tokenizer, model)


@pytest.mark.parametrize("archive", ["datumaro_yolo", "datumaro_yolo_ultralytics", "datumaro_voc_detection"])
def test_the_split_of_a_tool_is_chosen_and_the_other_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], archive: str
) -> None:
    folder = unpack(archive, tmp_path)
    words = ["shards", "build", str(folder), *HERE]
    assert cli([*words, "--output", str(tmp_path / "val"), "--split", "val"]) == 0
    assert "split 'train' is not read: --split train builds it" in capsys.readouterr().out
    assert len(CorpusReader(tmp_path / "val")) == 1
    assert cli([*words, "--output", str(tmp_path / "test"), "--split", "test"]) == 3
    assert "has no split 'test': its splits are train, val: choose one with --split" in capsys.readouterr().err
