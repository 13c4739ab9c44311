"""Implements `ZeroBackend` for each ZeRO stage of DeepSpeed, and handles parameters that may be sharded.

This is the only module that branches on the ZeRO stage or uses names of DeepSpeed that are not part of its public
interface. `attach` checks those names, which were read in DeepSpeed 0.19.8 (`CHECKED_WITH`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.cluster import distributed
from minigptv2.engine.checkpoint import MOMENTS
from minigptv2.engine.config import shards_parameters, zero_stage
from minigptv2.engine.frozen import drop_frozen_inputs
from minigptv2.engine.guard import squared_norm
from minigptv2.engine.zero_backend import ZeroBackend
from minigptv2.errors import MiniGPTv2Error

CHECKED_WITH = "0.19.8"
"""The DeepSpeed version whose private names this module was checked with."""
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""The state of the dynamic loss scaler (fp16)."""


def zero_backend(deepspeed_config: dict[str, Any]) -> ZeroBackend:
    """Return the backend for the ZeRO stage of a DeepSpeed config."""
    if shards_parameters(deepspeed_config):
        return ShardedParameters(deepspeed_config)
    stage = zero_stage(deepspeed_config)
    return ShardedOptimizer(stage) if stage else Plain()


class _WholeParameters:
    """What ZeRO stages 0 to 2 share: every rank holds all parameters, and modules are built as usual."""

    shards_parameters = False

    def construction(self) -> AbstractContextManager[object]:
        """Return a context without effect."""
        return nullcontext()

    def prepare(self, model: nn.Module) -> None:
        """Change nothing."""


class Plain(_WholeParameters):
    """ZeRO stage 0: every rank holds everything."""

    stage = 0
    loss_scaler = None

    def attach(self, engine: Any, trainable: dict[str, nn.Parameter]) -> None:
        """Take the initialized engine. No private name is used."""
        self._engine, self._parameters = engine, list(trainable.values())

    def squared_norm(self) -> Tensor:
        """Return the squared norm of the gradients divided by the number of ranks, because all hold the same ones."""
        return squared_norm(self._gradients(), self._engine.device).reshape(1) / distributed.world_size()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def update(self) -> float:
        """Run the optimizer step; return the gradient norm before clipping."""
        norm = torch.nn.utils.get_total_norm(self._gradients())  # DeepSpeed does not report it without ZeRO
        self._engine.step()
        return float(norm)

    def skip(self) -> None:
        """Clear the gradients and change no weight and no moment."""
        self._engine.zero_grad()

    def make_moments(self, updates: int) -> None:
        """Create the AdamW state as it is after `updates` steps, where it does not exist."""
        _fill_moments(self._engine.optimizer, self._parameters, updates)

    def read(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """Return the weight or moment itself."""
        return parameter if key is None else self._engine.optimizer.state[parameter][key]

    def write(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Copy `value` into the weight or moment."""
        with torch.no_grad():
            self.read(parameter, key).copy_(value)

    def held(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the weight."""
        return parameter


class _Sharded:
    """What ZeRO stages 1 to 3 share: each rank holds a part of the optimizer state, in flat fp32 tensors."""

    _optimizer_names: tuple[str, ...] = ("optimizer", "overflow", "loss_scale", "loss_scaler", "averaged_gradients")
    _parameter_names: tuple[str, ...] = ()
    _flat_name = _offload_name = _overflow_check = ""

    def attach(self, engine: Any, trainable: dict[str, nn.Parameter]) -> None:
        """Take the initialized engine, and check the private names that this variant uses."""
        self._engine, self._optimizer = engine, engine.optimizer
        names = (self._flat_name, self._offload_name, self._overflow_check)
        require_names(self._optimizer, (*self._optimizer_names, *names))
        for parameter in trainable.values():
            require_names(parameter, self._parameter_names)

    @property
    def loss_scaler(self) -> Any:
        """The dynamic loss scaler of fp16, or None."""
        scaler = self._optimizer.loss_scaler
        return scaler if scaler.dynamic else None

    def squared_norm(self) -> Tensor:
        """Return the squared norm of this rank's part of the gradients, without the loss scale."""
        scale = float(self._optimizer.loss_scale)
        return squared_norm(self._gradients(), self._engine.device).reshape(1) / scale**2

    def _gradients(self) -> list[Tensor]:
        """This rank's part of the gradients of the next update, after the last micro-batch's reduction."""
        if getattr(self._optimizer, self._offload_name):
            return [flat.grad for flat in self._flat() if flat.grad is not None]
        return [g for group in self._optimizer.averaged_gradients.values() for g in group or () if g is not None]

    def _flat(self) -> list[Tensor]:
        """This rank's part of the trained weights, fp32."""
        return list(getattr(self._optimizer, self._flat_name))

    def update(self) -> float:
        """Run the optimizer step; return the gradient norm that DeepSpeed computed."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def skip(self) -> None:
        """Run the optimizer step with a forced overflow, which clears the gradients and updates nothing."""
        with self._forced_overflow():
            self._engine.step()
        assert self._optimizer.overflow, "DeepSpeed did not skip the step"

    @contextmanager
    def _forced_overflow(self) -> Iterator[None]:
        """Within it, the optimizer's `step` takes its own overflow path: it clears gradients and updates nothing.

        DeepSpeed has no call for this. Its check is replaced on the object, so that its bookkeeping stays complete.
        Its warning about non-finite gradients is silenced, because the step guard reports the reason.
        """

        def overflow(*args: Any, **kwargs: Any) -> bool:
            self._optimizer.overflow = True
            return True

        logger = logging.getLogger("DeepSpeed")
        level = logger.level
        setattr(self._optimizer, self._overflow_check, overflow)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            delattr(self._optimizer, self._overflow_check)

    def make_moments(self, updates: int) -> None:
        """Create the AdamW state of this rank's flat tensors, where it does not exist."""
        _fill_moments(self._optimizer.optimizer, self._flat(), updates)

    def read(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """Return the whole fp32 weight or moment. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        assert value is not None and value.numel() == math.prod(shape_of(parameter)), "an empty tensor from DeepSpeed"
        return value


class ShardedOptimizer(_WholeParameters, _Sharded):
    """ZeRO stages 1 and 2: optimizer state (and, in stage 2, gradients) are sharded, parameters are not."""

    _flat_name, _offload_name = "single_partition_of_fp32_groups", "cpu_offload"
    _overflow_check = "check_overflow"
    _optimizer_names = (*_Sharded._optimizer_names, "check_grad_overflow", "_lazy_init_hp_params_optimizer_state")
    _parameter_names = ("_hp_mapping",)

    def __init__(self, stage: int) -> None:
        self.stage = stage

    def attach(self, engine: Any, trainable: dict[str, nn.Parameter]) -> None:
        """Take the initialized engine and create the moments, so that DeepSpeed can link them to the parameters."""
        super().attach(engine, trainable)
        # 0.19.8 links the moments of all parameter groups after the first group's update, before the others' exist:
        # its getters then never find them. Create them now, so that they can be linked.
        self.make_moments(0)

    @contextmanager
    def _forced_overflow(self) -> Iterator[None]:
        checked = self._optimizer.check_grad_overflow
        self._optimizer.check_grad_overflow = True
        try:
            with super()._forced_overflow():
                yield
        finally:
            self._optimizer.check_grad_overflow = checked

    def make_moments(self, updates: int) -> None:
        """Create the AdamW state where it does not exist, and link it to the parameters."""
        super().make_moments(updates)
        self._optimizer._lazy_init_hp_params_optimizer_state()  # else its getters and setters find no moments

    def write(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Set the whole fp32 weight or moment; the model's weight follows."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if key is None:
            assign(parameter, lambda: value)
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def held(self, parameter: nn.Parameter) -> Tensor | None:
        """Return this rank's part of the fp32 master, or the weight where there is none."""
        mapping = getattr(parameter, "_hp_mapping", None)
        return parameter if mapping is None else mapping.get_hp_fragment()


class ShardedParameters(_Sharded):
    """ZeRO stage 3: parameters are sharded too, and gathered module by module."""

    stage = 3
    shards_parameters = True
    _flat_name, _offload_name = "fp32_partitioned_groups_flat", "offload_optimizer"
    _overflow_check = "_overflow_check_and_loss_scale_update"
    _parameter_names = (
        *("ds_id", "ds_shape", "ds_numel", "ds_tensor", "ds_status", "ds_persist", "ds_secondary_tensor"),
        *("all_gather", "partition"),
    )

    def __init__(self, deepspeed_config: dict[str, Any]) -> None:
        self._config = deepspeed_config

    def construction(self) -> AbstractContextManager[object]:
        """Return DeepSpeed's context that shards each parameter when its module is built."""
        import deepspeed

        # Do not pass `dtype=`: 0.19.8 ignores it where the device has no fp16 and builds bf16 parameters in an fp32 run
        # on the CPU (`Init._set_dtype`, operator precedence). It reads the dtype from the config.
        return deepspeed.zero.Init(config_dict_or_path=self._config)

    def prepare(self, model: nn.Module) -> None:
        """Make frozen linear layers gather their weights again in the backward pass, which keeps no input of theirs."""
        drop_frozen_inputs(model, _gathered)

    def write(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Set this rank's shard of the fp32 weight or moment; the model's weight follows."""
        from deepspeed import utils

        if key is None:
            assign(parameter, lambda: value)
            current = utils.safe_get_local_fp32_param(parameter)
        else:
            current = utils.safe_get_local_optimizer_state(parameter, key)
        # DeepSpeed's whole-tensor setter fails where the elements do not divide by the ranks: set the shard.
        padded = torch.zeros(current.numel() * distributed.world_size(), device=value.device)
        padded[: value.numel()] = value.flatten()
        shard = padded.narrow(0, current.numel() * distributed.rank(), current.numel())
        if key is None:
            utils.safe_set_local_fp32_param(parameter, shard)
        else:
            utils.safe_set_local_optimizer_state(parameter, shard, key)

    def held(self, parameter: nn.Parameter) -> Tensor | None:
        """Return this rank's shard of the fp32 master, or of the weight where it is frozen."""
        if parameter.requires_grad:
            from deepspeed.utils import safe_get_local_fp32_param

            return safe_get_local_fp32_param(parameter)
        return getattr(parameter, "ds_tensor", parameter)


def require_names(owner: object, names: tuple[str, ...]) -> None:
    """Raise `MiniGPTv2Error` naming the first of `names` that `owner`, an object of DeepSpeed, does not have."""
    for name in names:
        if not hasattr(owner, name):
            import deepspeed

            raise MiniGPTv2Error(
                f"DeepSpeed {deepspeed.__version__}: {type(owner).__name__} has no attribute {name}, which "
                f"minigptv2.engine.zero needs. Install deepspeed=={CHECKED_WITH}, or adapt that module."
            )


def _fill_moments(optimizer: torch.optim.Optimizer, tensors: list[Any], updates: int) -> None:
    """Create AdamW's state of `tensors` where it is missing; torch creates it in the first step only."""
    for tensor in tensors:
        state = optimizer.state[tensor]
        state["step"] = torch.tensor(float(updates))
        for key in MOMENTS:
            state.setdefault(key, torch.zeros_like(tensor))


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the full shape of a parameter, sharded or not."""
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def assign(parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
    """Fill a parameter. Call it on all ranks: each rank takes its own part of a sharded one.

    A `value` with a method `rows(start, stop)` (a tensor in a file) is asked only for the rows that hold this rank's
    part, so that all ranks together read each byte once, except rows that two of them share.
    """
    if not hasattr(parameter, "ds_id"):
        with torch.no_grad():
            parameter.copy_(value().to(parameter.dtype))
        return
    if _is_partitioned(parameter):
        _fill_shard(parameter, value)
        parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]  # hpZ's copy is stale; a gather makes a new one
        return
    import deepspeed

    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):  # whole on every rank
        if distributed.rank() == 0:
            parameter.copy_(value().to(parameter.dtype))


@contextmanager
def _gathered(weight: Any) -> Iterator[None]:
    """Within it, a weight that no hook of its module gathered is whole; DeepSpeed's own linear layer does the same."""
    released = _is_partitioned(weight)
    if released:
        weight.all_gather()
    try:
        yield
    finally:
        if released:
            weight.partition()


def _is_partitioned(parameter: Any) -> bool:
    return parameter.ds_status.name == "NOT_AVAILABLE"


def _fill_shard(parameter: Any, value: Callable[[], Tensor]) -> None:
    """Copy this rank's part of the flattened value into its shard. The last shard may end in padding."""
    shard = parameter.ds_tensor
    start = shard.numel() * distributed.rank()
    stop = min(start + shard.numel(), parameter.ds_numel)
    if start >= stop:
        return
    rows = getattr(value, "rows", None)
    if rows is None:
        part = value().flatten()[start:stop]
    else:
        width = parameter.ds_numel // parameter.ds_shape[0]
        first = start // width
        part = rows(first, -(-stop // width)).flatten()[start - first * width : stop - first * width]
    with torch.no_grad():
        shard[: stop - start].copy_(part.to(shard.dtype))


def full_value(parameter: nn.Parameter) -> Tensor | None:
    """Return a CPU copy of the whole parameter, in its own dtype, on the main rank; None elsewhere.

    A collective if the parameter is sharded.
    """
    if not hasattr(parameter, "ds_id"):
        return _copy_on_main(parameter)
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return _copy_on_main(parameter)


def _copy_on_main(parameter: nn.Parameter) -> Tensor | None:
    return parameter.detach().cpu().clone() if distributed.is_main() else None


def elements_held(parameter: nn.Parameter) -> int:
    """Return the number of elements that this rank keeps between steps: its shard, or all if it is not sharded."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.numel()
    kept_whole = parameter.numel() if getattr(parameter, "ds_persist", False) else 0
    return max(parameter.ds_tensor.numel(), kept_whole)
