"""Items of text: tasks, answers and likelihoods of a tiny model, and values that commands print."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.golden.adapter import find, headline, parse, render, score, task_name
from tests.golden.training import describe_export
from tests.golden.values import REPOSITORY, plain, read_lines
from tests.golden.world import TOY_CORPORA, make_stand_ins, shipped_recipes

TASK_NAMES = ("vqa", "caption", "grounding", "refer", "identify", "detection", "conversation", "language")
HOSTILE = (
    "",
    " ",
    "no idea",
    "{<1><2><3><4>}",
    "it is at {<1><2><3><4>}",
    "{<1><2><3>}",
    "{<1><2><3><400>}",
    "<p>a dog</p> {<1><2><3><4>}<delim>{<5><6><7><8>} runs",
    "<p>a dog</p> runs",
    "<p>a dog {<1><2><3><4>}",
    "</p><p>",
    "{<9><9><1><1>}",
    "<p>a <b></p> {<1><2><3><4>}",
    "<p></p> {<0><0><100><100>}",
    "{{<1><2><3><4>}}",
    "<p>x</p>{<1><2><3><4>}<delim>",
    "Red.",
    "  RED ,",
    "the red circle",
    "one two  two",
    "ein Hund läuft 🐕",
    "{<1><2><3><4>} {<5><6><70><80>}",
)
"""Answers that a model may give, right or wrong in form."""
HARDWARE = (
    (),
    ("--gpus", "16", "--gpu", "a100-40", "--network", "11"),
    ("--gpus", "8", "--gpu", "rtx4090"),
    ("--gpus", "1", "--gpu-memory", "16", "--tokens", "512", "--supervised", "90", "--images", "1.5"),
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def tasks_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Render, parse and score generated turns of every task."""
    found: dict[str, Any] = {"headlines": {task: headline(task) for task in TASK_NAMES}}
    for corpus in TOY_CORPORA:
        for number, sample in enumerate(find("toy_samples")(corpus, 25, Path(), "golden")):
            record = sample.record
            for place, turn in enumerate(record.turns):
                key = f"{corpus} {number} {place}"
                found[key] = _describe_turn(turn, record.width or 1, record.height or 1, Random(f"{key}/golden"))
    for number, turn in enumerate(_written_turns()):
        found[f"written {number}"] = _describe_turn(turn, 320, 240, Random(number), draws=12)
    found["parsed"] = {f"{task}: {text}": _parsed(text, task, 100, 70) for task in TASK_NAMES for text in HOSTILE}
    found["shown"] = {text: [_segments(text, partial) for partial in (False, True)] for text in HOSTILE}
    found["task of"] = {text: task_name(text) for text in ("[vqa] x", " [refer]", "[nothing] x", "", "[detection")}
    return found


def _written_turns() -> list[Any]:
    """Return turns with alternatives, several boxes, a text to parse, and choices."""
    box, region, turn = find("Box"), find("Region"), find("Turn")
    boxes = (box(8.0, 16.0, 24.5, 32.0), box(0.0, 0.0, 320.0, 240.0), box(1.0, 1.0, 9.0, 9.0))
    dog, field = region(boxes[:1], ("a dog", "the dog")), region(boxes[1:], ("the field", "a green field"))
    spans = (region(boxes[:1], ("a dog",), (0, 5)), region(boxes[1:], ("the field",), (15, 24)))
    return [
        turn("vqa", "how many?", ("one", "two", "two", "Two.")),
        turn("vqa", "which?", ("b",), choices=("a", "b")),
        turn("caption", answers=("A dog runs.", "Ein Hund läuft 🐕.", "A dog runs over the field")),
        turn("grounding", answers=("a dog runs over the field",), regions=spans),
        turn("refer", regions=(dog,)),
        turn("identify", regions=(dog,)),
        turn("detection", regions=(dog, field)),
        turn("detection", "a dog runs over the field", regions=(dog, field)),
        turn("conversation", "Is it red?", ("Yes, it is.", "Yes.")),
        turn("language", "Say red twice.", ("red red",)),
    ]


def _describe_turn(turn: Any, width: int, height: int, draw: Random, draws: int = 2) -> dict[str, Any]:
    """Return a turn's questions and answers, and how right, changed and hostile answers are parsed and scored."""
    changes = Random(draw.random())
    rendered = [render(turn, width, height)] + [render(turn, width, height, draw) for _ in range(draws)]
    texts = dict.fromkeys([answer for _, answer in rendered] + _changed(rendered[0][1], changes))
    return {
        "rendered": rendered,
        "random state": draw.random(),
        "tasks": [task_name(question) for question, _ in rendered],
        "answers": {
            text: [_parsed(text, turn.task, width, height), score(turn, text, width, height), _segments(text, False)]
            for text in texts
        },
    }


def _changed(answer: str, changes: Random) -> list[str]:
    """Return variants of an answer: truncated, in capitals, empty, with moved boxes, and hostile ones."""
    words = answer.split(" ")
    without = words[:]
    del without[changes.randrange(len(words))]
    moved = [_move_boxes(answer, most, changes) for most in (3, 6, 9, 12) for _ in range(2)]
    others = [answer[: len(answer) // 2], answer.upper(), " ".join(without), " ".join(reversed(words))]
    return others + moved + changes.sample(HOSTILE, 3)


def _move_boxes(answer: str, most: int, changes: Random) -> str:
    """Return an answer with every coordinate moved by up to `most` hundredths."""

    def moved(match: re.Match[str]) -> str:
        return f"<{min(100, max(0, int(match[1]) + changes.randint(-most, most)))}>"

    return re.sub(r"<(\d+)>", moved, answer)


def _parsed(text: str, task: str, width: int, height: int) -> list[Any]:
    """Return a parsed answer as plain values."""
    answer = parse(text, task, width, height)
    return [answer.text, [_grounded(one) for one in answer.grounded], answer.well_formed, _corners(answer.boxes)]


def _segments(text: str, partial: bool) -> list[Any]:
    """Return the pieces of an answer as they are shown."""
    pieces = find("segments")(text, 100, 70, partial=partial)
    return [piece if isinstance(piece, str) else _grounded(piece) for piece in pieces]


def _grounded(one: Any) -> list[Any]:
    return [one.phrase, _corners(one.boxes)]


def _corners(boxes: Any) -> list[list[float]]:
    return [[float(edge) for edge in (box.x1, box.y1, box.x2, box.y2)] for box in boxes]


def answers_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Record answers and likelihoods of a tiny model made from a seed, by the API and by `evaluate`."""
    export = save_tiny_export(work)
    found: dict[str, Any] = {"export": describe_export(export, work)}
    for style in find("PromptStyle"):
        predictor = find("Predictor")(*find("load_export")(export)[:2], style=style)
        found[style.value] = describe_answers(predictor)
    corpora = [word for name in TOY_CORPORA if name != "weak" for word in ("--corpus", f"toy_{name}")]
    output = work / "evaluation"
    words = ["evaluate", "--model", str(export), "--shards", str(work / "world/val"), "--limit", "3"]
    printed = run_command([*words, *corpora, "--output", str(output)])
    assert printed["exit code"] == 0, printed["text"]
    found["evaluate"] = plain(json.loads((output / "results.json").read_bytes()), work)
    files = sorted(output.rglob("predictions.jsonl"))
    found["predictions"] = {str(file.parent.relative_to(output)): read_lines(file, work) for file in files}
    return found


def save_tiny_export(work: Path, seed: int = 3) -> Path:
    """Write the export of a tiny model made from a seed, with the toy world's tokenizer."""
    config = find("ModelConfig")(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        tokenizer=str(work / "world/tokenizer"),
        lora=find("LoraConfig")(r=4),
        trainable=["projector", "lora"],
    )
    find("save_untrained")(work / "export", config, seed)
    return work / "export"


def picture(seed: int, size: tuple[int, int]) -> Any:
    """Return an image of random pixels."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def describe_answers(predictor: Any) -> dict[str, Any]:
    """Return greedy, sampled and beam-searched replies, and likelihoods of given answers in both layouts."""
    request, case, decoding = find("Request"), find("Case"), find("Decoding")
    a, b = picture(1, (40, 30)), picture(2, (31, 64))
    requests = [
        request("[vqa] what is it?", (a,)),
        request("[refer] give me the location of the small red circle in the picture", (b,)),
        request("Say red twice."),
        request("[vqa] and how many?", (a,), (("[vqa] what is it?", "a red circle"),)),
        request("[vqa] what differs?", (a, b)),
    ]
    cases = [
        case((("[vqa] what is it?", "red"),), (a,)),
        case((("[refer] the circle", "{<12><34><56><100>}"), ("and the bar?", "it is blue and large")), (b,)),
        case((("Say red twice.", "red red"),)),
        case((("[vqa] what differs?", "the colour"),), (a, b)),
    ]
    replies = {
        "greedy": predictor.reply(requests, decoding(12), top=3),
        "greedy in batches of 2": predictor.reply(requests, decoding(8), batch_size=2, top=3),
        "sampled": predictor.reply(requests, decoding(8, temperature=1.5, top_p=0.95, seed=4)),
        "beams": predictor.reply(requests, decoding(6, beams=3)),
    }
    scores = {layout: predictor.score(cases, layout=layout) for layout in ("packed", "padded")}
    found: dict[str, Any] = {
        name: [(one.text, one.context_length, [(int(i), float(x)) for i, x in one.next_top]) for one in made]
        for name, made in replies.items()
    }
    return found | {layout: [(one.length, one.target_ids, one.nll) for one in made] for layout, made in scores.items()}


def printed_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Record the values that `config`, `plan` and `mix` print for shipped configs and recipes."""
    os.environ["DEMO_DIR"] = str(work / "world")
    found: dict[str, Any] = {}
    try:
        for file in sorted((REPOSITORY / "launch/configs").glob("*.yaml")):
            if file.name in ("base.yaml", "toy.yaml"):  # not whole: others extend them
                continue
            name = str(file.relative_to(REPOSITORY))
            found[f"config {name}"] = _printed_config(["config", name, "train.log_every=3", "--world-size", "2"], work)
            for words in HARDWARE:
                arguments = ["plan", "--config", name, *words]
                printed = run_command([*arguments, "--json"])
                values = json.loads(printed["text"]) if printed["exit code"] == 0 else None
                found[" ".join(arguments)] = [printed["exit code"], values, numbers(run_command(arguments)["text"])]
    finally:
        del os.environ["DEMO_DIR"]
    return found | _printed_mixtures(work)


def _printed_config(words: list[str], work: Path) -> dict[str, Any]:
    """Return the keys and values that `config` prints; where each came from is wording."""
    printed = run_command(words)
    rows = re.findall(r"^([a-z]\w*(?:\.\w+)*)\s+(.*?)\s+#\s", printed["text"], flags=re.M)
    return {"exit code": printed["exit code"], "values": plain(dict(rows), work)}


def _printed_mixtures(work: Path) -> dict[str, Any]:
    """Return the rows that `mix` prints of every recipe, with built shards and with sizes of the table of corpora."""
    found = {}
    for file in shipped_recipes():
        make_stand_ins(work / "shards", find("load_recipe")(file))
        name = str(file.relative_to(REPOSITORY))
        tokenizer = ("--tokenizer", str(work / "world/tokenizer"), "--tokens-per-image", "4")
        for given in (("--shards", str(work / "shards"), *tokenizer), ("--shards", str(work / "nothing"))):
            printed = run_command(["mix", name, *given, "--steps", "500", "--global-batch-size", "24"])
            corpora = find("load_recipe")(file).corpora
            lines = [line for line in printed["text"].splitlines() if line.split()[:1] and line.split()[0] in corpora]
            rows = {line.split()[0]: [numbers(line), re.sub(r"[^▁-█]", "", line)] for line in lines}
            found[f"mix {name} {'built' if len(given) > 2 else 'not built'}"] = [printed["exit code"], rows]
    return found


def run_command(words: list[str]) -> dict[str, Any]:
    """Return the exit code and the standard output of a `minigptv2` command, run in this process."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(io.StringIO()):
        code = find("cli")(words)
    return {"exit code": code, "text": output.getvalue()}


def numbers(text: str) -> list[str]:
    """Return the numbers in a text in sorted order, so that neither wording nor layout counts."""
    return sorted(_NUMBER.findall(text))
