"""Defines the phases of the life cycle of a full-size model: what a user runs, and what must be true afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minigptv2.cluster.processes import usable_cpus
from minigptv2.convert.torch_files import read_torch
from minigptv2.files import remove_tree
from minigptv2.model.bases import open_llama
from minigptv2.model.export import load_info
from minigptv2.model.weights import read_safetensors
from minigptv2.tracking.log import read_metrics
from tests.full_size import inputs, weights
from tests.full_size.commands import Commands, PhaseError
from tests.full_size.sizes import FullSize

STEPS = 4
"""Two by two ranks before the kill, one by one rank, and the last by two ranks again."""
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Job:
    """What the phases of one run share."""

    output: Path
    size: FullSize

    @property
    def published(self) -> Path:
        """The files in the published formats."""
        return self.output / "published"

    @property
    def model(self) -> Path:
        """The converted model folder."""
        return self.output / "model"

    @property
    def run(self) -> Path:
        """The run folder of the training."""
        return self.output / "stage" / "run"

    @property
    def export(self) -> Path:
        """The export of the training."""
        return self.run / "export"

    @property
    def merged(self) -> Path:
        """The model folder with LoRA merged into the language model."""
        return self.output / "merged"

    @property
    def images(self) -> Path:
        """The user's images and entries."""
        return self.output / "images"


Phase = Callable[[Job, Commands], dict[str, Any]]
"""Runs and checks a phase. Returns what its row of the table also shows. Raises `PhaseError`."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise PhaseError(f"check failed: {what}")


def write(job: Job, commands: Commands) -> dict[str, Any]:
    """Write the published files and a user's own data."""
    job.published.mkdir(parents=True, exist_ok=True)
    weights.write_vision(job.published / "eva_vit_g.pth", job.size)
    weights.write_llama(job.published / "llama", job.size)
    weights.write_checkpoint(job.published / "checkpoint.pth", job.size)
    inputs.write_tokenizer(job.published / "llama", job.size.pieces)
    inputs.write_entries(job.images)
    return {}


def convert(job: Job, commands: Commands) -> dict[str, Any]:
    """Published files to a model folder. The files are removed afterwards."""
    files = {"--vision": "eva_vit_g.pth", "--language-model": "llama", "--checkpoint": "checkpoint.pth"}
    words = [word for option, name in files.items() for word in (option, str(job.published / name))]
    commands.run("convert", "from-published", *words, *job.size.conversion_options, "--output", str(job.model))
    info = load_info(job.model)
    _require((info.sizes.vision_encoder, info.sizes.language_model) == (job.size.vision, job.size.language), "sizes")
    before, after = open_llama(job.published / "llama"), open_llama(job.model / "language_model")
    _require(before.keys() == after.keys(), "the same tensors of the language model")
    last = list(before)[-1]
    _require(torch.equal(before[last].read(), after[last].read()), f"{last} is unchanged")
    del before
    remove_tree(job.published)
    return {}


def shards(job: Job, commands: Commands) -> dict[str, Any]:
    """Images and questions to a corpus."""
    target = job.output / "shards" / inputs.CORPUS
    commands.run("shards", "build", str(job.images / "entries.jsonl"), "--output", str(target), "--workers", "0")
    commands.run("shards", "verify", str(target))
    inputs.write_stage(job.output / "stage", job.model, target.parent, job.size, STEPS)
    return {}


def _train(job: Job, processes: int) -> list[str]:
    ranks = ["--processes", str(processes)] if processes > 1 else []
    return ["train", "--config", str(job.output / "stage" / "stage.yaml"), *ranks]


def _saved(step: int) -> str:
    return f"step-{step:08d} (training paused"


def train(job: Job, commands: Commands) -> dict[str, Any]:
    """Two ranks train two steps and are killed."""
    log = commands.run_until(_saved(2), *_train(job, 2), processes=2)
    _require("ZeRO stage 3 on 2 process(es)" in log, "two ranks under ZeRO-3")
    return _check_steps(job, 2)


def resume_on_one(job: Job, commands: Commands) -> dict[str, Any]:
    """The same command on one rank continues and is killed after one step."""
    log = commands.run_until(_saved(3), *_train(job, 1), processes=1)
    _require("at step 2 of 4" in log and "ZeRO stage 3 on 1 process(es)" in log, "resumed at step 2 on one rank")
    return _check_steps(job, 3)


def resume_on_two(job: Job, commands: Commands) -> dict[str, Any]:
    """The same command on two ranks continues and exports."""
    log = commands.run(*_train(job, 2), threads=1)
    _require("at step 3 of 4" in log, "resumed at step 3")
    _require(load_info(job.export).lineage[-1].steps == STEPS, "the export has all steps")
    return _check_steps(job, STEPS)


def _check_steps(job: Job, steps: int) -> dict[str, Any]:
    rows = read_metrics(job.run)
    _require([row["step"] for row in rows] == list(range(1, steps + 1)), f"metrics of {steps} steps, each once")
    _require(all(math.isfinite(row["loss"]) for row in rows), "finite losses")
    return {"loss": rows[-1]["loss"]}


def convert_back(job: Job, commands: Commands) -> dict[str, Any]:
    """The export to the published format, bit for bit, and to an adapter of PEFT."""
    published = job.output / "ours.pth"
    commands.run("convert", "to-published", str(job.export), "--output", str(published))
    commands.run("convert", "to-peft", str(job.export), "--output", str(job.output / "adapter"))
    ours = load_info(job.export).tensors
    state = read_torch(published)["model"]
    report = json.loads((job.output / "ours.pth.conversion.json").read_text())
    keys = {name: key for names in report["taken"].values() for name, key in names.items()}
    _require(keys.keys() == ours.keys() and set(keys.values()) == state.keys(), "every tensor has its key")
    _require(all(torch.equal(ours[name].read(), state[key]) for name, key in keys.items()), "equal to the bit")
    adapter = read_safetensors([job.output / "adapter" / "adapter_model.safetensors"])
    _require(len(adapter) == 4 * job.size.language.depth, "LoRA A and B of q and v in every layer")
    return {}


def merge(job: Job, commands: Commands) -> dict[str, Any]:
    """LoRA merged into the language model. The unmerged model is removed afterwards."""
    commands.run("convert", "merge", str(job.export), "--output", str(job.merged))
    trained, base = load_info(job.export), open_llama(job.model / "language_model")
    up, down = (trained.tensors[f"{Q_PROJ}.lora_{end}.weight"].read().float() for end in "BA")
    expected = base[f"{Q_PROJ}.weight"].read().float() + trained.model.lora.alpha / trained.model.lora.r * (up @ down)
    found = open_llama(job.merged / "language_model")[f"{Q_PROJ}.weight"].read()
    _require(torch.equal(found, expected.to(found.dtype)), "W + alpha / r * B A in the first layer")
    del base
    remove_tree(job.model)
    return {}


def predict(job: Job, commands: Commands) -> dict[str, Any]:
    """Answers of the merged model in its own dtype."""
    questions, _ = inputs.write_requests(job.output / "requests", job.images)
    output = job.output / "predictions.jsonl"
    _ask_file(job, commands, "predict", questions, output, "--max-new-tokens", "4")
    return {}


def score(job: Job, commands: Commands) -> dict[str, Any]:
    """Likelihoods of given answers under the merged model."""
    _, answers = inputs.write_requests(job.output / "requests", job.images)
    rows = _ask_file(job, commands, "score", answers, job.output / "scores.jsonl")
    _require(all(math.isfinite(row["loss"]) for row in rows), "finite losses")
    return {"loss": rows[-1]["loss"]}


def _ask_file(
    job: Job, commands: Commands, command: str, given: Path, output: Path, *more: str
) -> list[dict[str, Any]]:
    output.unlink(missing_ok=True)
    files = ["--input", str(given), "--output", str(output)]
    commands.run(command, "--model", str(job.merged), *files, *more, threads=usable_cpus())
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    _require(len(rows) == len(given.read_text().splitlines()), "one line for each request")
    return rows


def evaluate(job: Job, commands: Commands) -> dict[str, Any]:
    """Two samples of the corpus, as held-out data."""
    output = job.output / "evaluation"
    where = ["--shards", str(job.output / "shards"), "--corpus", inputs.CORPUS, "--limit", "2", "--output", str(output)]
    commands.run("evaluate", "--model", str(job.merged), *where, threads=usable_cpus())
    _require((output / "results.json").is_file(), "results.json")
    return {}


PHASES: dict[str, Phase] = {
    one.__name__: one
    for one in (
        write,
        convert,
        shards,
        train,
        resume_on_one,
        resume_on_two,
        convert_back,
        merge,
        predict,
        score,
        evaluate,
    )
}
"""The phases in their order."""
