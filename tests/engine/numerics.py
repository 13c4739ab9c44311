"""Defines what the numerics tests run in processes, and a reference that shares no code with `minigptv2.engine`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigptv2.batch import IGNORE, MicroBatch
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example
from tests.model.tiny import ALL_PARTS, random_examples, tiny_config, tiny_model

PACKS = 4
WARMUP, RATE, CLIP = 5, 1e-2, 0.5
MODES = {"lora": (["projector", "lora"], 4), "all": (ALL_PARTS, 0)}
ZERO = {
    0: {"stage": 0},
    1: {"stage": 1},
    2: {"stage": 2, "use_multi_rank_bucket_allreduce": False},  # as zero2.json
    3: {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False},
}
CORPUS_WEIGHTS = (0.05, 1.0, 7.5)
"""Loss weights of a token of three corpora, to which examples belong in turn, with the objective `corpus`."""
PRECISION = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True}}}


def packs_of_step(step: int, objective: str = "token") -> list[MicroBatch]:
    """Return the four packs of a step. One has no image, so on two ranks one rank has none in its first micro-batch."""
    from minigptv2.data.collate import collate

    made = []
    for pack in range(PACKS):
        examples, images = random_examples(2 + pack % 2, seed=10 * (step % 2) + pack, with_images=pack != 1)
        for number, example in enumerate(examples):
            example.labels[: len(example) - 5 + 2 * number] = IGNORE  # 5, 3 and 1 supervised tokens
        made.append(collate(weighed(examples, objective), images, 32))
    return made


def weighed(examples: list[Example], objective: str) -> list[Example]:
    """Return the examples with the loss weights of the objective, as the data plan gives them."""
    from minigptv2.data.objective import weigh

    return [weigh(example, objective, CORPUS_WEIGHTS[number % 3]) for number, example in enumerate(examples)]


def weights_of(pack: MicroBatch, objective: str) -> torch.Tensor:
    """Return the loss weight of each supervised token of a pack, float64, by the definition of the objective."""
    supervised = pack.inputs["labels"][0] != IGNORE
    segments = pack.inputs["segment_ids"][0][supervised]
    if objective == "token":
        return torch.ones(len(segments), dtype=torch.float64)
    if objective == "sample":
        return 1 / torch.bincount(segments)[segments].double()
    return torch.tensor(CORPUS_WEIGHTS, dtype=torch.float64)[(segments - 1) % 3]


def make_trainer(
    mode: str,
    zero: dict[str, Any],
    folder: str,
    *,
    steps: int,
    precision: str = "fp32",
    dropout: float = 0.0,
    recompute: int = 0,
    rate: float = RATE,
    global_batch: int = PACKS,
) -> Any:
    from minigptv2.cluster import distributed
    from minigptv2.engine.config import TrainConfig, resolve_deepspeed_config
    from minigptv2.engine.trainer import Trainer
    from minigptv2.engine.zero import assign, shape_of, zero_backend
    from minigptv2.model.bases import fill_weights
    from minigptv2.model.build import build_model
    from minigptv2.model.weights import named_canonical

    torch.set_num_threads(1)
    device = distributed.choose_device()
    distributed.start_process_group(device, 10)
    file = Path(folder) / f"ds-{distributed.rank()}.json"
    file.write_text(json.dumps({"zero_optimization": zero, **PRECISION[precision]}))
    config = TrainConfig(
        deepspeed=str(file),
        steps=steps,
        global_batch_size=global_batch,
        micro_batch_size=1,
        learning_rate=rate,
        warmup_steps=WARMUP,
        gradient_clipping=CLIP,
    )
    resolved = resolve_deepspeed_config(config, distributed.world_size())
    parts, r = MODES[mode]
    model_config = tiny_config(parts, r)
    model_config.lora.dropout = dropout
    model = build_model(model_config, 100, zero_backend(resolved).construction())
    model.recompute(recompute)
    fill_weights(model, [], None, assign, seed=0, shape_of=shape_of)
    trainer = Trainer(model, named_canonical(model), config, resolved, device=device, seed=0)
    model.restore_float32_buffers()
    return trainer


def gradients_at_steps(trainer: Any) -> list[dict[str, list[float]]]:
    """Return a list to which each later step appends its full, unclipped gradients by name."""
    from deepspeed.utils import safe_get_full_grad

    seen: list[dict[str, list[float]]] = []
    step = trainer.engine.step

    def and_look() -> None:
        found = {}
        for name, parameter in trainer.trainable.items():
            gradient = parameter.grad if trainer.zero.stage == 0 else safe_get_full_grad(parameter)
            found[name] = gradient.double().flatten().tolist()
        seen.append(found)
        step()

    trainer.engine.step = and_look
    return seen


def run_steps(trainer: Any, steps: int, objective: str = "token") -> dict[str, Any]:
    """Train `steps` steps. Returns losses, norms, held elements, sums of weights and module calls of this rank."""
    from minigptv2.cluster import distributed

    calls = {"vision": 0, "language": 0}
    trainer.model.vision_encoder.register_forward_hook(lambda *a: calls.__setitem__("vision", calls["vision"] + 1))
    trainer.model.language_model.model.register_forward_hook(
        lambda *a: calls.__setitem__("language", calls["language"] + 1)
    )
    reports = []
    for step in range(steps):
        mine = packs_of_step(step, objective)[distributed.rank() :: distributed.world_size()]
        reports.append(trainer.train_step(mine))
    weights = trainer.trained_weights()
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "weights": [report.weight for report in reports],
        "supervised": [report.supervised for report in reports],
        "held": trainer.held_by_part(),
        "calls": calls,
        "sums": {name: float(value.double().sum()) for name, value in weights.items()},
        "rotary_dtype": str(trainer.model.language_model.model.rotary_emb.inv_freq.dtype),
        "masters_are_finer_than_bf16": any(not torch.equal(v, v.bfloat16().float()) for v in weights.values()),
    }


def train_many(cases: list[dict[str, Any]], folder: str, steps: int) -> list[dict[str, Any]]:
    """Run `run_steps` for each case in turn. A case holds keyword arguments of `make_trainer` and the ZeRO stage."""
    results = []
    for case in cases:
        trainer = make_trainer(case["mode"], ZERO[case["zero"]], folder, steps=steps, **case.get("more", {}))
        gradients = gradients_at_steps(trainer) if case.get("gradients", True) else []
        result = run_steps(trainer, steps, case.get("objective", "token"))
        results.append(result | {"gradients": gradients[:2]})
    return results


def rehearse_and_step(folder: str, zero: int) -> dict[str, Any]:
    """Return losses and weights of two steps, with and without a rehearsal of the largest pack before them."""
    from minigptv2.data.collate import fullest_pack
    from minigptv2.data.config import DataConfig

    results = []
    for rehearsed in (False, True):
        trainer = make_trainer("lora", ZERO[zero], folder, steps=10)
        if rehearsed:
            config = DataConfig(max_tokens=60, max_pack_tokens=200)
            trainer.rehearse(fullest_pack(config, image_size=32, tokens_per_image=4, global_batch_size=64))
        results.append(run_steps(trainer, 2))
    return {"plain": results[0], "rehearsed": results[1]}


def load_from_files(file: str, folder: str) -> dict[str, Any]:
    """Load the sharded model from safetensors. Returns the rows that this rank read and whether all weights match."""
    from minigptv2.cluster import distributed
    from minigptv2.engine.progress import LoadProgress
    from minigptv2.engine.zero import full_value, shape_of, zero_backend
    from minigptv2.model.build import build_model
    from minigptv2.model.weights import TensorInFile, load_weights, named_canonical, read_safetensors

    device = distributed.choose_device()
    distributed.start_process_group(device, 10)
    read = {"elements": 0, "largest": 0, "whole": 0}
    rows, whole = TensorInFile.rows, TensorInFile.__call__

    def counted_rows(tensor: TensorInFile, start: int, stop: int) -> torch.Tensor:
        part = rows(tensor, start, stop)
        read["elements"] += part.numel()
        read["largest"] = max(read["largest"], part.numel())
        return part

    def counted_whole(tensor: TensorInFile) -> torch.Tensor:
        read["whole"] += 1
        return whole(tensor)

    TensorInFile.rows, TensorInFile.__call__ = counted_rows, counted_whole  # type: ignore[method-assign]
    resolved = {"zero_optimization": ZERO[3], "train_batch_size": 2, "train_micro_batch_size_per_gpu": 1}
    model = build_model(tiny_config(ALL_PARTS), 100, zero_backend(resolved).construction())
    lines: list[str] = []
    total = sum(int(np.prod(shape_of(p))) for p in model.parameters())
    tensors = read_safetensors([Path(file)])
    load_weights(model, tensors, LoadProgress(total, lines.append, quiet_s=0.0), source=file, shape_of=shape_of)
    sharded = dict(read)
    TensorInFile.rows, TensorInFile.__call__ = rows, whole  # type: ignore[method-assign]
    kept = {name: value for name, p in named_canonical(model).items() if (value := full_value(p)) is not None}
    assert bool(kept) == distributed.is_main()
    equal = all(torch.equal(value, tensors[name].read()) for name, value in kept.items())
    return {**sharded, "equal": equal, "total": total, "lines": lines}


def plain_pytorch(
    mode: str, steps: int, peak: float = RATE, *, backwards: bool = False, objective: str = "token"
) -> dict[str, Any]:
    """Train the reference without DeepSpeed and `minigptv2.engine`. `backwards` sums the packs in reverse order.

    The losses of tokens are weighted here, by the definition of the objective.
    """
    from minigptv2.model.weights import canonical_name

    parts, r = MODES[mode]
    model = tiny_model(parts, r)
    trained = {canonical_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
    )
    losses, norms, gradients, weights, supervised = [], [], [], [], []
    for step in range(steps):
        if step < WARMUP:
            rate = 1e-6 + step / WARMUP * (peak - 1e-6)
        else:
            rate = peak / 10 + 0.9 * peak * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))
        packs = packs_of_step(step)[:: -1 if backwards else 1]
        factors = [weights_of(pack, objective) for pack in packs]
        weight = float(sum(values.sum() for values in factors))
        sums = [(token_losses(model, p) * f.float()).sum() for p, f in zip(packs, factors, strict=True)]
        loss = torch.stack(sums).sum() / weight
        weights.append(weight)
        supervised.append(sum(len(values) for values in factors))
        optimizer.zero_grad()
        loss.backward()
        gradients.append({name: p.grad.double().flatten().tolist() for name, p in trained.items()})
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(float(loss.detach()))
    return {
        "losses": losses,
        "norms": norms,
        "weights": weights,
        "supervised": supervised,
        "gradients": gradients[:2],
        "sums": {name: float(p.detach().double().sum()) for name, p in trained.items()},
    }


def token_losses(model: Any, pack: MicroBatch) -> torch.Tensor:
    """Return the loss of each supervised token of a pack, in order."""
    inputs = pack.inputs
    embedded = model.embed(inputs["input_ids"], inputs["pixel_values"])
    losses, _ = model.token_losses(embedded, inputs["labels"], inputs["position_ids"])
    return losses


def largest_difference(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """Return the largest difference between two gradients by name, relative to the second's largest element."""
    assert ours.keys() == theirs.keys()
    scale = max(max(map(abs, values)) for values in theirs.values())
    differences = (np.abs(np.subtract(ours[name], theirs[name])).max() for name in theirs)
    return float(max(differences)) / scale


def objective_of_split(split: int) -> str:
    """Return the objective of a split. Each third split has another."""
    return ("token", "sample", "corpus")[split % 3]


def examples_of_split(split: int, count: int = 12) -> list[tuple[Example, list[np.ndarray]]]:
    """Return examples of different lengths and label counts, each with or without an image, drawn with seed `split`.

    They have the loss weights of the split's objective.
    """
    rng = np.random.default_rng([7, split])
    made = []
    for _ in range(count):
        length, with_image = int(rng.integers(8, 40)), bool(rng.random() < 0.5)
        ids = rng.integers(3, 100, length)
        if with_image:
            ids[1:5] = IMAGE_PLACEHOLDER
        labels = np.full(length, IGNORE)
        supervised = int(rng.integers(1, length - 6))
        labels[-supervised:] = ids[-supervised:]
        images = [rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)] if with_image else []
        made.append((Example(ids, labels, np.zeros(length, dtype=np.int64), len(images)), images))
    examples = weighed([example for example, _ in made], objective_of_split(split))
    return [(example, images) for example, (_, images) in zip(examples, made, strict=True)]


def random_packs(split: int, world_size: int) -> list[list[list[int]]]:
    """Return the packs of example numbers by rank: any partition, equally many packs per rank. Packs may be empty.

    In every third split, the text-only examples go to the ranks other than the last.
    """
    examples = examples_of_split(split)
    rng = np.random.default_rng([11, split])
    accumulation = int(rng.integers(1, 5))
    order = [int(number) for number in rng.permutation(len(examples))]
    if split % 3 == 0:
        order.sort(key=lambda number: examples[number][0].num_images)
        cuts = np.linspace(0, len(order), world_size * accumulation + 1).astype(int)
    else:
        cuts = np.sort(rng.integers(0, len(order) + 1, world_size * accumulation - 1))
        cuts = np.concatenate([[0], cuts, [len(order)]])
    packs = [order[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    return [packs[rank * accumulation : (rank + 1) * accumulation] for rank in range(world_size)]


def gradients_of_splits(splits: list[int], folder: str, zero: int = 3) -> dict[str, Any]:
    """Return the gradient of each split on this world size and the module calls of this rank. No weight changes."""
    from minigptv2.cluster import distributed
    from minigptv2.data.collate import collate

    world_size = int(os.environ["WORLD_SIZE"])
    trainer = make_trainer("lora", ZERO[zero], folder, steps=10**6, global_batch=world_size)
    gradients = gradients_at_steps(trainer)
    calls = dict.fromkeys(("vision_encoder", "projector", "language_model.model", "language_model.lm_head"), 0)
    for name in calls:
        module = trainer.model.get_submodule(name)
        module.register_forward_hook(lambda *a, name=name: calls.__setitem__(name, calls[name] + 1))
    trainer.config.weight_decay = 0.0
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    trainer.config.learning_rate = trainer.config.warmup_learning_rate = 0.0
    for split in splits:
        examples = examples_of_split(split)
        packs = random_packs(split, world_size)[distributed.rank()]
        batches = []
        for pack in packs:
            chosen = [examples[number] for number in sorted(pack)]
            batches.append(collate([e for e, _ in chosen], [image for _, images in chosen for image in images], 32))
        trainer.train_step(batches)
    return {"gradients": gradients if distributed.is_main() else [], "calls": calls}


def reference_of_split(split: int) -> dict[str, list[float]]:
    """Return the gradient of a split's mean loss by its definition: each example alone, without DeepSpeed."""
    from minigptv2.data.collate import collate
    from minigptv2.model.weights import canonical_name

    parts, r = MODES["lora"]
    model = tiny_model(parts, r)
    trained = {canonical_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    sums, weight, objective = [], 0.0, objective_of_split(split)
    for number, (example, images) in enumerate(examples_of_split(split)):
        losses = token_losses(model, collate([example], images, 32))
        factor = {"token": 1.0, "sample": 1 / len(losses), "corpus": CORPUS_WEIGHTS[number % 3]}[objective]
        sums.append(factor * losses.sum())
        weight += factor * len(losses)
    (torch.stack(sums).sum() / weight).backward()
    return {name: p.grad.double().flatten().tolist() for name, p in trained.items()}
