"""ZeRO-3 parameters: making them, filling them, reading them, and counting what a rank holds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.engine import distributed


def zero_stage(deepspeed_config: dict[str, Any]) -> int:
    """The ZeRO stage that a DeepSpeed config asks for."""
    return int(deepspeed_config.get("zero_optimization", {}).get("stage", 0))


def construction(deepspeed_config: dict[str, Any]) -> AbstractContextManager[object]:
    """The context to build modules in: `zero.Init` under stage 3, so that no rank ever holds the model whole."""
    if zero_stage(deepspeed_config) != 3:
        return nullcontext()
    import deepspeed

    # The dtype is read from the config. Passing `dtype=` is a trap: 0.19.8 ignores it where the device has no fp16,
    # and makes bf16 parameters of an fp32 run on the CPU without a word (`Init._set_dtype`, operator precedence).
    return deepspeed.zero.Init(config_dict_or_path=deepspeed_config)


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The full shape of a parameter, sharded or not."""
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def assign(parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
    """Fill a parameter. If it is sharded, rank 0 computes the value and the others receive their part."""
    if not hasattr(parameter, "ds_id"):
        with torch.no_grad():
            parameter.copy_(value().to(parameter.dtype))
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if distributed.rank() == 0:
            with torch.no_grad():
                parameter.copy_(value().to(parameter.dtype))


def full_value(parameter: nn.Parameter) -> Tensor:
    """A CPU copy of the whole parameter, in its own dtype. A collective under ZeRO-3: call it on all ranks."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().cpu().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()


def elements_held(parameter: nn.Parameter) -> int:
    """Elements of the parameter that this rank keeps between steps: its shard, or all if it is not sharded."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.numel()
    kept_whole = parameter.numel() if getattr(parameter, "ds_persist", False) else 0
    return max(parameter.ds_tensor.numel(), kept_whole)
