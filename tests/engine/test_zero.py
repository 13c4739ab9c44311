"""ZeRO against plain PyTorch: the same losses, gradients independent of ranks, packs and images, and shards by half."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny import ALL_PARTS, random_examples, tiny_config, tiny_model
from tests.ranks import run_ranks

STEPS, PACKS = 20, 4
MODES = {"lora": (["projector", "lora"], 4), "all": (ALL_PARTS, 0)}
ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}


def packs_of_step(step: int) -> list[dict[str, torch.Tensor]]:
    """Four packs a step; one of them without any image, so that on two ranks one has none in its first micro-batch."""
    from minigptv2.data.collate import collate

    made = []
    for pack in range(PACKS):
        examples, images = random_examples(2 + pack % 2, seed=10 * (step % 2) + pack, with_images=pack != 1)
        made.append(collate(examples, images, 32))
    return made


def train_config(deepspeed: str, steps: int = STEPS) -> Any:
    from minigptv2.engine.config import TrainConfig

    return TrainConfig(
        deepspeed=deepspeed, steps=steps, global_batch_size=PACKS, micro_batch_size=1, learning_rate=1e-2,
        warmup_steps=5, gradient_clipping=0.5,
    )  # fmt: skip


def make_trainer(mode: str, zero: dict[str, Any], extra: dict[str, Any], folder: Path) -> Any:
    from minigptv2.engine import distributed
    from minigptv2.engine.config import resolve_deepspeed_config
    from minigptv2.engine.sharding import assign, construction, shape_of
    from minigptv2.engine.trainer import Trainer
    from minigptv2.model.bases import fill_weights
    from minigptv2.model.build import build_model
    from minigptv2.model.weights import named_canonical

    torch.set_num_threads(1)
    device = distributed.choose_device()
    distributed.start_process_group(device, 10)
    file = folder / f"ds-{distributed.rank()}.json"
    file.write_text(json.dumps({"zero_optimization": zero, **extra}))
    config = train_config(str(file))
    resolved = resolve_deepspeed_config(config, distributed.world_size())
    parts, r = MODES[mode]
    model_config = tiny_config(parts, r)
    model = build_model(model_config, 100, construction(resolved))
    fill_weights(model, [], None, assign, seed=0, shape_of=shape_of)
    trainer = Trainer(model, named_canonical(model), config, resolved, device=device, seed=0)
    model.restore_float32_buffers()
    return trainer


def train_with_deepspeed(mode: str, zero: dict[str, Any], folder: str, extra: dict[str, Any] | None = None) -> Any:
    """Losses and norms of 20 steps, held elements, and counts of module calls, on this rank."""
    from minigptv2.engine import distributed

    trainer = make_trainer(mode, zero, extra or {}, Path(folder))
    calls = {"vision": 0, "language": 0}
    trainer.model.vision_encoder.register_forward_hook(lambda *a: calls.__setitem__("vision", calls["vision"] + 1))
    trainer.model.language_model.model.register_forward_hook(
        lambda *a: calls.__setitem__("language", calls["language"] + 1)
    )
    losses, norms = [], []
    for step in range(STEPS):
        mine = packs_of_step(step)[distributed.rank() :: distributed.world_size()]
        report = trainer.train_step(mine)
        losses.append(report.loss)
        norms.append(report.gradient_norm)
    weights = trainer.trained_weights()
    frozen = trainer.parameters["language_model.lm_head.weight"]
    frequencies = trainer.model.language_model.model.rotary_emb.inv_freq
    return {
        "losses": losses,
        "norms": norms,
        "held": trainer.held_by_part(),
        "calls": calls,
        "checksums": {name: float(value.double().sum()) for name, value in weights.items()},
        "frozen": not frozen.requires_grad,
        "rotary_dtype": str(frequencies.dtype),
    }


def train_with_plain_pytorch(mode: str) -> tuple[list[float], list[float], dict[str, float]]:
    """The reference: no DeepSpeed and nothing of `minigptv2.engine`."""
    parts, r = MODES[mode]
    model = tiny_model(parts, r)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
    )
    losses, norms = [], []
    for step in range(STEPS):
        if step < 5:
            rate = 1e-6 + step / 5 * (1e-2 - 1e-6)
        else:
            rate = 1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))
        outputs = [model(**pack) for pack in packs_of_step(step)]
        loss = sum(o["loss_sum"] for o in outputs) / sum(int(o["num_tokens"]) for o in outputs)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(float(loss.detach()))
    from minigptv2.model.weights import canonical_name

    return losses, norms, {canonical_name(n): float(p.detach().double().sum()) for n, p in trained.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("zero", "ranks"), [(ZERO3, 2), ({"stage": 2}, 2), ({"stage": 0}, 1)], ids=["zero3x2", "zero2x2", "zero0x1"]
)
def test_losses_equal_plain_pytorch(tmp_path: Path, mode: str, zero: dict[str, Any], ranks: int) -> None:
    results = run_ranks(
        "tests.engine.test_zero:train_with_deepspeed", ranks, tmp_path, mode=mode, zero=zero, folder=str(tmp_path)
    )
    losses, norms, checksums = train_with_plain_pytorch(mode)
    assert losses[-1] < losses[0] - 0.1, "the reference must learn, or equality proves little"
    for result in results:
        assert result["losses"] == pytest.approx(losses, abs=1e-5)
        assert result["norms"] == pytest.approx(norms, rel=1e-4, abs=1e-6)
        assert result["checksums"] == pytest.approx(checksums, abs=2e-3)
        assert result["calls"] == results[0]["calls"]
        assert result["frozen"] is (mode == "lora")
    if zero["stage"] == 3:
        assert results[0]["calls"] == {"vision": STEPS * PACKS // ranks, "language": STEPS * PACKS // ranks}
        for part, (held, total) in results[0]["held"].items():
            assert held / total == pytest.approx(0.5, rel=0.02), part


def test_bf16_keeps_fp32_masters_and_rotary_frequencies(tmp_path: Path) -> None:
    (result,) = run_ranks(
        "tests.engine.test_zero:train_with_deepspeed", 1, tmp_path, mode="all", zero=ZERO3, folder=str(tmp_path),
        extra={"bf16": {"enabled": True}},
    )  # fmt: skip
    losses, _, _ = train_with_plain_pytorch("all")
    assert result["rotary_dtype"] == "torch.float32"
    assert result["losses"] == pytest.approx(losses, abs=0.15)
    assert result["losses"][-1] < result["losses"][0] - 0.5
