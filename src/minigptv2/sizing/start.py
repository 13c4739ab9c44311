"""What a run finds out before its first step: how many layers to recompute, and how fast the machine is."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from minigptv2.data.images import open_image, square
from minigptv2.engine import distributed
from minigptv2.run_config import RunConfig
from minigptv2.sizing.limit import LimitReport, measure_rates
from minigptv2.sizing.predict import Samples, layers_to_recompute
from minigptv2.sizing.report import costs_of
from minigptv2.sizing.zero import ZeroPlan


def recomputed_layers(config: RunConfig, deepspeed_config: dict[str, Any], device: torch.device) -> int:
    """`model.recompute_layers`, or as few as fit the fullest pack on every rank's GPU (a collective); none on a CPU."""
    costs = costs_of(config)
    if config.model.recompute_layers is not None:
        return min(config.model.recompute_layers, costs.language.depth)
    if device.type != "cuda":
        return 0
    memory = torch.cuda.get_device_properties(device).total_memory
    samples = Samples(max_pack_tokens=config.data.max_pack_tokens, max_tokens=config.data.max_tokens)
    pack = samples.work(config.data.max_pack_tokens / samples.tokens)
    plan = ZeroPlan.of(config.train.deepspeed, deepspeed_config)
    mine = layers_to_recompute(costs, plan, ranks=distributed.world_size(), memory=memory, pack=pack)
    # The most that any rank needs: ranks that recompute different layers gather different numbers of times, and hang.
    return sum(distributed.any_over_ranks([mine > layer for layer in range(costs.language.depth)]))


def limit_report(config: RunConfig, deepspeed_config: dict[str, Any], device: torch.device, dtype: torch.dtype,
                 layers: int) -> LimitReport:  # fmt: skip
    """Measure this machine (a collective, a fraction of a second) and make the limit of the run's steps on it."""
    costs = costs_of(config)
    rates = measure_rates(
        device, dtype, decode=_decode_one(costs.vision.image_size), workers=config.data.num_workers
    )  # fmt: skip
    return LimitReport(
        costs,
        ZeroPlan.of(Path(config.train.deepspeed).name, deepspeed_config),
        rates,
        ranks=distributed.world_size(),
        gpus_per_node=int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())),
        recomputed_layers=layers,
    )


def _decode_one(side: int) -> Callable[[], object]:
    """Decoding of a 640 x 480 JPEG to the model's square, as the loader does it."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    return lambda: square(open_image(data, "a test picture"), side)
