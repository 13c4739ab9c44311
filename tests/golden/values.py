"""Turns results into exact, comparable JSON values, and finds the first differences between two of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
VOLATILE = {"time", "seconds", "versions", "host", "job"}
"""Keys of JSON files that differ between two runs of the same code."""
MOST_DIFFERENCES = 8
_HEX = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-]\d+")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def hash_tensor(tensor: Any) -> str:
    """Return dtype, shape and the SHA-256 of a tensor's bytes."""
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {sha256(data)}"


def hash_tensors(file: Path) -> dict[str, str]:
    """Return the hash of every tensor of a safetensors file by name."""
    from safetensors.torch import load_file

    return {name: hash_tensor(tensor) for name, tensor in load_file(str(file)).items()}


def hash_files(folder: Path, names: Iterable[str] = ("*",)) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder` whose name matches one of the patterns."""
    found = sorted({file for name in names for file in folder.glob(name) if file.is_file()})
    return {file.name: sha256(file.read_bytes()) for file in found}


def read_json(file: Path, work: Path) -> Any:
    """Return a JSON file without volatile keys, its paths made independent of the machine's folders."""
    return plain(json.loads(file.read_bytes()), work)


def read_lines(file: Path, work: Path) -> list[Any]:
    """Return the lines of a `.jsonl` file as `read_json` does; an empty list where there is no file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [plain(json.loads(line), work) for line in lines]


def plain(value: Any, work: Path) -> Any:
    """Return `value` without volatile keys and with `<work>` and `<repository>` in place of those two folders."""
    if isinstance(value, dict):
        return {key: plain(item, work) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list | tuple):
        return [plain(item, work) for item in value]
    if isinstance(value, str):
        return value.replace(str(work), "<work>").replace(str(REPOSITORY), "<repository>")
    return value


def exact(value: Any) -> Any:
    """Return `value` as JSON keeps it without rounding: floats become hexadecimal, tuples lists."""
    if isinstance(value, dict):
        return {str(key): exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    if isinstance(value, float):
        return value.hex()
    return value


def differences(before: Any, now: Any, at: str = "") -> list[str]:
    """Return the first differences between two exact values, each with its place."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = [f"{at}/{key}: no longer there" for key in before if key not in now]
        found += [f"{at}/{key}: new" for key in now if key not in before]
        pairs = [(f"{at}/{key}", before[key], now[key]) for key in before if key in now]
    elif isinstance(before, list) and isinstance(now, list):
        found = [f"{at}: {len(before)} values, now {len(now)}"] if len(before) != len(now) else []
        pairs = [(f"{at}[{number}]", *pair) for number, pair in enumerate(zip(before, now, strict=False))]
    else:
        return [] if before == now and type(before) is type(now) else [f"{at}: {_shown(before)}, now {_shown(now)}"]
    for place, old, new in pairs:
        if len(found) >= MOST_DIFFERENCES:
            break
        found += differences(old, new, place)
    return found[:MOST_DIFFERENCES]


def _shown(value: Any) -> str:
    """Return a value for people: hexadecimal floats also in decimal, long texts shortened."""
    if isinstance(value, str) and _HEX.fullmatch(value):
        return f"{value} ({float.fromhex(value)!r})"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:160]}..."
