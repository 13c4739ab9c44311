"""Every corpus in small, in its true layout on disk, odd cases included; and what is to be read out of each.

Pictures are 64 x 48 px. One annotation of each kind points at a picture that is not there. Where a docstring names a
public reader or README, the miniature's names and fields were held against that; the others were not yet.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
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
    """The list that MiniGPT-4's `coco_caption.py` reads."""
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
    """REFER's pickle, protocol 2 as Python 2 wrote it, and instances, with the keys that its `refer.py` reads."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        refs = [
            {
                "ref_id": ref,
                "ann_id": 100 + ref,
                "image_id": picture,
                "category_id": 1,
                "split": split,
                "sent_ids": list(range(len(texts))),
                "file_name": f"COCO_train2014_{picture:012d}_{ref}.jpg",
                "sentences": [{"raw": t, "sent": t.lower(), "tokens": t.split(), "sent_id": 7} for t in texts],
            }
            for ref, picture, _, texts in [*OBJECTS, OBJECTS[0]]
        ]
        refs.append({**refs[0], "ref_id": 9, "split": "elsewhere"})
        put(root / folder / f"refs({by}).p", pickle.dumps(refs, protocol=2))
        annotations = [{"id": 100 + ref, "image_id": picture, "bbox": list(box)} for ref, picture, box, _ in OBJECTS]
        put(root / folder / "instances.json", {"info": {}, "images": [], "annotations": annotations, "categories": []})

    return make


def refer_list(folder: str, split: str) -> Callable[[Path], None]:
    """The list of expressions that MiniGPT-4's `eval_ref.py` reads: the first 27 characters name the picture."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        rows = [
            {"img_id": f"COCO_train2014_{picture:012d}_{ref}", "sents": text, "bbox": list(box), "height": 48}
            for ref, picture, box, texts in OBJECTS
            for text in texts
        ]
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


def textcaps(root: Path) -> None:
    """Captions in `caption_str`, as MiniGPT-4's `text_caps.py` reads them."""
    put(root / "textcaps/train_images/a1.jpg", jpeg(1))
    rows = [
        {"image_id": "a1", "caption_str": "A sign says STOP.", "id": 1},
        {"image_id": "a1", "caption_str": "“STOP” on red", "id": 2},
        {"image_id": "a1", "caption_str": "A sign says STOP.", "id": 4},
        {"image_id": "b2", "caption_str": "Nobody has it.", "id": 3},
    ]
    put(root / "textcaps/TextCaps_0.1_train.json", {"dataset_name": "textcaps", "data": rows})


def textcaps_val(root: Path) -> None:
    put(root / "textcaps/train_images/a1.jpg", jpeg(1))
    rows = [
        {"image_id": "a1", "reference_strs": ["A sign.", "A red sign.", ""]},
        {"image_id": "b2", "reference_strs": ["x"]},
    ]
    put(root / "textcaps/TextCaps_0.1_val.json", {"data": rows})


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


def visual_genome(one_folder: bool) -> Callable[[Path], None]:
    """Regions by picture, as `local.py` of ranjaykrishna/visual_genome_python_driver reads them."""

    def make(root: Path) -> None:
        for name, folder in (("1", "VG_100K"), ("2", "VG_100K_2")):
            put(root / "visual_genome" / ("images" if one_folder else folder) / f"{name}.jpg", jpeg(3))

        def region(number: int, picture: int, phrase: str, x: int, y: int, w: int, h: int) -> dict[str, Any]:
            return {"region_id": number, "image_id": picture, "phrase": phrase, "x": x, "y": y, "width": w, "height": h}

        regions = [
            [
                region(1, 1, "the clock", 4, 4, 10, 10),
                region(2, 1, "grüne Tür", -3, 30, 20, 40),
                region(1, 1, "twice", 1, 1, 5, 5),
            ],
            [
                region(3, 2, "a wall", 0, 0, 200, 200),
                region(4, 2, "a line", 5, 5, 0, 9),
                region(5, 2, "a shoe", 50, 40, 8, 8),
            ],
            [region(6, 3, "nowhere", 0, 0, 5, 5)],
        ]
        put(
            root / "visual_genome/region_descriptions.json",
            [{"id": n + 1, "regions": r} for n, r in enumerate(regions)],
        )

    return make


REGIONS_DROPPED = {
    "region too large": 1,
    "duplicate id": 1,
    "empty or inverted box": 1,
    "image file missing": 1,
}


def flickr(nested: bool) -> Callable[[Path], None]:
    """The entities' own files, as their `flickr30k_entities_utils.py` reads them; `UNRELATED_CAPTIONS` as it is there.

    Picture 36's fourth sentence is not about it, 40 has no sentences, 41's are not UTF-8, 42 has no boxes' file.
    """

    def make(root: Path) -> None:
        below = root / "flickr30k" / ("Flickr30kEntities" if nested else "")
        for name in ("36", "37", "39"):
            put(root / f"flickr30k/flickr30k-images/{name}.jpg", jpeg(4))
        put(below / "train.txt", "36\n37\n38\n39\n36\n40\n41\n42\n")
        put(below / "UNRELATED_CAPTIONS", "# format: <imageID> <sentence number>\n39 3\n36 4\n")
        sentences = [
            "[/EN#1/people Two  dogs] and [/EN#2/animals a tan cat] play in [/EN#0/other the sun] .",
            "A [/EN#3/scene meadow] near [/EN#1/people the Hündchen] .",
            "Nothing marked here .",
        ]
        for name in ("36", "38", "39"):
            more = ["[/EN#1/people Two men] sell shoes ."] if name == "36" else []
            put(below / f"Sentences/{name}.txt", "\n".join(sentences + more) + "\n")
        put(below / "Sentences/41.txt", "[/EN#1/people Ein M\xe4nnchen] .\n".encode("latin-1"))
        put(below / "Sentences/42.txt", sentences[0])
        put(below / "Sentences/37.txt", "[/EN#9/other A thing] without boxes .\n")

        def thing(names: list[str], box: tuple[int, int, int, int] | None) -> str:
            tags = "".join(f"<name>{name}</name>" for name in names)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False)
            place = (
                f"<bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in corners)}</bndbox>"
                if box
                else "<nobndbox>1</nobndbox>"
            )
            return f"<object>{tags}{place}</object>"

        things = [thing(["1"], (1, 1, 20, 20)), thing(["1", "2"], (10, 10, 66, 40)), thing(["3"], None)]
        xml = "<annotation><size><width>64</width></size>{}</annotation>"
        for name in ("36", "38", "39"):
            put(below / f"Annotations/{name}.xml", xml.format("".join(things)))
        put(below / "Annotations/37.xml", xml.format(thing(["8"], (1, 1, 2, 2))))

    return make


FLICKR_DROPPED = {
    "no phrase with a box": 1,
    "sentences missing": 1,
    "sentences in no known encoding": 1,
    "annotations missing": 1,
    "sentence not about the picture": 1,
}


def flickr_sentences(root: Path) -> None:
    """Captions of the entities' split, from the same files."""
    flickr(False)(root)
    (root / "flickr30k/train.txt").rename(root / "flickr30k/test.txt")


def flickr_karpathy(root: Path) -> None:
    put(root / "flickr30k/images/100.jpg", jpeg(1))
    rows = [
        {"filename": "100.jpg", "split": "test", "sentences": [{"raw": "Two men."}, {"raw": "Männer stehen."}] * 2},
        {"filename": "101.jpg", "split": "test", "sentences": [{"raw": "Not there."}]},
        {"filename": "102.jpg", "split": "val", "sentences": [{"raw": "Another split."}]},
    ]
    put(root / "flickr30k/dataset_flickr30k.json", {"images": rows})


def talk(*values: str, first: str = "human") -> list[dict[str, str]]:
    speakers = [first, "gpt"] * len(values)
    return [{"from": speaker, "value": value} for speaker, value in zip(speakers, values, strict=False)]


def llava(file: str, with_folder: bool = False) -> Callable[[Path], None]:
    """Conversations as `docs/Finetune_Custom_Data.md` of haotian-liu/LLaVA shows them."""

    def make(root: Path) -> None:
        coco(root, "train2017/9", "train2014/25")
        place = "coco/train2017/" if with_folder else ""

        def entry(number: int, conversation: list[dict[str, str]]) -> dict[str, Any]:
            return {"id": f"{number:012d}", "image": f"{place}{number:012d}.jpg", "conversations": conversation}

        rows = [
            entry(9, talk("<image>\nWhat is it?", "A dog, of course.", "Sure?", "Yes! It's a “dog”.")),
            entry(25, talk("Wo ist es?\n<image>", "Auf der Straße.")),
            entry(25, talk("Another?\n<image>", "Same id, other talk.")),
            entry(25, talk("Another?\n<image>", "Same id, other talk.")),
            entry(77, talk("<image>\nGone?", "Yes.")),
            entry(9, talk("<image>\nNo answer?")),
            entry(9, talk("<image>\nEmpty answer?", " ")),
            entry(9, talk("<image>\nWho speaks?", "I do.", first="gpt")),
        ]
        put(root / file, rows)

    return make


TALK_DROPPED = {
    "image file missing": 1,
    "empty answer": 1,
    "duplicate conversation": 1,
    "conversation without an answer to each question": 1,
    "conversation that does not alternate between human and gpt": 1,
}


def multitask(root: Path) -> None:
    """Conversations as MiniGPT-4's `multitask_conversation.py` reads them: the id names the picture."""
    coco(root, "train2014/9")
    rows = [
        {
            "id": "000000000009",
            "conversations": talk(
                "<image>\n[grounding] describe this", "<p>A dog</p> {<10><20><30><40>} runs.", "[vqa] color?", "brown"
            ),
        },
        {"id": "000000000077", "conversations": talk("<image>\n[refer] the cat", "{<1><2><3><4>}")},
    ]
    put(root / "multitask_conversation/multi_task_conversation.json", rows)


def unnatural(file: str) -> Callable[[Path], None]:
    """The fields that the README of orhonovich/unnatural-instructions describes, reformulations in the full data."""

    def make(root: Path) -> None:
        def instance(text: str, constraints: str | None, output: str) -> dict[str, Any]:
            return {"instruction_with_input": text, "input": "", "constraints": constraints, "output": output}

        rows: list[dict[str, Any]] = [
            {
                "instruction": "x",
                "instances": [instance("Say “Ja”.", "None.", "Ja"), instance("Count.", "In words.", "One.")],
            },
            {"instruction": "y", "instances": [instance("Say nothing.", None, "")]},
            {"instruction": "z", "instances": []},
        ]
        if file.startswith("full"):
            rows[0]["reformulations"] = [{**instance("Speak: “Ja”.", None, "Ja"), "instruction": "x in other words"}]
        put(root / "unnatural_instructions" / file, lines(rows) if file.endswith("l") else rows)

    return make


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


def nocaps(root: Path) -> None:
    put(root / "nocaps/images/0013ea2087020901.jpg", jpeg(1))
    put(root / "nocaps/images/abc.jpg", jpeg(2))
    images = [
        {"id": 0, "file_name": "0013ea2087020901.jpg", "open_images_id": "0013ea2087020901", "domain": "in-domain"},
        {"id": 1, "file_name": "other-name.jpg", "open_images_id": "abc", "domain": "out-domain"},
        {"id": 2, "file_name": "gone.jpg", "open_images_id": "gone", "domain": "near-domain"},
    ]
    annotations = [{"id": n, "image_id": n // 2, "caption": f"Caption {n}"} for n in (*range(6), 0)]
    put(root / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def tar(file: Path, *members: tuple[str, bytes]) -> None:
    """A tar as webdataset writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def pairs(corpus: str, below: str, with_json: bool) -> Callable[[Path], None]:
    """img2dataset's tars: a caption in json and txt, as its README describes them, or in txt alone.

    MiniGPT-4's `README_1_STAGE.md` has them a folder deeper.
    """

    def make(root: Path) -> None:
        def pair(key: str, caption: str, image: bytes | None) -> list[tuple[str, bytes]]:
            facts = {"caption": caption, "url": f"http://x/{key}", "key": key, "status": "success", "width": 64}
            found = [(f"{key}.jpg", image)] if image is not None else []
            found += [(f"{key}.json", json.dumps(facts).encode())] if with_json else []
            return [*found, (f"{key}.txt", caption.encode())]

        for number in range(2):
            tar(
                root / corpus / below / f"0000{number}.tar",
                *pair("000000000", "A cup of  tea", jpeg(1)),
                *pair("000000001", "eine Tasse ☕ – grün", jpeg(2, "PNG")),
                *pair("000000002", " ", jpeg(3)),
                *pair("000000003", "no picture", None),
                *pair("000000004", "cut off", jpeg(4)[:60]),
            )
        whole = (root / corpus / below / "00001.tar").read_bytes()
        (root / corpus / below / "00002.tar").write_bytes(whole[: 512 * 5 + 17])

    return make


PAIRS_DROPPED = {
    "empty answer": 2,
    "no image in the tar": 2,
    "image cannot be read": 2,
    "tar damaged from some byte on": 1,
}

GRIT_ROWS = [
    # caption, noun chunks, expressions, sides before they were 683 x 512
    (
        "a dog and two cats on grass",
        [
            [0, 5, 0.1, 0.1, 0.5, 0.6, 0.9],
            [10, 18, 0.5, 0.5, 0.8, 0.8, 0.8],
            [10, 18, 0.6, 0.1, 1.2, 0.4, 0.7],
            [22, 27, 0.0, 0.0, 1.0, 1.0, 0.3],
        ],
        [
            [0, 5, 0.1, 0.1, 0.5, 0.6, 0.9],
            [0, 27, 0.1, 0.1, 0.9, 0.8, 0.8],
            [10, 27, 0.5, 0.1, 1.0, 0.8, 0.7],
        ],
        (640, 480),
    ),
    ("ein Käfer 🐞 auf Blatt", [[0, 9, 0.2, 0.2, 0.6, 0.6, 0.95]], [[0, 9, 0.2, 0.2, 0.6, 0.6, 0.95]], None),
    ("nothing trusted", [[0, 7, 0.1, 0.1, 0.9, 0.9, 0.5]], [[0, 99, 0.1, 0.1, 0.9, 0.9, 0.9], "junk", [0, 7]], None),
    ("a dog padded", [[0, 5, 0.1, 0.1, 0.5, 0.6, 0.9]], [[0, 5, 0.1, 0.1, 0.5, 0.6, 0.9]], (640, 640)),
]
GRIT_DROPPED = {"no trusted box": 1, "picture was padded or cropped: boxes no longer fit": 1}


def grit_facts(caption: str, before: tuple[int, int] | None) -> dict[str, Any]:
    """What img2dataset says; it knows no sides where it resized nothing."""
    width, height = before or (None, None)
    now = (683, 512) if before else (None, None)
    return {"caption": caption, "width": now[0], "height": now[1], "original_width": width, "original_height": height}


def grit_tars(root: Path) -> None:
    """img2dataset's json with the columns that the README of Kosmos-2 (microsoft/unilm) describes."""
    members = []
    for number, (caption, chunks, expressions, before) in enumerate(GRIT_ROWS):
        facts = {**grit_facts(caption, before), "noun_chunks": chunks, "ref_exps": expressions}
        members += [(f"{number:09d}.jpg", jpeg(number)), (f"{number:09d}.json", json.dumps(facts).encode())]
    tar(root / "grit/00000.tar", *members)


def grit_parquet(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"key": f"{n}", "jpg": jpeg(n), "noun_chunks": json.dumps(k), "ref_exps": json.dumps(e), **grit_facts(c, b)}
        for n, (c, k, e, b) in enumerate(GRIT_ROWS)
    ]
    (root / "grit").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "grit/00000.parquet")


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
    Miniature("text_caps", "train", "official", textcaps, 1, 1, MISSING),
    Miniature("text_caps", "val", "references", textcaps_val, 1, 1, MISSING),
    Miniature("gqa", "train", "official", gqa(False), 2, 3, MISSING | {"empty answer": 1}),
    Miniature("gqa", "train", "list", gqa(True), 2, 3, MISSING | {"empty answer": 1}),
    Miniature(
        "ocr_vqa",
        "train",
        "official",
        ocr_vqa,
        2,
        3,
        {
            "image file missing": 2,
            "image cannot be read": 2,
            "empty answer": 1,
            "questions and answers of different number": 2,
        },
    ),
    Miniature("visual_genome_refer", "train", "zips", visual_genome(False), 2, 3, REGIONS_DROPPED),
    Miniature("visual_genome_refer", "train", "one-folder", visual_genome(True), 2, 3, REGIONS_DROPPED),
    *(
        Miniature(
            "flickr_grounded_caption", "train", layout, flickr(nested), 2, 4, FLICKR_DROPPED | {"image file missing": 2}
        )
        for layout, nested in (("flat", False), ("nested", True))
    ),
    Miniature(
        "flickr_caption_to_phrase", "train", "flat", flickr(False), 2, 4, FLICKR_DROPPED | {"image file missing": 2}
    ),
    Miniature("flickr_phrase_to_box", "train", "flat", flickr(False), 2, 6, FLICKR_DROPPED | {"image file missing": 3}),
    Miniature("flickr30k_caption", "test", "karpathy", flickr_karpathy, 1, 1, MISSING),
    Miniature(
        "flickr30k_caption",
        "test",
        "sentences",
        flickr_sentences,
        3,
        3,
        {"image file missing": 2, "sentences missing": 1, "sentences in no known encoding": 1},
    ),
    Miniature("llava_conversation", "train", "bare", llava("llava/conversation_58k.json"), 3, 3, TALK_DROPPED),
    Miniature("llava_detail", "train", "bare", llava("llava/detail_23k.json"), 3, 3, TALK_DROPPED),
    Miniature(
        "llava_reasoning", "train", "folders", llava("llava/complex_reasoning_77k.json", True), 3, 3, TALK_DROPPED
    ),
    Miniature("multitask_conversation", "train", "published", multitask, 1, 1, MISSING),
    *(
        Miniature(
            "unnatural_instructions", "train", layout, unnatural(file), 1, 2, {"empty answer": 1, "no instances": 1}
        )
        for layout, file in (("list", "filtered_unnatural_instruction.json"), ("lines", "core_data.jsonl"))
    ),
    Miniature(
        "unnatural_instructions",
        "full",
        "lines",
        unnatural("full_data.jsonl"),
        1,
        3,
        {"empty answer": 1, "no instances": 1},
    ),
    Miniature("vsr", "test", "lines", vsr("zeroshot/test.jsonl"), 1, 2, MISSING),
    Miniature("vsr", "random_test", "list", vsr("random/test.json"), 1, 2, MISSING),
    *(
        Miniature("iconqa", "test", layout, iconqa(layout), 2, 2, MISSING | {"answer is not the number of a choice": 1})
        for layout in ("zip", "folders", "mixed")
    ),
    *(
        Miniature(
            "hateful_memes",
            "dev_seen",
            file,
            hateful(f"{file}.jsonl"),
            2,
            2,
            MISSING | {"duplicate id": 1, "no label": 1},
        )
        for file in ("dev_seen", "dev")
    ),
    Miniature("pope", "random", "lines", pope(False), 1, 2, MISSING),
    Miniature("pope", "random", "list", pope(True), 1, 2, MISSING),
    Miniature("nocaps", "val", "official", nocaps, 2, 2, MISSING),
    *(
        Miniature(corpus, "train", layout, pairs(corpus, below, with_json), 5, 5, PAIRS_DROPPED)
        for corpus, below, layout, with_json in (
            ("laion", "", "json", True),
            ("cc3m", "", "txt", False),
            ("sbu", "sbu", "folder", True),
        )
    ),
    *(
        Miniature(corpus, "train", layout, make, 2, turns, GRIT_DROPPED)
        for corpus, turns in (("grit_caption", 2), ("grit_refer", 4), ("grit_identify", 4))
        for layout, make in (("tars", grit_tars), ("parquet", grit_parquet))
    ),
]
