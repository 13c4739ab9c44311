"""Measures the vision encoder alone in 448 px images per second, compared with eager attention.

python -m benchmarks.gpu.vision [--tiny]
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.common import make_model, median_seconds
from benchmarks.gpu.sides import Rows, Setting, measure_sides
from minigptv2.model.costs import vision_flops
from minigptv2.model.kernels import compile_blocks
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.train.limit import measure_rates

SIDES = ("SDPA", "eager attention", "SDPA, compiled")


def main(argv: list[str] | None = None) -> Rows:
    """Measure SDPA, compiled and eager attention at several batch sizes and report."""
    return measure_sides("benchmarks.gpu.vision", argv, __doc__ or "", SIDES, measure, finish)


def measure(side: str, setting: Setting) -> Rows:
    """Return a row of the side for each number of images."""
    compiled = side == "SDPA, compiled"
    if compiled and setting.device.type != "cuda":
        return [{"side": side, "note": "needs CUDA"}]
    rate = measure_rates(setting.device, setting.dtype, decode=int, workers=1).matmul
    model = make_model(setting, setting.config(trainable=["lora"])).eval()
    model.vision_encoder.set_attn_implementation("eager" if side == "eager attention" else "sdpa")
    if compiled:
        compile_blocks(model.vision_encoder)
    rows: Rows = []
    for images in (2,) if setting.tiny else (16, 64):
        pixels = [_pixels(images, setting, seed) for seed in range(setting.warm + setting.repeats)]
        with torch.no_grad():
            times = median_seconds(lambda number, pixels=pixels: model.encode_images(pixels[number]), setting)  # type: ignore[misc]
        per_second = images / times["median s"]
        limit = 100 * per_second * vision_flops(setting.sizes.vision_encoder) / rate
        rows.append({"side": side, "images": images, **times, "images/s": per_second, "% of the limit": limit})
    if side != "eager attention":
        rows[-1]["relative error to eager"] = _against_eager(model, pixels[0][:4])
    return rows


def _pixels(images: int, setting: Setting, seed: int) -> Tensor:
    """uint8 [images, 3, H, W] at random, drawn on the device."""
    generator = torch.Generator(setting.device).manual_seed(seed)
    side = setting.sizes.vision_encoder.image_size
    shape = (images, 3, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device=setting.device)


def _against_eager(model: MiniGPTv2, pixels: Tensor) -> float:
    """Return the norm of the difference of the image tokens to eager attention, relative to the norm of the tokens."""
    with torch.no_grad():
        fast = model.encode_images(pixels).float()
        model.vision_encoder.set_attn_implementation("eager")
        slow = model.encode_images(pixels).float()
    return float((fast - slow).norm() / slow.norm())


def finish(setting: Setting, rows: Rows) -> None:
    """Report."""
    setting.report("vision", "EVA ViT-g at 448 px on one GPU", rows, ["goal: >= 245 images/s, relative error <= 1e-2"])


if __name__ == "__main__":
    main()
