"""Faster kernels for the same arithmetic: liger's norm, rotation and SwiGLU; a compiled vision encoder."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from minigptv2.errors import ConfigError

KERNELS = ("auto", "torch", "liger")


def choose_kernels(name: str) -> str:
    """`liger` or `torch` for what `model.kernels` asks for: `auto` takes liger where it is installed, on CUDA."""
    runs_here = find_spec("liger_kernel") is not None and torch.cuda.is_available()
    if name not in KERNELS:
        raise ConfigError(f"model.kernels={name} is not one of {', '.join(KERNELS)}")
    if name == "liger" and not runs_here:
        raise ConfigError("model.kernels=liger needs CUDA and liger-kernel: pip install 'minigptv2[gpu]'")
    return "liger" if name == "liger" or (name == "auto" and runs_here) else "torch"


def use_liger(language_model: nn.Module) -> None:
    """Replace norms, SwiGLU and rotation of a LLaMA, in place; its loss stays ours (`model/head.py`). Before LoRA."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=language_model,
    )


def compile_blocks(vision_encoder: nn.Module) -> int:
    """Compile each block of the vision encoder, in place; returns how many. All images have one size: one compilation.

    Not under ZeRO-3: its hooks break every graph, and nothing is gained.
    """
    blocks = [module for module in vision_encoder.modules() if isinstance(module, nn.ModuleList)][0]
    for block in blocks:
        block.compile()
    return len(blocks)
