"""Writes random weights in the published file formats, one tensor at a time.

All values are pieces of one drawn pool at offsets that depend on the name, so that writing takes no longer than the
disk does. Only `eva_vit_g.pth` (2 GB) and the checkpoint are in memory as a whole, because `torch.save` needs that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from minigptv2.convert.llama import INDEX_FILE
from minigptv2.model.minigptv2 import llama_config
from tests.full_size.sizes import FullSize

STD = 0.02
POOL = 1 << 24
"""Numbers in the pool of random values."""
SHARDS = 2
Shape = tuple[int, ...]


class RandomValues:
    """Random tensors by name, of ones for norms and zeros for biases."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(20)
        self._pool = (torch.randn(POOL, generator=generator) * STD).to(dtype).repeat(2)

    def tensor(self, name: str, shape: Shape) -> Tensor:
        """The tensor of this name."""
        if "norm" in name:
            return torch.full(shape, float(name.endswith("weight")), dtype=self._pool.dtype)
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") % POOL
        size = math.prod(shape)
        return self._pool[start : start + min(size, POOL)].repeat(-(-size // POOL))[:size].reshape(shape).clone()


def write_vision(file: Path, size: FullSize) -> None:
    """`eva_vit_g.pth`: float16, with one block more than the model uses."""
    spec = size.vision
    width, mlp, patch = spec.width, spec.mlp_width, spec.patch_size
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + size.stored_positions**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for number in range(spec.depth + 1):
        block = f"blocks.{number}."
        shapes |= {f"{block}{norm}.{end}": (width,) for norm in ("norm1", "norm2") for end in ("weight", "bias")}
        shapes |= {f"{block}attn.q_bias": (width,), f"{block}attn.v_bias": (width,)}
        shapes |= {f"{block}attn.qkv.weight": (3 * width, width)}
        layers = {"attn.proj": (width, width), "mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
        for layer, (rows, columns) in layers.items():
            shapes |= {f"{block}{layer}.weight": (rows, columns), f"{block}{layer}.bias": (rows,)}
    values = RandomValues(torch.float16)
    torch.save({name: values.tensor(name, shape) for name, shape in shapes.items()}, file)


def llama_shapes(size: FullSize) -> dict[str, Shape]:
    """The tensors of a Hugging Face LLaMA folder."""
    spec = size.language
    width, mlp, rows = spec.width, spec.mlp_width, size.pieces
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (rows, width)}
    for number in range(spec.depth):
        layer = f"model.layers.{number}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (width, mlp)}
        shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}


def write_llama(folder: Path, size: FullSize) -> None:
    """A LLaMA folder in float16: two safetensors shards with an index, and the config. The tokenizer is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = llama_shapes(size)
    names = list(shapes)
    values = RandomValues(torch.float16)
    weight_map = {}
    half = -(-len(names) // SHARDS)
    for number in range(SHARDS):
        some = names[number * half : (number + 1) * half]
        file = folder / f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        with open(file, "wb") as stream:
            _stream_safetensors(stream, {name: shapes[name] for name in some}, values)
        weight_map |= dict.fromkeys(some, file.name)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = llama_config(size.language, size.pieces).to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}, default=str))


def _stream_safetensors(stream: BinaryIO, shapes: dict[str, Shape], values: RandomValues) -> None:
    """Write float16 tensors one after the other behind their header (format of huggingface/safetensors)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, begin, end in _places(shapes):
        header[name] = {"dtype": "F16", "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        stream.write(values.tensor(name, shape).numpy().data)


def _places(shapes: dict[str, Shape]) -> Iterator[tuple[str, int, int]]:
    position = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        yield name, position, position + size
        position += size


def write_checkpoint(file: Path, size: FullSize) -> None:
    """A published checkpoint: float32 projector and LoRA, and the buffer that old files hold."""
    vision, language, rank = size.vision, size.language, size.lora_rank
    values = RandomValues(torch.float32)
    shapes: dict[str, Shape] = {
        "llama_proj.weight": (language.width, 4 * vision.width),
        "llama_proj.bias": (language.width,),
    }
    for number in range(language.depth):
        for name in "qv":
            module = f"llama_model.base_model.model.model.layers.{number}.self_attn.{name}_proj."
            shapes |= {f"{module}lora_A.weight": (rank, language.width)}
            shapes |= {f"{module}lora_B.weight": (language.width, rank)}
    state = {name: values.tensor(name, shape) for name, shape in shapes.items()}
    for number in range(language.depth):
        place = f"llama_model.base_model.model.model.layers.{number}.self_attn.rotary_emb.inv_freq"
        state[place] = torch.ones(language.width // language.heads // 2)
    config = {"model": {"image_size": vision.image_size, "lora_r": rank, "lora_alpha": 16}}
    document = {"model": state, "optimizer": {}, "config": config, "scaler": None, "epoch": 0}
    torch.save(document, file)
