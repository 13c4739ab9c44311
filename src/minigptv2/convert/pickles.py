"""Reads the pickles in files of `torch.save` without Python's unpickler: no code of a file or of a library is called.

A small machine runs the few operations that `torch.save` writes. It builds lists, tuples, dictionaries, plain values
and tensors. A name in a pickle is looked up in `_NAMED`, never imported, and every callable in that table is defined
here. Any other operation or name is an error. Size, number of operations and the bytes of all tensors are bounded.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_BYTES = 16 << 20
"""Largest pickle. That of a model with 1,000 tensors has about 0.2 MiB."""
MAX_OPERATIONS = 1_000_000
"""About 40,000 tensors. A pickle of this many operations is read in seconds and takes at most 300 MiB."""
MAX_REPEATS = 4
"""How often the bytes of a file may be used: tensors may share memory, as tied embeddings do."""
MAX_DIMENSIONS = 16
"""Of a tensor."""
_MAX_KEY = 1 << 53
_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class ForeignObjectError(ValueError):
    """A pickle names an object that is neither a tensor nor a plain value."""


class Inert:
    """Stands for an object that is not needed. It keeps nothing of what the file says about it."""


@dataclass(frozen=True)
class StorageType:
    """What a name such as `torch.FloatStorage` stands for. None: bytes, whose tensors state their dtype."""

    dtype: torch.dtype | None


@dataclass(frozen=True)
class Storage:
    """Bytes of a file as the numbers of tensors."""

    dtype: torch.dtype | None
    data: torch.UntypedStorage


OpenStorage = Callable[[StorageType, str, int], Storage]
"""Returns the storage of this type, key and number of elements. Raises `ValueError` if the file has none."""


@dataclass(frozen=True)
class _Function:
    """A callable of the table, by its kind: the machine applies it itself."""

    name: str


_INERT = _Function("inert")
_NAMED: dict[str, Any] = {
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in _DTYPES.items()},
    **{str(dtype): dtype for dtype in _DTYPES.values()},
    "torch.storage.UntypedStorage": StorageType(None),
    "torch._utils._rebuild_tensor_v2": _Function("tensor"),
    "torch._utils._rebuild_tensor_v3": _Function("tensor"),
    "torch._utils._rebuild_parameter": _Function("first"),
    "torch._tensor._rebuild_from_type_v2": _Function("apply"),
    "torch.Size": _Function("first"),
    "collections.OrderedDict": _Function("dict"),
    "deepspeed.runtime.zero.config.ZeroStageEnum": _Function("first"),
    **dict.fromkeys(
        (
            "_codecs.encode",
            "argparse.Namespace",
            "builtins.set",
            "collections.Counter",
            "deepspeed.accelerator.real_accelerator",
            "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
            "deepspeed.runtime.fp16.loss_scaler.LossScaler",
            "deepspeed.utils.tensor_fragment.fragment_address",
            "torch.Tensor",
            "torch.device",
            "torch.nn.parameter.Parameter",
            "torch.serialization._get_layout",
        ),
        _INERT,
    ),
}
"""All names that a pickle may hold, with what stands for each."""
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def read_pickle(data: bytes, open_storage: OpenStorage, max_tensor_bytes: int) -> tuple[Any, int]:
    """The value of the pickle at the beginning of `data`, and the length of the pickle.

    Raises `ForeignObjectError` for an object that is no tensor or plain value, and `ValueError` for everything else
    that `torch.save` does not write.
    """
    stream = io.BytesIO(data)
    try:
        return _Machine(open_storage, max_tensor_bytes).run(stream), stream.tell()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, UnicodeError) as error:
        raise ValueError(f"damaged pickle: {type(error).__name__}") from error


class _Machine:
    def __init__(self, open_storage: OpenStorage, max_tensor_bytes: int) -> None:
        self._open_storage = open_storage
        self._tensor_bytes_left = max_tensor_bytes
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for number, (operation, argument) in enumerate(_operations(stream)):
            if number > MAX_OPERATIONS:
                raise ValueError(f"its pickle has more than {MAX_OPERATIONS:,} operations")
            if operation == "STOP":
                return self._stack.pop()
            if operation in _VALUES:
                self._stack.append(argument)
            elif operation in _EMPTY:
                self._stack.append(_EMPTY[operation]())
            else:
                self._apply(operation, argument)
        raise ValueError("its pickle is cut")

    def _apply(self, operation: str, argument: Any) -> None:
        stack = self._stack
        if operation in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif operation == "MARK":
            self._below.append(stack)
            self._stack = []
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            stack[-count:] = [tuple(_last(stack, count))]
        elif operation == "TUPLE":
            items = self._to_mark()
            self._stack.append(tuple(items))
        elif operation in ("APPEND", "APPENDS"):
            items = [stack.pop()] if operation == "APPEND" else self._to_mark()
            _kind(self._stack[-1], list).extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = _pop(stack, 2) if operation == "SETITEM" else self._to_mark()
            self._set_items(items)
        elif operation == "GLOBAL":
            stack.append(_named(argument))
        elif operation in ("REDUCE", "NEWOBJ"):
            function, arguments = _pop(stack, 2)
            stack.append(self._call(function, _kind(arguments, tuple)))
        elif operation == "BUILD":
            stack.pop()  # the state of an object, such as the versions of a model's modules
        elif operation == "BINPERSID":
            stack.append(self._storage(_kind(stack.pop(), tuple)))
        elif operation != "PROTO":
            raise ValueError(f"its pickle has the operation {operation}, which torch.save does not write")

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = isinstance(key, str | bytes | None) or (isinstance(key, int) and abs(key) < _MAX_KEY)
            if not plain:
                raise ValueError(f"a key must be a text or a number, got {type(key).__name__}")
            if not isinstance(target, Inert):
                _kind(target, dict)[key] = value

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        name = _kind(function, _Function).name
        if name == "first":
            return arguments[0]
        if name == "dict":
            return {}
        if name == "apply":  # a function, the type of the result, the arguments, attributes of the tensor
            return self._call(arguments[0], _kind(arguments[2], tuple))
        return self._tensor(*arguments) if name == "tensor" else Inert()

    def _storage(self, name: tuple[Any, ...]) -> Storage:
        """The storage of `('storage', type, key, device, number of elements)`. The old format adds a view or None."""
        kind, storage_type, key, _, elements, *view = name
        if kind != "storage" or any(view):
            raise ValueError("it refers to something that is no storage of its own")
        return self._open_storage(_kind(storage_type, StorageType), _kind(key, str), whole(elements))

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
        """The tensor, whose every element is in the storage, and no element twice as in an expanded tensor."""
        storage = _kind(storage, Storage)
        dtype = storage.dtype or next(value for value in more if isinstance(value, torch.dtype))
        shape, steps = ([whole(number) for number in _kind(numbers, tuple)] for numbers in (size, stride))
        count = math.prod(shape)
        last = whole(offset) + sum((number - 1) * step for number, step in zip(shape, steps, strict=True))
        available = storage.data.nbytes() // dtype.itemsize
        if len(shape) > MAX_DIMENSIONS or count > available or (count and last >= available):
            raise ValueError(f"a tensor of shape {tuple(shape[:MAX_DIMENSIONS])} does not fit its {available} numbers")
        self._tensor_bytes_left -= count * dtype.itemsize
        if self._tensor_bytes_left < 0:
            raise ValueError(f"its tensors have more than {MAX_REPEATS} times the bytes of the file")
        return torch.empty(0, dtype=dtype).set_(storage.data, offset, shape, steps)


_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    *("NONE", "NEWTRUE", "NEWFALSE"),
)
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Inert,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _operations(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    for operation, argument, _ in pickletools.genops(stream):
        yield operation.name, _CONSTANTS.get(operation.name, argument)


def _named(text: str) -> Any:
    """What stands for the name `module name`, as pickles of Python 2 and 3 write it."""
    module, _, name = text.partition(" ")
    full = f"{_PYTHON_2.get(module, module)}.{name}"
    if full not in _NAMED:
        raise ForeignObjectError(full)
    return _NAMED[full]


def _kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def whole(value: Any) -> int:
    """`value`, which is a size or position. Raises `ValueError` for anything but a whole number below 2^62."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("a size or position must be a whole number")
    return value


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("damaged pickle: nothing to take")
    return stack[-count:]


def _pop(stack: list[Any], count: int) -> list[Any]:
    items = _last(stack, count)
    del stack[-count:]
    return items
