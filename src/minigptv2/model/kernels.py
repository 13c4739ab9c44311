"""Installs faster kernels for the same arithmetic: liger's norms, rotary embedding and SwiGLU; compilation."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from minigptv2.errors import ConfigError

KERNELS = ("auto", "torch", "liger")


def choose_kernels(name: str, device: torch.device) -> str:
    """Return `liger` or `torch` for a value of `model.kernels` of a model on `device`.

    Raises `ConfigError` if it cannot run there.
    """
    runs_here = find_spec("liger_kernel") is not None and device.type == "cuda"
    if name not in KERNELS:
        raise ConfigError(f"model.kernels={name} is not one of {', '.join(KERNELS)}")
    if name == "liger" and not runs_here:
        raise ConfigError("model.kernels=liger needs CUDA and liger-kernel: pip install 'minigptv2[gpu]'")
    return "liger" if name == "liger" or (name == "auto" and runs_here) else "torch"


def use_liger(language_model: nn.Module) -> None:
    """Replace norms, SwiGLU and rotary embedding of a LLaMA, in place, but not its loss. Call it before adding LoRA."""
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
    """Compile each block of the vision encoder, in place; return how many.

    All images have one size, so that one compilation suffices. Not with ZeRO-3, whose hooks break every graph.
    """
    blocks = [module for module in vision_encoder.modules() if isinstance(module, nn.ModuleList)][0]
    for block in blocks:
        block.compile()
    return len(blocks)
