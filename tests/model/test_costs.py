"""Compares the cost formulas with torch: parameters on the meta device, FLOPs by its counter, kept bytes by hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.engine.saved import kept_bytes
from torch.utils.flop_counter import FlopCounterMode

from minigptv2.batch import IGNORE
from minigptv2.data.collate import collate
from minigptv2.engine.frozen import drop_frozen_inputs
from minigptv2.model.backbones import LANGUAGE_MODELS, VISION_ENCODERS, LanguageModelSpec, Sizes
from minigptv2.model.build import build_model, sizes_of
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.costs import ModelCosts, Work
from minigptv2.model.weights import named_canonical, part_of
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example

LENGTH = 32
GROUPED = LanguageModelSpec(width=64, depth=3, heads=4, mlp_width=160, vocab_size=120, key_value_heads=2)


def config_of(trainable: list[str], r: int, dropout: float = 0.0) -> ModelConfig:
    return ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        lora=LoraConfig(r=r, dropout=dropout),
        trainable=trainable,
        attention="packed_sdpa",
    )


@pytest.mark.parametrize(
    ("vision", "language"), [(v, "tiny_llama") for v in VISION_ENCODERS] + [("tiny_vit", m) for m in LANGUAGE_MODELS]
)
def test_parameters_by_part_are_the_modules(vision: str, language: str) -> None:
    config = ModelConfig(vision_encoder=vision, language_model=language)
    with torch.device("meta"):
        model = build_model(config, LANGUAGE_MODELS[language].vocab_size or 300)
    counted: dict[str, int] = {}
    for name, parameter in named_canonical(model).items():
        counted[part_of(name)] = counted.get(part_of(name), 0) + parameter.numel()
    costs = ModelCosts(config, sizes_of(config), vocab_size=300)
    assert {part.name: part.elements for part in costs.parts} == counted
    assert {part.name for part in costs.parts if part.trained} == {"projector", "lora"}


def test_the_real_models_coefficients() -> None:
    """Expects 2.250 TFLOP per image, 25.9 GFLOP per token and 0.524 GFLOP per supervised token."""
    costs = ModelCosts(ModelConfig(), sizes_of(ModelConfig()))
    one = costs.flops(Work(tokens=1, images=1, unique_images=1, sum_of_squares=1, supervised=1), recomputed_layers=32)
    assert one.vision == pytest.approx(2.250e12, rel=1e-3)
    assert one.projector == pytest.approx(0.0236e12, rel=2e-3)
    assert one.language == pytest.approx(25.9e9, rel=1e-3)
    assert one.lora == pytest.approx(0.20e9, rel=1e-2)
    assert one.attention == 6 * 4096 * 32
    assert one.head == pytest.approx(0.524e9, rel=1e-3)
    down = 2 * 32 * 4096 * 11008  # the last matrix of a layer needs no second forward pass
    assert one.recomputed == pytest.approx(12.95e9 - down + 0.067e9 + 2 * 4096 * 32, rel=1e-3)


def pack(samples: int, images: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    examples, pixels = [], []
    for number in range(samples):
        ids = rng.integers(3, 100, LENGTH)
        if number < images:
            ids[2:6] = IMAGE_PLACEHOLDER
            pixels.append(rng.integers(0, 256, (3, 32, 32), dtype=np.uint8))
        labels = np.full(LENGTH, IGNORE)
        labels[-7:] = ids[-7:]
        examples.append(Example(ids, labels, np.zeros(LENGTH, dtype=np.int64), int(number < images)))
    return collate(examples, pixels, 32).inputs


@pytest.mark.parametrize("recomputed", [0, 2])
@pytest.mark.parametrize(
    ("trainable", "r"),
    [
        (["projector", "lora"], 8),
        (["projector", "language_model"], 0),
        (["vision_encoder", "projector", "language_model"], 0),
    ],
)
def test_flops_equal_torchs_counter(trainable: list[str], r: int, recomputed: int) -> None:
    """Within 0.1 % without attention: torch counts its full square, and the kernel's backward as 2.5 forwards."""
    config = config_of(trainable, r)
    sizes = Sizes(VISION_ENCODERS["tiny_vit"], GROUPED)
    model = build_model(config, 120, sizes=sizes)
    model.recompute(recomputed)
    batch = pack(samples=6, images=4)
    with FlopCounterMode(display=False) as counter:
        model(**batch)["loss_sum"].backward()
    by_operator = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for name, count in by_operator.items() if "attention" not in name)
    costs = ModelCosts(config, sizes)
    work = Work(tokens=6 * LENGTH, images=4, unique_images=4, sum_of_squares=6 * LENGTH**2, supervised=6 * 7)
    ours = costs.flops(work, recomputed_layers=recomputed)
    attention = ours.attention + recomputed * 2 * GROUPED.width * work.sum_of_squares
    vision = 4 * (VISION_ENCODERS["tiny_vit"].num_patches + 1) ** 2 * VISION_ENCODERS["tiny_vit"].width * 2 * 4
    attention += vision * (3 if "vision_encoder" in trainable else 1)
    assert counted == pytest.approx(ours.total - attention, rel=1e-3)


@pytest.mark.parametrize(("trainable", "r"), [(["projector", "lora"], 8), (["projector", "language_model"], 0)])
@pytest.mark.parametrize("lora_dropout", [0.0])
def test_kept_bytes_of_a_layer_equal_autograds(trainable: list[str], r: int, lora_dropout: float) -> None:
    config = config_of(trainable, r, lora_dropout)
    kept = []
    for depth in (1, 3):
        row = LanguageModelSpec(**{**GROUPED.__dict__, "depth": depth, "key_value_heads": None})
        model = build_model(config, 120, sizes=Sizes(VISION_ENCODERS["tiny_vit"], row)).bfloat16()
        model.restore_float32_buffers()
        drop_frozen_inputs(model)
        batch: dict[str, Any] = pack(samples=6, images=0)
        embeddings = torch.randn(1, 6 * LENGTH, row.width, dtype=torch.bfloat16, requires_grad=True)
        arguments = (embeddings, batch["labels"], batch["position_ids"])
        kept.append(kept_bytes(model, lambda m=model, a=arguments: m.token_losses(*a), given=[embeddings]))
    formula = ModelCosts(config, Sizes(VISION_ENCODERS["tiny_vit"], row)).kept_bytes_per_token()
    assert (kept[1] - kept[0]) / 2 / (6 * LENGTH) == pytest.approx(formula, rel=0.01)
