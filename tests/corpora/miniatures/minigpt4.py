"""Miniatures in MiniGPT-4's own layout, with the folders and names of its download and evaluation instructions.

Those are `dataset/README_MINIGPTv2_FINETUNE.md`, `dataset/README_1_STAGE.md`, `dataset/README_2_STAGE.md` and
`eval_scripts/EVAL_README.md` of Vision-CAIR/MiniGPT-4 at d94738a, and the fields are those that its data sets read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.corpora.miniatures.captions import coco_karpathy_list, textcaps
from tests.corpora.miniatures.conversations import TALK_DROPPED, llava, multitask, unnatural
from tests.corpora.miniatures.files import MISSING, Miniature, coco_name, jpeg, put
from tests.corpora.miniatures.questions import (
    QUESTIONS,
    QUESTIONS_DROPPED,
    aokvqa,
    gqa,
    hateful,
    ocr_vqa,
    vizwiz,
    vqa_merged,
    vqa_official,
    vsr,
)
from tests.corpora.miniatures.regions import OBJECTS_DROPPED, REGIONS_DROPPED, refer, refer_list, visual_genome
from tests.corpora.miniatures.web_pairs import PAIRS_DROPPED, pairs

FLAT = {f"coco/{folder}": "coco/images" for folder in ("train2014", "val2014", "train2017", "val2017")}
"""All images of COCO in one folder."""


def moved(make: Callable[[Path], None], *renames: dict[str, str], upper: bool = False) -> Callable[[Path], None]:
    """A miniature with files and folders elsewhere, merged where two go to one. `upper`: images end in `.JPG`."""

    def again(root: Path) -> None:
        make(root)
        for old, new in {key: value for rename in renames for key, value in rename.items()}.items():
            source = root / old
            if source.is_dir():
                for file in [file for file in source.rglob("*") if file.is_file()]:
                    _move(file, root / new / file.relative_to(source))
                _remove_folders(source)
            elif source.exists():
                _move(source, root / new)
        for file in list(root.rglob("*.jpg")) if upper else ():
            file.rename(file.with_suffix(".JPG"))

    return again


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)


def _remove_folders(folder: Path) -> None:
    for below in sorted(folder.rglob("*"), reverse=True):
        below.rmdir()
    folder.rmdir()


def okvqa_clean(listed: bool) -> Callable[[Path], None]:
    """OK-VQA's evaluation: cleaned official files, or the questions as a list. Images have the names of 2017."""

    def make(root: Path) -> None:
        for number in (9, 25):
            put(root / f"coco/images/{number:012d}.jpg", jpeg(number))
        asked = [{"question_id": i, "image_id": p, "question": q} for i, p, q, _ in [*QUESTIONS, QUESTIONS[0]]]
        answered = [
            {
                "question_id": i,
                "image_id": p,
                "answers": [{"answer": a, "raw_answer": f"{a}s" if a else ""} for a in given],
            }
            for i, p, _, given in QUESTIONS
        ]
        if listed:
            put(root / "okvqa/okvqa_test_split.json", asked)
        else:
            put(root / "okvqa/OpenEnded_mscoco_val2014_questions_clean.json", {"questions": asked})
        put(root / "okvqa/mscoco_val2014_annotations_clean.json", {"annotations": answered})

    return make


def iconqa_list(by_text: bool, nested: bool) -> Callable[[Path], None]:
    """The list that `IconQAEvalData` reads: `answer` is the choice itself."""

    def make(root: Path) -> None:
        choices = ["star", "círculo", "3"]
        answers = ["star", "3", "hexagon", "círculo"] if by_text else ["0", 2, 7, 1]
        rows = [
            {"image_id": str(n), "question": "Which?", "choices": choices, "answer": answer}
            for n, answer in enumerate(answers)
        ]
        below = "val/choose_txt/" if nested else ""
        for number in range(3):
            put(root / f"iconvqa/iconvqa_images/{below}{number}/image.png", jpeg(number, "PNG"))
        put(root / "iconvqa/choose_text_val.json", rows)

    return make


def filtered_flickr(root: Path) -> None:
    """The three lists that `flickr.py` reads. Image 38 does not exist, 39 is `.JPG`. Boxes are on the grid."""
    for name in ("36.jpg", "39.JPG"):
        put(root / f"filtered_flickr/images/{name}", jpeg(4))
    grounded = {
        36: "<p>Two  dogs</p> {<0><0><30><40>}<delim>{<15><20><100><83>} and <p>a cat</p> {<15><20><99><83>} play .",
        39: "A meadow near <p>the Hündchen</p>{<1><2><57><58>} .",
        38: "<p>nowhere</p> {<1><2><3><4>}",
    }
    rows = [{"image_id": key, "grounded_caption": text} for key, text in grounded.items()]
    rows.append({"image_id": 36, "grounded_caption": "Nothing marked, but <p>a dog</p> ."})
    rows.append({"image_id": 36, "grounded_caption": "A box {<1><2><30><40>} and <p>a dog</p> {<1><2><30><40>}"})
    rows.append({"image_id": 36, "grounded_caption": "<p>A line</p> {<5><5><5><9>}"})
    put(root / "filtered_flickr/groundedcaption.json", rows)
    phrases = [
        {
            "image_id": "36",
            "caption": "A dog and a cat .",
            "output": "<p>A dog</p> {<0><0><30><40>} <p>a cat</p> {<9><9><20><20>}",
        },
        {"image_id": "39", "caption": "A dog .", "output": "<p>A dog</p> {<0><0><30><40>}"},
        {"image_id": "36", "caption": "Nothing .", "output": ""},
        {"image_id": "38", "caption": "A dog .", "output": "<p>A dog</p> {<0><0><30><40>}"},
    ]
    put(root / "filtered_flickr/captiontobbox.json", phrases)
    boxes = [
        {"image_id": "36", "phrase": "A dog", "bbox": "{<0><0><30><40>}<delim>{<1><1><100><100>}"},
        {"image_id": "39", "phrase": "A dog", "bbox": "{<0><0><30><40>}"},
        {"image_id": "36", "phrase": "A dog", "bbox": "{<0><0><30><40>}<delim>{<1><1><100><100>}"},
        {"image_id": "36", "phrase": "A cat", "bbox": "{<0><0><130><40>}"},
        {"image_id": "38", "phrase": "A dog", "bbox": "{<0><0><30><40>}"},
    ]
    put(root / "filtered_flickr/phrasetobbox.json", boxes)


def cc_sbu_align(root: Path) -> None:
    """Descriptions as `CCSBUAlignDataset` reads them. The second image has two, one of them twice."""
    put(root / "cc_sbu_align/image/2.jpg", jpeg(2))
    put(root / "cc_sbu_align/image/3.JPG", jpeg(3))
    texts = [
        ("2", "A dog runs. It is “brown”."),
        ("3", "A cat."),
        ("3", "A cat sits."),
        ("3", "A cat."),
        ("4", "Gone."),
        ("2", " "),
    ]
    rows = [{"image_id": key, "caption": text} for key, text in texts]
    put(root / "cc_sbu_align/filter_cap.json", {"annotations": rows})


def vqa_of_both_splits(root: Path) -> None:
    """`vqa_val.json`, whose questions are about images of val2014."""
    put(root / f"coco/images/{coco_name(9, 'val2014').split('/')[1]}", jpeg(9))
    rows = [
        {
            "question_id": n,
            "image": coco_name(p, "val2014"),
            "question": "What?",
            "answer": ["a"] * 10,
            "dataset": "vqa",
        }
        for n, p in ((1, 9), (2, 77))
    ]
    put(root / "vqav2/vqa_val.json", rows)


def _refer_folder(folder: str, by: str) -> dict[str, str]:
    spelled = {"umd": "und"}.get(by, by)
    return {
        f"{folder}/refs({by}).p": f"refcoco_annotations/{folder}/refs({spelled}).p",
        folder: f"refcoco_annotations/{folder}",
    }


_FILTERED = {
    "flickr_grounded_caption": (
        2,
        2,
        MISSING | {"no phrase with a box": 1, "boxes without a phrase": 1, "empty or inverted box": 1},
    ),
    "flickr_caption_to_phrase": (2, 2, MISSING | {"no phrase with a box": 1}),
    "flickr_phrase_to_box": (2, 3, MISSING | {"no phrase with a box": 1}),
}
_ROWS = OBJECTS_DROPPED | {"duplicate id": 0}

MINIGPT4 = [
    Miniature(
        "coco_caption",
        "train",
        "minigpt4",
        moved(coco_karpathy_list, FLAT, {"coco/annotations": "coco_captions/annotations"}),
        1,
        1,
        MISSING,
    ),
    *(
        Miniature(
            f"{corpus}{task}",
            split,
            f"minigpt4-{by}",
            moved(refer(folder, by, name), FLAT, _refer_folder(folder, by), upper=by == "google"),
            2,
            3,
            OBJECTS_DROPPED,
        )
        for task in ("", "_identify")
        for corpus, folder, split, by, name in (
            ("refcoco", "refcoco", "train", "unc", "train"),
            ("refcoco", "refcoco", "google_test", "google", "test"),
            ("refcoco_plus", "refcoco+", "train", "unc", "train"),
            ("refcocog", "refcocog", "train", "umd", "train"),
        )
    ),
    *(
        Miniature(
            "refcoco_plus",
            "testB",
            f"minigpt4-{place}",
            moved(refer_list("refcoco+", "testB"), FLAT, moves),
            2,
            3,
            _ROWS,
        )
        for place, moves in (
            ("list", {"refcoco+": "refcoco_annotations/refcoco+"}),
            ("flat-list", {"refcoco+": "refcoco_annotations"}),
            ("eval_data", {"refcoco+": "eval_data"}),
        )
    ),
    Miniature(
        "vqav2",
        "train",
        "minigpt4",
        moved(vqa_merged("vqav2"), FLAT, {"vqav2/vqav2_train.json": "vqav2/vqa_train.json"}),
        2,
        3,
        QUESTIONS_DROPPED,
    ),
    Miniature("vqav2", "val", "minigpt4", vqa_of_both_splits, 1, 1, MISSING),
    Miniature(
        "vqav2",
        "train",
        "flat-official",
        moved(vqa_official("vqav2", "v2_"), FLAT, upper=True),
        2,
        3,
        QUESTIONS_DROPPED,
    ),
    Miniature("ok_vqa", "train", "minigpt4", moved(vqa_merged("okvqa"), FLAT), 2, 3, QUESTIONS_DROPPED),
    Miniature("ok_vqa", "val", "minigpt4-clean", okvqa_clean(False), 2, 3, QUESTIONS_DROPPED),
    Miniature("ok_vqa", "val", "minigpt4-list", okvqa_clean(True), 2, 3, QUESTIONS_DROPPED),
    Miniature("aok_vqa", "train", "minigpt4", moved(aokvqa(False), FLAT), 2, 3, QUESTIONS_DROPPED),
    Miniature(
        "aok_vqa",
        "train",
        "minigpt4-by-file",
        moved(aokvqa(True), FLAT, {"aokvqa/aokvqa_train.json": "aokvqa/aokvqa_v1p0_train.json"}),
        2,
        3,
        QUESTIONS_DROPPED,
    ),
    Miniature("vizwiz", "val", "minigpt4", moved(vizwiz, {"vizwiz/val": "vizwiz/vizwiz_images"}), 1, 1, MISSING),
    Miniature("text_caps", "train", "minigpt4", moved(textcaps, upper=True), 1, 1, MISSING),
    *(
        Miniature("gqa", "train", f"minigpt4-{folder}", moved(gqa(True), moves), 2, 3, MISSING | {"empty answer": 1})
        for folder, moves in (("images", {}), ("gqa_images", {"gqa/images": "gqa/gqa_images"}))
    ),
    Miniature(
        "ocr_vqa",
        "train",
        "minigpt4",
        ocr_vqa,
        2,
        3,
        {
            "image file missing": 2,
            "damaged: its GIF data cannot be decoded": 2,
            "empty answer": 1,
            "questions and answers of different number": 2,
        },
    ),
    Miniature("visual_genome_refer", "train", "minigpt4", visual_genome(False), 2, 3, REGIONS_DROPPED),
    *(
        Miniature(corpus, "train", "minigpt4", filtered_flickr, samples, turns, dropped)
        for corpus, (samples, turns, dropped) in _FILTERED.items()
    ),
    *(
        Miniature(corpus, "train", "minigpt4", moved(llava(f"llava/{file}.json"), FLAT), 3, 3, TALK_DROPPED)
        for corpus, file in (
            ("llava_conversation", "conversation_58k"),
            ("llava_detail", "detail_23k"),
            ("llava_reasoning", "complex_reasoning_77k"),
        )
    ),
    *(
        Miniature(
            "multitask_conversation",
            "train",
            f"minigpt4-{name}",
            moved(multitask, FLAT, {f"{place}/multi_task_conversation.json": f"{place}/{name}_conversation.json"}),
            1,
            1,
            MISSING,
        )
        for place in ("multitask_conversation",)
        for name in ("multi_task", "multitask")
    ),
    Miniature(
        "unnatural_instructions",
        "train",
        "minigpt4",
        unnatural("filtered_unnatural_instruction.json"),
        1,
        2,
        {"empty answer": 1, "no instances": 1},
    ),
    Miniature(
        "vsr",
        "test",
        "minigpt4",
        moved(vsr("zeroshot/test.jsonl"), {"coco/train2017": "vsr/vsr_images"}),
        1,
        2,
        MISSING,
    ),
    *(
        Miniature(
            "iconqa",
            "val",
            f"minigpt4-{'text' if by_text else 'number'}",
            iconqa_list(by_text, nested),
            2,
            2,
            MISSING | {"answer is not a choice": 1},
        )
        for by_text, nested in ((True, False), (False, True))
    ),
    *(
        Miniature(
            "hateful_memes",
            "dev_seen",
            f"minigpt4-{images}",
            moved(
                hateful("dev.jsonl"), {"hateful_memes/img": f"hateful_meme/{images}", "hateful_memes": "hateful_meme"}
            ),
            2,
            2,
            MISSING | {"duplicate id": 1, "no label": 1},
        )
        for images in ("img", "hm_images", "hm_images/img")
    ),
    Miniature("laion", "train", "minigpt4", pairs("laion", "laion_dataset", True), 5, 5, PAIRS_DROPPED),
    Miniature("cc3m", "train", "minigpt4", pairs("cc_sbu", "cc_sbu_dataset", True), 5, 5, PAIRS_DROPPED),
    Miniature(
        "cc_sbu_align",
        "train",
        "minigpt4",
        cc_sbu_align,
        3,
        3,
        MISSING | {"duplicate description": 1, "empty answer": 1},
    ),
]
