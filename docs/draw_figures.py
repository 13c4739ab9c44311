"""Draws the figures of the architecture page as SVG: `python docs/draw_figures.py`.

`packages.svg` is drawn from the imports in `src/minigptv2`, in the layers that `tests/test_contracts.py` checks.
`model.svg` and `sample.svg` are drawn from the tables below. The output depends on nothing else, so a test draws
the figures again and compares them with the files in `docs/figures`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FIGURES = REPOSITORY / "docs" / "figures"
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
INK, GREY, LINE = "#1b2733", "#5b6875", "#9aa7b4"
BLUE, GREEN, SAND, ROSE = "#dcebfa", "#dff2e1", "#fbf0d9", "#fae0e0"


@dataclass
class Canvas:
    """Collects SVG elements. Coordinates and sizes are in pixels, with the origin at the top left."""

    width: int
    height: int
    title: str
    elements: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, *, size: int = 14, color: str = INK, anchor: str = "middle") -> None:
        """One line of text with its baseline at `y`."""
        style = f"font-size='{size}' fill='{color}' text-anchor='{anchor}'"
        self.elements.append(f"<text x='{x:.0f}' y='{y:.0f}' {style}>{escape(text)}</text>")

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], fill: str = BLUE) -> None:
        """A rounded box: the first line is the title, the others are smaller."""
        size = f"width='{width:.0f}' height='{height:.0f}' rx='8'"
        self.elements.append(f"<rect x='{x:.0f}' y='{y:.0f}' {size} fill='{fill}' stroke='{LINE}'/>")
        top = y + height / 2 - (len(lines) - 1) * 9 + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number, line, size=12 if number else 14, color=GREY if number else INK)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, color: str = GREY) -> None:
        """A straight arrow from the first point to the second."""
        self.elements.append(
            f"<line x1='{x1:.0f}' y1='{y1:.0f}' x2='{x2:.0f}' y2='{y2:.0f}' stroke='{color}' marker-end='url(#tip)'/>"
        )

    def svg(self) -> str:
        """The finished document."""
        tip = (
            f"<marker id='tip' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'>"
            f"<path d='M0,0 L10,5 L0,10 z' fill='{GREY}'/></marker>"
        )
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
            f"width='{self.width}' height='{self.height}' role='img' {FONT}>"
        )
        background = f"<rect width='{self.width}' height='{self.height}' fill='#ffffff'/>"
        parts = [
            head,
            f"<title>{escape(self.title)}</title>",
            f"<defs>{tip}</defs>",
            background,
            *self.elements,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"


COLUMNS = {
    "cli": 0.52,
    "api": 0.9,
    "doctor": 0.1,
    "train": 0.4,
    "integrations": 0.08,
    "planner": 0.3,
    "demo": 0.72,
    "run_config": 0.3,
    "evaluate": 0.62,
    "heldout": 0.47,
    "serve": 0.92,
    "data": 0.1,
    "corpora": 0.29,
    "predict": 0.64,
    "convert": 0.86,
    "shards": 0.2,
    "engine": 0.43,
    "model": 0.74,
    "prompt": 0.62,
    "tasks": 0.3,
    "cluster": 0.5,
    "tracking": 0.86,
}
"""Horizontal places of packages, 0 (left) to 1 (right), chosen so that few arrows cross a box."""


def package_graph() -> tuple[list[list[str]], dict[str, set[str]]]:
    """Packages by layer, lowest first, and which packages each one imports."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.test_contracts import LAYERS, imports_of, modules

    imports: dict[str, set[str]] = {}
    for name, file in modules():
        package = name.split(".")[0]
        imports.setdefault(package, set()).update(other.split(".")[0] for other in imports_of(file))
    layers = [sorted((layer & set(imports)) - {"__main__"}) for layer in LAYERS]
    return layers, {package: others - {package} for package, others in imports.items()}


def without_implied(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that no chain of other imports implies."""
    reached: dict[str, set[str]] = {}

    def reach(package: str) -> set[str]:
        if package not in reached:
            reached[package] = set()
            direct = imports.get(package, set())
            reached[package] = direct.union(*(reach(other) for other in direct)) if direct else set()
        return reached[package]

    return {
        package: {other for other in others if not any(other in reach(third) for third in others - {other})}
        for package, others in imports.items()
    }


def draw_packages() -> str:
    """Packages in their layers. An arrow is an import that no other arrow implies."""
    layers, imports = package_graph()
    row, box_height, left, width = 84, 40, 40, 1040
    canvas = Canvas(1120, 60 + row * len(layers), "Packages of minigptv2 by layer")
    place: dict[str, tuple[float, float, float]] = {}
    for number, layer in enumerate(layers):
        y = 30 + row * (len(layers) - 1 - number)
        canvas.text(20, y + 25, str(number), color=GREY)
        step = width / len(layer)
        for index, package in enumerate(layer):
            size = min(150.0, step - 20)
            x = left + (width * COLUMNS[package] if package in COLUMNS else step * (index + 0.5))
            place[package] = (x, y, size)
    single = set(layers[0] + layers[1])
    for package, others in without_implied({name: imports[name] - single for name in place}).items():
        for other in sorted(others):
            (x1, y1, _), (x2, y2, _) = place[package], place[other]
            if y2 > y1:
                canvas.arrow(x1, y1 + box_height, x2, y2 - 2)
    for package, (x, y, size) in place.items():
        fill = SAND if package in single else BLUE
        canvas.box(x - size / 2, y, size, box_height, [package], fill)
    canvas.text(
        560,
        52 + row * len(layers),
        "A package imports from lower layers only. Arrows to the modules of layers 0 and 1 are omitted.",
        size=12,
        color=GREY,
    )
    return canvas.svg()


STAGES = (
    ("Stage 1: pretraining", "weakly labeled + fine-grained", "400,000 steps of 96, lr 1e-4"),
    ("Stage 2: multi-task", "fine-grained", "50,000 steps of 64, lr 1e-5"),
    ("Stage 3: instruction tuning", "stage 2 + instructions + language", "35,000 steps of 24, lr 1e-5"),
)


def draw_model() -> str:
    """The model, left to right, and the three stages below it."""
    canvas = Canvas(1120, 400, "MiniGPT-v2 and its three training stages")
    parts = [
        (20, 130, ["image", "448 x 448 px"], "#ffffff"),
        (180, 190, ["EVA ViT-g/14", "39 blocks, frozen", "1 + 1024 x 1408"], BLUE),
        (400, 170, ["token merge", "4 neighbors into 1", "256 x 5632"], SAND),
        (600, 170, ["projector", "linear, trained", "256 x 4096"], GREEN),
        (800, 300, ["LLaMA-2-7B-chat", "32 layers, frozen", "LoRA r=64 on q and v, trained"], BLUE),
    ]
    for x, width, lines, fill in parts:
        canvas.box(x, 40, width, 84, lines, fill)
    for (x1, w1, _, _), (x2, _, _, _) in zip(parts, parts[1:], strict=False):
        canvas.arrow(x1 + w1, 82, x2 - 2, 82)
    canvas.box(600, 170, 170, 60, ["text and boxes", "{<12><40><60><85>}"], "#ffffff")
    canvas.arrow(770, 190, 838, 126)
    canvas.box(960, 170, 140, 60, ["answer", "text with boxes"], "#ffffff")
    canvas.arrow(1030, 124, 1030, 168)
    for number, lines in enumerate(STAGES):
        x = 20 + 370 * number
        canvas.box(x, 280, 330, 84, lines, ROSE)
        if number:
            canvas.arrow(x - 40, 322, x - 2, 322)
    canvas.text(
        560,
        388,
        "Each stage trains the projector and LoRA, and starts from the export of the one before.",
        size=12,
        color=GREY,
    )
    return canvas.svg()


SAMPLE = (
    ("data set", "images, annotations", "corpora/sources"),
    ("record", "image, turns, boxes in px", "record"),
    ("shard", "tar + manifest + index", "shards"),
    ("sample", "a position of the plan", "data/plan"),
    ("example", "token ids, labels", "tasks, prompt"),
    ("pack", "examples in one sequence", "data/packing"),
    ("batch", "tensors of a pack", "data/collate"),
    ("step", "loss sum / count, update", "engine, train"),
)


def draw_sample() -> str:
    """The path of a sample from a data set to a training step."""
    canvas = Canvas(1120, 300, "The path of a sample")
    for number, lines in enumerate(SAMPLE):
        line, column = divmod(number, 4)
        x, y = 20 + 280 * column, 30 + 130 * line
        canvas.box(x, y, 220, 84, lines, (SAND, BLUE, GREEN)[0 if number < 3 else 1 if number < 7 else 2])
        if column:
            canvas.arrow(x - 60, y + 42, x - 2, y + 42)
    canvas.elements.append(
        f"<path d='M970,114 L970,137 L130,137 L130,158' fill='none' stroke='{GREY}' marker-end='url(#tip)'/>"
    )
    canvas.text(
        560, 280, "Sand: built once. Blue: made for every step by the loader. Green: training.", size=12, color=GREY
    )
    return canvas.svg()


def figures() -> Iterable[tuple[str, str]]:
    """File names and contents of all figures."""
    return (("packages.svg", draw_packages()), ("model.svg", draw_model()), ("sample.svg", draw_sample()))


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    for file_name, content in figures():
        (FIGURES / file_name).write_text(content)
        print(FIGURES.relative_to(REPOSITORY) / file_name)
