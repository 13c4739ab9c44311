"""The committed part: a few values that every machine must reproduce, and files that version 0.1 wrote.

`tests/golden_expected.json` holds the values; `tests/fixtures/v0_1` holds a run folder with a checkpoint, an export and
shards. Paths in the fixtures are relative to the repository's root, because a resume compares some of them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.golden import training
from tests.golden.adapter import find, write_corpus
from tests.golden.answers import describe_answers, save_tiny_export
from tests.golden.values import REPOSITORY, hash_files, sha256
from tests.golden.world import make_stand_ins, make_world

FIXTURES = Path("tests/fixtures/v0_1")
VOCABULARY = 384
VISION = {
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_width": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
LANGUAGE = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "vocab_size": VOCABULARY, "max_positions": 1024}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
MODEL = (
    f"{{vision_encoder: {FIXTURES}/vision, language_model: {FIXTURES}/language, tokenizer: WORLD/tokenizer, TRAINED}}"
)
RECIPE = Path("data_recipes/toy_stage3.yaml")
RECIPE_0_1 = training.RECIPE.replace("task: mixed", "task: mixed, sample_by: image")
"""The recipe of the fixtures. Version 0.1 did not count the separate turns of `toy_conversation`."""
NOT_PORTABLE = ("next stage weights",)
"""Hashes of trained weights, which another processor may round differently."""


def write_small(file: Path) -> int:
    """Compute the values of the small part and write them as JSON; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        file.write_text(json.dumps(small_values(Path(temporary)), indent=1) + "\n")
    return 0


def small_values(work: Path) -> dict[str, Any]:
    """Return the values of the small part. Training comes first, because it forks."""
    make_world(work / "world")
    training.write_stage(work / "world")
    training.train(work / "world", work / "run", "train.learning_rate=1.0e-3", skip=training.SKIPPED_STEP)
    (work / "recipe.yaml").write_text(RECIPE_0_1)
    old = {"resumed": training.refuse_old_run(FIXTURES, work / "old")}
    old |= training.read_old_files(FIXTURES, work / "old", (f"data.recipe={work}/recipe.yaml",))
    recipe = find("load_recipe")(RECIPE)
    make_stand_ins(work / "shards", recipe)
    plan = find("DataPlan")(recipe, work / "shards", 0)
    return {
        "losses": training.curves(work / "run", ("loss",)),
        "sample ids": [[one.corpus, one.sample, one.epoch] for one in plan.samples(0, 200)],
        "shards": _shards(work),
        "scores": _scores(save_tiny_export(work)) | {"old export": _scores(FIXTURES / "export")["packed"]},
        "old files": {name: value for name, value in old.items() if name not in NOT_PORTABLE},
    }


def _shards(work: Path) -> dict[str, Any]:
    """Return hashes of a corpus without images, whose every byte is ours, and of the records of one with images."""
    for name in ("language", "grounding"):
        samples = find("toy_samples")(name, 25, Path(), "golden")
        write_corpus(samples, work / name, f"toy_{name}", samples_per_shard=10)
    records = [record for record, _ in training.read_corpus(work / "grounding", images=False)]
    return {"language": hash_files(work / "language"), "records": sha256("".join(records).encode())}


def _scores(export: Path) -> dict[str, Any]:
    """Return the negative log likelihoods of given answers under the model of an export."""
    described = describe_answers(find("Predictor")(*find("load_export")(export)[:2]))
    return {layout: [list(nll) for _, _, nll in described[layout]] for layout in ("packed", "padded")}


def write_fixtures() -> int:
    """Write `tests/fixtures/v0_1` again with the current code. Return the exit code."""
    os.chdir(REPOSITORY)
    shutil.rmtree(FIXTURES, ignore_errors=True)
    sizes = {"vision_encoder": VISION, "language_model": LANGUAGE}
    for name, document in (("vision", {"sizes": sizes}), ("language", LLAMA)):
        (FIXTURES / name).mkdir(parents=True)
        (FIXTURES / name / "config.json").write_text(json.dumps(document, indent=1) + "\n")
    training.write_old_files(FIXTURES, MODEL, train=10, val=3, vocabulary=VOCABULARY)
    config = FIXTURES / "export/config.json"
    config.write_text(config.read_text().replace(str(FIXTURES.resolve()), ".."))  # an export states absolute paths
    print(f"{FIXTURES}: {sum(file.stat().st_size for file in FIXTURES.rglob('*') if file.is_file()) / 1024:.0f} KiB")
    return 0
