"""Reads VQAv2, OK-VQA, A-OKVQA and VizWiz: questions with the answers of ten people.

Sources: Goyal et al. 2017 (visualqa.org), Marino et al. 2019 (okvqa.allenai.org), Schwenk et al. 2022, Gurari et al.
2018. License: CC BY 4.0, A-OKVQA Apache-2.0, images under their Flickr terms. Layouts: VQA's questions and annotations,
or the merged list (`image`, `question`, `answer`, `question_id`). Answers keep their frequency: one that nine of ten
people gave is trained in nine of ten cases. An empty answer stays in the list, so that scores count ten people, and is
never trained. OK-VQA 1.1 has what people wrote, `raw_answer`, which is trained, and its stem, `answer`, which the
official script compares: the stems are in `source["answers"]`, joined by `|`. A-OKVQA's `difficult_direct_answer` is
`true` or `false` in `source`. The questions of an image are separate turns. Expected questions: 443,757 / 214,354
(VQAv2), 9,009 / 5,046 (OK-VQA), 17,056 / 1,145 (A-OKVQA), 20,523 / 4,319 (VizWiz).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, is_list, stream_json
from minigptv2.corpora.sources.coco import GET_IMAGES, image_id_of, image_paths, require_images
from minigptv2.record import Turn


@dataclass(frozen=True, slots=True)
class VqaQuestion:
    """A question, with the name of its image as in the file."""

    id: str
    image: str
    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    answer_type: str = ""
    choice: str = ""
    """The correct one of `choices`, if the file states it."""
    stems: str = ""
    """The answers as the official script compares them, joined by `|`, if the file has them besides the given ones."""
    difficult: str = ""
    """`true` if the direct answers are not scored, `false` if they are. Empty if the file does not state it."""


def group(raw: Raw, questions: Iterable[VqaQuestion], locate: Any) -> Iterator[Draft | Rejected]:
    """One draft per image, with its questions as separate turns. A second question with the same id is left out.

    The questions of an image are scattered over the file, so all questions of a split are held in memory: about 430
    bytes per question of GQA and 570 of VQAv2 (measured on 100,000 synthetic ones of their lengths), 0.4 and 0.25 GiB
    for their train splits. `locate(raw, name)` returns the key of an image and the paths where it may be.
    """
    pictures: dict[str, list[VqaQuestion]] = {}
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            yield Rejected(question.id, "duplicate id")
            continue
        seen.add(question.id)
        key, _ = locate(raw, question.image)
        pictures.setdefault(key, []).append(question)
    for key, asked in pictures.items():
        _, paths = locate(raw, asked[0].image)
        yield Draft(key, tuple(map(_turn, asked)), paths, {"corpus": raw.corpus, "id": key}, separate=True)


def _turn(question: VqaQuestion) -> Turn:
    facts = {
        "id": question.id,
        "answer_type": question.answer_type,
        "choice": question.choice,
        "answers": question.stems,
        "difficult_direct_answer": question.difficult,
    }
    source = {name: value for name, value in facts.items() if value or name == "id"}
    return Turn("vqa", question.text, question.answers, choices=question.choices, source=source)


def shared(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts, interned, so that equal answers of many questions are held in memory once."""
    return tuple(map(sys.intern, texts))


def locate_coco(raw: Raw, name: str) -> tuple[str, tuple[str, ...]]:
    """Key and possible paths of an image of COCO."""
    return str(image_id_of(name)), image_paths(raw, name)


def vqa(raw: Raw, split: str, *, folder: str, prefix: str) -> Iterator[Draft | Rejected]:
    """VQAv2 and OK-VQA. `prefix` is the prefix of the official file names (`v2_` for VQAv2).

    MiniGPT-4's layout has the merged list for training. Its evaluation of OK-VQA has cleaned official files, `_clean`,
    whose questions may be a list of their own.
    """
    require_images(raw)
    year = f"{split}2014"
    asked, answered = (
        f"{folder}/{prefix}{name}" for name in (f"OpenEnded_mscoco_{year}_questions", f"mscoco_{year}_annotations")
    )
    merged = (f"{folder}/{folder}_{split}.json", f"{folder}/vqa_{split}.json")
    cleaned = [f"{asked}_clean.json", *([f"{folder}/{folder}_test_split.json"] if split == "val" else [])]
    file = raw.find(f"{asked}.json", minigpt4=(*merged, *cleaned))
    if str(file.relative_to(raw.root)) in merged:
        yield from group(raw, _merged(file), locate_coco)
        return
    annotations = raw.find(f"{answered}.json", minigpt4=(f"{answered}_clean.json",))
    yield from group(raw, _official(file, annotations, year), locate_coco)


def _official(questions: Path, annotations: Path, year: str) -> Iterator[VqaQuestion]:
    """The questions of the official file, or of a list of questions, with the answers of the annotations."""
    entries = (entry for _, entry in stream_json(annotations, "annotations"))
    answers = {
        entry["question_id"]: (_answers(entry), _stems(entry), sys.intern(entry.get("answer_type") or ""))
        for entry in entries
    }
    for _, entry in stream_json(questions, None if is_list(questions) else "questions"):
        given, stems, kind = answers.pop(entry["question_id"], ((), "", ""))
        name = sys.intern(f"COCO_{year}_{entry['image_id']:012d}.jpg")
        yield VqaQuestion(str(entry["question_id"]), name, entry["question"], given, answer_type=kind, stems=stems)


def _merged(file: Path) -> Iterator[VqaQuestion]:
    for number, entry in stream_json(file):
        given = entry.get("answer", entry.get("answers", ()))
        texts = shared((given,) if isinstance(given, str) else given)
        yield VqaQuestion(str(entry.get("question_id", f"row-{number}")), entry["image"], entry["question"], texts)


def _answers(annotation: dict[str, Any]) -> tuple[str, ...]:
    """What people wrote: `raw_answer` where the file has it (OK-VQA), else `answer`."""
    return shared(_written(answer) for answer in annotation["answers"])


def _written(answer: dict[str, Any]) -> str:
    raw = answer.get("raw_answer")
    return answer["answer"] if raw is None else raw


def _stems(annotation: dict[str, Any]) -> str:
    """Every `answer`, in the file's order, joined by `|`. Empty if the file has no `raw_answer` besides."""
    entries = annotation["answers"]
    if not any("raw_answer" in answer for answer in entries):
        return ""
    return "|".join(answer["answer"].replace("|", " ") for answer in entries)


def a_okvqa(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """A-OKVQA, with its choices. The official list names images by COCO's id, the merged one by file."""
    require_images(raw)
    file = raw.find(f"aokvqa/aokvqa_v1p0_{split}.json", f"aokvqa/aokvqa_{split}.json")

    def questions() -> Iterator[VqaQuestion]:
        for _, entry in stream_json(file):
            name = str(entry.get("image") or entry["image_id"])
            answers, choices = entry.get("direct_answers") or entry.get("answer") or (), entry.get("choices") or ()
            right = entry.get("correct_choice_idx")
            yield VqaQuestion(
                str(entry["question_id"]),
                name,
                entry["question"],
                tuple(answers),
                tuple(choices),
                choice=choices[right] if isinstance(right, int) and 0 <= right < len(choices) else "",
                difficult=_flag(entry.get("difficult_direct_answer")),
            )

    yield from group(raw, questions(), locate_coco)


def _flag(value: Any) -> str:
    """`true` or `false`, or an empty text for None. Raises `ValueError` for another value."""
    text = "" if value is None else str(value).lower()
    if text not in ("", "true", "false"):
        raise ValueError(f"difficult_direct_answer must be true or false, got {value!r}")
    return text


def vizwiz(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """VizWiz-VQA: one question per image. Some are unanswerable."""
    file = raw.find(f"vizwiz/{split}.json", f"vizwiz/Annotations/{split}.json", f"vizwiz/vizwiz_{split}.json")
    raw.find("vizwiz/images", f"vizwiz/{split}", minigpt4=("vizwiz/vizwiz_images",))

    def questions() -> Iterator[VqaQuestion]:
        for _, entry in stream_json(file):
            name = Path(entry["image"]).name
            kind = entry.get("answer_type", "")
            yield VqaQuestion(name, name, entry["question"], _answers(entry), answer_type=kind)

    def locate(raw: Raw, name: str) -> tuple[str, tuple[str, ...]]:
        return Path(name).stem, tuple(
            str(raw.root / "vizwiz" / place / name) for place in (split, "images", "vizwiz_images")
        )

    yield from group(raw, questions(), locate)


_CC = "CC BY 4.0 (annotations), Flickr terms (pictures)"

CORPORA = (
    CorpusSpec(
        name="vqav2",
        title="VQAv2",
        drafts=partial(vqa, folder="vqav2", prefix="v2_"),
        tasks=("vqa",),
        expected={"train": 443_757, "val": 214_354},
        train_images=82_783,
        counted="questions",
        license=_CC,
        stages=(1, 2, 3),
        download=f"{GET_IMAGES}. questions and annotations v2 from https://visualqa.org/download.html in vqav2/",
        size="20 GB (COCO 2014)",
    ),
    CorpusSpec(
        name="ok_vqa",
        title="OK-VQA",
        drafts=partial(vqa, folder="okvqa", prefix=""),
        tasks=("vqa",),
        expected={"train": 9_009, "val": 5_046},
        train_images=8_998,
        counted="questions",
        license=_CC,
        stages=(1, 2, 3),
        download=f"{GET_IMAGES}. questions and annotations from https://okvqa.allenai.org/download.html in okvqa/",
        size="20 GB (COCO 2014)",
    ),
    CorpusSpec(
        name="aok_vqa",
        title="A-OKVQA",
        drafts=a_okvqa,
        tasks=("vqa",),
        expected={"train": 17_056, "val": 1_145},
        train_images=16_540,
        counted="questions",
        license="Apache-2.0 (annotations), Flickr terms (pictures)",
        stages=(1, 2, 3),
        download=f"{GET_IMAGES}. aokvqa_v1p0.tar.gz from https://github.com/allenai/aokvqa unpacked in aokvqa/",
        size="20 GB (COCO)",
    ),
    CorpusSpec(
        name="vizwiz",
        title="VizWiz-VQA",
        drafts=vizwiz,
        tasks=("vqa",),
        expected={"train": 20_523, "val": 4_319},
        train_images=20_523,
        counted="questions",
        license="CC BY 4.0",
        download="pictures and annotations from https://vizwiz.org/tasks-and-datasets/vqa/ in vizwiz/ (val.json, val/)",
        size="12 GB",
    ),
)
