"""Changed files of models: weights, configs and lineages of exports, tokenizers, PyTorch files and ZeRO shards."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minigptv2.cli.lineage import _stage_lines
from minigptv2.convert.inputs import tensors_only
from minigptv2.convert.torch_files import read_torch
from minigptv2.convert.zero_shards import consolidated
from minigptv2.engine.checkpoint import STATE_FILE, load_state
from minigptv2.errors import CheckpointError
from minigptv2.model.backbones import language_spec
from minigptv2.model.build import sizes_of
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import FOLDER_CONFIG, FORMAT, load_info
from minigptv2.model.weights import read_safetensors
from minigptv2.tokenizer import load_tokenizer, train_tokenizer
from tests.hostile.fuzz.mutations import OTHER_VALUES, changed_document, changed_json, damaged
from tests.hostile.fuzz.readers import OneFile

TEXTS = ["what is in the image", "größer 12.5 <s> \U0001f600\n"]


class Safetensors:
    """Weights: the header with a right length, and the bytes."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import save

        tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.zeros(0)}
        self._valid = save(tensors, {"format": "pt"})
        self._length = int.from_bytes(self._valid[:8], "little")
        self._file = folder / "weights.safetensors"

    def unchanged(self) -> bytes:
        return self._valid

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        if rng.random() < 0.3:
            return damaged(self._valid, rng)
        name, header = changed_json(json.loads(self._valid[8 : 8 + self._length]), rng)
        return f"header: {name}", len(header).to_bytes(8, "little") + header + self._valid[8 + self._length :]

    def read(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        tensors = read_safetensors([self._file], self._file.parent)
        for name in tensors:
            tensors[name].read()
        return True


class _JsonFile(OneFile):
    """A file of JSON, which `read_file` reads."""

    name: str
    valid: Any

    def __init__(self, folder: Path) -> None:
        self._file = folder / self.name

    def unchanged(self) -> bytes:
        return json.dumps(self.valid).encode()

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        return changed_json(self.valid, rng)


class ExportConfig(_JsonFile):
    """The config of an export."""

    name = FOLDER_CONFIG
    model = ModelConfig(vision_encoder="tiny_vit", language_model="tiny_llama")
    valid = {
        "format": FORMAT,
        "model": asdict(model) | {"language_weights": ".", "tokenizer": None},
        "sizes": sizes_of(model).as_json(),
        "weights_sha256": "a" * 64,
        "base_sha256": {"language_model": "b" * 64},
        "tokenizer_sha256": None,
        "lineage": [],
    }

    def read_file(self, file: Path) -> None:
        json.dumps(asdict(load_info(file.parent).model))


class Lineage(ExportConfig):
    """The lineage in it, and the lines that `minigptv2 lineage` prints."""

    stage = {
        "stage": "stage1",
        "steps": 100,
        "seed": 0,
        "skipped": 1,
        "recipe": "a.yaml",
        "data_plan": "c" * 64,
        "parent": "d" * 64,
        "base_sha256": {"language_model": "e" * 64},
        "versions": {"torch": "2.11"},
        "config": {"train.learning_rate": 1e-4, "model.trainable": ["projector"]},
    }
    lineage = [stage, {"stage": "stage2", "steps": 5}]

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        name, lineage = changed_document({"lineage": self.lineage}, rng)
        return name, json.dumps(self.valid | lineage).encode()

    def read_file(self, file: Path) -> None:
        for number, stage in enumerate(load_info(file.parent).lineage, 1):
            "\n".join(_stage_lines(number, stage.as_json()))


class LlamaFolder(_JsonFile):
    """The config of a LLaMA of somebody else."""

    name = "config.json"
    valid = {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 300,
    }

    def read_file(self, file: Path) -> None:
        language_spec(str(file.parent))


class CheckpointStateFile(_JsonFile):
    """The state of a checkpoint."""

    name = STATE_FILE
    valid: Any = None

    def __init__(self, folder: Path) -> None:
        from tests.hostile.payload import write_checkpoint_of

        super().__init__(folder)
        self.valid = json.loads((write_checkpoint_of(folder / "run") / STATE_FILE).read_text())

    def read_file(self, file: Path) -> None:
        load_state(file.parent)


class TokenizerJson(_JsonFile):
    """A tokenizer of Hugging Face."""

    name = "tokenizer.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.valid = json.loads(train_tokenizer(TEXTS * 5, folder, 270).read_text())

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        document = self.valid
        if rng.random() < 0.5:  # most of the file is its vocabulary
            name, rules = changed_document({key: value for key, value in document.items() if key != "model"}, rng)
            return f"rules: {name}", json.dumps({**rules, "model": document["model"]}).encode()
        if rng.random() < 0.4:
            vocabulary = document["model"]["vocab"]
            name, rules = changed_document({k: v for k, v in document["model"].items() if k != "vocab"}, rng)
            return f"model: {name}", json.dumps({**document, "model": {"vocab": vocabulary, **rules}}).encode()
        return changed_json(document, rng)

    def read_file(self, file: Path) -> None:
        use_tokenizer(file)


class TokenizerModel:
    """A tokenizer of SentencePiece."""

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceTrainer

        stream = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 20),
            model_writer=stream,
            vocab_size=280,
            byte_fallback=True,
            hard_vocab_limit=False,
            model_type="bpe",
            minloglevel=2,
        )
        self._valid, self._file = stream.getvalue(), folder / "tokenizer.model"

    def unchanged(self) -> bytes:
        return self._valid

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        return damaged(self._valid, rng)

    def read(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        use_tokenizer(self._file)
        return True


def use_tokenizer(file: Path) -> None:
    """Encode and decode with a tokenizer."""
    tokenizer = load_tokenizer(file)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.decode(range(tokenizer.vocab_size))
    for number in range(tokenizer.vocab_size):
        tokenizer.piece(number)


OTHER_TENSORS = (
    *OTHER_VALUES,
    torch.zeros(3),
    torch.zeros(0, dtype=torch.int8),
    torch.tensor(1 << 40),
    torch.ones(2, 3, dtype=torch.complex64),
    torch.zeros(1).expand(1 << 20),
    torch.arange(6).reshape(2, 3).t(),
    torch.Size([2, 3]),
    torch.float16,
)
"""Values that a file of torch.save can also hold."""


class TorchFile:
    """A checkpoint of PyTorch: its values, the pickle in a right archive, and its bytes."""

    zipped = True
    valid: dict[str, Any] = {
        "model": {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16), "c": torch.ones(6)[2:]},
        "config": {"model": {"lora_r": 4, "name": "x"}},
        "steps": [1, 2.5, None, True],
    }

    def __init__(self, folder: Path) -> None:
        self._file = folder / "a.pth"
        self._valid = self._saved(self.valid)

    def _saved(self, document: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(document, stream, _use_new_zipfile_serialization=self.zipped)
        return stream.getvalue()

    def unchanged(self) -> bytes:
        return self._valid

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        kind = rng.random()
        if kind < 0.4:
            name, document = changed_document(self.valid, rng, OTHER_TENSORS)
            return f"value: {name}", self._saved(document)
        if kind < 0.7 and self.zipped:
            return rezipped(self._valid, rng)
        return damaged(self._valid, rng)

    def read(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        document = read_torch(self._file, folder=self._file.parent)
        for state in (document, document.get("model") if isinstance(document, dict) else None):
            with contextlib.suppress(CheckpointError):  # not a state dict: refused by name
                for tensor in tensors_only(state, self._file).values():
                    tensor.clone()
        return True


class OldTorchFile(TorchFile):
    """The same in the format before torch 1.6."""

    zipped = False


def rezipped(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One entry of an archive damaged, in an archive with right checksums and lengths."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        chosen = rng.choice([name for name in old.namelist() if name.endswith(("data.pkl", "byteorder", "/0"))])
        chosen = rng.choice([chosen, next(name for name in old.namelist() if name.endswith("data.pkl"))])
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                change, content = damaged(content, rng)
            new.writestr(name, content)
    return f"entry: {change}", stream.getvalue()


class ZeroShards:
    """A checkpoint of ZeRO 2 of DeepSpeed with two ranks: the file of the model or of a rank is changed."""

    stage = 2
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._documents = self._make()
        for name, document in self._documents.items():
            torch.save(document, folder / name)

    def _make(self) -> dict[str, dict[str, Any]]:
        weights = {"a.weight": torch.ones(2, 3), "b": torch.ones(5), "buffer": torch.zeros(1)}
        shapes = [{"a.weight": torch.Size([2, 3])}]
        model = {
            "module": weights,
            "buffer_names": ["buffer"],
            "param_shapes": shapes,
            "frozen_param_shapes": {"b": torch.Size([5])},
            "frozen_param_fragments": {"b": torch.ones(5)},
            "shared_params": {"c": "a.weight"},
            "ds_version": "0.19.8",
        }
        documents: dict[str, dict[str, Any]] = {}
        for rank in range(2):
            piece = torch.ones(3 if self.stage == 3 else 4)
            state = {"zero_stage": self.stage, "partition_count": [2] if self.stage < 3 else 2}
            state |= {"single_partition_of_fp32_groups": [piece]} if self.stage < 3 else {"fp32_flat_groups": [piece]}
            documents[f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"] = {"optimizer_state_dict": state}
            if self.stage == 3:
                fragment = {"frozen_param_fragments": {"b": torch.ones(3)}}
                documents[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"] = model | fragment
        if self.stage < 3:
            documents["mp_rank_00_model_states.pt"] = model
        return documents

    def unchanged(self) -> bytes:
        return bytes([0]) + (self._folder / sorted(self._documents)[0]).read_bytes()

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        number = rng.randrange(len(self._documents))
        document = self._documents[sorted(self._documents)[number]]
        if rng.random() < 0.8:
            change, changed = changed_document(document, rng, OTHER_TENSORS)
            stream = io.BytesIO()
            torch.save(changed, stream)
            return f"file {number}: {change}", bytes([number]) + stream.getvalue()
        change, data = damaged((self._folder / sorted(self._documents)[number]).read_bytes(), rng)
        return f"file {number}: {change}", bytes([number]) + data

    def read(self, data: bytes) -> bool:
        """The first byte of `data` is the number of the file."""
        file = self._folder / sorted(self._documents)[data[0]]
        whole = file.read_bytes()
        try:
            file.write_bytes(data[1:])
            for tensor in consolidated(self._folder).values():
                tensor.clone()
        finally:
            file.write_bytes(whole)
        return True


class ZeroThreeShards(ZeroShards):
    """The same under ZeRO 3, where each rank has a file of the model."""

    stage = 3
