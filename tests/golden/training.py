"""Items that train: every ZeRO stage and precision, and what the recording code left behind for later code."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.golden.adapter import attempts, find
from tests.golden.values import hash_files, hash_tensors, plain, read_json, read_lines, sha256
from tests.golden.world import make_world

MODES = {
    "zero0": {"zero_optimization": {"stage": 0}},
    "zero1": {"zero_optimization": {"stage": 1}},
    "zero2": {"zero_optimization": {"stage": 2, "use_multi_rank_bucket_allreduce": False}},
    "zero3": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}},
}
MODES |= {f"{name}_bf16": MODES[name] | {"bf16": {"enabled": True}} for name in ("zero2", "zero3")}
SKIPPED_STEP = 7
METRICS = (
    "step",
    "loss",
    "task_loss",
    "learning_rate",
    "gradient_norm",
    "mixture",
    "skipped_steps",
    "dropped",
    "heldout",
)
"""Values of `metrics.jsonl` that do not depend on time or on the machine."""
RECIPE = """
shuffle_window: 2
corpora:
  toy_refer: {ratio: 2, task: refer}
  toy_conversation: {ratio: 1, task: mixed}
  toy_language: {ratio: 1, task: language}
"""
MODEL = "{vision_encoder: tiny_vit, language_model: tiny_llama, tokenizer: WORLD/tokenizer, TRAINED}"
TRAINED = "lora: {r: 4, dropout: 0.1}, trainable: [projector, lora]"
STAGE = """
stage: first
run_dir: unset
seed: 3
model: MODEL
data: {recipe: WORLD/recipe.yaml, shards: WORLD/train, max_tokens: 400, max_pack_tokens: 4000, num_workers: 0}
train:
  deepspeed: WORLD/zero3.json
  steps: 20
  global_batch_size: 4
  micro_batch_size: 1
  learning_rate: 1.0e-2
  warmup_steps: 5
  gradient_clipping: 0.5
  log_every: 1
  checkpoint_every: 10
evaluate: {shards: WORLD/val, corpora: [toy_refer], samples: 2, every: 10, max_new_tokens: 4}
"""
RESUMED = ("train.steps=12", "train.checkpoint_every=6")
TIMEOUT_S = 240


def write_stage(world: Path, model: str = MODEL) -> None:
    """Write the stage's config, its recipe and the DeepSpeed JSONs beside the shards in `world`."""
    text = STAGE.replace("MODEL", model).replace("TRAINED", TRAINED).replace("WORLD", str(world))
    (world / "stage.yaml").write_text(text)
    (world / "recipe.yaml").write_text(RECIPE)
    for name, document in MODES.items():
        (world / f"{name}.json").write_text(json.dumps(document))


def train(world: Path, run: Path, *words: str, mode: str = "zero3", ranks: int = 1, skip: int | None = None) -> None:
    """Train the stage of `world` into `run` on `ranks` processes. `skip`: a step whose gradients become NaN."""
    words = (f"run_dir={run}", f"train.deepspeed={world}/{mode}.json", *words)
    argv = ["--config", f"{world}/stage.yaml", *words]
    run.parent.mkdir(parents=True, exist_ok=True)

    def work() -> int:
        if skip is not None:
            _spoil_step(skip)
        return find("train")(argv)

    fork_ranks(work, ranks, run.parent / f"{run.name}-log")


def _spoil_step(step: int) -> None:
    """Make the first micro-batch of a step give NaN gradients, through DeepSpeed's public `backward`."""
    from deepspeed import DeepSpeedEngine

    backward = DeepSpeedEngine.backward
    done = {"steps": 0, "micro_batches": 0}

    def spoiled(engine: Any, loss: Any, *args: Any, **options: Any) -> Any:
        if (done["steps"], done["micro_batches"]) == (step, 0):
            loss = loss * float("nan")
        done["micro_batches"] += 1
        if engine.is_gradient_accumulation_boundary():
            done.update(steps=done["steps"] + 1, micro_batches=0)
        return backward(engine, loss, *args, **options)

    DeepSpeedEngine.backward = spoiled


def fork_ranks(work: Callable[[], int], ranks: int, log: Path) -> None:
    """Run `work` in forks of this process, as a launcher would start them. Raises with the log's end on failure."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids: dict[int, int] = {}
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _be_rank(work, rank, ranks, port, log)
        pids[pid] = rank
    deadline, failed = time.monotonic() + TIMEOUT_S, []
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in pids:
            rank = pids.pop(pid)
            failed += [rank] if status else []
        elif failed or time.monotonic() > deadline:
            time.sleep(2)
            for pid in pids:
                os.kill(pid, 9)
            failed += list(pids.values())
            deadline = float("inf")
        time.sleep(0.02)
    if failed:
        text = Path(f"{log}{failed[0]}.txt").read_text()
        raise RuntimeError(f"rank {failed[0]} of {ranks} failed ({log}{failed[0]}.txt):\n{text[-3000:]}")


def _be_rank(work: Callable[[], int], rank: int, ranks: int, port: int, log: Path) -> None:
    """In a fork: take the rank's environment, send output to its log, run `work` and leave with its exit code."""
    code = 1
    try:
        stream = os.open(f"{log}{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        code = work()
    except BaseException:  # noqa: BLE001  a fork must never return into its parent's code
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def curves(run: Path, names: tuple[str, ...] = ("loss", "learning_rate", "gradient_norm")) -> dict[str, float]:
    """Return the curves of a run as `<step> <name>` to value, of all its steps."""
    lines = read_lines(run / "metrics.jsonl", run)
    return {f"{line['step']} {name}": line[name] for line in lines for name in names}


def describe_export(folder: Path, work: Path) -> dict[str, Any]:
    """Return the tensors and the JSON content of an export."""
    return {
        "tensors": hash_tensors(folder / "weights.safetensors"),
        "config": read_json(folder / "config.json", work),
        "tokenizer": hash_files(folder, ["tokenizer.*"]),
        "files": sorted(file.name for file in folder.iterdir()),
    }


def describe_run(run: Path, work: Path) -> dict[str, Any]:
    """Return everything of a run folder that is a function of its config: figures, checkpoints, export, kept steps."""
    metrics = [{key: line[key] for key in METRICS if key in line} for line in read_lines(run / "metrics.jsonl", work)]
    checkpoints = sorted((run / "checkpoints").iterdir())
    bundles = sorted((run / "bundles").iterdir()) if (run / "bundles").is_dir() else []
    return {
        "metrics": metrics,
        "heldout": read_lines(run / "heldout.jsonl", work),
        "config": plain((run / "config.yaml").read_text(), work),
        "checkpoints": {folder.name: _describe_folder(folder, work) for folder in checkpoints},
        "bundles": {folder.name: _describe_folder(folder, work) for folder in bundles},
        "export": describe_export(run / "export", work),
    }


def _describe_folder(folder: Path, work: Path) -> dict[str, Any]:
    """Return the tensors and JSON contents of a checkpoint or a kept step, without checksums of files with paths."""
    described: dict[str, Any] = {"files": sorted(file.name for file in folder.iterdir())}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            described[file.name] = hash_tensors(file)
        elif file.suffix == ".json" and file.name != "checksums.json":
            described[file.name] = read_json(file, work)
            if isinstance(described[file.name], dict):
                described[file.name].pop("reason", None)  # a message, whose wording may change
    return described


def train_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Compute 20 steps of a stage, one of them skipped, for each ZeRO stage and precision, on one and two ranks."""
    world = work / "world"
    write_stage(world)
    found = {}
    for mode in MODES:
        for ranks in (1, 2):
            run = work / "runs" / f"{mode}-{ranks}"
            train(world, run, mode=mode, ranks=ranks, skip=SKIPPED_STEP)
            described = describe_run(run, work)
            assert described["bundles"], f"{run}: step {SKIPPED_STEP} was not skipped"
            found[run.name] = described
    return found


def write_old_files(old: Path, model: str = MODEL, **sizes: Any) -> None:
    """Leave in `old` what later code must still read: shards, a run folder with its checkpoint of step 6, an export."""
    make_world(old, corpora=("refer", "conversation", "language"), **sizes)
    write_stage(old, model)
    train(old, old / "run", "train.steps=12", "train.checkpoint_every=6")
    shutil.move(old / "run/export", old / "export")
    for leftover in ("run/tensorboard", "run/checkpoints/step-00000012"):
        shutil.rmtree(old / leftover)
    for log in old.glob("run-log*"):
        log.unlink()


def resume_old_run(old: Path, work: Path) -> dict[str, Any]:
    """Resume from the old checkpoint, on one and on two ranks."""
    for name, mode, ranks in (("resumed", "zero3", 1), ("resumed2", "zero2", 2)):
        shutil.copytree(old / "run", work / name)
        train(old, work / name, *RESUMED, "--resume", mode=mode, ranks=ranks)
    return {
        "resumed": curves(work / "resumed"),
        "resumed on two ranks": curves(work / "resumed2"),
        "resumed weights": hash_tensors(work / "resumed/export/weights.safetensors"),
    }


def refuse_old_run(old: Path, work: Path) -> str:
    """Try to resume from the checkpoint of a version with another order of samples. Returns the error."""
    shutil.copytree(old / "run", work / "refused")
    try:
        train(old, work / "refused", *RESUMED, "--resume")
    except RuntimeError as error:
        line = next((line for line in str(error).splitlines() if "CheckpointError" in line), str(error))
        return str(plain(line, work))
    raise AssertionError(f"{old}: a run with another order of samples was resumed")


def read_old_files(old: Path, work: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train a next stage on the old export, and read the old shards and journal."""
    second = ("stage=second", f"init_from={old}/export", "train.steps=6", "seed=4")
    train(old, work / "second", *second, *words)
    lineage = json.loads((work / "second/export/config.json").read_bytes())["lineage"]
    return {
        "next stage": curves(work / "second"),
        "next stage weights": hash_tensors(work / "second/export/weights.safetensors"),
        "lineage": [(entry["stage"], entry["steps"], entry["data_plan"]) for entry in lineage],
        "shards": {folder.name: read_corpus(folder) for folder in sorted((old / "train").iterdir())},
        "attempts": attempts(old / "run"),
    }


def read_corpus(folder: Path, *, images: bool = True) -> list[tuple[str, str]]:
    """Return the hashes of every record and image that the current reader finds in a corpus."""
    reader = find("CorpusReader")(folder)
    found = []
    for sample in range(len(reader)):
        record = reader.record(sample)
        image = sha256(reader.image(sample)) if images and record.has_image else ""
        found.append((sha256(find("to_json")(record)), image))
    return found


def resume_item(work: Path, folder: Path, recording: bool) -> dict[str, Any]:
    """Go on from files of the recording code: they are written in `FOLDER/written`, read and used by this code."""
    old = folder / "written"
    if recording:
        shutil.rmtree(old, ignore_errors=True)
        write_old_files(old)
    copy = work / "written"
    shutil.copytree(old, copy)
    text = (copy / "stage.yaml").read_text().replace(str(old), str(copy))
    (copy / "stage.yaml").write_text(text)
    return resume_old_run(copy, work / "resumes") | read_old_files(copy, work / "resumes")
