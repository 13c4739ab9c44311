"""Compares packed attention of each available backend with float64 on the CPU, and checks packing at full size.

    python -m benchmarks.gpu.numerics [--tiny]

The full-size model has random weights, and a head that is scaled to logits as large as those of trained weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.engine import small
from benchmarks.gpu.common import make_model, pack_of
from benchmarks.gpu.sides import Rows, Setting, measure_sides
from minigptv2.batch import MicroBatch
from minigptv2.errors import ConfigError, LeakError
from minigptv2.model.attention import choose_attention, dtype_name
from minigptv2.model.backbones import Sizes
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.proof import prove_packing

LENGTHS = [60, 31, 120, 47]
BACKENDS = ("packed_sdpa", "packed_varlen", "packed_flex", "flash_attention_2")
FULL = "full size, "
SIZES = Sizes(small.VISION, replace(small.LANGUAGE, heads=5))
"""Heads of 64, because kernels for GPUs do not have every width."""
TRAINED_LOGITS = 2.6
"""Standard deviation of the logits of trained weights."""


def main(argv: list[str] | None = None) -> Rows:
    """Compare all backends and report."""
    sides = [*BACKENDS, *(FULL + backend for backend in BACKENDS)]
    return measure_sides("benchmarks.gpu.numerics", argv, __doc__ or "", sides, measure, finish)


def measure(side: str, setting: Setting) -> Rows:
    """Return a row of the backend for each dtype that it computes in here, or one that says why not."""
    backend = side.removeprefix(FULL)
    rows: Rows = []
    for dtype in (setting.dtype,) if side.startswith(FULL) else (torch.float32, torch.bfloat16):
        row = {"side": side, "type": dtype_name(dtype)}
        try:
            choose_attention(backend, setting.device, dtype)
            rows.append(row | (_full_size if side.startswith(FULL) else _small)(backend, dtype, setting))
        except (ConfigError, LeakError) as error:
            rows.append(row | {"note": str(error)})
    return rows


def _small(backend: str, dtype: torch.dtype, setting: Setting) -> dict[str, object]:
    """Return the errors of loss and gradients of a small model against float64."""
    pack = pack_of(LENGTHS, replace(setting, sizes=SIZES), seed=0)
    config = small.model_config(r=4)
    config.kernels = "torch"
    reference = small.plain_model(config, sizes=SIZES).double()
    reference.restore_float32_buffers()
    truth = _gradients(reference, pack, torch.device("cpu"))
    config.attention = backend
    model = small.plain_model(config, sizes=SIZES, dtype=dtype, device=setting.device)
    ours = _gradients(model, pack, setting.device)
    return {
        "loss error": abs(ours[0] / truth[0] - 1),
        "gradient error": float((ours[1] - truth[1]).norm() / truth[1].norm()),
        "packing": prove_packing(model, setting.device),
    }


def _gradients(model: MiniGPTv2, pack: MicroBatch, device: torch.device) -> tuple[float, torch.Tensor]:
    output = model(**pack.arguments_on(device))
    output["loss_sum"].backward()
    flat = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return float(output["loss_sum"].detach()), torch.cat(flat)


def _full_size(backend: str, dtype: torch.dtype, setting: Setting) -> dict[str, object]:
    """Return the result of the packing check of the whole model."""
    model = make_model(setting, setting.config(attention=backend), dtype=dtype).eval()
    head, width = model.language_model.lm_head, model.language_model.config.hidden_size
    with torch.no_grad():
        hidden = torch.randn(256, width, device=setting.device, dtype=dtype)  # as large as what the last norm returns
        head.weight.mul_(TRAINED_LOGITS / head(hidden).float().std().to(dtype))
    return {"packing": prove_packing(model, setting.device)}


def finish(setting: Setting, rows: Rows) -> None:
    """Report."""
    notes = ["relative errors; neighbors must change losses by exactly 0"]
    setting.report("numerics", "Packed attention against float64", rows, notes)


if __name__ == "__main__":
    main()
