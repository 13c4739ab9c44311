"""Runs the demonstration on small pretrained models: frozen DINOv2 and SmolLM2, trained projector and LoRA.

`make demo-pretrained` calls it: base weights from pip packages, shards of photographs, one stage under ZeRO-3 on CPU
processes, and a report that compares the trained and the untrained model on those photographs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from minigptv2.demo.steps import environment_of, how_to_ask, launch, prepare_folder, run, timed
from minigptv2.run_folder import RunFolder
from minigptv2.shards.manifest import MANIFEST_FILE

STAGE = "pretrained"
CONFIG = "launch/configs/pretrained.yaml"
CORPUS = "photographs"
_ANSWER_TOKENS = 64


def run_pretrained(output: Path, *, processes: int) -> int:
    """Run all steps, print the progress and return 0. Raises `MiniGPTv2Error` naming the step that failed."""
    began = time.monotonic()
    environment = environment_of(output)
    prepare_folder(output, "pretrained")
    seconds: dict[str, float] = {}
    timed(seconds, "bases and shards", lambda: _prepare(output, environment))
    timed(seconds, STAGE, lambda: launch(CONFIG, [], processes, environment))
    timed(seconds, "evaluation", lambda: _report(output, seconds))
    print(f"total time: {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _prepare(output: Path, environment: dict[str, str]) -> None:
    bases, shards = output / "bases", output / "shards" / "train" / CORPUS
    if not bases.is_dir():
        run(["convert", "from-packages", "--output", str(bases)], environment)
    if not (shards / MANIFEST_FILE).is_file():
        run(["shards", "build", CORPUS, "--output", str(shards)], environment)


def _report(output: Path, seconds: dict[str, float]) -> None:
    import torch

    from minigptv2.demo.report import write_report, write_results
    from minigptv2.demo.scoring import baseline, evaluate_items, table
    from minigptv2.heldout.samples import load_heldout
    from minigptv2.model.export import save_untrained
    from minigptv2.predict.predictor import load_predictor
    from minigptv2.run_config import load_run_config
    from minigptv2.tasks import TASKS

    torch.set_num_threads(os.cpu_count() or 1)
    os.environ["DEMO_DIR"] = str(output)
    items = load_heldout(output / "shards" / "train" / CORPUS)
    export = RunFolder(output / STAGE).export
    trained = evaluate_items(load_predictor(str(export)), items, max_new_tokens=_ANSWER_TOKENS)
    config = load_run_config(CONFIG).value
    untrained = save_untrained(RunFolder(output / "untrained").export, config.model, config.seed).folder
    scores: dict[str, Any] = {
        STAGE: trained.scores,
        "untrained": evaluate_items(load_predictor(str(untrained)), items, max_new_tokens=_ANSWER_TOKENS).scores,
        "baseline": baseline(items),
    }
    print(table(scores))
    write_results(output / "results.json", {**scores, "seconds": seconds})
    page, image = write_report(output, {STAGE: output / STAGE}, scores, seconds, photographs=trained)
    print(how_to_ask(output, export, next(item for item in items if TASKS[item.turn.task].answer == "box")))
    print(f"report: {page}  image: {image}  scores: {output / 'results.json'}")
