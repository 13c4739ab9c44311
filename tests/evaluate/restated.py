"""Restates the rules of the published evaluation and of official scorers, without code of the package.

Published: the conditions of `eval_ref.py`, `eval_vqa.py` and `multi_select` in Vision-CAIR/MiniGPT-4 at d94738a.
Official: A-OKVQA's and POPE's scripts, and this project's rules of 2026-11-30 for GQA, VSR, IconQA and RefCOCO. VQA's
normalization and CHAIR's words come from installed packages (`official.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

FourNumbers = Sequence[float]


def published_refer(answer: str, width: int, height: int, truth: FourNumbers) -> bool:
    """`truth` is x1, y1, x2, y2 in pixels."""
    tight = answer.replace("<unk>", "").replace(" ", "").strip()
    if not re.match(r"\{<\d{1,3}><\d{1,3}><\d{1,3}><\d{1,3}>\}", tight):
        return False
    numbers = [int(digits) for digits in re.findall(r"\d+", tight)]
    if len(numbers) != 4:  # the script fails to unpack them, catches that, and does not count the answer
        return False
    sides = (width, height, width, height)
    box = [number / 100.0 * side for number, side in zip(numbers, sides, strict=True)]
    return _pixel_iou(box, truth) > 0.5


def official_refer(answer: str, width: int, height: int, truth: FourNumbers) -> bool:
    for digits in re.findall(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}", answer):
        numbers = [int(one) for one in digits]
        if max(numbers) > 100:
            continue
        sides = (width, height, width, height)
        box = [number * side / 100 for number, side in zip(numbers, sides, strict=True)]
        return box[0] < box[2] and box[1] < box[3] and _pixel_iou(box, truth) > 0.5
    return False


def _pixel_iou(a: FourNumbers, b: FourNumbers) -> float:
    extents = [max(0, min(a[2 + i], b[2 + i]) - max(a[i], b[i]) + 1) for i in (0, 1)]
    common = extents[0] * extents[1]
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    union = sum(areas) - common
    return common / union if union else 0.0  # the script catches the division by zero and does not count the answer


def published_vizwiz(answer: str, people: Sequence[str]) -> float:
    count = 0
    for one in "_".join(people).split("_"):
        if one.lower() == answer.lower():
            count += 1
    return min(count / 3.0, 1.0)


def leave_one_out(answer: str, people: Sequence[str], normalized: Callable[[str], str]) -> float:
    """The script of the VQA challenge in MiniGPT-4's repository, with the normalization of an installed package."""
    texts = [text.replace("\n", " ").replace("\t", " ").strip() for text in [answer, *people]]
    if len(set(texts[1:])) > 1:
        texts = [normalized(text) for text in texts]
    said, *given = [text.lower() for text in texts]
    each = [min(1, (given[:i] + given[i + 1 :]).count(said) / 3) for i in range(len(given))]
    return sum(each) / len(each)


def published_gqa(answer: str, label: str) -> bool:
    return answer.lower() == label


def published_vsr(answer: str, label: str) -> bool:
    return answer.lower() == label.lower()


def published_hateful(answer: str, label: int) -> bool:
    number = {"yes": 1, "no": 0}.get(answer.lower().strip())
    return number is not None and number == label


def pope_word(answer: str) -> str:
    """POPE's `evaluate.py`: the first sentence without commas has a word No, not or no, or it counts as yes."""
    sentence = answer[: answer.find(".")] if "." in answer else answer
    words = sentence.replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def official_direct(answer: str, people: Sequence[str], difficult: bool) -> float | None:
    """A-OKVQA's `eval_predictions.py`. None: the question is not scored."""
    return None if difficult else min(1.0, sum(answer == one for one in people) / 3.0)


def lowest_sum(nats: Sequence[Sequence[float]]) -> int:
    """The published ranking: a mean over the padded length, which is the same for all choices of a question."""
    longest = max(map(len, nats))
    means = [sum([*losses, *[0.0] * (longest - len(losses))]) / longest for losses in nats]
    return means.index(min(means))


def lowest_mean(nats: Sequence[Sequence[float]]) -> int:
    means = [sum(losses) / len(losses) for losses in nats]
    return means.index(min(means))


def found_phrases(answer: str, size: tuple[int, int], wanted: Sequence[tuple[str, Sequence[FourNumbers]]]) -> int:
    """How many of the wanted (phrase, true boxes) have a first box with an IoU of at least 0.5. The n-th occurrence of
    a phrase is compared with its n-th mention that has boxes, and further ones with the last mention."""
    width, height = size
    mentions: dict[str, list[list[float]]] = {}
    for phrase, boxes in re.findall(r"<p>([^<]*)</p>\s*((?:\{[^{}]*\}(?:<delim>)?)*)", answer):
        for digits in re.findall(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}", boxes):
            numbers = [int(one) for one in digits]
            if max(numbers) <= 100:
                box = [n * side / 100 for n, side in zip(numbers, (width, height, width, height), strict=True)]
                mentions.setdefault(_plain(phrase), []).append(box)
                break
    found, used = 0, dict.fromkeys(mentions, 0)
    for phrase, truths in wanted:
        several = mentions.get(_plain(phrase), [])
        if several:
            box = several[min(used[_plain(phrase)], len(several) - 1)]
            used[_plain(phrase)] += 1
            found += any(_area_iou(box, truth) >= 0.5 for truth in truths)
    return found


def _plain(phrase: str) -> str:
    return " ".join(phrase.lower().split()).strip(" .,!?;:")


def _area_iou(a: FourNumbers, b: FourNumbers) -> float:
    if a[0] >= a[2] or a[1] >= a[3]:
        return 0.0
    common = 1.0
    for i in (0, 1):
        common *= max(0.0, min(a[2 + i], b[2 + i]) - max(a[i], b[i]))
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common)
