"""Shared code of the GPU benchmarks: sizes (real or tiny), models on the device, packs, padded batches, timing."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.engine import small
from benchmarks.results import report
from minigptv2.batch import IGNORE
from minigptv2.model.backbones import LANGUAGE_MODELS, VISION_ENCODERS, Sizes
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.costs import ModelCosts, Work
from minigptv2.model.minigptv2 import MiniGPTv2

PACKAGES = ["torch", "transformers", "peft", "deepspeed", "liger-kernel", "flash-attn", "triton"]


@dataclass(frozen=True)
class Setting:
    """Device and size of a benchmark."""

    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    tiny: bool
    repeats: int
    warm: int

    def config(self, **changes: Any) -> ModelConfig:
        """The published training setup: projector and LoRA of rank 64 (4 when tiny)."""
        values: dict[str, Any] = {
            "lora": LoraConfig(r=4 if self.tiny else 64, dropout=0.05),
            "attention": "packed_sdpa" if self.tiny else "auto",
            "vision_encoder": "tiny_vit" if self.tiny else "eva_vit_g",
            "language_model": "tiny_llama" if self.tiny else "llama2_7b",
        }
        return ModelConfig(**(values | changes))

    @property
    def costs(self) -> ModelCosts:
        """Cost formulas of the model."""
        return ModelCosts(self.config(), self.sizes)

    def report(self, name: str, title: str, rows: list[dict[str, Any]], notes: list[str]) -> None:
        """Print the results and write JSON as `gpu_<name>`, or as `gpu_<name>_tiny`, which is a rehearsal only."""
        suffix = "_tiny" if self.tiny else ""
        more = {"gpu": gpu_state(), "tiny": self.tiny}
        if self.tiny:
            print(f"\n{title} (tiny, on {self.device}: a rehearsal, not a result)")
            for row in rows:
                print(row)
            return
        report(f"gpu_{name}{suffix}", title, rows, packages=PACKAGES, notes=notes, more=more)


def setting_of(argv: list[str] | None, description: str) -> Setting:
    """Return the setting that the command line selects."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true", help="rehearse with a tiny model on any device")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(argv)
    if args.tiny:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(1)
        sizes = Sizes(VISION_ENCODERS["tiny_vit"], replace(LANGUAGE_MODELS["tiny_llama"], vocab_size=640))
        return Setting(device, torch.float32, sizes, True, 1, 1)
    if not torch.cuda.is_available():
        raise SystemExit("needs a GPU; --tiny rehearses without one")
    sizes = Sizes(VISION_ENCODERS["eva_vit_g"], LANGUAGE_MODELS["llama2_7b"])
    return Setting(torch.device("cuda"), torch.bfloat16, sizes, False, args.repeats, 3)


def make_model(setting: Setting, config: ModelConfig) -> MiniGPTv2:
    """Build the model with random weights on the device, in the setting's dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        with torch.device(setting.device):
            model = build_model(
                config,
                setting.sizes.language_model.vocab_size or 100,
                sizes=setting.sizes,
                device=setting.device,
                dtype=setting.dtype,
            )
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    model.to(setting.dtype)
    model.restore_float32_buffers()
    return model.train()


def lengths_like_stage3(count: int, setting: Setting, seed: int) -> list[int]:
    """Return tokens per sample: mostly 276 to 330, and up to 700 for some conversations (scaled when tiny)."""
    rng = np.random.default_rng(seed)
    base = setting.sizes.vision_encoder.tokens_per_image
    texts = np.where(rng.random(count) < 0.85, rng.integers(20, 60, count), rng.integers(100, 440, count))
    return [int(base + max(10, text // (8 if setting.tiny else 1))) for text in texts]


def pack_of(lengths: list[int], setting: Setting, seed: int, *, supervised: int | None = None) -> dict[str, Tensor]:
    """Return a pack of samples of these lengths, each with an image, on the device."""
    parts = [
        small.pack(
            1, length, seed=seed + number, supervised=supervised or max(4, (length - 5) // 10), sizes=setting.sizes
        ).inputs
        for number, length in enumerate(lengths)
    ]
    joined = {key: torch.cat([part[key] for part in parts], dim=int(key != "pixel_values")) for key in parts[0]}
    joined["segment_ids"] = torch.cat([part["segment_ids"] * (n + 1) for n, part in enumerate(parts)], dim=1)
    return {key: value.to(setting.device) for key, value in joined.items()}


def padded_of(pack: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same samples as a padded batch with a mask."""
    lengths = torch.bincount(pack["segment_ids"][0])[1:].tolist()
    rows, width = len(lengths), max(lengths)
    ids = pack["input_ids"].new_zeros(rows, width)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    parts = zip(pack["input_ids"][0].split(lengths), pack["labels"][0].split(lengths), strict=True)
    for row, (some, wanted) in enumerate(parts):
        ids[row, : len(some)], labels[row, : len(some)], mask[row, : len(some)] = some, wanted, 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pack["pixel_values"]}


def padded_loss(model: MiniGPTv2, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of a padded batch in the usual way, with all logits."""
    embeddings = model.embed(batch["input_ids"], batch["pixel_values"])
    logits = model.language_model(
        inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False
    ).logits.float()
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE
    )


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW for the trained parameters."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.05)


def work_of(pack: dict[str, Tensor]) -> Work:
    """Return the exact counts of a pack."""
    lengths = torch.bincount(pack["segment_ids"][0])[1:].double()
    images = pack["pixel_values"].shape[0]
    supervised = int((pack["labels"] != IGNORE).sum())
    return Work(float(lengths.sum()), images, images, float((lengths * lengths).sum()), supervised)


def median_seconds(run: Callable[[int], object], setting: Setting) -> dict[str, float]:
    """Return minimum, median and maximum seconds of `run(number)`, and the peak GiB. A number can select new inputs."""
    for number in range(setting.warm):
        run(number)
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for number in range(setting.repeats):
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run(setting.warm + number)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run(setting.warm + number)
            times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {"min s": min(times), "median s": statistics.median(times), "max s": max(times), "peak GiB": peak}


def gpu_state() -> dict[str, str]:
    """Return name, clocks and power limit from nvidia-smi. Empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    fields = "name,clocks.sm,clocks.max.sm,power.limit,power.draw,driver_version"
    output = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return dict(zip(fields.split(","), output[0].split(", "), strict=False)) if output else {}
