"""Builds the model that a `ModelConfig` describes: modules, LoRA adapters, kernels, frozen parts; without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.model.attention import choose_attention
from minigptv2.model.backbones import Sizes, language_spec, vision_spec
from minigptv2.model.config import LoraConfig, ModelConfig, check_parts
from minigptv2.model.kernels import choose_kernels, use_liger
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.weights import set_trainable
from minigptv2.tasks import TASKS

CPU = torch.device("cpu")
MAX_PADDING = 1023
"""Vocabularies are padded to a multiple of up to 1,024 rows."""


def build_model(
    config: ModelConfig,
    vocab_size: int,
    construction: AbstractContextManager[object] | None = None,
    *,
    sizes: Sizes | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> MiniGPTv2:
    """Return the model without weights. `construction` is the context in which modules are built (`zero.Init`).

    `device` and `dtype` are those in which the model will compute. They decide about attention and kernels only.

    `sizes` replace the specs that the config names. LoRA is added after construction, because PEFT layers built inside
    `zero.Init` fail in the first forward pass (DeepSpeed 0.19.8). Raises `ConfigError` for a too large tokenizer and
    `CheckpointError` for a much too small one.
    """
    check_parts(config)
    sizes = sizes or sizes_of(config)
    language = sizes.language_model
    if language.vocab_size is not None:
        _check_pieces(vocab_size, language.vocab_size, config.language_model)
    with construction or nullcontext():
        model = MiniGPTv2(
            sizes.vision_encoder,
            language,
            vocab_size=language.vocab_size or vocab_size,
            num_tasks=len(TASKS),
            attention=choose_attention(config.attention, device, dtype),
        )
    model.vision_batch = config.vision_batch
    if choose_kernels(config.kernels, device) == "liger":
        use_liger(model.language_model)
    if config.lora.r:
        add_lora(model.language_model, config.lora)
    set_trainable(model, config.trainable)
    return model


@contextmanager
def without_values(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it, modules are built on `device` in `dtype`. Their values are undefined, because files fill all of them.

    LoRA, which is added afterwards, follows the device and dtype of its layer.
    """
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            yield
    finally:
        torch.set_default_dtype(before)


def _check_pieces(pieces: int, rows: int, language_model: str) -> None:
    """Raise unless a tokenizer of so many pieces can belong to an embedding of so many rows.

    Rows without a piece are padding: up to 63, up to `MAX_PADDING` if that is at most half of the pieces, and 10 %.
    """
    fix = "Set model.tokenizer to the tokenizer of this language model."
    if pieces > rows:
        raise ConfigError(f"the tokenizer has {pieces} pieces, but {language_model} embeds only {rows}. {fix}")
    if rows - pieces > max(63, min(pieces // 2, MAX_PADDING), pieces // 10):
        raise CheckpointError(
            f"the tokenizer has only {pieces} pieces for the {rows} rows that {language_model} embeds, so it "
            f"is another model's tokenizer or incomplete. {fix}"
        )


def sizes_of(config: ModelConfig) -> Sizes:
    """Return the specs that a config names."""
    return Sizes(vision_spec(config.vision_encoder), language_spec(config.language_model))


def add_lora(language_model: nn.Module, config: LoraConfig) -> None:
    """Add adapters to the target modules of every block, in place."""
    import peft

    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            bias="none",
        ),
        language_model,
    )
