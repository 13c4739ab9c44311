"""Measures the vision encoder alone in 448 px images per second, compared with eager attention.

python -m benchmarks.gpu.vision [--tiny]
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.common import make_model, median_seconds, setting_of
from minigptv2.model.costs import vision_flops
from minigptv2.model.kernels import compile_blocks
from minigptv2.train.limit import measure_rates


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure SDPA, compiled and eager attention at several batch sizes and report."""
    setting = setting_of(argv, __doc__ or "")
    rate = measure_rates(setting.device, setting.dtype, decode=int, workers=1).matmul
    row_of_table = setting.sizes.vision_encoder
    rows: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(0)
    model = make_model(setting, setting.config(trainable=["lora"]))
    truth_model = make_model(setting, setting.config(trainable=["lora"])).float() if setting.tiny else None
    for side in ("SDPA", "eager attention", "SDPA, compiled"):
        if side == "SDPA, compiled" and setting.tiny:
            continue
        model.vision_encoder.set_attn_implementation("eager" if "eager" in side else "sdpa")
        if "compiled" in side:
            compile_blocks(model.vision_encoder)
        for images in (2,) if setting.tiny else (16, 64):
            side_px = row_of_table.image_size
            pixels = torch.randint(0, 256, (images, 3, side_px, side_px), generator=generator, dtype=torch.uint8)
            pixels = pixels.to(setting.device)

            def run(number: int, pixels: torch.Tensor = pixels) -> torch.Tensor:
                with torch.no_grad():
                    return model.encode_images(pixels.roll(number, 0))

            times = median_seconds(run, setting)
            rate_here = images / times["median s"]
            rows.append(
                {
                    "side": side,
                    "images": images,
                    **times,
                    "images/s": rate_here,
                    "% of the limit": 100 * rate_here * vision_flops(row_of_table) / rate,
                }
            )
            if truth_model is None and side != "eager attention":
                rows[-1]["relative error to eager"] = _against_eager(model, pixels[:4])
    setting.report("vision", "EVA ViT-g at 448 px on one GPU", rows, ["goal: >= 245 images/s, relative error <= 1e-2"])
    return rows


def _against_eager(model: Any, pixels: torch.Tensor) -> float:
    """Return the largest difference of the image tokens to eager attention, relative to the largest token value."""
    with torch.no_grad():
        fast = model.encode_images(pixels).float()
        model.vision_encoder.set_attn_implementation("eager")
        slow = model.encode_images(pixels).float()
        model.vision_encoder.set_attn_implementation("sdpa")
    return float((fast - slow).norm() / slow.norm())


if __name__ == "__main__":
    main()
