"""Compares packed attention of each available backend with float64 on the CPU: loss, gradients, leaks.

python -m benchmarks.gpu.numerics [--tiny]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.engine import small
from benchmarks.gpu.common import pack_of, setting_of
from minigptv2.errors import ConfigError
from minigptv2.model.attention import choose_attention
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.proof import prove_packing

LENGTHS = [60, 31, 120, 47]
BACKENDS = ("packed_sdpa", "packed_varlen", "packed_flex", "flash_attention_2")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare all backends and report."""
    setting = setting_of(argv, __doc__ or "")
    small_setting = replace(setting, sizes=small.SIZES)
    pack = pack_of(LENGTHS, small_setting, seed=0)
    reference = small.plain_model(small.model_config(r=4)).double()
    reference.restore_float32_buffers()
    truth = _gradients(reference, {key: value.cpu() for key, value in pack.items()})
    rows: list[dict[str, Any]] = []
    for backend in BACKENDS:
        for dtype in (torch.float32, torch.bfloat16):
            try:
                choose_attention(backend, setting.device, dtype)
            except ConfigError as error:
                rows.append({"attention": backend, "type": str(dtype), "note": str(error)})
                continue
            config = small.model_config(r=4)
            config.attention = backend
            model = small.plain_model(config, sizes=small.SIZES, dtype=dtype, device=setting.device)
            ours = _gradients(model, pack)
            rows.append(
                {
                    "attention": backend,
                    "type": str(dtype),
                    "loss error": abs(ours[0] / truth[0] - 1),
                    "gradient error": float((ours[1] - truth[1]).norm() / truth[1].norm()),
                    "proof": prove_packing(model, setting.device),
                }
            )
    setting.report("numerics", "Packed attention against float64", rows, ["relative errors; leaks must be exactly 0"])
    return rows


def _gradients(model: MiniGPTv2, pack: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    output = model(**pack)
    output["loss_sum"].backward()
    flat = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return float(output["loss_sum"].detach()), torch.cat(flat)


if __name__ == "__main__":
    main()
