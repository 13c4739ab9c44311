"""The benchmarks, one row each: where its questions come from, how they are asked and scored, what was published.

Published figures are those printed in arXiv:2310.09478, in its tables of VQA and of referring expression comprehension,
for the model after stage 2 and after stage 3 ("chat"). A row without any says so: nothing was printed for it there.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigptv2.errors import ConfigError, nearest
from minigptv2.evaluate.protocols import PROTOCOLS, Protocol
from minigptv2.tasks import TASKS

PAPER = "arXiv:2310.09478"
STAGE_2, CHAT_MODEL = "MiniGPT-v2", "MiniGPT-v2-chat"


@dataclass(frozen=True)
class Published:
    """A figure somebody printed: of which model, in percent, where."""

    model: str
    value: float
    where: str


@dataclass(frozen=True)
class Benchmark:
    """A row. `prompt` None: the task's evaluation wording. `task` picks the corpus's turns.

    `max_new_tokens` is the longest answer; `scale` turns shares into what is printed (percent; CIDEr times 100).
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
    def rule(self) -> Protocol:
        """How it is scored."""
        return PROTOCOLS[self.protocol]

    @property
    def best(self) -> float:
        """What the headline figure can reach, as printed."""
        return self.rule.best * self.scale


def _paper(table: str, stage_2: float, chat: float) -> tuple[Published, ...]:
    where = f"{PAPER}, {table} results"
    return (Published(STAGE_2, stage_2, where), Published(CHAT_MODEL, chat, where))


def _refer(name: str, corpus: str, title: str, split: str, stage_2: float, chat: float) -> Benchmark:
    sources = {
        "refcoco": "Kazemzadeh et al. 2014; Yu et al. 2016",
        "refcoco_plus": "Yu et al. 2016",
        "refcocog": "Mao et al. 2016; Nagaraja et al. 2016 (UMD split)",
    }
    return Benchmark(
        name,
        f"{title} {split}",
        corpus,
        split,
        "refer",
        "refer",
        sources[corpus],
        max_new_tokens=32,
        published=_paper("REC", stage_2, chat),
    )


def _vqa(
    name: str,
    title: str,
    corpus: str,
    split: str,
    protocol: str,
    source: str,
    *,
    prompt: str | None = None,
    published: tuple[Published, ...] = (),
) -> Benchmark:
    return Benchmark(name, title, corpus, split, "vqa", protocol, source, prompt=prompt, published=published)


def _caption(name: str, title: str, corpus: str, split: str, source: str) -> Benchmark:
    return Benchmark(name, title, corpus, split, "caption", "caption", source, max_new_tokens=64)


_ROWS = (
    _refer("refcoco_val", "refcoco", "RefCOCO", "val", 88.69, 88.06),
    _refer("refcoco_testA", "refcoco", "RefCOCO", "testA", 91.65, 91.29),
    _refer("refcoco_testB", "refcoco", "RefCOCO", "testB", 85.33, 84.30),
    _refer("refcoco_plus_val", "refcoco_plus", "RefCOCO+", "val", 79.97, 79.58),
    _refer("refcoco_plus_testA", "refcoco_plus", "RefCOCO+", "testA", 85.12, 85.52),
    _refer("refcoco_plus_testB", "refcoco_plus", "RefCOCO+", "testB", 74.45, 73.32),
    _refer("refcocog_val", "refcocog", "RefCOCOg", "val", 84.44, 84.19),
    _refer("refcocog_test", "refcocog", "RefCOCOg", "test", 84.66, 84.31),
    _vqa("okvqa", "OK-VQA val", "ok_vqa", "val", "vqa", "Marino et al. 2019", published=_paper("VQA", 56.9, 57.8)),
    _vqa("vqav2", "VQAv2 val", "vqav2", "val", "vqa", "Goyal et al. 2017"),
    _vqa(
        "gqa",
        "GQA testdev, balanced",
        "gqa",
        "testdev",
        "exact",
        "Hudson and Manning 2019",
        published=_paper("VQA", 60.3, 60.1),
    ),
    _vqa(
        "vsr",
        "VSR zero-shot test",
        "vsr",
        "test",
        "exact",
        "Liu et al. 2023",
        prompt="[vqa] Based on the image, is this statement true or false? {query}",
        published=_paper("VQA", 60.6, 62.9),
    ),
    _vqa(
        "iconqa",
        "IconQA test, choices in words",
        "iconqa",
        "test",
        "choice",
        "Lu et al. 2021",
        published=_paper("VQA", 47.7, 51.5),
    ),
    _vqa("vizwiz", "VizWiz val", "vizwiz", "val", "vqa", "Gurari et al. 2018", published=_paper("VQA", 32.9, 53.6)),
    _vqa(
        "hateful_memes",
        "Hateful Memes dev (seen)",
        "hateful_memes",
        "dev_seen",
        "hateful",
        "Kiela et al. 2020",
        published=_paper("VQA", 58.2, 58.8),
    ),
    _vqa("ocrvqa", "OCR-VQA test", "ocr_vqa", "test", "exact", "Mishra et al. 2019"),
    _vqa("aokvqa", "A-OKVQA val, direct answers", "aok_vqa", "val", "direct", "Schwenk et al. 2022"),
    _vqa("aokvqa_choice", "A-OKVQA val, multiple choice", "aok_vqa", "val", "choice", "Schwenk et al. 2022"),
    _caption("coco_caption", "COCO Captions, Karpathy test", "coco_caption", "test", "Karpathy and Fei-Fei 2015"),
    _caption("nocaps", "NoCaps val", "nocaps", "val", "Agrawal et al. 2019"),
    _caption("textcaps", "TextCaps val", "text_caps", "val", "Sidorov et al. 2020"),
    _caption("flickr30k", "Flickr30k test, Karpathy", "flickr30k_caption", "test", "Young et al. 2014"),
    *(
        _vqa(f"pope_{split}", f"POPE on COCO, {split}", "pope", split, "pope", "Li et al. 2023 (arXiv:2305.10355)")
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

BENCHMARKS: dict[str, Benchmark] = {row.name: row for row in _ROWS}
"""Every benchmark by name, in the order of the paper's tasks."""


def chosen(names: list[str]) -> list[Benchmark]:
    """The rows of these names; `all` is all of them. Raises `ConfigError` for one that is none."""
    wanted = list(BENCHMARKS) if names == ["all"] else list(dict.fromkeys(names))
    for name in wanted:
        if name not in BENCHMARKS:
            raise ConfigError(
                f"unknown benchmark '{name}'{nearest(name, list(BENCHMARKS))}; `minigptv2 evaluate --list`"
            )
    return [BENCHMARKS[name] for name in wanted]


def heldout_spec(corpus: str, task: str) -> Benchmark:
    """A benchmark of one task of any corpus folder, scored by the task's own metric."""
    return Benchmark(
        f"{corpus}/{task}",
        f"{corpus}, {task}",
        corpus,
        "",
        task,
        "turns",
        "held-out shards",
        max_new_tokens=TASKS[task].max_new_tokens,
    )


def listing() -> str:
    """The table that `minigptv2 evaluate --list` prints."""
    lines = [f"{'name':<24}{'questions':<48}{'metric':<28}published (stage 2 / chat)"]
    for row in BENCHMARKS.values():
        figures = " / ".join(f"{one.value:g}" for one in row.published)
        printed = f"{figures}  ({row.published[0].where})" if row.published else "none"
        lines.append(
            f"{row.name:<24}{f'{row.title}':<48}{f'{row.rule.headline} ({row.protocol})':<28}{printed}\n"
            f"{'':<24}{row.corpus} {row.split}; {row.source}\n{'':<24}{prompt_of(row)}"
        )
    return "\n".join(lines)


def prompt_of(row: Benchmark) -> str:
    """The row's wording, with its slot."""
    return row.prompt or TASKS[row.task].ask("{query}")
