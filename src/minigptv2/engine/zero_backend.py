"""Defines `ZeroBackend`, what the trainer needs from a ZeRO stage. `minigptv2.engine.zero` implements it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class ZeroBackend(Protocol):
    """What the trainer needs from a ZeRO stage. `key` is None for the fp32 weight, else one of `MOMENTS`.

    Call `construction` and `prepare` before `deepspeed.initialize`, then `attach`, then the rest, on all ranks.
    """

    stage: int
    shards_parameters: bool
    """Whether each rank holds a part of every parameter, so that all must run the same modules equally often."""

    @property
    def loss_scaler(self) -> Any:
        """The dynamic loss scaler of fp16, or None."""

    def construction(self) -> AbstractContextManager[object]:
        """Return the context in which modules are built."""

    def prepare(self, model: nn.Module) -> None:
        """Change the built model in place before `deepspeed.initialize`."""

    def attach(self, engine: Any, trainable: dict[str, nn.Parameter]) -> None:
        """Take the initialized engine. Raises `MiniGPTv2Error` if DeepSpeed lacks a name that is used here."""

    def squared_norm(self) -> Tensor:
        """Return this rank's share of the squared global gradient norm, float64 [1], without the loss scale."""

    def update(self) -> float:
        """Run the optimizer step; return the gradient norm before clipping."""

    def skip(self) -> None:
        """Clear the gradients and change no weight and no moment."""

    def make_moments(self, updates: int) -> None:
        """Create the AdamW state as it is after `updates` steps, where it does not exist; set its step count."""

    def read(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """Return the whole fp32 weight or moment, on every rank."""

    def write(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Set the whole fp32 weight or moment to `value`, which every rank passes; the model's weight follows."""

    def held(self, parameter: nn.Parameter) -> Tensor | None:
        """Return what this rank stores of a parameter: the fp32 master where it is trained, else the weight."""
