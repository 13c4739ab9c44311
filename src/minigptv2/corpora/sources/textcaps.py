"""Reads TextCaps: captions that include the text in the image.

Source: Sidorov et al. 2020 (textvqa.org/textcaps). License: CC BY 4.0. Layout: `TextCaps_0.1_train.json` with `data`,
one row per caption (`image_id`, `caption_str`). The validation rows hold all captions as `reference_strs`. A sample is
an image with all its captions, including repeated ones, one of which is drawn per epoch. Expected images: 21,953 /
3,166 (109,765 / 15,830 captions).
"""

from __future__ import annotations

from collections.abc import Iterator

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.record import Turn


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with its captions."""
    file = raw.find(f"textcaps/TextCaps_0.1_{split}.json", f"TextCaps/TextCaps_0.1_{split}.json")
    places = ("train_images", "train_val_images/train_images", "images")
    folder = raw.find(*(f"{file.parent.name}/{place}" for place in places))
    captions: dict[str, list[str]] = {}
    for _, entry in stream_json(file, "data"):
        key, all_texts = str(entry["image_id"]), entry.get("reference_strs")
        if all_texts:  # each row of an image holds all of them
            captions[key] = list(map(one_line, all_texts))
        else:
            captions.setdefault(key, []).append(one_line(entry["caption_str"]))
    for key, texts in captions.items():
        turn = Turn("caption", answers=tuple(texts))
        yield Draft(key, (turn,), (str(folder / f"{key}.jpg"),), {"corpus": raw.corpus, "id": key})


CORPORA = (
    CorpusSpec(
        name="text_caps",
        title="TextCaps",
        drafts=drafts,
        tasks=("caption",),
        expected={"train": 21_953, "val": 3_166},
        counted="images",
        license="CC BY 4.0",
        stages=(1, 2, 3),
        download="TextCaps_0.1_{train,val}.json and train_val_images.zip from https://textvqa.org/textcaps/dataset/ in "
        "textcaps/",
        size="7 GB",
    ),
)
