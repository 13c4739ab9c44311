"""Reads Unnatural Instructions: text-only instructions, which preserve the abilities of the language model.

Source: Honovich et al. 2022 (github.com/orhonovich/unnatural-instructions). License: MIT. Layouts: a JSON list, or
`core_data.jsonl` / `full_data.jsonl`. An entry has `instances` (and `reformulations`) of `instruction_with_input`,
`constraints`, `output`. Its instances are separate turns. Expected instances, from its README: 68,478 in the core,
240,670 in full with the reformulations. The filtered list of MiniGPT-4 has fewer, but no number was published. Building
it gives a warning that it is another version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, read_lines, stream_json
from minigptv2.record import Turn

_NO_CONSTRAINT = ("", "none", "none.")


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per instruction with its instances."""
    name = {"train": "core_data", "full": "full_data"}[split]
    folder = "unnatural_instructions"
    listed = ("filtered_unnatural_instruction", "unnatural_instructions") if split == "train" else ()
    file = raw.find(*(f"{folder}/{n}.json" for n in listed), f"{folder}/{name}.jsonl", f"{folder}/{name}.json")
    entries = read_lines(file) if file.suffix == ".jsonl" else (entry for _, entry in stream_json(file))
    for number, entry in enumerate(entries):
        instances = [*entry.get("instances", ()), *entry.get("reformulations", ())]
        turns = tuple(
            Turn("language", _question(instance), (str(instance["output"]),), source={"id": f"{number}-{n}"})
            for n, instance in enumerate(instances)
        )
        if turns:
            yield Draft(str(number), turns, None, {"corpus": raw.corpus, "id": str(number)}, separate=True)
        else:
            yield Rejected(str(number), "no instances")


def _question(instance: dict[str, Any]) -> str:
    constraints = str(instance.get("constraints") or "").strip()
    text = str(instance["instruction_with_input"])
    return text if constraints.lower() in _NO_CONSTRAINT else f"{text} {constraints}"


CORPORA = (
    CorpusSpec(
        name="unnatural_instructions",
        title="Unnatural Instructions",
        drafts=drafts,
        tasks=("language",),
        expected={"train": 68_478, "full": 240_670},
        counted="instances",
        license="MIT",
        stages=(3,),
        download="core_data.jsonl from https://github.com/orhonovich/unnatural-instructions in unnatural_instructions/",
        size="0.1 GB",
    ),
)
