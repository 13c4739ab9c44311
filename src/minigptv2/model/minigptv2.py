"""Defines MiniGPT-v2: a vision encoder, a token-merging projector and a language model (arXiv:2310.09478, section 2).

It takes a batch and returns a weighted loss *sum*. The engine divides once, by the weight over all ranks and
micro-batches. Vision encoder and language model come from `transformers`; only the projector is defined here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from minigptv2.batch import StepOutput, copied_to
from minigptv2.model.attention import GENERATION, check_shared_images
from minigptv2.model.backbones import (
    TOKENS_PER_GROUP,
    LanguageModelSpec,
    VisionEncoderSpec,
)
from minigptv2.model.head import chunk_head
from minigptv2.pack_layout import PackLayout


class Projector(nn.Module):
    """Merges runs of TOKENS_PER_GROUP consecutive vision tokens on the channel axis, then applies one linear layer."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width * TOKENS_PER_GROUP, language_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, P, vision_width] -> [N, P / TOKENS_PER_GROUP, language_width]; strips in raster order, not squares."""
        images, patches, width = tokens.shape
        return self.linear(tokens.reshape(images, patches // TOKENS_PER_GROUP, width * TOKENS_PER_GROUP))


class MiniGPTv2(nn.Module):
    """The model. Its modules are built without weights; `model.bases` fills them.

    `attention` names the implementation over packs (see `model.attention.choose_attention`).
    """

    def __init__(
        self, vision: VisionEncoderSpec, language: LanguageModelSpec, *, vocab_size: int, num_tasks: int, attention: str
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.attention = attention
        self.vision_batch = 0
        self.image_size = vision.image_size
        self.tokens_per_image = vision.tokens_per_image
        self.max_positions = language.max_positions
        self._pixel_mean, self._pixel_std = vision.mean, vision.std
        self._statistics: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.vision_encoder = _build_vision_encoder(vision)
        self.projector = Projector(vision.width, language.width)
        self.language_model = _build_language_model(language, vocab_size, attention)
        chunk_head(self.language_model.lm_head)
        head_width = language.width // language.heads
        exponents = [i / head_width for i in range(0, head_width, 2)]
        self._rotary_frequencies = [language.rope_theta**-exponent for exponent in exponents]

    def forward(
        self,
        *,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        pixel_values: Tensor,
        task_ids: Tensor,
        loss_weights: Tensor | None = None,
        layout: PackLayout | None = None,
    ) -> StepOutput:
        """A `Batch` -> sums over the supervised tokens of the pack, in float32.

        `loss_sum` [] carries the gradient, and each token counts with its weight. `num_tokens` [] counts tokens.
        `task_loss` and `task_tokens` [num_tasks] are sums by task, without weights and gradient. `layout` is that of
        the batch on its device. Without it the host waits for the device to compute it. Raises `ValueError` if
        placeholders and image tokens do not match.
        """
        layout = layout or PackLayout.of(position_ids, labels, input_ids)
        embeddings = self.embed(input_ids, pixel_values, layout)
        losses, supervised = self.token_losses(embeddings, labels, position_ids, layout)
        # The weight of a token is at its label, and the token before it has the loss.
        weighted = losses if loss_weights is None else losses * loss_weights[0].index_select(0, supervised + 1)
        tasks = task_ids[0].index_select(0, supervised + 1)
        by_task = torch.zeros(self.num_tasks, device=losses.device)
        return StepOutput(
            loss_sum=weighted.sum(),
            num_tokens=supervised.new_full((), len(supervised)),
            task_loss=by_task.index_add(0, tasks, losses.detach()),
            task_tokens=by_task.index_add(0, tasks, torch.ones_like(losses)),
        )

    def token_losses(
        self, embeddings: Tensor, labels: Tensor, position_ids: Tensor, layout: PackLayout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy float32 [T] of each supervised token, and the position [T] that predicts it.

        `embeddings` [1, L, D] as `embed` makes them, `labels` and `position_ids` int64 [1, L] as `data.collate` does,
        `layout` as for `forward`.
        """
        layout = layout or PackLayout.of(position_ids, labels)
        hidden, targets = self._supervised(embeddings, labels, position_ids, layout)
        return self.language_model.lm_head(hidden, targets), layout.supervised

    def answer_logits(
        self, *, input_ids: Tensor, labels: Tensor, position_ids: Tensor, pixel_values: Tensor, layout: PackLayout
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits float32 [T, vocabulary], target [T] and position [T] of each supervised token of a pack."""
        embeddings = self.embed(input_ids, pixel_values, layout)
        hidden, targets = self._supervised(embeddings, labels, position_ids, layout)
        return self.language_model.lm_head(hidden).float(), targets, layout.supervised

    def _supervised(
        self, embeddings: Tensor, labels: Tensor, position_ids: Tensor, layout: PackLayout
    ) -> tuple[Tensor, Tensor]:
        """Return last hidden state [T, D] and target [T] of the tokens that predict a supervised one."""
        if layout.shares_images:
            check_shared_images(self.attention)
        hidden = self.language_model.model(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            use_cache=False,
            **layout.kwargs(),
        ).last_hidden_state
        return hidden[0].index_select(0, layout.supervised), labels[0].index_select(0, layout.supervised + 1)

    def embed(self, input_ids: Tensor, pixel_values: Tensor, layout: PackLayout | None = None) -> Tensor:
        """[B, L] ids with placeholders (negative) and uint8 [N, 3, H, W] images -> [B, L, language_width].

        It encodes at least one image: under ZeRO-3 every rank must run the same modules equally often, or the job hangs
        (DeepSpeed#7170). Without images it encodes a blank one, which has exactly no effect. `layout` is that of a
        pack, as for `forward`.
        """
        placeholders = layout.placeholders if layout else None
        num_images = pixel_values.shape[0]
        tokens = self.encode_images(pixel_values if num_images else pixel_values.new_zeros(1, *pixel_values.shape[1:]))
        if num_images:
            return self.place(input_ids, tokens, placeholders)
        # where(), not 0 * sum(), because zero times an overflow is NaN.
        nothing = torch.where((input_ids < 0).any(), tokens.sum(), tokens.new_zeros(()))
        return self.place(input_ids, tokens[:0], placeholders) + nothing

    def place(self, input_ids: Tensor, image_tokens: Tensor, placeholders: Tensor | None = None) -> Tensor:
        """[B, L] ids with placeholders and [N, tokens_per_image, D] tokens, one N per run -> [B, L, D] embeddings.

        `placeholders` int64 [P] are their positions in the flattened ids. Without them the host waits for the device to
        find them.
        """
        if placeholders is None:
            placeholders = torch.nonzero(input_ids.flatten() < 0).flatten()
        text = self.language_model.model.embed_tokens(input_ids.clamp(min=0))
        images, per_image = image_tokens.shape[:2]
        if len(placeholders) != images * per_image:
            raise ValueError(
                f"{len(placeholders)} image placeholders but {images} images of {per_image} tokens: the prompt encoder "
                "must write exactly one run per image"
            )
        # Rows are written by position: the backward pass is a gather. That of `masked_scatter` waits for the device.
        rows = text.flatten(0, 1).index_put((placeholders,), image_tokens.flatten(0, 1).to(text.dtype))
        return rows.view_as(text)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """uint8 or float [N, 3, H, W] -> [N, tokens_per_image, language_width].

        uint8 pixels (0..255) are normalized here, on the device. Float pixels must be normalized already.
        """
        if pixel_values.dtype == torch.uint8:
            mean, std = self._pixel_statistics(pixel_values.device)
            pixel_values = (pixel_values.float() / 255 - mean) / std
        trained = any(parameter.requires_grad for parameter in self.vision_encoder.parameters())
        at_once = len(pixel_values) if trained else self.vision_batch or len(pixel_values)
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            parts = [
                self.vision_encoder(pixel_values=part.to(self._vision_dtype)).last_hidden_state
                for part in pixel_values.split(max(1, at_once))
            ]
        tokens = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.projector(tokens[:, 1:])

    def _pixel_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation float32 [1, 3, 1, 1], copied to the device once."""
        if device not in self._statistics:
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self._pixel_mean, self._pixel_std))
            self._statistics[device] = copied_to(mean, device), copied_to(std, device)
        return self._statistics[device]

    @property
    def _vision_dtype(self) -> torch.dtype:
        return next(self.vision_encoder.parameters()).dtype

    def restore_float32_buffers(self) -> None:
        """Restore the rotary frequencies in float32, because rounded ones misplace distant tokens.

        Call it after `zero.Init`, which creates them in bf16, and after `deepspeed.initialize`, which casts them.
        """
        rotary = self.language_model.model.rotary_emb
        rotary.inv_freq = torch.tensor(self._rotary_frequencies, dtype=torch.float32, device=rotary.inv_freq.device)

    def recompute(self, num_layers: int) -> None:
        """Recompute the first `num_layers` layers of the language model in the backward pass.

        A recomputed layer keeps only its input, which saves memory and costs one more forward pass of that layer.
        """
        for number, layer in enumerate(self.language_model.model.layers):
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = number < num_layers

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Within it, the model is in evaluation mode with the attention for generation over padded batches."""
        was_training = self.training
        self.eval()
        self.language_model.set_attn_implementation(GENERATION)
        try:
            yield
        finally:
            self.language_model.set_attn_implementation(self.attention)
            self.train(was_training)


def _build_vision_encoder(spec: VisionEncoderSpec) -> nn.Module:
    """Return the ViT of the spec's family; the eps of its final norm may differ from that of the blocks."""
    if spec.family == "dinov2":
        encoder: nn.Module = _build_dinov2(spec)
        norm = encoder.layernorm
    else:
        encoder = _build_eva(spec)
        norm = encoder.post_layernorm
    assert isinstance(norm, nn.LayerNorm)
    norm.eps = spec.output_norm_eps
    return encoder


def _build_eva(spec: VisionEncoderSpec) -> Blip2VisionModel:
    return Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=spec.width,
            intermediate_size=spec.mlp_width,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            hidden_act="gelu",
            layer_norm_eps=spec.norm_eps,
            qkv_bias=True,
        )
    )


def _build_dinov2(spec: VisionEncoderSpec) -> Dinov2Model:
    return Dinov2Model(
        Dinov2Config(
            hidden_size=spec.width,
            mlp_ratio=spec.mlp_width // spec.width,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            hidden_act="gelu",
            layer_norm_eps=spec.norm_eps,
            qkv_bias=True,
            use_mask_token=False,
        )
    )


def llama_config(spec: LanguageModelSpec, vocab_size: int) -> LlamaConfig:
    """Return the spec as a `transformers` config. Embeddings and head are always separate tensors."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.key_value_heads or spec.heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=False,
        pad_token_id=None,
    )


def _build_language_model(spec: LanguageModelSpec, vocab_size: int, attention: str) -> LlamaForCausalLM:
    config = llama_config(spec, vocab_size)
    config._attn_implementation = attention
    return LlamaForCausalLM(config)
