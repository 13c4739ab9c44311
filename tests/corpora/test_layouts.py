"""The official layout and MiniGPT-4's: which file is read if there are several, and what the report says of it."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from minigptv2.boxes import GRID
from minigptv2.cli import main as cli
from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.draft import Draft, finish
from minigptv2.corpora.sources import CORPORA
from minigptv2.corpora.sources.coco import WITH_RESTVAL, image_paths
from minigptv2.corpora.sources.filtered_flickr import caption_to_phrases, grounded_caption, phrase_to_boxes
from minigptv2.errors import DataError, MissingFilesError
from minigptv2.record import Turn
from minigptv2.tasks import render_turn
from tests.corpora.miniatures import MINIATURES
from tests.corpora.miniatures.captions import coco_karpathy_list, coco_karpathy_own
from tests.corpora.miniatures.files import Miniature, coco, coco_name, jpeg, put
from tests.corpora.miniatures.minigpt4 import FLAT, filtered_flickr, moved
from tests.corpora.miniatures.questions import vqa_merged, vqa_official
from tests.corpora.miniatures.regions import flickr
from tests.corpora.test_sources import read

LAYOUTS = ("the official layout", "MiniGPT-4's layout")


def refs(root: Path, split: str, sentences: list[dict[str, str]], *, folder: str = "refcoco", by: str = "unc") -> None:
    """One object of REFER's pickle, with these sentences."""
    ref = {"ref_id": 2, "ann_id": 3, "image_id": 9, "split": split, "sentences": sentences}
    put(root / folder / f"refs({by}).p", pickle.dumps([ref], protocol=2))
    put(root / folder / "instances.json", {"annotations": [{"id": 3, "image_id": 9, "bbox": [10, 6, 40, 30]}]})


def expressions(root: Path, split: str, corpus: str = "refcoco") -> list[str]:
    (record,), reasons = read(root, corpus, split)
    assert not reasons
    return [phrase for turn in record.turns for region in turn.regions for phrase in region.phrases]


SAID = [
    {"raw": "Left CUP, please!", "sent": "left cup please"},
    {"raw": "Skiier in red pants.", "sent": "skiier in red pants"},
    {"raw": "left cup please", "sent": "left cup please"},
]


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB", "google_val"])
@pytest.mark.parametrize("corpus", ["refcoco", "refcoco_identify"])
def test_a_pickle_s_expressions_are_its_sents(tmp_path: Path, split: str, corpus: str) -> None:
    coco(tmp_path, "train2014/9")
    by_google = split.startswith("google_")
    refs(tmp_path, split.removeprefix("google_"), SAID, by="google" if by_google else "unc")
    assert expressions(tmp_path, split, corpus) == ["left cup please", "skiier in red pants", "left cup please"]


@pytest.mark.parametrize(
    ("sentence", "expression"),
    [
        ({"raw": "Left CUP, please!"}, "left cup please"),
        ({"raw": "bowl w/carrots; the 2nd"}, "bowl wcarrots the 2nd"),
        ({"raw": "Große  Tasse!", "sent": "Große Tasse"}, "große tasse"),
        ({"raw": "Left", "sent": "RIGHT"}, "right"),
    ],
)
def test_an_expression_is_lower_case_without_punctuation(
    tmp_path: Path, sentence: dict[str, str], expression: str
) -> None:
    coco(tmp_path, "train2014/9")
    refs(tmp_path, "train", [sentence])
    assert expressions(tmp_path, "train") == [expression]


PLACES = {"official": "refcoco", "annotations": "refcoco_annotations/refcoco", "flat": "refcoco_annotations"}


@pytest.mark.parametrize("listed", PLACES)
@pytest.mark.parametrize("pickled", ["official", "annotations", None])
@pytest.mark.parametrize("split", ["val", "testA", "testB", "train"])
def test_the_evaluation_s_list_comes_first_where_it_evaluates(
    tmp_path: Path, split: str, pickled: str | None, listed: str
) -> None:
    coco(tmp_path, "train2014/9")
    if pickled is not None:
        refs(tmp_path, split, SAID[:1], folder=PLACES[pickled])
    row = {"img_id": "COCO_train2014_000000000009_2", "sents": "cup on the left", "bbox": [10, 6, 40, 30]}
    put(tmp_path / PLACES[listed] / f"refcoco_{split}.json", [row])
    from_pickle = split == "train" and pickled is not None
    assert expressions(tmp_path, split) == ["left cup please" if from_pickle else "cup on the left"]


def test_google_s_splits_have_no_list(tmp_path: Path) -> None:
    coco(tmp_path, "train2014/9")
    put(tmp_path / "refcoco/refcoco_google_val.json", [])
    put(tmp_path / "refcoco/refcoco_val.json", [])
    with pytest.raises(MissingFilesError, match=r"refs\(google\)\.p"):
        read(tmp_path, "refcoco", "google_val")


@pytest.mark.parametrize("make", [coco_karpathy_list, coco_karpathy_own])
def test_captions_of_val2014_are_trained_only_on_demand(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    images = {
        split: {record.source["id"] for record in read(tmp_path, "coco_caption", split)[0]}
        for split in ("train", WITH_RESTVAL)
    }
    assert images == {"train": {"9"}, WITH_RESTVAL: {"9", "25"}}


def test_names_that_do_not_tell_train2014_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, "train2017/9")
    put(tmp_path / "coco/annotations/coco_karpathy_train.json", [{"image": "000000000009.jpg", "caption": "A dog."}])
    with pytest.raises(DataError, match=r"no image's name contains 'train'.*--split train\+restval"):
        read(tmp_path, "coco_caption", "train")
    assert len(read(tmp_path, "coco_caption", WITH_RESTVAL)[0]) == 1


def report(root: Path, corpus: str, split: str = "train") -> list[str]:
    return build(CORPORA[corpus], root, split, root / "out").lines()


def test_a_build_names_the_layout_it_read(tmp_path: Path) -> None:
    vqa_official("vqav2", "v2_")(tmp_path / "a")
    files = "coco/train2014, vqav2/v2_OpenEnded_mscoco_train2014_questions.json, "
    files += "vqav2/v2_mscoco_train2014_annotations.json"
    assert report(tmp_path / "a", "vqav2")[1] == f"read in the official layout: {files}"
    moved(vqa_merged("vqav2"), FLAT, {"vqav2/vqav2_train.json": "vqav2/vqa_train.json"})(tmp_path / "b")
    lines = report(tmp_path / "b", "vqav2")
    assert lines[1] == "read in MiniGPT-4's layout: coco/images, vqav2/vqa_train.json"
    assert not any("both layouts" in line for line in lines)


def test_if_both_layouts_are_there_the_official_one_is_read_and_this_is_said(tmp_path: Path) -> None:
    vqa_official("vqav2", "v2_")(tmp_path)
    put(
        tmp_path / "vqav2/vqa_train.json", [{"question_id": 1, "image": coco_name(9), "question": "?", "answer": ["x"]}]
    )
    put(tmp_path / "coco/images/COCO_train2014_000000000009.jpg", b"not read")
    lines = report(tmp_path, "vqav2")
    assert lines[0].startswith("vqav2 train: read 7 questions")
    both = [line for line in lines if line.startswith("both layouts are there")]
    question = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
    assert both == [
        f"both layouts are there: {path} of the official layout comes before {other} of MiniGPT-4's layout"
        for path, other in (("coco/train2014", "coco/images"), (question, "vqav2/vqa_train.json"))
    ]


def test_a_folder_of_the_official_layout_in_the_flat_one_is_no_second_layout(tmp_path: Path) -> None:
    moved(vqa_official("vqav2", "v2_"), {"coco/train2014": "coco/images/train2014"})(tmp_path)
    lines = report(tmp_path, "vqav2")
    assert lines[1].startswith("read in the official layout: coco/images/train2014, ")
    assert not any("both layouts" in line for line in lines)


@pytest.mark.parametrize("corpus", ["flickr_grounded_caption", "flickr_caption_to_phrase", "flickr_phrase_to_box"])
def test_the_entities_themselves_come_before_the_filtered_lists(tmp_path: Path, corpus: str) -> None:
    filtered_flickr(tmp_path)
    assert any("read in MiniGPT-4's layout: filtered_flickr/" in line for line in report(tmp_path, corpus))
    flickr(False)(tmp_path)
    lines = build(CORPORA[corpus], tmp_path, "train", tmp_path / "again").lines()
    assert any(line.startswith("read in the official layout: flickr30k/train.txt, ") for line in lines)
    assert sum("both layouts are there" in line for line in lines) == 2, "the lists and the images"


def test_the_filtered_lists_are_for_training_only(tmp_path: Path) -> None:
    filtered_flickr(tmp_path)
    with pytest.raises(MissingFilesError, match=r"flickr30k/test\.txt"):
        read(tmp_path, "flickr_phrase_to_box", "test")


def test_the_error_for_missing_files_names_both_layouts(tmp_path: Path) -> None:
    coco(tmp_path, "train2014/9")
    expected = {
        "coco_caption": (
            "coco/annotations/coco_karpathy_train.json",
            "coco_captions/annotations/coco_karpathy_train.json",
        ),
        "refcoco": ("refcoco/refs(unc).p", "refcoco_annotations/refcoco/refs(unc).p"),
        "refcocog": ("refcocog/refs(umd).p", "refcoco_annotations/refcocog/refs(und).p"),
        "vqav2": ("vqav2/v2_OpenEnded_mscoco_train2014_questions.json", "vqav2/vqa_train.json"),
        "ok_vqa": ("okvqa/OpenEnded_mscoco_train2014_questions.json", "okvqa/okvqa_train.json"),
        "flickr_grounded_caption": ("flickr30k/train.txt", "filtered_flickr/groundedcaption.json"),
        "cc3m": ("/cc3m", "/cc_sbu"),
    }
    for corpus, (official, minigpt4) in expected.items():
        with pytest.raises(MissingFilesError) as error:
            read(tmp_path, corpus, "train")
        before, after = str(error.value).split(", nor in MiniGPT-4's layout ")
        assert official in before and minigpt4 in after and "Download: " in after
    with pytest.raises(MissingFilesError, match=r"iconqa/val/choose_txt.* nor in .*iconvqa/choose_text_val\.json"):
        read(tmp_path, "iconqa", "val")
    with pytest.raises(MissingFilesError, match=r"hateful_memes/dev\.jsonl, nor in|dev\.jsonl not found, nor in"):
        read(tmp_path, "hateful_memes", "dev_seen")


def test_the_error_for_missing_images_names_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(MissingFilesError, match=r"coco/train2014 or .* nor in MiniGPT-4's layout .*coco/images\."):
        read(tmp_path, "vqav2", "train")


@pytest.mark.parametrize("name", [coco_name(9), "COCO_train2014_000000000009.JPG", "000000000009.jpg", 9])
@pytest.mark.parametrize(
    "file", [f"train2014/{coco_name(9)[10:]}", f"images/train2014/{coco_name(9)[10:]}", f"images/{coco_name(9)[10:]}"]
)
@pytest.mark.parametrize("extension", [".jpg", ".JPG", ".jpeg"])
def test_an_image_of_coco_is_found_in_either_layout(tmp_path: Path, name: str | int, file: str, extension: str) -> None:
    put((tmp_path / "coco" / file).with_suffix(extension), jpeg(9))
    paths = image_paths(CORPORA["vqav2"].raw(tmp_path), name)
    sample, dropped = finish(Draft("a", (Turn("caption", answers=("A dog.",)),), paths))
    assert sample is not None and not dropped and sample.image == jpeg(9)


def test_the_official_place_of_an_image_comes_first(tmp_path: Path) -> None:
    coco(tmp_path, "train2014/9")
    put(tmp_path / "coco/images" / coco_name(9).split("/")[1], jpeg(1))
    paths = image_paths(CORPORA["vqav2"].raw(tmp_path), coco_name(9))
    assert paths[0] == str(tmp_path / "coco" / coco_name(9)) and len(set(paths)) == len(paths)


@pytest.mark.parametrize("seed", range(20))
def test_filtered_lists_are_trained_with_the_text_they_have(seed: int) -> None:
    rng = Random(seed)
    width, height = rng.randint(33, 3000), rng.randint(33, 3000)

    def box() -> str:
        (x1, x2), (y1, y2) = (sorted(rng.sample(range(GRID + 1), 2)) for _ in range(2))
        x2, y2 = max(x2, x1 + 4), max(y2, y1 + 4)  # wider than a pixel
        return f"{{<{x1}><{y1}><{min(GRID, x2)}><{min(GRID, y2)}>}}"

    def boxes() -> str:
        return "<delim>".join(box() for _ in range(rng.randint(1, 3)))

    texts = [f"<p>A man</p> {boxes()} throws <p>a ball</p> {boxes()} .", f"<p>Ein Hündchen</p> {boxes()}"]
    for text in texts:
        grounded = fitted(grounded_caption({"grounded_caption": text}), width, height)
        assert render_turn(grounded, width, height).answer == text
    listed = " ".join(f"<p>{phrase}</p> {boxes()}" for phrase in ("a man", "a ball", "a man"))
    found = fitted(caption_to_phrases({"caption": "A man and a man.", "output": listed}), width, height)
    assert render_turn(found, width, height).answer == listed and found.question == "A man and a man."
    where = boxes()
    one = fitted(phrase_to_boxes({"phrase": "a man", "bbox": where}), width, height)
    assert render_turn(one, width, height).answer == f"<p>a man</p> {where}"


def fitted(turn: Turn, width: int, height: int) -> Turn:
    """The turn with its boxes in pixels of an image of this size."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    sample, dropped = finish(Draft("a", (turn,), buffer.getvalue(), separate=True, frame=(GRID, GRID)))
    assert sample is not None and not dropped
    return sample.record.turns[0]


def test_a_list_with_boxes_outside_the_grid_is_told_and_the_caption_is_clean(tmp_path: Path) -> None:
    filtered_flickr(tmp_path)
    records, reasons = read(tmp_path, "flickr_grounded_caption", "train")
    assert records[0].turns[0].answers == ("Two dogs and a cat play .",)
    assert records[0].turns[0].regions[0].span == (0, 8)
    assert reasons["no phrase with a box"] == 1


def test_an_existing_folder_of_minigpt4_builds_by_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "dataset"
    kept: dict[str, Miniature] = {}
    for miniature in MINIATURES:
        if miniature.layout.startswith("minigpt4") and miniature.split == "train" and CORPORA[miniature.corpus].stages:
            kept.setdefault(miniature.corpus, miniature)
    for miniature in kept.values():
        miniature.make(root)
    words = ["shards", "build", "all", "--root", str(root), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert cli(words) == 0
    told = capsys.readouterr().out
    missing = re.findall(r"not built: (\w+)", told)
    assert sorted(missing) == ["grit_caption", "grit_identify", "grit_refer", "sbu"], "the published code has none"
    assert told.count(f"read in {LAYOUTS[1]}: ") >= 15
    assert "failed" not in told
    manifest = json.loads((tmp_path / "out/flickr_phrase_to_box/manifest.json").read_text())
    assert manifest["turns"] == {"detection": 3}


@pytest.mark.parametrize(
    ("text", "caption", "phrases"),
    [
        ("  <p>A man</p>{<1><2><30><40>}  runs .\n", "A man runs .", ["A man"]),
        ("<p>A\tman</p> {<1><2><30><40>},<p>a dog</p> {<1><2><30><40>}", "A man,a dog", ["A man", "a dog"]),
        ("A \ud83d man\0 and <p>a  \udc15dog</p> {<1><2><30><40>}", "A man and a dog", ["a dog"]),
        ("<p>A man</p> and <p>a dog</p> {<1><2><30><40>}", "A man and a dog", ["a dog"]),
        ("<p>A man</p> {<1><2><30><140>} and <p>a dog</p> {<1><2><30><40>}", "A man and a dog", ["a dog"]),
    ],
)
def test_a_grounded_caption_of_the_list_is_clean_and_its_spans_fit(text: str, caption: str, phrases: list[str]) -> None:
    turn = fitted(grounded_caption({"grounded_caption": text}), 64, 48)
    assert turn.answers == (caption,)
    assert [caption[slice(*region.span)] for region in turn.regions if region.span] == phrases
    assert [region.phrases[0] for region in turn.regions] == phrases


@pytest.mark.parametrize(
    ("write", "entry", "reason"),
    [
        (grounded_caption, {"grounded_caption": "Nothing."}, "no phrase with a box"),
        (grounded_caption, {"grounded_caption": "<p> </p> {<1><2><3><4>}"}, "boxes without a phrase"),
        (caption_to_phrases, {"caption": "A dog.", "output": "{<1><2><3><4>}"}, "no phrase with a box"),
        (phrase_to_boxes, {"phrase": "a dog", "bbox": "<1><2><3><4>"}, "no phrase with a box"),
    ],
)
def test_a_row_of_the_lists_without_boxes_says_why(
    write: Callable[[dict[str, str]], Turn], entry: dict[str, str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        write(entry)
