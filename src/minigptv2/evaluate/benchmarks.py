"""Lists the benchmarks: the corpus of each, its protocols, and its published results. Chooses them by name.

A benchmark without published results was not reported in the paper. Its default is the official protocol. Where the
published code has no evaluation either, `published` differs from `official` in the prompt style only.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigptv2.errors import ConfigError, nearest
from minigptv2.evaluate import prompts
from minigptv2.evaluate.protocols import (
    CHAT_MODEL,
    OFFICIAL,
    PAPER,
    PUBLISHED,
    REPAIRED,
    STAGE_2,
    TURNS,
    Benchmark,
    Protocol,
    Published,
)
from minigptv2.evaluate.rules import RULES
from minigptv2.tasks import TASKS

DIFFICULT = "difficult_direct_answer"
"""The column of A-OKVQA that marks the questions whose direct answers its script does not score."""


def _paper(table: str, stage_2: float, chat: float) -> tuple[Published, ...]:
    where = f"{PAPER}, {table} results"
    return (Published(STAGE_2, stage_2, where), Published(CHAT_MODEL, chat, where))


def _both(published: Protocol, official: Protocol | None = None, **more: Protocol) -> dict[str, Protocol]:
    return {PUBLISHED: published, OFFICIAL: official or published, **more}


def _vqa(
    name: str,
    title: str,
    corpus: str,
    protocols: dict[str, Protocol],
    source: str,
    *,
    results: tuple[Published, ...] = (),
) -> Benchmark:
    default = PUBLISHED if results else OFFICIAL
    return Benchmark(name, title, corpus, "vqa", source, protocols, default, results=results)


def _refer(corpus: str, title: str, split: str, stage_2: float, chat: float) -> Benchmark:
    sources = {
        "refcoco": "Kazemzadeh et al. 2014; Yu et al. 2016",
        "refcoco_plus": "Yu et al. 2016",
        "refcocog": "Mao et al. 2016; Nagaraja et al. 2016 (UMD split)",
    }
    return Benchmark(
        f"{corpus}_{split}",
        f"{title} {{split}}",
        corpus,
        "refer",
        sources[corpus],
        _both(Protocol("refer_published", split), Protocol("refer", split)),
        PUBLISHED,
        max_new_tokens=32,
        results=_paper("REC", stage_2, chat),
    )


def _caption(name: str, title: str, corpus: str, split: str, source: str) -> Benchmark:
    protocols = _both(Protocol("caption", split, prompts.CAPTION), Protocol("caption", split))
    return Benchmark(name, title, corpus, "caption", source, protocols, OFFICIAL, max_new_tokens=64)


def _boxes(name: str, title: str, corpus: str, task: str) -> Benchmark:
    protocols = _both(Protocol("phrases", "test"))
    return Benchmark(name, title, corpus, task, "Plummer et al. 2015", protocols, OFFICIAL, max_new_tokens=320)


_REFER = (
    _refer("refcoco", "RefCOCO", "val", 88.69, 88.06),
    _refer("refcoco", "RefCOCO", "testA", 91.65, 91.29),
    _refer("refcoco", "RefCOCO", "testB", 85.33, 84.3),
    _refer("refcoco_plus", "RefCOCO+", "val", 79.97, 79.58),
    _refer("refcoco_plus", "RefCOCO+", "testA", 85.12, 85.52),
    _refer("refcoco_plus", "RefCOCO+", "testB", 74.45, 73.32),
    _refer("refcocog", "RefCOCOg", "val", 84.44, 84.19),
    _refer("refcocog", "RefCOCOg", "test", 84.66, 84.31),
)

_VQA = (
    _vqa(
        "okvqa",
        "OK-VQA {split}",
        "ok_vqa",
        _both(Protocol("okvqa_stems", "val"), Protocol("okvqa_lemmas", "val")),
        "Marino et al. 2019",
        results=_paper("VQA", 56.9, 57.8),
    ),
    _vqa("vqav2", "VQAv2 {split}", "vqav2", _both(Protocol("vqa", "val")), "Goyal et al. 2017"),
    _vqa(
        "gqa",
        "GQA {split}, balanced",
        "gqa",
        _both(Protocol("lower", "testdev"), Protocol("exact", "testdev")),
        "Hudson and Manning 2019",
        results=_paper("VQA", 60.3, 60.1),
    ),
    _vqa(
        "vsr",
        "VSR zero-shot {split}",
        "vsr",
        _both(Protocol("lower_both", "test", prompts.VSR), Protocol("exact", "test", prompts.VSR)),
        "Liu et al. 2023",
        results=_paper("VQA", 60.6, 62.9),
    ),
    _vqa(
        "iconqa",
        "IconQA {split}, choices in words",
        "iconqa",
        _both(Protocol("choice_sum", "val"), Protocol("choice_mean", "test")),
        "Lu et al. 2021",
        results=_paper("VQA", 47.7, 51.5),
    ),
    _vqa(
        "vizwiz",
        "VizWiz {split}",
        "vizwiz",
        _both(Protocol("agreement", "val", prompts.VIZWIZ), Protocol("vqa", "val")),
        "Gurari et al. 2018",
        results=_paper("VQA", 32.9, 53.6),
    ),
    _vqa(
        "hateful_memes",
        "Hateful Memes dev (seen)",
        "hateful_memes",
        _both(
            Protocol("hateful_labels", "dev_seen", prompts.HATEFUL_MEMES, query="text"),
            Protocol("hateful", "dev_seen"),
        ),
        "Kiela et al. 2020",
        results=_paper("VQA", 58.2, 58.8),
    ),
    _vqa("ocrvqa", "OCR-VQA {split}", "ocr_vqa", _both(Protocol("exact", "test")), "Mishra et al. 2019"),
    _vqa(
        "aokvqa",
        "A-OKVQA {split}, direct answers",
        "aok_vqa",
        _both(Protocol("direct", "val", leave_out=DIFFICULT)),
        "Schwenk et al. 2022",
    ),
    _vqa(
        "aokvqa_choice",
        "A-OKVQA {split}, multiple choice",
        "aok_vqa",
        _both(Protocol("choice_sum", "val")),
        "Schwenk et al. 2022",
    ),
)

_CAPTIONS = (
    _caption("coco_caption", "COCO Captions, Karpathy {split}", "coco_caption", "test", "Karpathy and Fei-Fei 2015"),
    _caption("nocaps", "NoCaps {split}", "nocaps", "val", "Agrawal et al. 2019"),
    _caption("textcaps", "TextCaps {split}", "text_caps", "val", "Sidorov et al. 2020"),
    _caption("flickr30k", "Flickr30k {split}, Karpathy", "flickr30k_caption", "test", "Young et al. 2014"),
)

_HALLUCINATION = (
    *(
        _vqa(
            f"pope_{split}",
            "POPE on COCO, {split}",
            "pope",
            _both(Protocol("pope", split)),
            "Li et al. 2023 (arXiv:2305.10355)",
        )
        for split in ("random", "popular", "adversarial")
    ),
    Benchmark(
        "chair",
        "CHAIR on COCO, Karpathy {split}",
        "coco_chair",
        "caption",
        "Rohrbach et al. 2018 (arXiv:1809.02156)",
        _both(
            Protocol("chair", "test", prompts.CAPTION),
            Protocol("chair", "test"),
            **{REPAIRED: Protocol("chair_repaired", "test")},
        ),
        OFFICIAL,
        max_new_tokens=64,
    ),
)

_BOXES = (
    _boxes(
        "flickr30k_grounding",
        "Flickr30k Entities {split}, grounded captions",
        "flickr_grounded_caption",
        "grounding",
    ),
    _boxes(
        "flickr30k_detection",
        "Flickr30k Entities {split}, phrases to boxes",
        "flickr_phrase_to_box",
        "detection",
    ),
    *(
        Benchmark(
            f"refcocog_identify_{split}",
            "RefCOCOg {split}, expressions of objects",
            "refcocog_identify",
            "identify",
            "Mao et al. 2016",
            _both(Protocol("identify", split)),
            OFFICIAL,
            max_new_tokens=48,
        )
        for split in ("val", "test")
    ),
)

BENCHMARKS: dict[str, Benchmark] = {spec.name: spec for spec in (*_REFER, *_VQA, *_CAPTIONS, *_HALLUCINATION, *_BOXES)}
"""Every benchmark by name, in the order of the paper's tasks, under its default protocol."""


def chosen(names: Sequence[str], protocols: Sequence[str] = ()) -> list[Benchmark]:
    """The benchmarks of these names, each once, under the protocols that were asked for. `all` means all of them.

    `protocols` are words: `NAME` for every benchmark, `BENCHMARK=NAME` for one, which precedes. A benchmark that no
    word concerns keeps its default. Raises `ConfigError` for an unknown benchmark or protocol.
    """
    wanted = list(BENCHMARKS) if list(names) == ["all"] else list(dict.fromkeys(names))
    for name in wanted:
        _require(name)
    single = dict(word.split("=", 1) for word in protocols if "=" in word)
    general = list(dict.fromkeys(word for word in protocols if "=" not in word))
    if len(general) > 1:
        raise ConfigError(f"--protocol must name one protocol for all benchmarks, got {', '.join(general)}")
    for name in single:
        _require(name)
        if name not in wanted:
            raise ConfigError(f"--protocol {name}={single[name]}: {name} is not one of --benchmark {','.join(wanted)}")
    found = []
    for name in wanted:
        asked = single.get(name, general[0] if general else BENCHMARKS[name].protocol)
        found.append(BENCHMARKS[name].under(asked))
    return found


def _require(name: str) -> None:
    if name not in BENCHMARKS:
        hint = nearest(name, list(BENCHMARKS)) or "."
        raise ConfigError(f"unknown benchmark '{name}'{hint} `minigptv2 evaluate --list` prints all of them.")


def heldout_spec(corpus: str, task: str) -> Benchmark:
    """A benchmark of one task of any corpus folder, scored by the task's own metric."""
    return Benchmark(
        f"{corpus}/{task}",
        f"{corpus}, {task}",
        corpus,
        task,
        "held-out shards",
        {TURNS: Protocol(TURNS, "")},
        TURNS,
        max_new_tokens=TASKS[task].max_new_tokens,
    )


def listing() -> str:
    """The table that `minigptv2 evaluate --list` prints: each benchmark with its protocols. `*` marks the default."""
    lines = [
        "* marks the default protocol. `published` asks in the prompt style of the published inference code (two <s>, "
        "one space), the others ask as in training.",
        "",
    ]
    for spec in BENCHMARKS.values():
        values = " / ".join(f"{one.value:g}" for one in spec.results)
        printed = f"{values} (stage 2 / chat, {spec.results[0].where})" if spec.results else "none"
        lines.append(f"{spec.name:<24}{spec.title}; {spec.source}; published results: {printed}")
        same: dict[Protocol, list[str]] = {}
        for name, protocol in spec.protocols.items():
            same.setdefault(protocol, []).append(name + "*" * (name == spec.protocol))
        for protocol, names in same.items():
            rule = RULES[protocol.rule]
            lines += [
                f"  {', '.join(names):<22}{spec.corpus} {protocol.split}, {rule.headline} by the rule {rule.name}",
                f"{'':<24}{prompts.wording(spec.task, protocol.prompt)}",
            ]
    lines += ["", "rules: an answer is right if"]
    lines += [f"  {rule.name:<22}{rule.definition}" for rule in RULES.values()]
    return "\n".join(lines)
