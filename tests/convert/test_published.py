"""Compares with the outputs of the published code, through the commands, on a tiny model in the published formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigptv2.cli import main
from minigptv2.convert.inputs import REPORT_FILE
from minigptv2.predict.predictor import Predictor, load_predictor
from minigptv2.prompt import PromptEncoder
from tests.conftest import REFERENCE, REPOSITORY, World
from tests.convert.published import changed_checkpoint, words

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the published code's outputs beside it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("published") / "model"
    assert main(words(output)) == 0
    return output


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load_predictor(str(folder))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((REFERENCE / "expected.json").read_text())


def test_image_tokens(predictor: Predictor) -> None:
    from PIL import Image

    inputs = load_file(str(REFERENCE / "inputs.safetensors"))
    with torch.no_grad():
        tokens = predictor.model.encode_images(inputs["pixel_values"])
    torch.testing.assert_close(tokens, inputs["image_tokens"], atol=1e-5, rtol=0)
    images = [Image.open(REFERENCE / f"image{number}.png").convert("RGB") for number in range(3)]
    ours = predictor.image_tokens(images)
    assert ours is not None
    torch.testing.assert_close(ours, inputs["image_tokens"], atol=1e-5, rtol=0)


def test_token_ids(predictor: Predictor, expected: dict[str, Any]) -> None:
    for text, ids in expected["tokenization"].items():
        given = text.removesuffix("</s>")
        end = (predictor.tokenizer.eos_id,) if given != text else ()
        assert [*predictor.tokenizer.encode(given), *end] == ids, text


def cases_of(expected: dict[str, Any]) -> list[tuple[dict[str, Any], float, list[dict[str, Any]]]]:
    """(lines of a file of cases, loss, expected samples) of each reference case."""
    found = []
    for case in expected["cases"]:
        if case["kind"] == "conversation":
            pairs = [list(zip(case["questions"], case["answers"], strict=True))]
            images = [case.get("image")]
        elif case["kind"] == "batch":
            pairs = [[pair] for pair in zip(case["instruction"], case["answer"], strict=True)]
            images = case["image"]
        else:
            pairs = [[(case["instruction"], case["answer"])]]
            images = [case.get("image")]
        lines = [
            {
                "image": None if image is None else f"image{image}.png",
                "turns": [{"question": q.split("</Img> ")[-1], "answer": a} for q, a in turns],
            }
            for turns, image in zip(pairs, images, strict=True)
        ]
        found.append((lines, case["loss"], case["samples"]))
    return found


@pytest.mark.parametrize(
    "options", [[], ["--layout", "padded"], ["--batch-size", "1"]], ids=["packed", "padded", "one"]
)
def test_every_likelihood(options: list[str], folder: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    for number in range(3):
        shutil.copyfile(REFERENCE / f"image{number}.png", tmp_path / f"image{number}.png")
    for number, (lines, loss, samples) in enumerate(cases_of(expected)):
        source, output = tmp_path / f"{number}.jsonl", tmp_path / f"{number}.scores.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["score", "--model", str(folder), "--input", str(source), "--output", str(output), *options]) == 0
        scores = [json.loads(row) for row in output.read_text().splitlines()]
        for score, sample in zip(scores, samples, strict=True):
            assert score["length"] == sample["length"]
            assert score["target_ids"] == sample["target_ids"]
            assert score["nll"] == pytest.approx(sample["nll"], abs=1e-4)
        nll = [value for score in scores for value in score["nll"]]
        assert sum(nll) / len(nll) == pytest.approx(loss, abs=1e-5)


def test_published_inference(folder: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with open(source, "w") as stream:
        for case in expected["generation"]:
            question = case["prompt"].split("</Img> ")[1].removesuffix(" [/INST]")
            image = os.path.relpath(REFERENCE / f"image{case['image']}.png", tmp_path)
            stream.write(json.dumps({"image": image, "turns": [{"question": question}], "tag": case["image"]}) + "\n")
    code = main(
        [
            "predict",
            "--model",
            str(folder),
            "--input",
            str(source),
            "--output",
            str(output),
            "--prompt-style",
            "published",
            "--max-new-tokens",
            "12",
            "--top-tokens",
            "5",
        ]
    )
    assert code == 0
    rows = [json.loads(row) for row in output.read_text().splitlines()]
    for row, case in zip(rows, expected["generation"], strict=True):
        turn = row["turns"][0]
        assert row["tag"] == case["image"]
        assert turn["answer"] == case["text"]
        assert turn["context_length"] == case["context_length"]
        assert [token for token, _ in turn["next_top"]] == [token for token, _ in case["next_top5"]]
        assert [v for _, v in turn["next_top"]] == pytest.approx([v for _, v in case["next_top5"]], abs=1e-4)


def test_conversion_and_back_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    before = torch.load(REFERENCE / "minigptv2_checkpoint.pth", weights_only=True)
    for option in ([], ["--newer-peft"]):
        file = tmp_path / f"back{len(option)}.pth"
        assert main(["convert", "to-published", str(folder), "--output", str(file), *option]) == 0
        after = torch.load(file, weights_only=True)
        trained = {key: value for key, value in before["model"].items() if not key.endswith("inv_freq")}
        spelled = {key.replace(".default.", "."): value for key, value in after["model"].items()}
        assert spelled.keys() == trained.keys()
        assert all(torch.equal(spelled[key], value) for key, value in trained.items())
        assert any(".default." in key for key in after["model"]) == bool(option)
        assert after["config"]["model"]["lora_alpha"] == before["config"]["model"]["lora_alpha"]
        # and what was written goes in again, whichever the spelling
        again = tmp_path / f"again{len(option)}"
        assert main(words(again, checkpoint=file)) == 0
        assert (again / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()


def test_every_key_is_reported(folder: Path) -> None:
    report = json.loads((folder / REPORT_FILE).read_text())
    for name in ("eva_vit_g.pth", "minigptv2_checkpoint.pth"):
        state = torch.load(REFERENCE / name, weights_only=True)
        state = state.get("model", state)
        told = report["taken"][str(REFERENCE / name)].keys() | report["dropped"].get(str(REFERENCE / name), {}).keys()
        assert told == state.keys()


def test_base_weights_alone_can_be_trained_but_not_asked(tmp_path: Path, capsys: Any) -> None:
    assert main(words(tmp_path / "bases", checkpoint=None)) == 0
    image = str(REFERENCE / "image0.png")
    assert main(["ask", "--model", str(tmp_path / "bases"), image, "[vqa] what?"]) == 4
    assert "base weights only" in capsys.readouterr().err


def test_a_language_model_that_is_not_copied(folder: Path, tmp_path: Path) -> None:
    assert main([*words(tmp_path / "light"), "--no-copy"]) == 0
    assert not (tmp_path / "light" / "language_model").exists()
    light = load_predictor(str(tmp_path / "light")).model.state_dict()
    whole = load_predictor(str(folder)).model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in light.items())


def test_the_norm_after_the_encoder_is_converted_both_ways(tmp_path: Path) -> None:
    norm = {"ln_vision.weight": torch.rand(88) + 0.5, "ln_vision.bias": torch.rand(88)}
    checkpoint = changed_checkpoint(tmp_path / "norm.pth", lambda state: state.update(norm))
    assert main(words(tmp_path / "model", checkpoint=checkpoint)) == 0
    model = load_predictor(str(tmp_path / "model")).model
    assert torch.equal(model.vision_encoder.post_layernorm.weight, norm["ln_vision.weight"])
    assert main(["convert", "to-published", str(tmp_path / "model"), "--output", str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(torch.equal(back[key], value) for key, value in norm.items())


def test_positions_of_a_half_precision_file_are_resized_in_full_precision(tmp_path: Path) -> None:
    state = torch.load(REFERENCE / "eva_vit_g.pth", weights_only=True)
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    assert main(words(tmp_path / "model", vision=tmp_path / "half.pth")) == 0
    tensors = load_file(str(tmp_path / "model" / "vision_encoder.safetensors"))
    name = "vision_encoder.embeddings.position_embedding"
    assert tensors[name].dtype == torch.float32 and not torch.equal(tensors[name], tensors[name].half().float())
    assert tensors["vision_encoder.embeddings.patch_embedding.weight"].dtype == torch.float16


def test_a_folder_of_another_size_of_llama_with_grouped_heads_in_several_half_precision_files(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=32000,
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(str(tmp_path / "llama"), max_shard_size="2MB")
    assert len(list((tmp_path / "llama").glob("model-*.safetensors"))) > 1
    shutil.copyfile(REFERENCE / "llama" / "tokenizer.model", tmp_path / "llama" / "tokenizer.model")
    lora = {
        f"llama_model.base_model.model.model.layers.{layer}.self_attn.{module}_proj.lora_{kind}.default.weight": value
        for layer in range(3)
        for module, out in (("q", 48), ("v", 16))
        for kind, value in (("A", torch.rand(4, 48)), ("B", torch.rand(out, 4)))
    }
    projector = {"llama_proj.weight": torch.rand(48, 352), "llama_proj.bias": torch.rand(48)}
    torch.save({"model": projector | lora}, tmp_path / "bare.pth")
    changed = {"language_model": tmp_path / "llama", "checkpoint": tmp_path / "bare.pth"}
    assert main(words(tmp_path / "model", **changed)) == 2  # nothing says how the LoRA is scaled
    assert main([*words(tmp_path / "model", **changed), "--lora-alpha", "12"]) == 0
    model = load_predictor(str(tmp_path / "model")).model
    assert model.language_model.config.num_key_value_heads == 2
    assert model.language_model.model.layers[0].self_attn.q_proj.scaling == {"default": 3.0}


def test_an_existing_result_is_not_overwritten_by_default(folder: Path, capsys: Any) -> None:
    assert main(words(folder)) == 4
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words(folder), "--overwrite"]) == 0
    mine = folder.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert main([*words(mine), "--overwrite"]) == 4
    assert main([*words(folder, language_model=folder / "language_model"), "--overwrite"]) == 4
    said = capsys.readouterr().err
    assert "is not a result of this command" in said and "contains the input" in said
    assert (mine / "thesis.txt").is_file() and (folder / "language_model").is_dir()


def test_only_the_prompt_encoder_adds_the_second_space(predictor: Predictor) -> None:
    encoder: PromptEncoder = predictor.encoder
    bare = encoder.encode_question("[vqa] what?", num_images=1)
    assert len(bare) == encoder.tokens_per_image + len(bare[bare >= 0])


def test_a_published_checkpoint_is_trained_and_converted_back(folder: Path, world: World, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("corpora: {toy_refer: {ratio: 1, task: refer}}")
    config = tmp_path / "stage.yaml"
    config.write_text(f"""
stage: further
run_dir: {tmp_path}/run
init_from: {folder}
model:
  vision_encoder: {folder}
  vision_weights: {folder}
  language_model: {folder}/language_model
  language_weights: {folder}/language_model
  lora: {{r: 8, alpha: 16, dropout: 0.0}}
data: {{recipe: {tmp_path}/recipe.yaml, shards: {world.train}, max_tokens: 512, max_pack_tokens: 2048, num_workers: 0}}
train:
  deepspeed: {REPOSITORY}/deepspeed_configs/zero3_cpu.json
  steps: 2
  global_batch_size: 4
  micro_batch_size: 2
  learning_rate: 1.0e-3
  warmup_steps: 0
""")

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "launch" / "train.py"), "--config", str(config), *more]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = train()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"continues published ({folder}" in done.stdout
    export = tmp_path / "run" / "export"
    before, after = load_file(str(folder / "weights.safetensors")), load_file(str(export / "weights.safetensors"))
    assert before.keys() == after.keys()  # what is frozen stays in its base folder
    assert all(not torch.equal(before[name], after[name]) for name in before)
    moved = load_predictor(str(export)).model
    assert torch.equal(moved.projector.linear.weight, after["projector.linear.weight"])
    assert main(["convert", "to-published", str(export), "--output", str(tmp_path / "ours.pth")]) == 0
    taken = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert torch.equal(taken["llama_proj.weight"], after["projector.linear.weight"])

    other = tmp_path / "other"
    shutil.copytree(folder / "language_model", other)
    tensors = load_file(str(other / "model.safetensors"))
    tensors["model.norm.weight"] += 1
    save_file(tensors, str(other / "model.safetensors"))
    louder = train("--fresh", "model.lora.alpha=32")
    assert louder.returncode == 4 and "its LoRA's rank, alpha and modules is (8, 16," in louder.stdout
    refused = train("--fresh", f"model.language_weights={other}")
    assert refused.returncode == 4
    assert "was trained on another language_model" in refused.stdout
