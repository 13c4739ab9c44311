"""Small random weights in the layouts that others publish: a LLaMA folder, an EVA ViT, a MiniGPT-v2 checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from minigptv2.model.backbones import language_spec
from minigptv2.model.base_hashes import hash_bases
from minigptv2.model.bases import fill_weights, open_bases
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import ExportContent, LineageEntry, assign_plain, names_to_export, save_export
from minigptv2.model.minigptv2 import llama_config
from minigptv2.model.weights import named_canonical
from minigptv2.tokenizer import Tokenizer

VISION_WIDTH, VISION_MLP, VISION_BLOCKS, PATCH, SIDE, HEADS = 88, 384, 3, 14, 112, 4
VISION_OPTIONS = ["--vision-heads", str(HEADS), "--image-size", str(SIDE)]
"""What the stand-in's files do not tell."""


def write_stock_llama(folder: Path, tokenizer: Tokenizer, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A random LLaMA as `transformers` saves it, with the toy tokenizer."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(language_spec("tiny_llama"), tokenizer.vocab_size)).to(dtype)
    model.save_pretrained(str(folder))
    shutil.copyfile(tokenizer.path, folder / tokenizer.path.name)
    return folder


def lora_on(llama: Path) -> ModelConfig:
    """The config of a model with a projector and LoRA on the folder of `write_stock_llama`."""
    return ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        language_weights=str(llama),
        lora=LoraConfig(r=4, alpha=8, dropout=0.0),
        trainable=["projector", "lora"],
    )


def random_export(folder: Path, config: ModelConfig, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """An export on its bases with random projector and LoRA, B not zero."""
    model = build_model(config, tokenizer.vocab_size)
    bases = open_bases(config)
    fill_weights(model, bases, None, assign_plain, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    named = named_canonical(model)
    for name, parameter in named.items():
        if ".lora_B." in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    tensors = {name: named[name].detach().clone() for name in names_to_export(model, config, {})}
    lineage = [LineageEntry("random", 0)]
    save_export(folder, ExportContent(tensors, config, tokenizer, lineage, hash_bases(bases)))
    return folder


def write_published(folder: Path, tokenizer: Tokenizer) -> None:
    """In `folder`: `eva_vit_g.pth`, `Llama-2-7b-chat-hf` and `minigptv2_checkpoint.pth`, all random and small."""
    write_stock_llama(folder / "Llama-2-7b-chat-hf", tokenizer)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(shape, generator=generator)

    width, patches = VISION_WIDTH, (SIDE // PATCH) ** 2
    vision = {
        "cls_token": random(1, 1, width),
        "pos_embed": random(1, patches + 1, width),
        "patch_embed.proj.weight": random(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(width),
    }
    shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (VISION_MLP, width),
        "mlp.fc1.bias": (VISION_MLP,),
        "mlp.fc2.weight": (width, VISION_MLP),
        "mlp.fc2.bias": (width,),
    }
    for block in range(VISION_BLOCKS):
        vision |= {f"blocks.{block}.{name}": random(*shape) for name, shape in shapes.items()}
    torch.save(vision, folder / "eva_vit_g.pth")
    row = language_spec("tiny_llama")
    rank = 8
    trained = {"llama_proj.weight": random(row.width, 4 * width), "llama_proj.bias": random(row.width)}
    for layer in range(row.depth):
        for matrix in ("q_proj", "v_proj"):
            place = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{matrix}"
            trained[f"{place}.lora_A.weight"] = random(rank, row.width)
            trained[f"{place}.lora_B.weight"] = random(row.width, rank)
    config = {"model": {"arch": "minigpt_v2", "lora_r": rank, "lora_alpha": 16, "image_size": SIDE}}
    torch.save({"model": trained, "config": config}, folder / "minigptv2_checkpoint.pth")


def write_deepspeed(folder: Path, config: ModelConfig, tokenizer: Tokenizer, tag: str = "global_step2") -> Path:
    """A ZeRO-2 checkpoint of one rank, with random values of what `config` trains, as DeepSpeed 0.19 lays it out."""
    model = build_model(config, tokenizer.vocab_size)
    fill_weights(model, open_bases(config), None, assign_plain, seed=0)
    named = {name: value.detach().clone() for name, value in named_canonical(model).items()}
    exported = names_to_export(model, config, {})
    frozen = {name: value for name, value in named.items() if name not in exported}
    states = folder / tag
    states.mkdir(parents=True)
    torch.save(
        {
            "module": named,
            "buffer_names": [],
            "param_shapes": [{name: named[name].shape for name in exported}],
            "frozen_param_shapes": {name: value.shape for name, value in frozen.items()},
            "frozen_param_fragments": frozen,
            "shared_params": {},
            "ds_version": "0.19.8",
        },
        states / "mp_rank_00_model_states.pt",
    )
    flat = torch.cat([named[name].flatten() for name in exported])
    optimizer = {"zero_stage": 2, "partition_count": [1], "single_partition_of_fp32_groups": [flat]}
    torch.save({"optimizer_state_dict": optimizer}, states / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text(tag)
    return folder
