"""Writes miniatures of corpora with questions about images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpora.miniatures.files import coco, coco_name, jpeg, lines, put

QUESTIONS = [
    # id, picture, question, answers
    (9000, 9, "What is this?", ["dog"] * 9 + ["cat"]),
    (9001, 9, "Ist das grün?", ["ja"] * 8 + ["", "nein"]),
    (25000, 25, "How many?", ["2"] * 10),
    (25001, 25, "Unanswerable?", [""] * 10),
    (25002, 25, " ", ["empty question"] * 10),
    (77000, 77, "Where?", ["nowhere"] * 10),
]
QUESTIONS_DROPPED = {"image file missing": 1, "empty answer": 1, "empty question": 1, "duplicate id": 1}


def vqa_official(folder: str, prefix: str) -> Callable[[Path], None]:
    """Questions and annotations, the latter as `vqaTools/vqa.py` of GT-Vision-Lab/VQA reads them."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        asked = [{"question_id": i, "image_id": p, "question": q} for i, p, q, _ in [*QUESTIONS, QUESTIONS[0]]]
        answered = [
            {
                "question_id": i,
                "image_id": p,
                "answer_type": "other",
                "answers": [{"answer": a, "answer_id": n, "answer_confidence": "yes"} for n, a in enumerate(answers)],
            }
            for i, p, _, answers in QUESTIONS
        ]
        put(root / folder / f"{prefix}OpenEnded_mscoco_train2014_questions.json", {"info": {}, "questions": asked})
        put(root / folder / f"{prefix}mscoco_train2014_annotations.json", {"info": {}, "annotations": answered})

    return make


def vqa_merged(folder: str) -> Callable[[Path], None]:
    """The list that MiniGPT-4's `coco_vqa_datasets.py` reads."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        rows = [
            {"question_id": i, "image": coco_name(p), "question": q, "answer": answers, "dataset": "vqa"}
            for i, p, q, answers in [*QUESTIONS, QUESTIONS[0]]
        ]
        put(root / folder / f"{folder}_train.json", rows)

    return make


def aokvqa(by_file: bool) -> Callable[[Path], None]:
    """An entry as the README of allenai/aokvqa shows one, or as MiniGPT-4's `aok_vqa_datasets.py` reads it, by file."""

    def make(root: Path) -> None:
        coco(root, "train2017/9", "train2017/25")
        rows = [
            {
                "split": "train",
                "question_id": f"id{i}",
                "question": q,
                "direct_answers": answers,
                "choices": ["dog", "cat", "2", "ja"],
                "correct_choice_idx": 0,
                "rationales": ["because"],
                **({"image": f"train2017/{p:012d}.jpg"} if by_file else {"image_id": p}),
            }
            for i, p, q, answers in [*QUESTIONS, QUESTIONS[0]]
        ]
        put(root / "aokvqa" / ("aokvqa_train.json" if by_file else "aokvqa_v1p0_train.json"), rows)

    return make


def vizwiz(root: Path) -> None:
    """Entries as MiniGPT-4's `VizWizEvalData` reads them."""
    put(root / "vizwiz/val/VizWiz_val_00000000.jpg", jpeg(1))
    answers = [{"answer": a, "answer_confidence": "yes"} for a in ["unanswerable"] * 6 + ["soup"] * 4]
    rows = [
        {"image": f"VizWiz_val_0000000{n}.jpg", "question": "What is it?", "answers": answers, "answer_type": "other"}
        for n in (0, 1)
    ]
    put(root / "vizwiz/val.json", rows)


def gqa(listed: bool) -> Callable[[Path], None]:
    """The official object, as the README of leaderj1001/Vision-Language draws it; MiniGPT-4's list."""

    def make(root: Path) -> None:
        for name in ("n1", "2"):
            put(root / f"gqa/images/{name}.jpg", jpeg(2))
        asked = [
            ("07", "n1", "Is it red?", "yes"),
            ("08", "n1", "What is it?", "Käse"),
            ("09", "2", "Who?", "man"),
            ("10", "2", "Who?", ""),
            ("11", "gone", "Where?", "left"),
        ]
        if listed:
            rows: object = [{"question_id": i, "image": f"{p}.jpg", "question": q, "answer": a} for i, p, q, a in asked]
        else:
            rows = {
                i: {"imageId": p, "question": q, "answer": a, "types": {"structural": "query"}} for i, p, q, a in asked
            }
        put(root / "gqa/train_balanced_questions.json", rows)

    return make


def ocr_vqa(root: Path) -> None:
    """Covers as MiniGPT-4's `ocrvqa_dataset.py` reads them."""
    put(root / "ocrvqa/images/0001.jpg", jpeg(1))
    put(root / "ocrvqa/images/0002.gif", jpeg(2, "GIF"))
    put(root / "ocrvqa/images/0006.jpg", b"GIF89a, or so it says")

    def entry(url: str, split: int, answers: list[str]) -> dict[str, Any]:
        return {
            "imageURL": f"http://x/{url}",
            "questions": ["Who wrote this?", "Is it fiction?"],
            "answers": answers,
            "split": split,
        }

    rows = {
        "0001": entry("a.jpg", 1, ["Gabriel García", "No"]),
        "0002": entry("b.gif?x=1", 1, ["", "Yes"]),
        "0003": entry("c.jpg", 1, ["Nobody", "No"]),
        "0004": entry("d.jpg", 3, ["Another split", "No"]),
        "0005": entry("e.jpg", 1, ["One answer"]),
        "0006": entry("f.jpg", 1, ["Damaged", "No"]),
    }
    put(root / "ocrvqa/dataset.json", rows)


def vsr(file: str) -> Callable[[Path], None]:
    """Statements as MiniGPT-4's `VSREvalData` reads them."""

    def make(root: Path) -> None:
        coco(root, "train2017/9")
        rows = [
            {"image": "000000000009.jpg", "caption": "The cat is on the mat.", "label": 1, "relation": "on"},
            {"image": "000000000009.jpg", "caption": "The mat is on the cat.", "label": 0, "relation": "on"},
            {"image": "000000000077.jpg", "caption": "Nothing is there.", "label": 0, "relation": "at"},
        ]
        put(root / "vsr" / file, lines(rows) if file.endswith("l") else rows)

    return make


def iconqa(layout: str) -> Callable[[Path], None]:
    """Folders of questions; the zip's lists, as IconQA's `run_choose_txt/dataset.py` and
    `tools/generate_img_patch_feature.py` read them; or those lists with splits that mix the kinds."""

    def make(root: Path) -> None:
        below = root / ("iconqa/iconqa_data" if layout == "zip" else "iconqa")
        pictures = below / "iconqa" if layout == "zip" else below
        rows: dict[str, Any] = {}
        for number, answer in enumerate((0, "1", 7, 1)):
            rows[str(number)] = {
                "question": "Which?",
                "choices": ["star", "círculo"],
                "answer": answer,
                "ques_type": "choose_txt",
                "split": "test",
            }
            if layout == "folders":
                put(pictures / f"test/choose_txt/{number}/data.json", rows[str(number)])
            if number < 3:
                put(pictures / f"test/choose_txt/{number}/image.png", jpeg(number, "PNG"))
        if layout == "folders":
            return
        texts = [*rows]
        rows["9"] = {"question": "Which?", "choices": ["a.png"], "answer": 0, "ques_type": "choose_img"}
        put(below / "problems.json", rows)
        kinds = {"choose_txt_test": texts, "choose_img_test": ["9"], "fill_in_blank_trainval": []}
        put(below / "pid_splits.json", kinds if layout == "zip" else {"test": [*rows], "train": []})

    return make


def hateful(file: str) -> Callable[[Path], None]:
    """Memes as MiniGPT-4's `HMEvalData` reads them."""

    def make(root: Path) -> None:
        put(root / "hateful_memes/img/01.png", jpeg(1, "PNG"))
        put(root / "hateful_memes/img/02.png", jpeg(2, "PNG"))
        rows = [
            {"id": "01", "img": "img/01.png", "label": 1, "text": "some  words"},
            {"id": "02", "img": "img/02.png", "label": 0, "text": "“andere” Wörter"},
            {"id": "02", "img": "img/02.png", "label": 0, "text": "twice"},
            {"id": "03", "img": "img/03.png", "label": 0, "text": "gone"},
            {"id": "04", "img": "img/01.png", "text": "held back"},
        ]
        put(root / "hateful_memes" / file, lines(rows))

    return make


def pope(listed: bool) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        coco(root, "val2014/25")
        rows = [
            {"question_id": n, "image": f"COCO_val2014_{picture:012d}.jpg", "text": "Is there a cat?", "label": label}
            for n, (picture, label) in enumerate(((25, "yes"), (25, "no"), (77, "no")), 1)
        ]
        put(root / "pope/coco_pope_random.json", rows if listed else lines(rows))

    return make
