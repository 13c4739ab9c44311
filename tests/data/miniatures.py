"""Every corpus in small, in its true layout on disk, odd cases included; and what is to be read out of each.

Pictures are 64 x 48 px. One annotation of each kind points at a picture that is not there.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 64, 48
MISSING = {"image file missing": 1}


@dataclass(frozen=True)
class Miniature:
    """A corpus in one of its layouts: `make` writes it below a root. `samples` and `annotations` are what is kept."""

    corpus: str
    split: str
    layout: str
    make: Callable[[Path], None]
    samples: int
    annotations: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.corpus}-{self.split}-{self.layout}"


def jpeg(seed: int = 0, format: str = "JPEG") -> bytes:
    """A small picture whose colours depend on the seed."""
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (seed * 53 % 256, seed * 101 % 256, 90)).save(buffer, format)
    return buffer.getvalue()


def put(file: Path, content: bytes | str | object) -> None:
    """Write bytes, a text, or anything else as JSON, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        file.write_text(text, encoding="utf-8")


def lines(rows: list[Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def coco(root: Path, *names: str) -> None:
    """Pictures below `coco/`, named `train2014/9` and so on."""
    for name in names:
        folder, number = name.split("/")
        file = f"{int(number):012d}.jpg" if folder.endswith("2017") else f"COCO_{folder}_{int(number):012d}.jpg"
        put(root / "coco" / folder / file, jpeg(int(number)))


def coco_name(number: int, folder: str = "train2014") -> str:
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


# --- captions -------------------------------------------------------------------------------------------------------


def coco_karpathy_list(root: Path) -> None:
    coco(root, "train2014/9", "val2014/25")
    rows = [
        {"image": coco_name(9), "caption": "A dog  runs.", "image_id": "coco_9"},
        {"image": coco_name(9), "caption": "Ein Hund läuft 🐕.", "image_id": "coco_9"},
        {"image": coco_name(9), "caption": "A dog runs.", "image_id": "coco_9"},
        {"image": coco_name(25, "val2014"), "caption": "Two giraffes.", "image_id": "coco_25"},
        {"image": coco_name(77), "caption": "Nobody has it.", "image_id": "coco_77"},
        {"image": coco_name(25, "val2014"), "caption": "  ", "image_id": "coco_25"},
    ]
    put(root / "coco/annotations/coco_karpathy_train.json", rows)


def coco_karpathy_own(root: Path) -> None:
    coco(root, "train2014/9", "val2014/25", "val2014/42")

    def entry(number: int, folder: str, split: str, *texts: str) -> dict[str, Any]:
        name = coco_name(number, folder).split("/")[1]
        sentences = [{"raw": text, "tokens": text.split(), "sentid": n} for n, text in enumerate(texts)]
        return {"filepath": folder, "filename": name, "split": split, "cocoid": number, "sentences": sentences}

    images = [
        entry(9, "train2014", "train", "A dog runs.", "Ein Hund läuft 🐕."),
        entry(25, "val2014", "restval", "Two giraffes."),
        entry(42, "val2014", "val", "Not of this split."),
        entry(77, "val2014", "train", "Nobody has it."),
    ]
    put(root / "coco/annotations/dataset_coco.json", {"dataset": "coco", "images": images})


def coco_chair(root: Path) -> None:
    coco(root, "val2014/25", "val2014/42")
    rows = [{"image": coco_name(n, "val2014"), "caption": ["A cat.", "It sits."]} for n in (25, 42)]
    put(root / "coco/annotations/coco_karpathy_test.json", rows)
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dining table"}]
    annotations = [{"id": n, "image_id": 25, "category_id": c, "bbox": [1, 2, 3, 4]} for n, c in enumerate((2, 1, 1))]
    put(root / "coco/annotations/instances_val2014.json", {"categories": categories, "annotations": annotations})
    put(root / "coco/annotations/instances_train2014.json", {"categories": categories, "annotations": []})


# --- referring expressions ------------------------------------------------------------------------------------------

OBJECTS = [
    # ref_id, picture, bbox x y w h, expressions
    (1, 9, (10, 10, 20, 20), ["left dog", "THE DOG"]),
    (2, 9, (40, 30, 40, 40), ["dog that leaves the picture"]),
    (3, 25, (0, 0, 64, 48), ["everything", "großes Ganzes"]),
    (4, 77, (0, 0, 5, 5), ["in no picture"]),
    (5, 25, (70, 10, 5, 5), ["outside"]),
    (6, 25, (1, 1, 9, 9), ["  "]),
]
OBJECTS_DROPPED = {"image file missing": 1, "box outside the image": 1, "empty phrase": 1, "duplicate id": 1}


def refer(folder: str, by: str, split: str) -> Callable[[Path], None]:
    """REFER's pickle, protocol 2 as Python 2 wrote it, and instances."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        refs = [
            {
                "ref_id": ref, "ann_id": 100 + ref, "image_id": picture, "category_id": 1, "split": split,
                "sent_ids": list(range(len(texts))), "file_name": f"COCO_train2014_{picture:012d}_{ref}.jpg",
                "sentences": [{"raw": t, "sent": t.lower(), "tokens": t.split(), "sent_id": 7} for t in texts],
            }
            for ref, picture, _, texts in [*OBJECTS, OBJECTS[0]]
        ]  # fmt: skip
        refs.append({**refs[0], "ref_id": 9, "split": "elsewhere"})
        put(root / folder / f"refs({by}).p", pickle.dumps(refs, protocol=2))
        annotations = [{"id": 100 + ref, "image_id": picture, "bbox": list(box)} for ref, picture, box, _ in OBJECTS]
        put(root / folder / "instances.json", {"info": {}, "images": [], "annotations": annotations, "categories": []})

    return make


def refer_list(folder: str, split: str) -> Callable[[Path], None]:
    """The list of expressions that evaluation scripts read."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        rows = [
            {"img_id": f"COCO_train2014_{picture:012d}_{ref}", "sents": text, "bbox": list(box), "height": 48}
            for ref, picture, box, texts in OBJECTS for text in texts
        ]  # fmt: skip
        put(root / folder / f"{folder}_{split}.json", rows)

    return make


# --- questions ------------------------------------------------------------------------------------------------------

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
    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        asked = [{"question_id": i, "image_id": p, "question": q} for i, p, q, _ in [*QUESTIONS, QUESTIONS[0]]]
        answered = [
            {
                "question_id": i, "image_id": p, "answer_type": "other",
                "answers": [{"answer": a, "answer_id": n, "answer_confidence": "yes"} for n, a in enumerate(answers)],
            }
            for i, p, _, answers in QUESTIONS
        ]  # fmt: skip
        put(root / folder / f"{prefix}OpenEnded_mscoco_train2014_questions.json", {"info": {}, "questions": asked})
        put(root / folder / f"{prefix}mscoco_train2014_annotations.json", {"info": {}, "annotations": answered})

    return make


def vqa_merged(folder: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        rows = [
            {"question_id": i, "image": coco_name(p), "question": q, "answer": answers, "dataset": "vqa"}
            for i, p, q, answers in [*QUESTIONS, QUESTIONS[0]]
        ]
        put(root / folder / f"{folder}_train.json", rows)

    return make


def aokvqa(by_file: bool) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        coco(root, "train2017/9", "train2017/25")
        rows = [
            {
                "split": "train", "question_id": f"id{i}", "question": q, "direct_answers": answers,
                "choices": ["dog", "cat", "2", "ja"], "correct_choice_idx": 0, "rationales": ["because"],
                **({"image": f"train2017/{p:012d}.jpg"} if by_file else {"image_id": p}),
            }
            for i, p, q, answers in [*QUESTIONS, QUESTIONS[0]]
        ]  # fmt: skip
        put(root / "aokvqa" / ("aokvqa_train.json" if by_file else "aokvqa_v1p0_train.json"), rows)

    return make


def vizwiz(root: Path) -> None:
    put(root / "vizwiz/val/VizWiz_val_00000000.jpg", jpeg(1))
    answers = [{"answer": a, "answer_confidence": "yes"} for a in ["unanswerable"] * 6 + ["soup"] * 4]
    rows = [
        {"image": f"VizWiz_val_0000000{n}.jpg", "question": "What is it?", "answers": answers, "answer_type": "other"}
        for n in (0, 1)
    ]
    put(root / "vizwiz/val.json", rows)


MINIATURES = [
    Miniature("coco_caption", "train", "list", coco_karpathy_list, 2, 2, MISSING),
    Miniature("coco_caption", "train", "karpathy", coco_karpathy_own, 2, 2, MISSING),
    Miniature("coco_chair", "test", "list", coco_chair, 2, 2),
    *(
        Miniature(f"{corpus}{task}", split, f"refer-{by}", refer(folder, by, name), 2, 3, OBJECTS_DROPPED)
        for task in ("", "_identify")
        for corpus, folder, split, by, name in (
            ("refcoco", "refcoco", "train", "unc", "train"),
            ("refcoco", "refcoco", "google_val", "google", "val"),
            ("refcoco_plus", "refcoco+", "testA", "unc", "testA"),
            ("refcocog", "refcocog", "train", "umd", "train"),
            ("refcocog", "refcocog", "google_train", "google", "train"),
        )
    ),
    Miniature("refcoco", "testB", "rows", refer_list("refcoco", "testB"), 2, 3, OBJECTS_DROPPED | {"duplicate id": 0}),
    Miniature("refcocog", "test", "rows", refer_list("refcocog", "test"), 2, 3, OBJECTS_DROPPED | {"duplicate id": 0}),
    Miniature("vqav2", "train", "official", vqa_official("vqav2", "v2_"), 2, 3, QUESTIONS_DROPPED),
    Miniature("vqav2", "train", "merged", vqa_merged("vqav2"), 2, 3, QUESTIONS_DROPPED),
    Miniature("ok_vqa", "train", "official", vqa_official("okvqa", ""), 2, 3, QUESTIONS_DROPPED),
    Miniature("ok_vqa", "train", "merged", vqa_merged("okvqa"), 2, 3, QUESTIONS_DROPPED),
    Miniature("aok_vqa", "train", "official", aokvqa(False), 2, 3, QUESTIONS_DROPPED),
    Miniature("aok_vqa", "train", "merged", aokvqa(True), 2, 3, QUESTIONS_DROPPED),
    Miniature("vizwiz", "val", "official", vizwiz, 1, 1, MISSING),
]
