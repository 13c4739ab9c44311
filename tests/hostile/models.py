"""Hostile model folders: configs, tokenizers, safetensors and exports."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigptv2.errors import ExitCode
from tests.hostile.payload import Payload, change_json, from_published, words

CHECKPOINT = (ExitCode.CHECKPOINT,)
MODEL_ERROR = (ExitCode.CHECKPOINT, ExitCode.CONFIG)
LLAMA = "published/Llama-2-7b-chat-hf"


def deep(levels: int = 100_000) -> str:
    return "[" * levels + "]" * levels


def llama_config(**changes: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        change_json(folder / LLAMA / "config.json", **changes)
        return from_published(folder)

    return make


def llama_file(name: str, data: bytes | str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / LLAMA / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return from_published(folder)

    return make


def tokenizer(**changes: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        change_json(folder / LLAMA / "tokenizer.json", **changes)
        return from_published(folder)

    return make


def tokenizer_model(**changes: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        file = folder / LLAMA / "tokenizer.json"
        document = json.loads(file.read_text())
        document["model"] |= changes
        file.write_text(json.dumps(document))
        return from_published(folder)

    return make


def safetensors(header: dict[str, Any] | str, data: bytes = b"", length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(kind: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def evil_code(folder: Path) -> list[str]:
    """Code beside the weights, named as `transformers` with `trust_remote_code` would load it."""
    code = "open('sprung', 'w')\nclass Evil: pass\n"
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "sitecustomize.py",
        "__init__.py",
    ):
        (folder / LLAMA / name).write_text(code)
    auto = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    change_json(folder / LLAMA / "config.json", auto_map=auto, trust_remote_code=True)
    (folder / LLAMA / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"})
    )
    return from_published(folder)


def index_outside(folder: Path) -> list[str]:
    names = {"model.norm.weight": "../../../canary", "lm_head.weight": "/etc/hostname"}
    (folder / LLAMA / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return from_published(folder)


PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff\xff\0\0\0\0").decode()}
GROWING = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 30}
FIXED = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
SPLIT = {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}

LLAMA_PAYLOADS = [
    Payload("llama: code in its folder", evil_code, CHECKPOINT, harmless=True),
    Payload("llama: an index of files elsewhere", index_outside, CHECKPOINT, harmless=True),
    Payload("llama: a deep config", llama_file("config.json", deep()), CHECKPOINT),
    Payload("llama: a config of 60 MB", llama_file("config.json", "[" + "{}," * 20_000_000 + "0]"), CHECKPOINT),
    Payload("llama: a config that is no object", llama_file("config.json", "[1, 2]"), CHECKPOINT),
    Payload(
        "llama: a config in UTF-16",
        llama_file("config.json", '{"a": "\ud83d"}'.encode("utf-16-le", "surrogatepass")),
        CHECKPOINT,
    ),
    Payload("llama: a long number", llama_file("config.json", '{"hidden_size": ' + "9" * 100_000 + "}"), CHECKPOINT),
    Payload("llama: a width of 10^12", llama_config(hidden_size=10**12), CHECKPOINT),
    Payload("llama: a depth of 10^9", llama_config(num_hidden_layers=10**9), CHECKPOINT),
    Payload("llama: no heads", llama_config(num_attention_heads=0), CHECKPOINT),
    Payload("llama: a negative depth", llama_config(num_hidden_layers=-1), CHECKPOINT),
    Payload("llama: a width that is a text", llama_config(hidden_size="48"), CHECKPOINT),
    Payload("llama: a list of rope settings", llama_config(rope_parameters=[1]), CHECKPOINT),
    Payload("tokenizer: a table that panics", tokenizer(normalizer=PRECOMPILED), CHECKPOINT),
    Payload("tokenizer: a prefix that panics", tokenizer_model(continuing_subword_prefix="#" * 20), CHECKPOINT),
    Payload("tokenizer: a truncation that panics", tokenizer(truncation=TRUNCATION), CHECKPOINT, harmless=True),
    Payload("tokenizer: padding to 2^40", tokenizer(padding=FIXED), CHECKPOINT, harmless=True),
    Payload("tokenizer: texts that grow", tokenizer(normalizer=GROWING), CHECKPOINT),
    Payload("tokenizer: a wrong pattern", tokenizer(pre_tokenizer=SPLIT), CHECKPOINT),
    Payload("tokenizer: numbers of 2^32", tokenizer_model(vocab={"<s>": 0, "</s>": 1, "a": 2**32 - 1}), CHECKPOINT),
    Payload("tokenizer: equal numbers", tokenizer_model(vocab={"<s>": 0, "</s>": 0}), CHECKPOINT),
    Payload("tokenizer: another model", tokenizer(model={"type": "WordLevel", "vocab": {"a": 0}}), CHECKPOINT),
    Payload("tokenizer: no model", tokenizer(model=None), CHECKPOINT),
    Payload("tokenizer: deep", llama_file("tokenizer.json", '{"model": ' + deep() + "}"), CHECKPOINT),
    Payload("tokenizer: 40 MB", llama_file("tokenizer.json", '{"model": "' + "x" * 40_000_000 + '"}'), CHECKPOINT),
    Payload("tokenizer: a damaged SentencePiece", llama_file("tokenizer.model", bytes(range(256)) * 40), CHECKPOINT),
    Payload("tokenizer: an empty SentencePiece", llama_file("tokenizer.model", b"\x0a\x02\x08\x01\0"), MODEL_ERROR),
    Payload("weights: a header of 2^63", llama_file("model.safetensors", safetensors({}, length=1 << 63)), CHECKPOINT),
    Payload(
        "weights: a header of 90 MB",
        llama_file("model.safetensors", safetensors("{" + " " * 90_000_000 + "}")),
        CHECKPOINT,
    ),
    Payload("weights: a deep header", llama_file("model.safetensors", safetensors(f'{{"a": {deep()}}}')), CHECKPOINT),
    Payload(
        "weights: a shape of 2^62",
        llama_file(
            "model.safetensors", safetensors({"model.norm.weight": tensor("F32", [1 << 62, 4], 0, 16)}, bytes(16))
        ),
        CHECKPOINT,
    ),
    Payload(
        "weights: overlapping tensors",
        llama_file("model.safetensors", safetensors({n: tensor("F32", [4], 0, 16) for n in "ab"}, bytes(16))),
        CHECKPOINT,
    ),
    Payload(
        "weights: numbers of 4 bits",
        llama_file("model.safetensors", safetensors({"model.norm.weight": tensor("F4", [4], 0, 2)}, bytes(2))),
        CHECKPOINT,
    ),
]


def export_config(command: str = "lineage", **changes: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        change_json(folder / "export" / "config.json", **changes)
        return command_on_export(folder, command)

    return make


def export_section(section: str, command: str = "merge", **changes: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        file = folder / "export" / "config.json"
        document = json.loads(file.read_text())
        if section in document:
            document[section] |= changes
        else:
            document["sizes"][section] |= changes
        file.write_text(json.dumps(document))
        return command_on_export(folder, command)

    return make


def command_on_export(folder: Path, command: str) -> list[str]:
    if command == "lineage":
        return words("lineage", folder / "export")
    return words("convert", command, folder / "export", "--output", folder / "out")


def export_file(name: str, data: bytes, command: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "export" / name).write_bytes(data)
        return command_on_export(folder, command)

    return make


STOLEN = "${oc.env:STOLEN_TOKEN}"
EXPORT_PAYLOADS = [
    *(
        Payload(f"export: a lineage that is {name}", export_config(lineage=value), CHECKPOINT)
        for name, value in {
            "a text": "abc",
            "a number": 3,
            "null": None,
            "a list of texts": ["a"],
            "without steps": [{"stage": "a"}],
            "of a list as stage": [{"stage": ["a"], "steps": 3}],
        }.items()
    ),
    Payload(
        "export: a lineage without a seed",
        export_config(lineage=[{"stage": "a", "steps": 1, "config": 3}]),
        CHECKPOINT,
        True,
    ),
    Payload("export: a deep config", export_file("config.json", deep().encode(), "lineage"), CHECKPOINT),
    Payload("export: a config of a list", export_file("config.json", b"[]", "lineage"), CHECKPOINT),
    Payload(
        "export: a config that is no text", export_file("config.json", b"\xff\xfe\x00\x01" * 99, "lineage"), CHECKPOINT
    ),
    Payload("export: weights of 10^12", export_section("vision_encoder", width=10**12), CHECKPOINT),
    Payload("export: a depth of 10^6", export_section("language_model", depth=10**6), CHECKPOINT),
    Payload("export: more layers than weights", export_section("language_model", depth=500), CHECKPOINT),
    Payload("export: a patch of 0 pixels", export_section("vision_encoder", patch_size=0), CHECKPOINT),
    Payload("export: mean of texts", export_section("vision_encoder", mean=["a", "b", "c"]), CHECKPOINT),
    Payload("export: a secret in its config", export_section("model", vision_encoder=STOLEN), CHECKPOINT),
    Payload("export: a secret as its base", export_section("model", language_weights=STOLEN), CHECKPOINT),
    Payload("export: a base above it", export_section("model", language_weights="../../.."), (ExitCode.CONFIG,)),
    Payload("export: a base that is a list", export_section("model", language_weights=["/etc"]), CHECKPOINT),
    Payload("export: adapters of a pattern", export_section("model", lora={"r": 4, "alpha": "x"}), CHECKPOINT),
    Payload("export: unknown settings", export_section("model", trust_remote_code=True), CHECKPOINT),
    Payload("export: hashes of a list", export_config("merge", base_sha256=["a"]), CHECKPOINT),
    Payload("export: a hash of a number", export_config("merge", weights_sha256=5), CHECKPOINT),
    Payload("export: other weights", export_file("weights.safetensors", safetensors({}), "to-peft"), CHECKPOINT),
    Payload("export: another tokenizer", export_file("tokenizer.json", b"{}", "merge"), CHECKPOINT),
]
PAYLOADS = [*LLAMA_PAYLOADS, *EXPORT_PAYLOADS]
