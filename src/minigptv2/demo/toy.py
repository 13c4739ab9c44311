"""Runs the demonstration on the toy world: shards, tokenizer, three stages under `deepspeed`, evaluation and report.

`make demo` calls it. Every step is a command a user can type, and is skipped if its result already exists.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from minigptv2.demo.steps import environment_of, how_to_ask, launch, prepare_folder, run, timed
from minigptv2.run_folder import RunFolder
from minigptv2.shards.manifest import MANIFEST_FILE

STAGES = ("stage1", "stage2", "stage3")
HELDOUT = ("refer", "vqa", "identify", "detection", "grounding", "caption", "conversation", "language")
CORPORA = ("weak", *HELDOUT)
_QUICK_SAMPLES = 600
_QUICK_STEPS = {"stage1": 120, "stage2": 60, "stage3": 40}
_QUICK_HELDOUT = 40


def run_toy(output: Path, *, quick: bool, processes: int, data_only: bool = False) -> int:
    """Run all steps, print the progress and return 0. Raises `MiniGPTv2Error` naming the step that failed.

    `data_only` stops after shards and tokenizer, for training elsewhere.
    """
    began = time.monotonic()
    environment = environment_of(output)
    prepare_folder(output, "quick" if quick else "whole")
    seconds: dict[str, float] = {}
    timed(seconds, "shards", lambda: _build_shards(output / "shards", quick, environment))
    run(["tokenizer", "--shards", str(output / "shards/train"), "--output", str(output / "tokenizer")], environment)
    if data_only:
        return 0
    for stage in STAGES:
        timed(seconds, stage, partial(_train, stage, quick, processes, environment))
    timed(seconds, "evaluation", lambda: _report(output, quick, seconds))
    print(f"total time: {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _build_shards(shards: Path, quick: bool, environment: dict[str, str]) -> None:
    jobs = [(f"toy_{corpus}", "train") for corpus in CORPORA] + [("photographs", "train")]
    jobs += [(f"toy_{corpus}", "val") for corpus in HELDOUT]

    def build(job: tuple[str, str]) -> None:
        corpus, split = job
        folder = shards / split / corpus
        if (folder / MANIFEST_FILE).is_file():
            return
        limit = ["--limit", str(_QUICK_SAMPLES)] if quick and split == "train" else []
        run(["shards", "build", corpus, "--split", split, "--output", str(folder), *limit], environment)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(build, jobs))


def _train(stage: str, quick: bool, processes: int, environment: dict[str, str]) -> None:
    words = [f"train.steps={_QUICK_STEPS[stage]}", "train.log_every=20", "evaluate.every=0"] if quick else []
    launch(f"launch/configs/toy_{stage}.yaml", words, processes, environment)


def _report(output: Path, quick: bool, seconds: dict[str, float]) -> None:
    from minigptv2.demo.report import write_report, write_results
    from minigptv2.demo.scoring import baseline, evaluate_items, table
    from minigptv2.heldout.samples import load_heldout
    from minigptv2.predict.predictor import load_predictor

    limit = _QUICK_HELDOUT if quick else None
    items = [item for c in HELDOUT for item in load_heldout(output / "shards/val" / f"toy_{c}", limit)]
    photographs = load_heldout(output / "shards/train/photographs")
    last = load_predictor(str(RunFolder(output / STAGES[-1]).export))
    final = evaluate_items(last, items)
    shown = evaluate_items(last, photographs)
    scores: dict[str, Any] = {STAGES[-1]: final.scores}
    for stage in STAGES[-2::-1]:
        scores[stage] = evaluate_items(load_predictor(str(RunFolder(output / stage).export)), items).scores
    untrained = write_untrained(output)
    scores["untrained"] = evaluate_items(load_predictor(str(untrained)), items, max_new_tokens=24).scores
    scores["baseline"] = baseline(items)
    print(table(scores))
    write_results(output / "results.json", {**scores, "photographs": shown.scores, "seconds": seconds})
    page, image = write_report(
        output, {stage: output / stage for stage in STAGES}, scores, seconds, photographs=shown, scenes=final
    )
    print(how_to_ask(output, RunFolder(output / STAGES[-1]).export, items[0]))
    print(f"report: {page}  image: {image}  scores: {output / 'results.json'}")


def write_untrained(output: Path) -> Path:
    """Write an export of the model that stage 1 starts from, for comparison, and return its folder."""
    from minigptv2.model.export import save_untrained
    from minigptv2.run_config import load_run_config

    os.environ["DEMO_DIR"] = str(output)
    config = load_run_config(f"launch/configs/toy_{STAGES[0]}.yaml").value
    return save_untrained(RunFolder(output / "untrained").export, config.model, config.seed).folder
