"""Lists the benchmarks: where the questions come from, how they are asked and scored, and the published results.

Published results are those printed in arXiv:2310.09478, in its tables of VQA and of referring expression comprehension,
for the model after stage 2 and after stage 3 ("chat"). A benchmark without published results was not reported there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from minigptv2.errors import ConfigError, nearest
from minigptv2.evaluate.protocols import PROTOCOLS, Protocol
from minigptv2.tasks import TASKS
from minigptv2.tasks.base import QUERY_SLOT

PAPER = "arXiv:2310.09478"
STAGE_2, CHAT_MODEL = "MiniGPT-v2", "MiniGPT-v2-chat"


@dataclass(frozen=True)
class Published:
    """A published result: the model, the value in percent, and where it was printed."""

    model: str
    value: float
    where: str


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: a split of a corpus, the task whose turns are asked, and the protocol that scores the answers.

    `prompt` replaces the task's first instruction unless it is None. `max_new_tokens` is the longest answer. `scale`
    turns shares into printed values: percent, and CIDEr times 100.
    """

    name: str
    title: str
    corpus: str
    split: str
    task: str
    protocol: str
    source: str
    prompt: str | None = None
    max_new_tokens: int = 20
    published: tuple[Published, ...] = ()
    scale: float = 100.0

    @property
    def scoring(self) -> Protocol:
        """The protocol that scores the answers."""
        return PROTOCOLS[self.protocol]

    @property
    def best(self) -> float:
        """The highest value of the headline metric, as printed."""
        return self.scoring.best * self.scale

    @property
    def wording(self) -> str:
        """The question's text, with the slot `{query}`."""
        return self.prompt or TASKS[self.task].ask(QUERY_SLOT)


def _paper(table: str, stage_2: float, chat: float) -> tuple[Published, ...]:
    where = f"{PAPER}, {table} results"
    return (Published(STAGE_2, stage_2, where), Published(CHAT_MODEL, chat, where))


_vqa_spec = partial(Benchmark, task="vqa")


def _refer(corpus: str, title: str, split: str, stage_2: float, chat: float) -> Benchmark:
    sources = {
        "refcoco": "Kazemzadeh et al. 2014; Yu et al. 2016",
        "refcoco_plus": "Yu et al. 2016",
        "refcocog": "Mao et al. 2016; Nagaraja et al. 2016 (UMD split)",
    }
    published = _paper("REC", stage_2, chat)
    title, source = f"{title} {split}", sources[corpus]
    return Benchmark(
        f"{corpus}_{split}", title, corpus, split, "refer", "refer", source, max_new_tokens=32, published=published
    )


def _caption(name: str, title: str, corpus: str, split: str, source: str) -> Benchmark:
    return Benchmark(name, title, corpus, split, "caption", "caption", source, max_new_tokens=64)


_SPECS = (
    _refer("refcoco", "RefCOCO", "val", 88.69, 88.06),
    _refer("refcoco", "RefCOCO", "testA", 91.65, 91.29),
    _refer("refcoco", "RefCOCO", "testB", 85.33, 84.3),
    _refer("refcoco_plus", "RefCOCO+", "val", 79.97, 79.58),
    _refer("refcoco_plus", "RefCOCO+", "testA", 85.12, 85.52),
    _refer("refcoco_plus", "RefCOCO+", "testB", 74.45, 73.32),
    _refer("refcocog", "RefCOCOg", "val", 84.44, 84.19),
    _refer("refcocog", "RefCOCOg", "test", 84.66, 84.31),
    _vqa_spec(
        "okvqa",
        "OK-VQA val",
        corpus="ok_vqa",
        split="val",
        protocol="vqa",
        source="Marino et al. 2019",
        published=_paper("VQA", 56.9, 57.8),
    ),
    _vqa_spec("vqav2", "VQAv2 val", corpus="vqav2", split="val", protocol="vqa", source="Goyal et al. 2017"),
    _vqa_spec(
        "gqa",
        "GQA testdev, balanced",
        corpus="gqa",
        split="testdev",
        protocol="exact",
        source="Hudson and Manning 2019",
        published=_paper("VQA", 60.3, 60.1),
    ),
    _vqa_spec(
        "vsr",
        "VSR zero-shot test",
        corpus="vsr",
        split="test",
        protocol="exact",
        source="Liu et al. 2023",
        prompt="[vqa] Based on the image, is this statement true or false? {query}",
        published=_paper("VQA", 60.6, 62.9),
    ),
    _vqa_spec(
        "iconqa",
        "IconQA test, choices in words",
        corpus="iconqa",
        split="test",
        protocol="choice",
        source="Lu et al. 2021",
        published=_paper("VQA", 47.7, 51.5),
    ),
    _vqa_spec(
        "vizwiz",
        "VizWiz val",
        corpus="vizwiz",
        split="val",
        protocol="vqa",
        source="Gurari et al. 2018",
        published=_paper("VQA", 32.9, 53.6),
    ),
    _vqa_spec(
        "hateful_memes",
        "Hateful Memes dev (seen)",
        corpus="hateful_memes",
        split="dev_seen",
        protocol="hateful",
        source="Kiela et al. 2020",
        published=_paper("VQA", 58.2, 58.8),
    ),
    _vqa_spec("ocrvqa", "OCR-VQA test", corpus="ocr_vqa", split="test", protocol="exact", source="Mishra et al. 2019"),
    _vqa_spec(
        "aokvqa",
        "A-OKVQA val, direct answers",
        corpus="aok_vqa",
        split="val",
        protocol="direct",
        source="Schwenk et al. 2022",
    ),
    _vqa_spec(
        "aokvqa_choice",
        "A-OKVQA val, multiple choice",
        corpus="aok_vqa",
        split="val",
        protocol="choice",
        source="Schwenk et al. 2022",
    ),
    _caption("coco_caption", "COCO Captions, Karpathy test", "coco_caption", "test", "Karpathy and Fei-Fei 2015"),
    _caption("nocaps", "NoCaps val", "nocaps", "val", "Agrawal et al. 2019"),
    _caption("textcaps", "TextCaps val", "text_caps", "val", "Sidorov et al. 2020"),
    _caption("flickr30k", "Flickr30k test, Karpathy", "flickr30k_caption", "test", "Young et al. 2014"),
    *(
        _vqa_spec(
            f"pope_{split}",
            f"POPE on COCO, {split}",
            corpus="pope",
            split=split,
            protocol="pope",
            source="Li et al. 2023 (arXiv:2305.10355)",
        )
        for split in ("random", "popular", "adversarial")
    ),
    Benchmark(
        "chair",
        "CHAIR on COCO, Karpathy test",
        "coco_chair",
        "test",
        "caption",
        "chair",
        "Rohrbach et al. 2018 (arXiv:1809.02156)",
        max_new_tokens=64,
    ),
    Benchmark(
        "flickr30k_grounding",
        "Flickr30k Entities test, grounded captions",
        "flickr_grounded_caption",
        "test",
        "grounding",
        "phrases",
        "Plummer et al. 2015",
        max_new_tokens=320,
    ),
    Benchmark(
        "flickr30k_detection",
        "Flickr30k Entities test, phrases to boxes",
        "flickr_phrase_to_box",
        "test",
        "detection",
        "phrases",
        "Plummer et al. 2015",
        max_new_tokens=320,
    ),
    *(
        Benchmark(
            f"refcocog_identify_{split}",
            f"RefCOCOg {split}, expressions of objects",
            "refcocog_identify",
            split,
            "identify",
            "identify",
            "Mao et al. 2016",
            max_new_tokens=48,
        )
        for split in ("val", "test")
    ),
)

BENCHMARKS: dict[str, Benchmark] = {spec.name: spec for spec in _SPECS}
"""Every benchmark by name, in the order of the paper's tasks."""


def chosen(names: list[str]) -> list[Benchmark]:
    """The benchmarks of these names, each once. `all` means all of them. Raises `ConfigError` for an unknown name."""
    wanted = list(BENCHMARKS) if names == ["all"] else list(dict.fromkeys(names))
    for name in wanted:
        if name not in BENCHMARKS:
            hint = nearest(name, list(BENCHMARKS)) or "."
            raise ConfigError(f"unknown benchmark '{name}'{hint} `minigptv2 evaluate --list` prints all of them.")
    return [BENCHMARKS[name] for name in wanted]


def heldout_spec(corpus: str, task: str) -> Benchmark:
    """A benchmark of one task of any corpus folder, scored by the task's own metric."""
    name, title, length = f"{corpus}/{task}", f"{corpus}, {task}", TASKS[task].max_new_tokens
    return Benchmark(name, title, corpus, "", task, "turns", "held-out shards", max_new_tokens=length)


def listing() -> str:
    """The table that `minigptv2 evaluate --list` prints."""
    lines = [f"{'name':<24}{'questions':<48}{'metric':<28}published (stage 2 / chat)"]
    for spec in BENCHMARKS.values():
        values = " / ".join(f"{one.value:g}" for one in spec.published)
        printed = f"{values}  ({spec.published[0].where})" if spec.published else "none"
        lines.append(
            f"{spec.name:<24}{spec.title:<48}{f'{spec.scoring.headline} ({spec.protocol})':<28}{printed}\n"
            f"{'':<24}{spec.corpus} {spec.split}; {spec.source}\n{'':<24}{spec.wording}"
        )
    return "\n".join(lines)
