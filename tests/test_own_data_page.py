"""Tests `docs/your-own-data.md` by running its commands unchanged in an empty folder, up to a fine-tuned model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigptv2.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.documentation import blocks
from tests.stand_ins import VISION_OPTIONS, write_published

PAGE = REPOSITORY / "docs" / "your-own-data.md"
FEW_STEPS = "train.steps=2 train.warmup_steps=1 train.checkpoint_every=2 train.log_every=1"
ON_THE_CPU = (
    "train.deepspeed=deepspeed_configs/zero3_cpu.json train.global_batch_size=4 train.micro_batch_size=4 "
    "data.num_workers=0 model.lora.r=8 model.vision_encoder=models/minigptv2-7b "
    "model.language_model=models/minigptv2-7b/language_model"
)
"""The page's config of the published model, for a small one."""


def run(script: str, folder: Path) -> str:
    """The output of a script of the page, which succeeds."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    words = ["bash", "-c", f"set -euo pipefail\n{script}"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
def test_a_person_who_follows_the_page_ends_with_a_fine_tuned_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    told = run("\n".join(blocks(PAGE, "bash")), tmp_path)
    assert "kept 720 samples" in told and "kept 120 samples" in told
    assert "shards/my: intact" in told and "held_out/my: intact" in told
    losses = [float(found) for found in re.findall(r"step \d+  loss ([\d.]+)", told)]
    assert losses[3] < 0.5 * losses[0]
    answers = told.split("export my (")[1].splitlines()[1:]
    assert answers[0] == "green", "the square of the first image, as the page's seed draws it"
    assert re.fullmatch(r"\{(<\d+>){4}\}", answers[1]) and "drawn 1 box(es) in answer.png" in answers
    assert "squares train: read 240 entries" in told and "squares test: read 40 entries" in told
    accuracy = re.search(r"^squares/vqa +turns +score +([\d.]+)", told, re.MULTILINE)
    assert accuracy and float(accuracy[1]) > 90, "the Parquet file trains the same questions"
    files = ("answer.png", "shards/my/preview.html", "eval/page.html", "eval_squares/page.html")
    assert all((tmp_path / file).is_file() for file in files)
    more, tuned = blocks(PAGE, "yaml")
    (tmp_path / "more.yaml").write_text(more)
    assert "continues my" in run(f"minigptv2 train --config more.yaml {FEW_STEPS}", tmp_path)
    (tmp_path / "tuned.yaml").write_text(tuned)
    write_published(tmp_path, tokenizer)
    (convert,) = blocks(PAGE, "")
    run(" ".join([convert.strip(), *VISION_OPTIONS]), tmp_path)
    told = run(f"minigptv2 train --config tuned.yaml {FEW_STEPS} {ON_THE_CPU}", tmp_path)
    assert "projector: " in told and "export tuned (" in told
