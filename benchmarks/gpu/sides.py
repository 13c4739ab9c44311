"""Runs the sides of a GPU benchmark, each in a process of its own, within a time limit, and reports their rows.

Libraries change a process for good: liger replaces functions of `transformers`, and ZeRO-3 replaces torch's linear. Two
sides in one process would not be independent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.ranks import REPOSITORY
from benchmarks.results import report
from minigptv2.model.backbones import LANGUAGE_MODELS, VISION_ENCODERS, Sizes
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.costs import ModelCosts

PACKAGES = ["torch", "transformers", "peft", "deepspeed", "liger-kernel", "flash-attn", "triton"]
LIMIT_S = 460.0
"""Seconds for all sides of a script. Sides that are not measured by then are reported as such."""
Rows = list[dict[str, Any]]


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
            "trainable": ["projector", "lora"],
        }
        return ModelConfig(**(values | changes))

    @property
    def costs(self) -> ModelCosts:
        """Cost formulas of the model."""
        return ModelCosts(self.config(), self.sizes)

    def report(self, name: str, title: str, rows: Rows, notes: list[str]) -> None:
        """Print the results, and write JSON as `gpu_<name>` unless they are only a rehearsal."""
        if self.tiny:
            print(f"\n{title} (tiny, on {self.device}: a rehearsal, not a result)")
            for row in rows:
                print(row)
            return
        report(f"gpu_{name}", title, rows, packages=PACKAGES, notes=notes, more={"gpu": gpu_state()})


def setting_for(*, tiny: bool, repeats: int = 10) -> Setting:
    """Return the setting at full size on the GPU, or tiny on any device."""
    if tiny:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(1)
        sizes = Sizes(VISION_ENCODERS["tiny_vit"], replace(LANGUAGE_MODELS["tiny_llama"], vocab_size=640))
        return Setting(device, torch.float32, sizes, True, 1, 1)
    if not torch.cuda.is_available():
        raise SystemExit("needs a GPU; --tiny rehearses without one")
    sizes = Sizes(VISION_ENCODERS["eva_vit_g"], LANGUAGE_MODELS["llama2_7b"])
    return Setting(torch.device("cuda"), torch.bfloat16, sizes, False, repeats, 3)


def measure_sides(
    module: str,
    argv: list[str] | None,
    description: str,
    sides: Sequence[str],
    measure: Callable[[str, Setting], Rows],
    finish: Callable[[Setting, Rows], None],
) -> Rows:
    """Measure each side with `measure(side, setting)` and pass the rows of all to `finish`, which reports them.

    At full size each side is `python -m module --side SIDE --output FILE`. With `--tiny` all are measured here.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true", help="rehearse with a tiny model on any device")
    parser.add_argument("--repeats", type=int, default=10, help="timed repetitions of each side")
    parser.add_argument("--side", choices=sides, help="measure this side only")
    parser.add_argument("--output", type=Path, help="measure in this process and write the rows to this file")
    args = parser.parse_args(argv)
    setting = setting_for(tiny=args.tiny, repeats=args.repeats)
    chosen = [args.side] if args.side else list(sides)
    if args.tiny or args.output:
        rows = [row for side in chosen for row in measure(side, setting)]
    else:
        rows = _apart(module, chosen, args.repeats)
    if args.output:
        args.output.write_text(json.dumps(rows))
    else:
        finish(setting, rows)
    return rows


def _apart(module: str, sides: Sequence[str], repeats: int) -> Rows:
    """Return the rows of all sides. One that fails or finds no time has a row with a note."""
    deadline, rows = time.monotonic() + LIMIT_S, []
    for side in sides:
        began = time.monotonic()
        found = own_process(module, side, ["--repeats", str(repeats)], deadline - began)
        rows += found
        print(f"{side}: {time.monotonic() - began:.0f} s, {found}", flush=True)
    return rows


def own_process(module: str, side: str, options: list[str], seconds: float) -> Rows:
    """Return the rows of one side, measured in a new process within so many seconds, or a row that says why not."""
    if seconds < 1:
        return [{"side": side, "note": f"not measured: no time left of {LIMIT_S:.0f} s"}]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        command = [sys.executable, "-m", module, "--side", side, "--output", str(output), *options]
        try:
            done = subprocess.run(command, cwd=REPOSITORY, timeout=seconds, stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            return [{"side": side, "note": f"not measured: not finished in {seconds:.0f} s"}]
        if done.returncode:
            print(done.stderr[-3000:], flush=True)
            return [{"side": side, "note": f"failed with exit code {done.returncode}: {_last_line(done.stderr)}"}]
        rows: Rows = json.loads(output.read_text())
        return rows


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def gpu_state() -> dict[str, str]:
    """Return name, clocks and power limit from nvidia-smi. Empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    fields = "name,clocks.sm,clocks.max.sm,power.limit,power.draw,driver_version"
    output = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return dict(zip(fields.split(","), output[0].split(", "), strict=False)) if output else {}
