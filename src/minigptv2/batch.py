"""Defines the contract between data and model: the tensors of a batch, a micro-batch, and the output of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, cast

if TYPE_CHECKING:
    from torch import Tensor, device

    from minigptv2.pack_layout import PackLayout

IGNORE = -100
"""The label of a token that is not supervised."""


class RequiredTensors(TypedDict):
    """The tensors that every batch has."""

    input_ids: Tensor
    """int64 [1, L]: packed tokens; each image is a run of placeholders."""
    labels: Tensor
    """int64 [1, L]: `IGNORE` except on answers; not shifted."""
    position_ids: Tensor
    """int64 [1, L]: restarts at 0 in every packed sample."""
    segment_ids: Tensor
    """int64 [1, L]: number of the packed sample, from 1; 0 is padding."""
    pixel_values: Tensor
    """uint8 or float [N, 3, H, W]: the images, in the order of their runs."""
    task_ids: Tensor
    """int64 [1, L]: index in the task registry, for the loss by task."""


BATCH_KEYS = tuple(RequiredTensors.__annotations__)
"""The keys that every `Batch` has, in order."""


class Batch(RequiredTensors, total=False):
    """The tensors of one pack of L tokens and N images: the keyword arguments of the model's `forward`."""

    loss_weights: Tensor
    """float32 [1, L]: the factor on the loss of each supervised token, 0 elsewhere. Absent: 1 for each."""


OPTIONAL_BATCH_KEYS = ("loss_weights",)
"""The keys of `Batch` that are absent where the recipe's objective is `token`."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank runs forward and backward at once.

    The engine passes `inputs` to the model unread. `weight` is what the loss sum is divided by: the sum of the loss
    weights, or without them the number of supervised tokens. `counts` holds "tokens" and "images", for the log.
    `log_sums` are more numbers for the log. The engine adds them over micro-batches and ranks, so all micro-batches of
    a step must have equally many. `layout` is what the model would otherwise find out by waiting for its device.
    """

    inputs: Batch
    weight: float
    counts: dict[str, int]
    log_sums: tuple[float, ...] = ()
    layout: PackLayout | None = None

    def inputs_on(self, target: device) -> dict[str, Tensor]:
        """The inputs, copied to `target` where they are not there yet."""
        tensors = cast("dict[str, Tensor]", self.inputs)
        return {key: copied_to(value, target) for key, value in tensors.items()}

    def arguments_on(self, target: device) -> dict[str, Any]:
        """The keyword arguments of the model's `forward` on `target`: the inputs, and the layout if there is one."""
        layout = {} if self.layout is None else {"layout": self.layout.to(target)}
        return {**self.inputs_on(target), **layout}


def copied_to(value: Tensor, target: device) -> Tensor:
    """The tensor on `target`. The host does not wait for a GPU: a copy from pinned memory is queued like a kernel."""
    if target.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(target, non_blocking=True)


class StepOutput(TypedDict):
    """What the model returns for a batch: sums over supervised tokens, not means. Only `loss_sum` is weighted.

    A plain dict at run time: the hooks of ZeRO-3 look into tuples, lists and dicts, not into dataclasses.
    """

    loss_sum: Tensor
    """float32 []: the sum of the losses times `loss_weights`, with its gradient."""
    num_tokens: Tensor
    """int64 []: the number of supervised tokens."""
    task_loss: Tensor
    """float32 [tasks]: the sum of the losses by task, without gradient."""
    task_tokens: Tensor
    """float32 [tasks]: the number of supervised tokens by task."""
