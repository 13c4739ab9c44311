"""Lists the supported backbones. Each is a spec: the sizes from which a module of `transformers` is built.

Full-size and tiny models are specs in the same tables, so that small tests run the code of large models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minigptv2.errors import CheckpointError, ConfigError, nearest
from minigptv2.foreign_files import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""RGB mean and standard deviation, of pixels in 0..1, that the published vision encoder was trained with."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""The same for DINOv2."""
FOLDER_CONFIG = "config.json"
"""The file with the sizes, in a minigptv2 model folder and in a Hugging Face folder."""


@dataclass(frozen=True)
class VisionEncoderSpec:
    """A pre-norm ViT with class token and absolute positions. Sizes in pixels and channels.

    `family` selects the `transformers` module: `eva` is `Blip2VisionModel`, `dinov2` is `Dinov2Model`, which also has
    layer scales. `output_norm_eps` belongs to the norm after the encoder. The published model has 1e-5 there, while its
    blocks use `norm_eps` (published code, `blip2.LayerNorm`). `mean` and `std` are of RGB pixels in 0..1.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    norm_eps: float = 1e-6
    output_norm_eps: float = 1e-5
    family: str = "eva"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_image(self) -> int:
        """Language-model tokens of one image."""
        return self.num_patches // TOKENS_PER_GROUP


@dataclass(frozen=True)
class LanguageModelSpec:
    """A LLaMA as `transformers.LlamaForCausalLM` builds it. `vocab_size` None means that of the tokenizer."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    vocab_size: int | None = 32000
    key_value_heads: int | None = None
    max_positions: int = 4096
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


TOKENS_PER_GROUP = 4
"""Number of consecutive vision tokens, in raster order, that form one language-model token (paper, section 2.1)."""

VISION_ENCODERS: dict[str, VisionEncoderSpec] = {
    "eva_vit_g": VisionEncoderSpec(image_size=448, patch_size=14, width=1408, depth=39, heads=16, mlp_width=6144),
    "dinov2_vit_s": VisionEncoderSpec(
        image_size=224,
        patch_size=14,
        width=384,
        depth=11,
        heads=6,
        mlp_width=1536,
        output_norm_eps=1e-6,
        family="dinov2",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "toy_vit": VisionEncoderSpec(image_size=64, patch_size=16, width=128, depth=2, heads=4, mlp_width=384),
    "tiny_vit": VisionEncoderSpec(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_width=64),
}

LANGUAGE_MODELS: dict[str, LanguageModelSpec] = {
    "llama2_7b": LanguageModelSpec(width=4096, depth=32, heads=32, mlp_width=11008),
    "llama2_13b": LanguageModelSpec(width=5120, depth=40, heads=40, mlp_width=13824),
    "smollm2_135m": LanguageModelSpec(
        width=576,
        depth=30,
        heads=9,
        mlp_width=1536,
        vocab_size=49152,
        key_value_heads=3,
        max_positions=8192,
        rope_theta=100000.0,
    ),
    "toy_llama": LanguageModelSpec(width=128, depth=3, heads=4, mlp_width=384, vocab_size=None, max_positions=1024),
    "tiny_llama": LanguageModelSpec(width=48, depth=2, heads=2, mlp_width=96, vocab_size=None, max_positions=1024),
}


@dataclass(frozen=True)
class Sizes:
    """The two specs of a model."""

    vision_encoder: VisionEncoderSpec
    language_model: LanguageModelSpec

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for the config of a model folder."""
        return {"vision_encoder": asdict(self.vision_encoder), "language_model": asdict(self.language_model)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Sizes:
        """Return the sizes that `as_json` was made of.

        Raises `KeyError`, `TypeError` or `ValueError` for another document.
        """
        vision = dict(document["vision_encoder"])
        vision |= {key: tuple(vision[key]) for key in ("mean", "std")}
        sizes = cls(VisionEncoderSpec(**vision), LanguageModelSpec(**document["language_model"]))
        check_spec(sizes.vision_encoder)
        check_spec(sizes.language_model)
        return sizes


_MAX_SIZE = 1 << 20
"""Largest width, depth or vocabulary of a file. Larger numbers are mistakes, and modules of them take all memory."""
_MAX_DEPTH = 512


def check_spec(spec: VisionEncoderSpec | LanguageModelSpec) -> None:
    """Raise `ValueError` for sizes that no model can have, as a damaged or hostile file may state them."""
    for one in fields(spec):
        value = getattr(spec, one.name)
        kind = str(one.type).removesuffix(" | None")
        if value is None and kind != one.type:
            continue
        if kind == "int":
            most = _MAX_DEPTH if one.name == "depth" else _MAX_SIZE
            valid = type(value) is int and 0 < value <= most
        elif kind == "str":
            valid = value in ("eva", "dinov2")
        else:
            numbers = value if isinstance(value, tuple) and kind.startswith("tuple") and len(value) == 3 else (value,)
            valid = all(type(number) in (int, float) and 0 < number < 1e9 for number in numbers)
        if not valid:
            raise ValueError(f"{one.name} is {str(value)[:40]!r}")
    if spec.width % spec.heads:
        raise ValueError(f"width {spec.width} is not a multiple of {spec.heads} heads")
    if isinstance(spec, VisionEncoderSpec) and not spec.num_patches:
        raise ValueError(f"patches of {spec.patch_size} pixels in an image of {spec.image_size}")


def vision_spec(name: str) -> VisionEncoderSpec:
    """Return the spec of that name, or that of a minigptv2 model folder. Raises `ConfigError` with the nearest name."""
    if name in VISION_ENCODERS:
        return VISION_ENCODERS[name]
    file = Path(name) / FOLDER_CONFIG
    if not file.is_file():
        raise _unknown("model.vision_encoder", name, list(VISION_ENCODERS), "a minigptv2 model folder")
    try:
        return Sizes.from_json(read_folder_config(file)["sizes"]).vision_encoder
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{file}: no vision encoder sizes: {type(error).__name__}: {error}") from error


def language_spec(name: str) -> LanguageModelSpec:
    """Return the spec of that name, or that of a Hugging Face LLaMA folder. `ConfigError` has the nearest name."""
    if name in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[name]
    file = Path(name) / FOLDER_CONFIG
    if not file.is_file():
        raise _unknown("model.language_model", name, list(LANGUAGE_MODELS), "a Hugging Face folder")
    try:
        spec = _llama_spec(read_folder_config(file), file)
        check_spec(spec)
        return spec
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{file}: not a LLaMA's config: {type(error).__name__}: {error}") from error


def read_folder_config(file: Path) -> dict[str, Any]:
    """Return the JSON object in a folder's config. Raises `CheckpointError` for another file or another content."""
    document = read_json(file, CheckpointError, folder=file.parent, kind="a model's config")
    if not isinstance(document, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(document).__name__}")
    return document


def tokens_per_image(vision_encoder: str) -> int:
    """Return the number of language-model tokens of one image: 256 for EVA ViT-g at 448 px."""
    return vision_spec(vision_encoder).tokens_per_image


def _llama_spec(config: dict[str, Any], file: Path) -> LanguageModelSpec:
    """Return the spec of a Hugging Face LLaMA config. Raises `CheckpointError` naming an unsupported setting."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    scaling = config.get("rope_scaling") or ({} if rope.get("rope_type", "default") == "default" else rope)
    heads, key_value_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    unsupported = {
        "model_type": config["model_type"] != "llama",
        "rope_scaling": bool(scaling),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "head_dim": (config.get("head_dim") or config["hidden_size"] // heads) * heads != config["hidden_size"],
    }
    for key, is_unsupported in unsupported.items():
        if is_unsupported:
            raise CheckpointError(f"{file}: {key} is {config.get(key)!r}. Only plain LLaMA models are supported.")
    return LanguageModelSpec(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=heads,
        mlp_width=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        key_value_heads=None if key_value_heads == heads else key_value_heads,
        max_positions=config.get("max_position_embeddings", 4096),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
    )


def _unknown(key: str, name: str, names: list[str], folder: str) -> ConfigError:
    return ConfigError(
        f"{key}={name} is neither a known name nor {folder}{nearest(name, names)} Known names: {', '.join(names)}"
    )
