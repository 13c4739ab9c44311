"""Computes a model's costs from its specs: parameters by part, FLOPs, bytes kept for the backward pass.

It needs no torch and no weights, so that a laptop can plan for a cluster. A multiply-add counts as two FLOPs. A frozen
matrix costs a forward pass and the gradient of its input (4 N per token); a trained one also its own gradient (6 N).
`tests/model/test_costs.py` compares the results with torch's counter and hooks.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigptv2.model.backbones import TOKENS_PER_GROUP, LanguageModelSpec, Sizes, VisionEncoderSpec
from minigptv2.model.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """One part of the model: its parameters, the most that are gathered at once, and whether it is trained."""

    name: str
    elements: int
    largest_layer: int
    trained: bool
    uses_backward: bool
    """Whether the backward pass needs its weights. It does not need those of a frozen vision encoder."""


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step, by component."""

    vision: float
    projector: float
    language: float
    attention: float
    lora: float
    head: float
    recomputed: float

    @property
    def total(self) -> float:
        """Return the sum of all components."""
        return sum(self.__dict__.values())


@dataclass(frozen=True)
class Work:
    """The work of a step or a pack, in numbers that the packer knows exactly.

    `images` pass the projector and `unique_images` the vision encoder. `sum_of_squares` is that of the lengths of the
    packed samples. `supervised` tokens have a label.
    """

    tokens: float
    images: float
    unique_images: float
    sum_of_squares: float
    supervised: float

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.__dict__.values(), other.__dict__.values(), strict=True)))

    def scaled(self, factor: float) -> Work:
        """Return `factor` times this work."""
        return Work(*(factor * value for value in self.__dict__.values()))


class ModelCosts:
    """Costs of the model that a config describes. `vocab_size` is used where the language model's spec has none."""

    def __init__(self, config: ModelConfig, sizes: Sizes, *, vocab_size: int | None = None) -> None:
        self.vision, self.language = sizes.vision_encoder, sizes.language_model
        self.vocabulary = self.language.vocab_size or vocab_size or 0
        assert self.vocabulary, "a spec without a vocabulary needs the tokenizer's"
        self.trained = set(config.trainable)
        self.lora_r = config.lora.r
        self.lora_dropout = config.lora.dropout
        self.lora_shapes = [_linears(self.language)[name] for name in config.lora.target_modules] if self.lora_r else []
        self.lora_inputs = [name for name in config.lora.target_modules if self.lora_r]

    @property
    def parts(self) -> list[Part]:
        """Return the parts of the model with their exact parameter counts."""
        vision, language = self.vision, self.language
        width, merged = language.width, vision.width * TOKENS_PER_GROUP
        block = sum(a * b for a, b in _linears(language).values()) + 2 * width
        embedding = self.vocabulary * width
        lora = sum(self.lora_r * (a + b) for a, b in self.lora_shapes)
        projector = merged * width + width
        frozen_vision = "vision_encoder" not in self.trained
        counts = [
            ("vision_encoder", vision_parameters(vision), 2 * vision.width * vision.mlp_width, not frozen_vision),
            ("projector", projector, projector, True),
            ("language_model", language.depth * block + 2 * embedding + width, max(block, embedding), True),
            ("lora", language.depth * lora, max([self.lora_r * max(s) for s in self.lora_shapes], default=0), True),
        ]
        return [
            Part(name, count, largest, name in self.trained, backward)
            for name, count, largest, backward in counts
            if count
        ]

    @property
    def smallest_parameters(self) -> list[int]:
        """Return elements of norms, biases and LoRA matrices. Those of any other parameter are a multiple of one."""
        lora = [self.lora_r * side for shape in self.lora_shapes for side in shape]
        return sorted({self.vision.width, self.vision.mlp_width, self.language.width, *lora})

    def flops(self, work: Work, *, recomputed_layers: int = 0) -> StepFlops:
        """Return the FLOPs of forward and backward over `work`."""
        language, depth = self.language, self.language.depth
        block = sum(a * b for a, b in _linears(language).values())
        lora = sum(self.lora_r * (a + b) for a, b in self.lora_shapes)
        per_weight = 6 if "language_model" in self.trained else 4
        per_lora_weight = 6 if "lora" in self.trained else 4
        attention = 2 * language.width * work.sum_of_squares  # causal: half of 4 L^2 per layer
        patches = vision_flops(self.vision) * work.unique_images
        first = (
            2 * self.vision.num_patches * 3 * self.vision.patch_size**2 * self.vision.width
        )  # pixels need no gradient
        trained_vision = "vision_encoder" in self.trained
        projector = 2 * self.vision.tokens_per_image * self.vision.width * TOKENS_PER_GROUP * language.width
        # Recomputation stops at the last tensor that is kept, the input of down_proj, unless that has an adapter.
        down = 0 if "down_proj" in self.lora_inputs else language.mlp_width * language.width
        passes = 1 + ("projector" in self.trained) + trained_vision
        return StepFlops(
            vision=(3 * patches - first * work.unique_images) if trained_vision else patches,
            projector=passes * projector * work.images,
            language=(per_weight * depth * block - 2 * self._first_layer_saves()) * work.tokens,
            attention=3 * depth * attention,
            lora=per_lora_weight * depth * lora * work.tokens,
            head=per_weight * self.vocabulary * language.width * work.supervised,
            recomputed=recomputed_layers * (2 * (block - down + lora) * work.tokens + attention),
        )

    def _first_layer_saves(self) -> int:
        """Return the multiply-adds per token that the first layer saves where nothing before it is trained."""
        if self.trained & {"projector", "vision_encoder", "language_model"}:
            return 0
        return sum(a * b for name, (a, b) in _linears(self.language).items() if name in ("q_proj", "k_proj", "v_proj"))

    def kept_bytes_per_token(self, element: int = 2, *, fused: bool = False, drop_frozen_inputs: bool = True) -> float:
        """Return the bytes that one layer of the language model keeps for the backward pass per token of a pack.

        `element` is the size of an activation in bytes. `fused` assumes fused norm, rotation and SwiGLU kernels.
        `drop_frozen_inputs` assumes that frozen linear layers do not keep their inputs (`engine/frozen.py`).
        """
        language = self.language
        width, mlp = language.width, language.mlp_width
        heads, kv = language.heads, language.key_value_heads or language.heads
        head = width // heads
        trained = "language_model" in self.trained
        inputs_kept = trained or not drop_frozen_inputs
        attention_inputs, mlp_inputs = width, width  # q, k and v share one tensor, gate and up another
        kept = 0.0
        # Eager norms keep the input in float32, its reciprocal root, and, if trained, the normalized input.
        norm = (4 * width + 4 + (element * width if trained else 0)) if not fused else element * width + 4
        kept += 2 * norm
        # Attention keeps queries, keys, values, its output and the log-sum-exp.
        kept += element * head * (2 * heads + 2 * kv) + 4 * heads
        kept += element * mlp * (3 if not fused else 2)  # gate before and after its activation, up
        if inputs_kept:
            kept += element * (attention_inputs + width + mlp_inputs + mlp)
        if self.lora_r:
            rank_outputs = element * self.lora_r * len(self.lora_shapes)
            needs_input = "lora" in self.trained
            if needs_input and self.lora_dropout:
                kept += (
                    len(self.lora_shapes) * (element + 1) * width
                )  # each adapter's input after dropout, and the mask
            elif needs_input and not inputs_kept:
                kept += element * width  # the adapters share the norm's output
            kept += rank_outputs
        return kept

    def activation_bytes(
        self,
        work: Work,
        *,
        element: int = 2,
        recomputed_layers: int = 0,
        fused: bool = False,
        drop_frozen_inputs: bool = True,
    ) -> float:
        """Return the peak bytes of a pack's activations: what is kept, and the temporaries of one layer."""
        language, vision = self.language, self.vision
        layer = self.kept_bytes_per_token(element, fused=fused, drop_frozen_inputs=drop_frozen_inputs)
        working = element * (6 * language.mlp_width + 8 * language.width)  # temporaries of one layer, both directions
        recomputed = min(recomputed_layers, language.depth)
        kept = (language.depth - recomputed) * layer + recomputed * element * language.width
        text = work.tokens * (kept + (layer if recomputed else 0) + working + 4 * element * language.width)
        features = work.images * vision.num_patches * vision.width * element
        encoder = work.images * (vision.num_patches + 1) * element
        if "vision_encoder" in self.trained:
            encoder *= vision.depth * (11 * vision.width + 3 * vision.mlp_width)
        else:
            encoder *= 2 * vision.mlp_width + 4 * vision.width
        logits = min(128 * 2**20, 4 * work.supervised * self.vocabulary)  # of one chunk, see `model/head.py`
        head = work.supervised * language.width * element * 2 + 3 * logits
        return max(text + features + head, encoder)


def vision_parameters(spec: VisionEncoderSpec) -> int:
    """Return the exact parameter count of a vision encoder as `transformers` builds it (zero k biases included)."""
    width, patch = spec.width, 3 * spec.patch_size**2
    linears = 4 * width * width + 2 * width * spec.mlp_width
    biases = 4 * width + spec.mlp_width + width
    norms = 4 * width
    scales = 2 * width if spec.family == "dinov2" else 0
    rest = patch * width + width + width + (spec.num_patches + 1) * width + 2 * width
    return spec.depth * (linears + biases + norms + scales) + rest


def vision_flops(spec: VisionEncoderSpec) -> float:
    """Return the FLOPs of a forward pass of one image: 2.250e12 for EVA ViT-g at 448 px."""
    tokens, width = spec.num_patches + 1, spec.width
    linears = 2 * tokens * spec.depth * (4 * width * width + 2 * width * spec.mlp_width)
    attention = 4 * tokens**2 * width * spec.depth
    return linears + attention + 2 * spec.num_patches * 3 * spec.patch_size**2 * width


def _linears(spec: LanguageModelSpec) -> dict[str, tuple[int, int]]:
    """Return (in, out) of each linear layer of a block."""
    kv = spec.width // spec.heads * (spec.key_value_heads or spec.heads)
    return {
        "q_proj": (spec.width, spec.width),
        "k_proj": (spec.width, kv),
        "v_proj": (spec.width, kv),
        "o_proj": (spec.width, spec.width),
        "gate_proj": (spec.width, spec.mlp_width),
        "up_proj": (spec.width, spec.mlp_width),
        "down_proj": (spec.mlp_width, spec.width),
    }
