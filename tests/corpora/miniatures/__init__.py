"""Every corpus in small, in its true layout on disk, odd cases included, and what is to be read out of each.

Images are 64 x 48 px. One annotation of each kind names an image that does not exist. Where a docstring names a public
reader or README, the miniature's names and fields were compared with it. The others were not.
"""

from __future__ import annotations

from tests.corpora.miniatures.captions import (
    coco_chair,
    coco_karpathy_list,
    coco_karpathy_own,
    flickr_karpathy,
    flickr_sentences,
    nocaps,
    textcaps,
    textcaps_val,
)
from tests.corpora.miniatures.conversations import TALK_DROPPED, llava, multitask, unnatural
from tests.corpora.miniatures.files import MISSING, Miniature
from tests.corpora.miniatures.minigpt4 import MINIGPT4
from tests.corpora.miniatures.questions import (
    QUESTIONS_DROPPED,
    aokvqa,
    gqa,
    hateful,
    iconqa,
    ocr_vqa,
    pope,
    vizwiz,
    vqa_merged,
    vqa_official,
    vsr,
)
from tests.corpora.miniatures.regions import (
    FLICKR_DROPPED,
    OBJECTS_DROPPED,
    REGIONS_DROPPED,
    flickr,
    refer,
    refer_list,
    visual_genome,
)
from tests.corpora.miniatures.web_pairs import GRIT_DROPPED, PAIRS_DROPPED, grit_parquet, grit_tars, pairs

MINIATURES = [
    Miniature("coco_caption", "train", "list", coco_karpathy_list, 1, 1, MISSING),
    Miniature("coco_caption", "train", "karpathy", coco_karpathy_own, 1, 1, MISSING),
    Miniature("coco_caption", "train+restval", "list", coco_karpathy_list, 2, 2, MISSING),
    Miniature("coco_caption", "train+restval", "karpathy", coco_karpathy_own, 2, 2, MISSING),
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
            "damaged: its GIF data cannot be decoded": 2,
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
    *MINIGPT4,
]
