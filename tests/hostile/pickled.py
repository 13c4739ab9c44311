"""Hostile files of `torch.save`: in DeepSpeed folders, published checkpoints and `.bin` files."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minigptv2.errors import ExitCode
from tests.hostile.payload import Payload, Trap, from_deepspeed, from_published

CHECKPOINT = (ExitCode.CHECKPOINT,)
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
"""Loads the four numbers of `data/0`."""


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def zip_of(data: bytes, *, compress: bool = False, twice: bool = False, storage: bytes = bytes(16)) -> bytes:
    """A file of torch.save whose pickle is `data`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        if twice:
            archive.writestr("other/data.pkl", pickle.dumps({"model": Trap()}, 2))
    return buffer.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def tensor_pickle(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A state dict whose one tensor has this view of four numbers."""
    rest = pickle.dumps((offset, size, stride), 2)[2:-1]
    return (
        b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE[1:]
        + (rest + b"q\x01")
        + b"0("
        + b"tRss."
    )


def state_of(*lines: bytes) -> bytes:
    return b"\x80\x02" + b"".join(lines) + b"."


def old_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Trap(), 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


LIST_OF_DOUBLES = b"]q\x00" + b"".join(
    b"]q" + bytes([n]) + b"(h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e" for n in range(1, 60)
)

FILES: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: saved({"model": Trap()}),
    "os.system in the old format": lambda: saved({"model": Trap()}, _use_new_zipfile_serialization=False),
    "os.system in protocol 4": lambda: saved({"model": Trap()}, pickle_protocol=4),
    "os.system in a tar": old_tar,
    "eval": lambda: saved({"model": Calls(eval, "open('sprung', 'w')")}),
    "getattr": lambda: saved({"model": Calls(getattr, "a", "join")}),
    "a plain pickle": lambda: pickle.dumps({"model": Trap()}),
    "an opcode INST": lambda: zip_of(state_of(b"(S'touch sprung'\nios\nsystem\n")),
    "an opcode OBJ": lambda: zip_of(state_of(b"(cos\nsystem\nX\x0c\x00\x00\x00touch sprungo")),
    "an extension": lambda: zip_of(state_of(b"\x82\x01")),
    "a class of torch": lambda: zip_of(
        state_of(b"ctorch.hub\nload_state_dict_from_url\nX\x0b\x00\x00\x00http://a/bc\x85R")
    ),
    "BUILD on a function": lambda: zip_of(
        state_of(b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__Nsb\x86b")
    ),
    "a second pickle": lambda: zip_of(pickle.dumps({"model": {}}, 2), twice=True),
    "a compressed pickle": lambda: zip_of(b"\x80\x02" + b"N0" * 200_000_000 + b".", compress=True),
    "a compressed storage": lambda: zip_of(pickle.dumps({"model": {}}, 2), compress=True, storage=bytes(1 << 28)),
    "10 million lists": lambda: zip_of(b"\x80\x02]q\x00(" + b"]" * 10_000_000 + b"e."),
    "a number for the memo": lambda: zip_of(b"\x80\x02Nr\xff\xff\xff\xff."),
    "a text of 4 GB": lambda: zip_of(b"\x80\x02X\xff\xff\xff\xffabc."),
    "a long number": lambda: zip_of(b"\x80\x02\x8b\xff\xff\xff\x7fabc."),
    "keys of equal hash": lambda: zip_of(
        b"\x80\x02}("
        + b"".join(b"\x8a\x0b" + (n * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for n in range(60_000))
        + b"u."
    ),
    "a list in itself": lambda: zip_of(state_of(b"}X\x05\x00\x00\x00model]q\x00h\x00as")),
    "doubled lists": lambda: zip_of(state_of(b"}X\x05\x00\x00\x00model", LIST_OF_DOUBLES, b"s")),
    "an expanded tensor": lambda: zip_of(tensor_pickle(0, (1 << 20, 1 << 20), (0, 0))),
    "a tensor before its storage": lambda: zip_of(tensor_pickle(-4, (4,), (1,))),
    "a tensor behind its storage": lambda: zip_of(tensor_pickle(1 << 40, (4,), (1,))),
    "a number as storage": lambda: zip_of(state_of(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)))tR")),
    "garbage": lambda: os.urandom(5000),
    "a cut zip": lambda: saved({"model": {"a": torch.ones(99)}})[:-300],
    "a zip of 300,000 entries": lambda: many_entries(300_000),
}
"""The content of a file, by what is hostile in it."""


def many_entries(count: int) -> bytes:
    """A zip whose table lists one entry many times."""
    whole = zip_of(pickle.dumps({}, 2))
    end = whole.rindex(b"PK\x05\x06")
    first = whole.index(b"PK\x01\x02")
    table = whole[first:end] * (count // 4)
    size = min(len(table), 0xFFFFFFFE)
    return whole[:first] + table + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, size, first, 0)


def as_checkpoint(data: Callable[[], bytes]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "evil.pth").write_bytes(data())
        return from_published(folder, checkpoint=folder / "evil.pth")

    return make


def as_vision(data: Callable[[], bytes]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "evil.pth").write_bytes(data())
        return from_published(folder, vision=folder / "evil.pth")

    return make


def as_bin(data: Callable[[], bytes]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        language = folder / "published" / "Llama-2-7b-chat-hf"
        for file in language.glob("*.safetensors"):
            file.unlink()
        (language / "pytorch_model.bin").write_bytes(data())
        return from_published(folder)

    return make


def as_optimizer(data: Callable[[], bytes]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "deepspeed/global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(data())
        return from_deepspeed(folder)

    return make


PLACES = {"checkpoint": as_checkpoint, "vision": as_vision, "language .bin": as_bin, "optimizer": as_optimizer}
FILE_PAYLOADS = [
    Payload(f"{place}: {name}", put(FILES[name]), CHECKPOINT)
    for number, name in enumerate(FILES)
    for index, (place, put) in enumerate(PLACES.items())
    if name.startswith(("os.system", "eval")) or number % len(PLACES) == index
]
"""Programs in every place, and every other file in one place."""


def tag_payload(name: str, tag: str, trapped: str) -> Payload:
    """A folder `trapped` whose pickles run code, beside the good one, and a tag that a pattern takes for both."""

    def make(folder: Path) -> list[str]:
        run = folder / "deepspeed"
        for place in {trapped, tag} - {""}:
            if "/" not in place and "\0" not in place:
                (run / place).mkdir(exist_ok=True)
                for file in (run / "global_step2").glob("*.pt"):
                    (run / place / file.name).write_bytes(saved({"optimizer_state_dict": Trap(), "module": Trap()}))
        (run / "latest").write_text(tag)
        return from_deepspeed(folder)

    return Payload(f"tag: {name}", make, CHECKPOINT)


TAG_PAYLOADS = [
    tag_payload("brackets", "global_step[3]", "global_step3"),
    tag_payload("question mark", "global_step?", "global_step3"),
    tag_payload("star", "glob*", "global_step3"),
    tag_payload("up", "../deepspeed/global_step3", "global_step3"),
    tag_payload("absolute", "/tmp", "global_step3"),
    tag_payload("newline", "global_step3\nglobal_step2", "global_step3"),
    tag_payload("NUL", "global_step3\0", "global_step3"),
]
PAYLOADS = [*FILE_PAYLOADS, *TAG_PAYLOADS]
