"""Runs the real stage-3 config at full size on one GPU under ZeRO-3: 20 steps, one resume, and the export.

    python -m benchmarks.gpu.full_size [--tiny]

The shards are synthetic: JPEGs that resemble photographs in the model's size, and instructions of stage-3 lengths. The
weights are random, so only whether a loss is finite is meaningful. The tokenizer is trained on the shards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.engine.ranks import REPOSITORY
from benchmarks.gpu.sides import LIMIT_S, Rows, Setting, measure_sides

SIDE = "zero3.json"


def main(argv: list[str] | None = None) -> Rows:
    """Run, stop half-way, resume and check."""
    return measure_sides("benchmarks.gpu.full_size", argv, __doc__ or "", [SIDE], measure, finish)


def measure(side: str, setting: Setting) -> Rows:
    """Return a row of the run. Raises `RuntimeError` if one of the two processes fails or takes too long."""
    steps = 4 if setting.tiny else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deadline = time.monotonic() + LIMIT_S - 30  # this process must end its own, before it is ended itself
        config = _prepare(folder, setting.tiny, steps)
        words = (f"train.steps={steps}", f"train.checkpoint_every={steps // 2}")
        first = _train(config, deadline, *words)
        for newest in sorted((folder / "run" / "checkpoints").glob("step-*"))[1:]:
            shutil.rmtree(newest)
        shutil.rmtree(folder / "run" / "export")
        again = _train(config, deadline, *words, "--resume")
        metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        assert len(metrics) == steps and all(abs(row["loss"]) < 1e4 for row in metrics), metrics
        assert f"at step {steps // 2} of {steps}" in again, again[-2000:]
        assert (folder / "run" / "export" / "weights.safetensors").is_file()
        rows = [
            {
                "side": side,
                "steps": steps,
                "samples/s": metrics[-1]["throughput"]["samples_per_s"],
                "peak MiB": metrics[-1]["memory_mib"],
                "loss": metrics[-1]["loss"],
                "share of the limit": metrics[-1]["limit"]["share"],
                "resumed": True,
            }
        ]
        for line in first.splitlines():
            if "packing check" in line or "rehearsed" in line or "this machine" in line:
                print(line)
    return rows


def finish(setting: Setting, rows: Rows) -> None:
    """Report."""
    setting.report("full_size", "The real stage 3 on one GPU under ZeRO-3", rows, ["random weights"])


def _prepare(folder: Path, tiny: bool, steps: int) -> Path:
    """Write shards, tokenizer and a config that extends the real stage 3."""
    from minigptv2.corpora.sources import toy
    from minigptv2.corpora.token_texts import rendered_texts
    from minigptv2.shards.writer import write_corpus
    from minigptv2.tokenizer import train_tokenizer

    for corpus in ("refer", "conversation"):
        write_corpus(
            toy.samples(corpus, 24 if tiny else 200, Path(), "train"),
            folder / "shards" / f"toy_{corpus}",
            f"toy_{corpus}",
            samples_per_shard=50,
        )
    train_tokenizer(rendered_texts(folder / "shards"), folder / "tokenizer", 640)
    (folder / "recipe.yaml").write_text(
        "corpora:\n  toy_refer: {ratio: 1, task: refer}\n  toy_conversation: {ratio: 1, task: mixed}\n"
    )
    zero = REPOSITORY / "deepspeed_configs" / ("zero3_cpu.json" if tiny else "zero3.json")
    models = "vision_encoder: tiny_vit\n  language_model: tiny_llama\n  lora: {r: 4}" if tiny else "lora: {r: 64}"
    file = folder / "stage.yaml"
    file.write_text(f"""
extends: {os.path.relpath(REPOSITORY / "launch" / "configs" / "stage3_instruct.yaml", folder)}
run_dir: {folder}/run
init_from: null
model:
  {models}
  vision_weights: null
  language_weights: null
  tokenizer: {folder}/tokenizer
data:
  recipe: {folder}/recipe.yaml
  shards: {folder}/shards
  max_tokens: 900
  max_pack_tokens: {2000 if tiny else 8192}
  num_workers: 0
train:
  deepspeed: {zero}
  steps: {steps}
  global_batch_size: {4 if tiny else 24}
  micro_batch_size: {2 if tiny else 24}
  warmup_steps: 2
  log_every: 1
  rehearse: true
evaluate: {{every: 0}}
""")
    return file


def _train(config: Path, deadline: float, *words: str) -> str:
    command = [sys.executable, str(REPOSITORY / "launch" / "train.py"), "--config", str(config), *words]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    left = deadline - time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=left)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return done.stdout


if __name__ == "__main__":
    main()
