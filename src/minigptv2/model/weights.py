"""Handles weights by name: initial values, safetensors files, and the part that a parameter belongs to.

Names are *canonical*, as if there were no LoRA (`q_proj.weight`, not `q_proj.base_layer.weight`), so that weights move
between models with and without adapters. Parameters may be sharded; the caller's `assign` fills one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.errors import CheckpointError
from minigptv2.foreign_files import open_safetensors
from minigptv2.model.config import PARTS

Assign = Callable[[nn.Parameter, Callable[[], Tensor]], None]
"""Fills a parameter with what the function returns. Of a sharded one, it fills this rank's part."""
ShapeOf = Callable[[nn.Parameter], tuple[int, ...]]
"""Returns the full shape of a parameter, which may be sharded."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: its shape and dtype, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


Tensors = dict[str, LazyTensor]
"""Tensors by name, read one at a time."""

FILE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of torch by their names in safetensors files."""

GAIN = 3.0
INIT_STD = 0.3
"""Standard deviation of embeddings and the class token at random initialization."""


def plain_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of a parameter that is not sharded."""
    return tuple(parameter.shape)


def canonical_name(name: str) -> str:
    """Return the name of a parameter without the components that PEFT adds."""
    name = name.replace(".base_layer.", ".")
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def part_of(name: str) -> str:
    """Return the part (one of `PARTS`) that the parameter of this canonical name belongs to."""
    if ".lora_A." in name or ".lora_B." in name:
        return "lora"
    part = name.split(".", 1)[0]
    assert part in PARTS, f"parameter {name} belongs to none of {PARTS}"
    return part


def named_canonical(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by canonical name, in the module's order."""
    return {canonical_name(name): parameter for name, parameter in model.named_parameters()}


def set_trainable(model: nn.Module, parts: Iterable[str]) -> None:
    """Make the parameters of `parts`, and no others, require gradients."""
    wanted = set(parts)
    for name, parameter in named_canonical(model).items():
        parameter.requires_grad_(part_of(name) in wanted)


def init_value(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the initial value, float32, of the parameter with this canonical name.

    It depends on (seed, name, shape) only, so that every world size, ZeRO stage and process starts from the same model.
    Norms are the identity; biases and LoRA's B are zero. Linear weights have the variance of torch's default,
    1 / (3 fan-in), and embeddings the standard deviation INIT_STD.
    """
    if name.endswith("norm.weight") or ".layer_norm1.weight" in name or ".layer_norm2.weight" in name:
        return torch.ones(shape)
    if name.endswith(("layernorm.weight", ".norm1.weight", ".norm2.weight", ".lambda1")):
        return torch.ones(shape)
    if name.endswith(".bias") or ".lora_B." in name:
        return torch.zeros(shape)
    if name.endswith(("position_embedding", "position_embeddings")):
        return _sine_cosine_positions(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    is_embedding = "embed" in name and "patch_embedding" not in name
    std = INIT_STD if is_embedding else 1.0 / math.sqrt(GAIN * math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * std


def _sine_cosine_positions(shape: tuple[int, ...]) -> Tensor:
    """Return the two-dimensional sine-cosine code of MAE (arXiv:2111.06377), [1, 1 + side * side, width].

    The class token has zeros. Neighboring patches start with similar codes, so that they learn from each other.
    """
    _, tokens, width = shape
    side = math.isqrt(tokens - 1)
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.outer(torch.arange(side).float(), frequencies)
    code = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2] along one axis
    rows = code[:, None].expand(side, side, -1).reshape(side * side, -1)
    columns = code[None].expand(side, side, -1).reshape(side * side, -1)
    values = torch.zeros(shape)
    values[0, 1:, : 4 * quarter] = torch.cat([rows, columns], dim=1)
    return values


def load_weights(
    model: nn.Module, tensors: Tensors, assign: Assign, *, source: str, shape_of: ShapeOf = plain_shape
) -> None:
    """Fill parameters by canonical name from `tensors`. Every tensor must have a parameter of its shape.

    Raises `CheckpointError` naming `source` and the first tensor that does not fit, before anything is assigned.
    """
    parameters = named_canonical(model)
    check_shapes(tensors, {name: shape_of(parameter) for name, parameter in parameters.items()}, source)
    for name, tensor in tensors.items():
        assign(parameters[name], tensor.read)


def check_shapes(tensors: Tensors, wanted: dict[str, tuple[int, ...]], source: str) -> None:
    """Raise `CheckpointError` unless every tensor has a name and shape among `wanted`."""
    unknown = [name for name in tensors if name not in wanted]
    if unknown:
        raise CheckpointError(f"{source}: {len(unknown)} unexpected tensors, first {unknown[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name]:
            raise CheckpointError(f"{source}: {name}: expected shape {wanted[name]}, got {tensor.shape}")


def check_finite(name: str, tensor: Tensor, source: str) -> None:
    """Raise `CheckpointError` naming `source`, the tensor and a count if some of its numbers are NaN or infinite.

    The smallest and the largest number are NaN if any number is. Finding them takes a tenth of the time of the hash.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    values = tensor if tensor.element_size() > 1 else tensor.float()  # no operations on 8-bit numbers
    if all(bool(end.isfinite()) for end in torch.aminmax(values)):
        return
    bad = values.numel() - int(values.isfinite().sum())
    raise CheckpointError(
        f"{source}: {bad} of the {values.numel()} numbers of {name} are not finite (NaN or infinite). The file is "
        "damaged, or the training that wrote it diverged. Use another copy or an earlier checkpoint."
    )


def read_safetensors(files: Iterable[Path], folder: Path | None = None) -> Tensors:
    """Return all tensors in `files` by name, unread. Raises `CheckpointError` for a damaged or missing file.

    With `folder`, every file has to lie in it, as `foreign_files` defines.
    """
    tensors: Tensors = {}
    for file in files:
        tensors |= tensors_in(open_safetensors(file, CheckpointError, folder=folder))
    return tensors


def tensors_in(handle: Any) -> Tensors:
    """Return all tensors of an open safetensors file by name, unread."""
    return {name: _tensor_in(handle, name) for name in list(handle.keys())}  # not a dictionary


def _tensor_in(handle: Any, name: str) -> LazyTensor:
    unread = handle.get_slice(name)
    return LazyTensor(tuple(unread.get_shape()), FILE_DTYPES[unread.get_dtype()], TensorInFile(handle, name))


@dataclass(frozen=True)
class TensorInFile:
    """Reads one tensor of an open safetensors file, or the rows of it that a rank needs."""

    handle: Any
    name: str

    def __call__(self) -> Tensor:
        return self.handle.get_tensor(self.name)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` along the first axis, without reading the others."""
        return self.handle.get_slice(self.name)[start:stop]


def stored_dtype(tensors: Tensors) -> torch.dtype:
    """Return the dtype that most numbers of `tensors` have: float32, bfloat16 or float16; float32 if it is another."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += math.prod(tensor.shape)
    dtype = max(counts, key=lambda one: counts[one], default=torch.float32)
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def plain_tensors(tensors: dict[str, Tensor]) -> Tensors:
    """Return tensors in memory in the form of tensors in files."""
    return {name: LazyTensor(tuple(one.shape), one.dtype, partial(_itself, one)) for name, one in tensors.items()}


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class TensorHash:
    """The SHA-256 over names, dtypes, shapes and bytes of tensors, which are added in order of their names."""

    def __init__(self, source: str) -> None:
        self._source, self._digest = source, hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises `CheckpointError` naming the source and the tensor if some of its numbers are not finite."""
        value = tensor.detach().contiguous()
        check_finite(name, value, self._source)
        self._digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        self._digest.update(value.flatten().view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """Return the hash of what was added."""
        return self._digest.hexdigest()


def hash_tensors(tensors: Tensors, source: str) -> str:
    """Return the `TensorHash` of all tensors, which is independent of the files that they are in."""
    digest = TensorHash(source)
    for name in sorted(tensors):
        digest.add(name, tensors[name].read())
    return digest.hexdigest()
