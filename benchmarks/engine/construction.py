"""Measures host memory and seconds from an empty process to a trainer with filled weights, by ZeRO stage.

    python -m tests.full_size --output DIR --layers 2 --until convert
    python -m benchmarks.engine.construction --model DIR/model

Two ranks, bf16 (fp32 for ZeRO-0, which allows nothing else). Memory is that of one rank without pages of mapped files.
Beside it stands construction as PyTorch does it by default: float32 with random initial values, cast by DeepSpeed.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.engine.ranks import on_ranks
from benchmarks.results import report

RANKS = 2
POLL_S = 0.02


class _AnonymousMemory:
    """Samples this process's memory without mapped files, in bytes; `peak` is the highest value."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> _AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(POLL_S):
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, now)


def construct(model: str, stage: int, by_default: bool) -> dict[str, float]:
    """Build, fill and initialize on this rank. Returns peak GiB and seconds."""
    import torch

    from minigptv2.cluster import distributed
    from minigptv2.engine.config import TrainConfig, compute_dtype
    from minigptv2.engine.trainer import Trainer
    from minigptv2.engine.zero import assign, shape_of, zero_backend
    from minigptv2.model.bases import fill_weights, open_bases
    from minigptv2.model.build import build_model, without_values
    from minigptv2.model.export import load_info, tokenizer_in
    from minigptv2.model.weights import named_canonical

    device = distributed.choose_device()
    distributed.start_process_group(device, 10)
    info = load_info(model)
    config = replace(info.model, trainable=["projector", "lora"])
    document: dict[str, Any] = {"zero_optimization": {"stage": stage}} | ({"bf16": {"enabled": True}} if stage else {})
    document |= {"train_batch_size": RANKS, "train_micro_batch_size_per_gpu": 1}
    dtype = getattr(torch, compute_dtype(document))
    zero = zero_backend(document)
    construction = zero.construction() if stage == 3 or by_default else without_values(device, dtype)
    began = time.monotonic()
    with _AnonymousMemory() as memory:
        built = build_model(config, tokenizer_in(info).vocab_size, construction, sizes=info.sizes, dtype=dtype)
        parent = (model, info.tensors)
        fill_weights(built, open_bases(config), parent, assign, seed=None, shape_of=shape_of)
        settings = TrainConfig(steps=1, global_batch_size=RANKS, learning_rate=1e-5)
        Trainer(built, named_canonical(built), settings, document, device=device, seed=0)
    return {"GiB": memory.peak / 2**30, "s": time.monotonic() - began}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder with base weights, projector and LoRA")
    model = parser.parse_args(argv).model
    rows = []
    for stage in (0, 1, 2, 3):
        row: dict[str, Any] = {"ZeRO": stage}
        for title, by_default in (("default", True), ("ours", False)) if stage < 3 else (("ours", False),):
            found = on_ranks(
                "benchmarks.engine.construction:construct", RANKS, model=model, stage=stage, by_default=by_default
            )
            row |= {f"{title}, {key}": round(max(one[key] for one in found), 2) for key in ("GiB", "s")}
        rows.append(row)
    notes = ["highest of two ranks on one machine; ZeRO-0 in fp32, the others in bf16"]
    report("engine_construction", "Construction", rows, packages=["torch", "transformers", "deepspeed"], notes=notes)
    return rows


if __name__ == "__main__":
    main()
