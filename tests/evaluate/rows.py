"""Makes the golden cases of the benchmark rows: inputs, unusual ones included, with the value under each protocol.

The values are those of `restated.py` and of the official packages (see `official.py`, which names what it needs).
Run: OFFICIAL=build/official python -m tests.evaluate.rows [--write]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.evaluate import cases, official, restated

ROWS = Path(__file__).parent / "golden" / "rows"
COUNT = 60
Case = dict[str, Any]

_ODD_ANSWERS = (
    "", " ", "yes", "Yes", "YES", " yes", "yes ", "yes.", "Yes, it is", "yes it is", "y e s", "no", "No", "NO", "No.",
    "no\n", "not hateful", "Not", "I cannot tell", "0", "1", "true", "True", "TRUE", "true.", " false", "False",
    "the dog", "The Dog", "dog", "DOG", "dog.", "dogs", "a dog", "dog dog", "two", "2", "Two", "t-shirt", "T shirt",
    "T-Shirt", "café", "CAFÉ", "cafe", "naïve", "ẞ", "ß", "İ", "日本", "١", "don't", "dont", "10:30", "1,000",
    "1000", "3.5",
    "red, white", "red white", "man & woman", "a_b", "a", "b", "<unk>", "unanswerable", "Unanswerable",
    "no, there is not",
    "There is no dog. Yes", "There is a dog. no", "yes\u00a0", "nothing", "none", "on the left", "left",
)  # fmt: skip


def refer(random: Random) -> list[Case]:
    """Answers to referring expressions: blanks, text around, coordinates above 100, several, inverted, empty boxes."""
    shapes = (
        "{<A><B><C><D>}", "{<A> <B> <C> <D>}", " {<A><B><C><D>} ", "{ <A><B><C><D> }", "{<A><B><C> <D>} left",
        "it is {<A><B><C><D>}", "{<A><B><C><D>}.", "<p>cup</p> {<A><B><C><D>}", "{<A><B><C><D>}{<1><1><2><2>}",
        "{<1><1><2><2>}<delim>{<A><B><C><D>}", "{<A><B><C>}", "{<A><B><C><D><1>}", "<A><B><C><D>", "{<A>\t<B><C><D>}",
        "{<A>\n<B><C><D>}", "<unk>{<A><B><C><D>}", "{<0A><B><C><D>}", "{<A><B><C><D>", "{<A.0><B><C><D>}",
        "\n{<A><B><C><D>}",
        "{<-A><B><C><D>}", "{<A><B><C><D>}</s>", "{<A0000><B><C><D>}", "{<C><D><A><B>}", "{<A><B><A><D>}", "",
    )  # fmt: skip
    found = []
    for number in range(5 * len(shapes)):
        width, height = random.choice(((100, 80), (640, 480), (37, 53), (1000, 10), (333, 500)))
        x, y = random.randrange(0, 60), random.randrange(0, 60)
        w, h = random.randrange(1, 40), random.randrange(1, 40)
        truth = [x * width / 100, y * height / 100, (x + w) * width / 100, (y + h) * height / 100]
        shift = random.choice((0, 0, 1, w // 3, w, 60))
        digits = {"A": x + shift, "B": y, "C": x + w + shift, "D": y + h}
        if number % 7 == 3:
            digits |= {"C": 105, "D": 130}
            truth[2:] = [float(width), float(height)]
        answer = shapes[number % len(shapes)]
        for letter, value in digits.items():
            answer = answer.replace(letter, str(value))
        found.append({"answer": answer, "width": width, "height": height, "box": truth})
    found += [
        {"answer": "{<10> <20> <60> <80>}", "width": 100, "height": 80, "box": [10, 16, 60, 64]},
        {"answer": "it is {<10><20><60><80>}", "width": 100, "height": 80, "box": [10, 16, 60, 64]},
        {"answer": "{<10><20><60><80>} 2 cups", "width": 100, "height": 80, "box": [10, 16, 60, 64]},
        {"answer": "{<10><20><60><80>}{<10><20><60><80>}", "width": 100, "height": 80, "box": [10, 16, 60, 64]},
        {"answer": "{<10><20><60><80>} left", "width": 100, "height": 80, "box": [10, 16, 60, 64]},
        {"answer": "{<10><20><10><20>}", "width": 50, "height": 50, "box": [5, 10, 5.5, 10.5]},  # an empty box
        {"answer": "{<11><20><10><20>}", "width": 50, "height": 50, "box": [5, 10, 5.2, 10.2]},  # an inverted one
    ]
    for case in found:
        inputs = case["answer"], case["width"], case["height"], case["box"]
        case |= {"published": restated.published_refer(*inputs), "official": restated.official_refer(*inputs)}
    return found


def people(random: Random) -> list[Case]:
    """Answers with those of ten people: unanimous, split, different in case, blanks, articles, digits or empty."""
    questions = [(answer, given) for answer, given in cases.vqa_questions(COUNT, seed=random.randrange(1000))]
    for answer in _ODD_ANSWERS:
        given = [random.choice((answer, answer.upper(), f"the {answer}", "dog", "")) for _ in range(10)]
        questions.append((answer, given))
    return [{"answer": answer, "people": given} for answer, given in questions]


def vqa(random: Random) -> list[Case]:
    """VQAv2: one rule under both names."""
    found = people(random)
    for case in found:
        case["published"] = case["official"] = restated.leave_one_out(
            case["answer"], case["people"], official.normalized
        )
    return found


def vizwiz(random: Random) -> list[Case]:
    """VizWiz: matches by three, and leave one out."""
    ten = ["dog"] * 2 + ["cat"] * 8, ["the dog"] * 5 + ["hound"] * 5
    found = [*people(random), *({"answer": a, "people": p} for p in ten for a in ("dog", "the dog", "Cat", "hound"))]
    found += [{"answer": a, "people": ["a_b"] * 3 + ["a"] * 7} for a in ("a", "b", "a_b")]
    for case in found:
        case["published"] = restated.published_vizwiz(case["answer"], case["people"])
        case["official"] = restated.leave_one_out(case["answer"], case["people"], official.normalized)
    return found


_STEMMED = {
    "racing": "race", "riding": "ride", "dogs": "dog", "skiing": "ski", "surfing": "surf", "ponies": "pony",
    "men": "man",
    "teddy bears": "teddy bear", "hot dogs": "hot dog", "buses": "bus", "The Dogs": "the dog", "t-shirts": "t-shirt",
    "2 dogs": "2 dog", "two": "two", "glasses": "glass", "wii": "wii", "playing games": "play game",
    "on left": "on left",
    "skis, poles": "ski, pole", "it's": "it's", "dogs!": "dog!", "": "",
}  # fmt: skip


def okvqa(random: Random) -> list[Case]:
    """OK-VQA: the columns `raw_answer` and `answer`. `official` needs the lemmas of simplemma."""
    words = list(_STEMMED)
    found = [
        {"answer": answer, "raw": ["racing"] * 6 + ["riding"] * 4}
        for answer in ("race", "racing", "ride", "riding", "")
    ]
    for number in range(3 * len(words)):
        some = [random.choice(words) for _ in range(1 + number % 3)]
        raw = [random.choice(some) for _ in range(10)]
        answer = random.choice((random.choice(raw), _STEMMED[random.choice(raw)], random.choice(words)))
        found.append({"answer": answer, "raw": raw})
    for case in found:
        stems = [_STEMMED[one] for one in case["raw"]]
        case |= {
            "stems": stems,
            "published": restated.leave_one_out(case["answer"], stems, official.normalized),
            "official": restated.leave_one_out(official.lemmas(case["answer"]), stems, official.normalized),
            "raw_accuracy": restated.leave_one_out(case["answer"], case["raw"], official.normalized),
        }
    return found


def labels(random: Random, choices: tuple[str, ...], published: Callable[[str, str], bool]) -> list[Case]:
    """Answers to one label: the published comparison, and the equality of both normalized."""
    found = []
    for answer in _ODD_ANSWERS:
        label = random.choice((*choices, answer.strip().lower() or "dog", answer.upper().strip() or "No", "a dog"))
        found.append({"answer": answer, "label": label})
    for case in found:
        answer, label = case["answer"], case["label"]
        case["published"] = published(answer, label)
        case["official"] = official.normalized(answer) == official.normalized(label)
    return found


def hateful(random: Random) -> list[Case]:
    """Hateful Memes: only yes and no are answers, or POPE's reading."""
    found = [{"answer": answer, "label": label} for answer in _ODD_ANSWERS for label in (0, 1)]
    for case in found:
        case["published"] = restated.published_hateful(case["answer"], case["label"])
        case["official"] = restated.pope_word(case["answer"]) == ("no", "yes")[case["label"]]
    return found


def pope(random: Random) -> list[Case]:
    """POPE: one rule under both names."""
    found: list[Case] = [{"answer": answer, "label": label} for answer in _ODD_ANSWERS for label in ("yes", "no")]
    for case in found:
        case["published"] = case["official"] = restated.pope_word(case["answer"]) == case["label"]
    return found


def direct(random: Random) -> list[Case]:
    """A-OKVQA, direct answers: null for a question that is left out."""
    found = people(random)
    for number, case in enumerate(found):
        case["difficult"] = number % 4 == 1
        case["published"] = case["official"] = restated.official_direct(
            case["answer"], case["people"], case["difficult"]
        )
    return found


def choice(random: Random) -> list[Case]:
    """Choices with the loss of each token, the end token last: the picked one by the sum and by the mean."""
    found: list[Case] = [
        {"choices": ["cat", "the big red cat"], "nats": [[1.2, 0.3], [1.0, 0.6, 0.5, 0.4, 0.3]]},
        {"choices": ["cat", "cat "], "nats": [[1.5, 0.5], [1.0, 0.75]]},
    ]
    for number in range(COUNT):
        names = [f"{'the ' * random.randrange(3)}choice {letter}" for letter in "abcde"[: random.randrange(2, 6)]]
        nats = [[random.randrange(1, 64) / 32 for _ in range(random.randrange(2, 8))] for _ in names]
        if number % 5 == 0:  # equal sums
            nats[0] = [1.0, 1.0, 0.5]
            nats[-1] = [2.0, 0.5]
        found.append({"choices": names, "nats": nats})
    for case in found:
        case |= {"sum": restated.lowest_sum(case["nats"]), "mean": restated.lowest_mean(case["nats"])}
    return found


def chair(random: Random) -> list[Case]:
    """Captions with the objects that CHAIR's script finds with its own list, and with a list without the two blanks."""
    texts = [
        "a slice of cheesecake", "a man on a motor bike", "a man on a motorbike", "a piece of cake", "two motor bikes",
        "cheesecakes on a plate", "a motor cycle and a motor bike", "a motorcycle", "a bike", "Motor bike.",
        "motor  bike",
        "a motor-bike", "a motor\nbike", "motor", "cheese cake", "a cheesecake and a cupcake", "", "...", "a scooter",
        "the toilet seat", "a home plate", "a train track", "a hot dog", "a stove top oven", "a bus", "buses",
    ]  # fmt: skip
    texts += cases.captions(COUNT)[0]
    listed = official.object_list()
    untidy = listed.replace(", motor bike", ",  motor bike").replace(", cheesecake", ",  cheesecake")
    found = official.chair_objects(texts, untidy)
    repaired = official.chair_objects(texts, listed)
    return [
        {"caption": text, "published": a, "official": a, "repaired": b}
        for text, a, b in zip(texts, found, repaired, strict=True)
    ]


def phrases(random: Random) -> list[Case]:
    """Answers with phrases and boxes: repeated mentions, missing, moved, inverted, above 100, in another case."""
    found = []
    for number in range(COUNT):
        wanted, parts = [], []
        for place in range(1 + number % 4):
            name = random.choice(("a man", "a ball", "The red car", "two dogs"))
            x, y, w, h = (random.randrange(1, 50) for _ in range(4))
            wanted.append([name, [[x * 2.0, y * 1.0, (x + w) * 2.0, (y + h) * 1.0]]])
            shift = random.choice((0, 0, w // 4, w))
            box = f"{{<{x + shift}><{y}><{x + w + shift}><{y + h}>}}"
            said = random.choice((name, name.upper(), f"{name}.", "a cat"))
            parts.append(
                random.choice((f"<p>{said}</p> {box}", f"<p>{said}</p>{box}<delim>{{<1><1><2><2>}}", f"<p>{said}</p>"))
            )
            if place == 2:
                parts[-1] = f"<p>{said}</p> {{<{x}><{y}><101><{y + h}>}}"
        found.append({"answer": " ".join(parts), "width": 200, "height": 100, "phrases": wanted})
    for case in found:
        size = case["width"], case["height"]
        case["published"] = case["official"] = restated.found_phrases(case["answer"], size, case["phrases"])
    return found


FILES: dict[str, Callable[[Random], list[Case]]] = {
    "refer": refer,
    "okvqa": okvqa,
    "vqav2": vqa,
    "gqa": lambda random: labels(random, ("yes", "No", "dog"), restated.published_gqa),
    "vsr": lambda random: labels(random, ("true", "False"), restated.published_vsr),
    "ocrvqa": lambda random: labels(
        random, ("dog", "10:30"), lambda a, b: official.normalized(a) == official.normalized(b)
    ),
    "vizwiz": vizwiz,
    "hateful_memes": hateful,
    "aokvqa": direct,
    "choice": choice,
    "pope": pope,
    "chair": chair,
    "phrases": phrases,
}


def main() -> int:
    changed = []
    for name, make in FILES.items():
        rows = make(Random(name))
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        file = ROWS / f"{name}.json"
        if "--write" in sys.argv:
            ROWS.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        elif not file.is_file() or json.loads(file.read_text()) != json.loads(text):
            changed.append(file.name)
        print(f"{name}: {len(rows)} cases, {'written' if '--write' in sys.argv else 'compared'}")
    if changed:
        print(f"the restated rules and official packages say otherwise now: {', '.join(changed)}")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
