"""Items of the data pipeline: batches, plans and mixtures, shards."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.golden.adapter import find, tensors_of, write_corpus
from tests.golden.training import read_corpus
from tests.golden.values import hash_files, hash_tensor, plain, sha256
from tests.golden.world import TOY_CORPORA, make_stand_ins, shipped_recipes

STEPS = 50
SAMPLES = 10_000
SHOWN = 200
"""Sample ids that are kept as they are; the others are hashed by thousands, to tell where a difference begins."""
BATCH_RECIPES = {
    "mixed": "corpora: {toy_refer: {ratio: 3, task: refer}, toy_conversation: {ratio: 1}, toy_language: {ratio: 1},"
    " toy_grounding: {ratio: 1}, toy_detection: {ratio: 1}, toy_vqa: {ratio: 2}}",
    "turns": "{shuffle_window: 2, corpora: {turns: {ratio: 1, share_images: 2}, toy_caption: {ratio: 1}}}",
    "shared": "{shuffle_window: 2, corpora: {toy_vqa: {ratio: 1, share_images: 3}, toy_caption: {ratio: 1}}}",
}
EDGE_RECIPES = {
    "tokens": "{unit: token, corpora: {toy_vqa: {ratio: 1}, toy_conversation: {ratio: 1, tokens: 55.5},"
    " toy_language: {ratio: 2}}}",
    "batches": "{unit: batch, corpora: {toy_vqa: {ratio: 3, batch_size: 6}, toy_refer: {ratio: 1, batch_size: 2}}}",
    "temperature": "{temperature: 2.5, shuffle_window: 1, corpora: {toy_vqa: {ratio: 100}, toy_refer: {ratio: 1}}}",
    "sizes": "corpora: {toy_vqa: {ratio: null}, toy_refer: {ratio: null}, toy_language: {ratio: 7}}",
    "tasks": "{tasks: {vqa: 3, refer: 1}, corpora: {toy_vqa: {ratio: 1, task: vqa},"
    " toy_refer: {ratio: 2, task: refer}}}",
    "schedule": "corpora: {toy_vqa: {ratio: 1, schedule: [[0, 0], [100, 1], [700, 0.25]]}, toy_refer: {ratio: 2},"
    " toy_language: {ratio: 1, schedule: [[50, 1], [51, 0]]}}",
    "epochs": "corpora: {toy_vqa: {ratio: 5, epochs: 3}, toy_refer: {ratio: 1, epochs: 2.5}, toy_language: {ratio: 2}}",
    "ends": "corpora: {toy_vqa: {ratio: 5, epochs: 3}, toy_refer: {ratio: 1, epochs: 2.5}}",
    "turns": "{shuffle_window: 2, corpora: {turns: {ratio: 1}, toy_refer: {ratio: 1, epochs: 2}}}",
    "groups": "corpora: {turns: {ratio: null, share_images: 2}, toy_refer: {ratio: null}}",
    "images": "corpora: {turns: {ratio: null, sample_by: image}, toy_refer: {ratio: null}}",
    "uneven": "corpora: {toy_vqa: {ratio: 0.0001}, toy_refer: {ratio: 3.3333}, toy_language: {ratio: 1000000}}",
}


def recipe_of(text: str, work: Path) -> Any:
    """Return the recipe that a YAML text says."""
    file = work / "recipe.yaml"
    file.write_text(text)
    return find("load_recipe")(file)


def encoder_of(work: Path, max_tokens: int = 300) -> Any:
    """Return a prompt encoder with the toy world's tokenizer."""
    tokenizer = find("load_tokenizer")(work / "world/tokenizer")
    return find("PromptEncoder")(tokenizer, tokens_per_image=4, max_tokens=max_tokens)


def write_turns(folder: Path) -> None:
    """Write a corpus of separate turns: those of the toy conversations."""
    samples = find("toy_samples")("conversation", 40, Path(), "turns")
    separate = (replace(sample, record=replace(sample.record, separate=True)) for sample in samples)
    write_corpus(separate, folder, folder.name, samples_per_shard=9)


def _key(sample: Any) -> tuple[int, int, int, int]:
    return sample.corpus, sample.sample, sample.epoch, sample.part


def batches_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Hash the batches of 50 steps, with 0 and 2 workers, of two recipes, for the ranks of one and two processes."""
    found = {}
    write_turns(work / "world/train/turns")
    for name, text in BATCH_RECIPES.items():
        recipe = recipe_of(text, work)
        for workers, world_size in ((0, 1), (0, 2), (2, 2)):
            for rank in range(world_size):
                key = f"{name}, {workers} workers, rank {rank} of {world_size}"
                found[key] = _steps(work, recipe, workers, rank, world_size)
    return found


def _steps(work: Path, recipe: Any, workers: int, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Return the hashes of every batch that a rank gets in the first 50 steps."""
    encoder = encoder_of(work, max_tokens=120)
    plan = find("DataPlan")(recipe, work / "world/train", 5, global_batch_size=12, encoder=encoder)
    config = find("DataConfig")(recipe="", max_tokens=120, max_pack_tokens=260, num_workers=workers)
    dataset = find("StepDataset")(
        plan, encoder, config, image_size=32, global_batch_size=12, micro_batch_size=3, rank=rank, world_size=world_size
    )
    steps = []
    for step in find("iterate_steps")(dataset, position=24, num_steps=STEPS):
        batches = [{key: hash_tensor(value) for key, value in tensors_of(batch).items()} for batch in step.batches]
        ids = [[_key(one) for one in pack] for pack in step.sample_ids]
        steps.append(
            {
                "position": step.position,
                "samples": step.num_samples,
                "dropped": len(step.dropped),
                "good": step.outcomes,
                "ids": sha256(json.dumps(ids).encode()),
                "batches": batches,
            }
        )
    return steps


def plan_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Record sample ids and fingerprints of every shipped recipe on synthetic corpora, and of edge cases."""
    found: dict[str, Any] = {}
    encoder = encoder_of(work)
    for file in shipped_recipes():
        recipe = find("load_recipe")(file)
        make_stand_ins(work / "shards", recipe)
        found[file.name] = describe_plan(find("DataPlan")(recipe, work / "shards", 11, global_batch_size=8))
    write_turns(work / "world/train/turns")
    for name, text in EDGE_RECIPES.items():
        recipe = recipe_of(text, work)
        plan = find("DataPlan")(recipe, work / "world/train", 2, global_batch_size=8, encoder=encoder)
        found[name] = describe_plan(plan)
    return found


def describe_plan(plan: Any, samples: int = SAMPLES) -> dict[str, Any]:
    """Return what a plan says: fingerprint, shares, sample ids, counts, the moments at which corpora end."""
    count = samples if plan.length is None else min(samples, plan.length)
    ids = [_key(one) for one in plan.samples(0, count)]
    chunks = [ids[start : start + 1000] for start in range(0, count, 1000)]
    positions = [position for position in (0, 1, 777, 5000, count) if position <= count]
    mixture = plan.mixture
    return {
        "fingerprint": plan.fingerprint(),
        "length": plan.length,
        "shares": [float(share) for share in plan.shares],
        "ids": [" ".join(map(str, one)) for one in ids[:SHOWN]],
        "hashes by 1,000": [sha256(json.dumps(chunk).encode()) for chunk in chunks],
        "far": [_key(one) for one in plan.samples(10**7, 5)] if plan.length is None else [],
        "counts": {str(position): dict(plan.corpus_counts(0, position)) for position in positions},
        "shares at": {str(position): [float(s) for s in mixture.shares_at(position)] for position in positions},
        "expected": {str(position): [float(s) for s in mixture.expected(position)] for position in positions},
        "exhausted": [mixture.exhausted_at(number) for number in range(len(plan.names))],
        "names": [plan.name_of(one) for one in plan.samples(0, 3)],
    }


def shards_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Hash shards, index and table of toy corpora, photographs and miniatures, and keep their manifests."""
    found = {}
    for corpus in TOY_CORPORA:
        for options in ({}, {"bake_side": 24, "license": "none", "split": "val"}):
            output = work / "toy" / f"{corpus}-{len(options)}"
            samples = find("toy_samples")(corpus, 25, Path(), "val")
            write_corpus(samples, output, f"toy_{corpus}", samples_per_shard=10, **options)
            found[f"toy_{corpus} {'baked' if options else 'plain'}"] = describe_corpus(output, work)
    output = work / "photographs"
    write_corpus(find("photographs")(Path(), "train"), output, "photographs", samples_per_shard=30)
    found["photographs"] = describe_corpus(output, work)
    for miniature in find("MINIATURES"):
        root = work / "miniatures" / miniature.id
        miniature.make(root)
        corpus = find("CORPORA")[miniature.corpus]
        with redirect_stdout(io.StringIO()):
            report = find("build")(corpus, root, miniature.split, root / "out", samples_per_shard=2)
        found[miniature.id] = describe_corpus(root / "out", work) | {"read": report.read}
    return found


def describe_corpus(folder: Path, work: Path) -> dict[str, Any]:
    """Return the hashes of a corpus's files and records, and its manifest; lost samples are only counted."""
    dropped = folder / "dropped.jsonl"
    return {
        "files": hash_files(folder, ["*.tar", "*.npy"]),
        "manifest": plain(json.loads((folder / "manifest.json").read_bytes()), work),
        "fingerprint": find("CorpusReader")(folder).manifest.fingerprint,
        "records": hashlib.sha256(json.dumps(read_corpus(folder)).encode()).hexdigest(),
        "lost": len(dropped.read_text().splitlines()) if dropped.is_file() else 0,
    }
