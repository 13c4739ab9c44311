"""Tests the three-part model: sizes, packing, images and loss."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from minigptv2.batch import BATCH_KEYS, IGNORE, OPTIONAL_BATCH_KEYS, Batch, StepOutput
from minigptv2.data.collate import collate
from minigptv2.errors import CheckpointError
from minigptv2.model.attention import PACKED, choose_attention
from minigptv2.model.backbones import (
    LANGUAGE_MODELS,
    LanguageModelSpec,
    VisionEncoderSpec,
    language_spec,
    tokens_per_image,
)
from minigptv2.model.build import CPU, build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.weights import named_canonical, part_of
from minigptv2.pack_layout import PackLayout
from minigptv2.prompt import Example, PromptEncoder
from minigptv2.tasks import TASKS
from minigptv2.tokenizer import load_tokenizer
from tests.conftest import REFERENCE
from tests.model.tiny import ALL_PARTS, VOCABULARY, random_examples, tiny_model


def test_full_size_counts_are_the_papers() -> None:
    config = ModelConfig(trainable=["projector", "lora"])
    with torch.device("meta"):
        model = build_model(config, vocab_size=32000)
    counts = dict.fromkeys(("vision_encoder", "projector", "language_model", "lora"), 0)
    for name, parameter in named_canonical(model).items():
        counts[part_of(name)] += parameter.numel()
    zero_key_biases, norm_after = 39 * 1408, 2 * 1408
    assert counts["vision_encoder"] - zero_key_biases - norm_after == 986_975_872
    assert counts["projector"] == 23_072_768
    assert counts["language_model"] == 6_738_415_616
    assert counts["lora"] == 33_554_432
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 56_627_200
    assert tokens_per_image("eva_vit_g") == 256
    assert model.vision_encoder.post_layernorm.eps == 1e-5
    assert model.vision_encoder.encoder.layers[0].layer_norm1.eps == 1e-6


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("llama2_7b", {}),
        (
            "llama2_13b",
            {
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 40,
            },
        ),
    ],
)
def test_the_real_llama_folder_matches_its_spec(row: str, changed: dict[str, int], tmp_path: Path) -> None:
    real = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 32000,
    }
    (tmp_path / "config.json").write_text(json.dumps(real | changed))
    assert language_spec(str(tmp_path)) == LANGUAGE_MODELS[row]
    for key, value in (
        ("model_type", "mistral"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("head_dim", 64),
    ):
        (tmp_path / "config.json").write_text(json.dumps(real | changed | {key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is"):
            language_spec(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object, got list"):
        language_spec(str(tmp_path))


def test_thirteen_billion_is_another_spec() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(language_model="llama2_13b"), vocab_size=32000)
    counts: dict[str, int] = {}
    for name, parameter in named_canonical(model).items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    assert counts["language_model"] == 13_015_864_320
    assert counts["projector"] == (4 * 1408 + 1) * 5120
    assert counts["lora"] == 40 * 2 * 2 * 64 * 5120


@pytest.mark.parametrize("attention", ["packed_sdpa", "packed_dense"])
def test_packed_loss_and_gradients_equal_single_ones(attention: str) -> None:
    model = tiny_model(ALL_PARTS)
    model.language_model.set_attn_implementation(attention)
    examples, images = random_examples(5, seed=1)
    packed = model(**collate(examples, images, 32).inputs)
    packed["loss_sum"].backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = 0.0
    for example, image in zip(examples, images, strict=True):
        single = model(**collate([example], [image], 32).inputs)
        single["loss_sum"].backward()
        total += float(single["loss_sum"])
    assert float(packed["loss_sum"]) == pytest.approx(total, rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("attention", "another_length"), [*((name, False) for name in PACKED), ("packed_sdpa", True)])
def test_a_neighbor_changes_a_sample_by_exactly_zero(attention: str, another_length: bool) -> None:
    """With a mask over the whole pack, other lengths change the order of sums. There only tokens are replaced."""
    model = tiny_model(ALL_PARTS).eval()
    model.language_model.set_attn_implementation(attention)
    (a, b, c), images = random_examples(3, seed=2)
    other, _ = random_examples(1, seed=9)
    if not another_length:
        ids = np.where(b.input_ids < 0, b.input_ids, (b.input_ids + 5) % VOCABULARY)
        other = [Example(ids, b.labels, b.task_ids, b.num_images)]
    hidden = []
    for middle, image in ((b, images[1]), (other[0], images[0])):
        seen = []
        handle = model.language_model.model.norm.register_forward_hook(lambda m, i, o, s=seen: s.append(o.detach()))
        batch = collate([a, middle, c], [images[0], image, images[2]], 32).inputs
        with torch.no_grad():
            model(**batch)
        handle.remove()
        hidden.append((seen[0][0, : len(a)], seen[0][0, -len(c) :]))
    assert torch.equal(hidden[0][0], hidden[1][0]) and torch.equal(hidden[0][1], hidden[1][1])


def test_samples_of_different_lengths_share_no_padded_batch_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import minigptv2.model.attention as attention
    import minigptv2.pack_layout as pack_layout

    lengths = [50, 9, 30, 11, 12, 9, 40, 1]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    q, k, v = (torch.randn(1, heads, sum(lengths), 8) for heads in (6, 2, 2))
    together = PackLayout.of(positions)
    monkeypatch.setattr(pack_layout, "WORTH_SPLITTING", 0)
    apart = PackLayout.of(positions)
    assert together.batches == ((8, 50),) and apart.batches == ((2, 50), (1, 30), (4, 12), (1, 1))
    module = torch.nn.Module()
    outputs = [attention.packed_sdpa(module, q, k, v, None, pack_layout=layout)[0] for layout in (together, apart)]
    torch.testing.assert_close(*outputs)
    alone = attention.packed_sdpa(
        module, q[:, :, 59:89], k[:, :, 59:89], v[:, :, 59:89], None, pack_layout=PackLayout.of(positions[:, 59:89])
    )[0]
    torch.testing.assert_close(outputs[1][:, 59:89], alone)


def test_packed_attention_equals_transformers_own_sdpa() -> None:
    model = tiny_model(ALL_PARTS).eval()
    examples, images = random_examples(1, seed=3)
    batch = collate(examples, images, 32).inputs
    with torch.no_grad():
        ours = float(model(**batch)["loss_sum"])
        with model.generating():
            embeddings = model.embed(batch["input_ids"], batch["pixel_values"])
            logits = model.language_model(inputs_embeds=embeddings).logits[0, :-1]
    theirs = cross_entropy(logits, batch["labels"][0, 1:], ignore_index=IGNORE, reduction="sum")
    assert ours == pytest.approx(float(theirs), rel=1e-6)


def test_the_loss_is_a_sum_over_labels_and_splits_by_task() -> None:
    model = tiny_model(ALL_PARTS)
    examples, images = random_examples(4, seed=4)
    output = model(**collate(examples, images, 32).inputs)
    assert int(output["num_tokens"]) == sum(example.num_supervised for example in examples)
    assert float(output["task_loss"].sum()) == pytest.approx(float(output["loss_sum"].detach()), rel=1e-6)
    assert float(output["task_tokens"].sum()) == float(output["num_tokens"])
    per_token = float(output["loss_sum"].detach()) / float(output["num_tokens"])
    assert 0.5 * math.log(100) < per_token < 3 * math.log(100)


def test_a_batch_without_images_still_runs_the_vision_encoder_without_effect() -> None:
    model = tiny_model(ALL_PARTS)
    text, _ = random_examples(2, seed=5, with_images=False)
    calls = []
    model.vision_encoder.register_forward_hook(lambda *args: calls.append(1))
    output = model(**collate(text, [], 32).inputs)
    output["loss_sum"].backward()
    assert len(calls) == 1
    for name, parameter in model.named_parameters():
        if part_of(name) in ("vision_encoder", "projector"):
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_an_overflow_in_the_unused_image_does_not_reach_the_loss() -> None:
    model = tiny_model(ALL_PARTS)
    with torch.no_grad():
        model.projector.linear.bias.fill_(float("inf"))
    text, _ = random_examples(1, seed=5, with_images=False)
    assert math.isfinite(float(model(**collate(text, [], 32).inputs)["loss_sum"]))


def test_placeholders_and_images_that_do_not_match_are_an_error() -> None:
    model = tiny_model(ALL_PARTS)
    (example,), images = random_examples(1, seed=6)
    good = collate([example], images, 32).inputs
    with pytest.raises(ValueError, match="4 image placeholders but 2 images of 4 tokens"):
        model(**good | {"pixel_values": good["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match="4 image placeholders but 0 images of 4 tokens"):
        model(**good | {"pixel_values": good["pixel_values"][:0]})


def test_tokens_merge_in_strips_of_one_row() -> None:
    model = tiny_model(ALL_PARTS)
    seen = []
    model.projector.linear.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    tokens = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 32)
    model.projector(tokens)
    assert seen[0].shape == (1, 4, 128)
    assert seen[0][0, 1].view(4, 32)[:, 0].tolist() == [4.0, 5.0, 6.0, 7.0]


def test_only_the_named_parts_are_trained() -> None:
    for parts in (["projector", "lora"], ["vision_encoder", "projector", "language_model"]):
        model = tiny_model(parts, lora_r=4 if "lora" in parts else 0)
        trained = {part_of(name) for name, p in named_canonical(model).items() if p.requires_grad}
        assert trained == set(parts)


def test_weights_are_a_function_of_seed_and_name_alone() -> None:
    plain, adapted = tiny_model(ALL_PARTS), tiny_model(["lora"], lora_r=4)
    with_lora = named_canonical(adapted)
    for name, parameter in named_canonical(plain).items():
        assert torch.equal(parameter, with_lora[name]), name


def test_forward_takes_the_keys_of_a_batch_and_returns_those_of_a_step_output() -> None:
    import inspect

    keys = (*BATCH_KEYS, *OPTIONAL_BATCH_KEYS)
    assert tuple(inspect.signature(MiniGPTv2.forward).parameters) == ("self", *keys, "layout")
    assert set(keys) == Batch.__required_keys__ | Batch.__optional_keys__ and len(keys) == len(set(keys))
    model = tiny_model(ALL_PARTS)
    assert set(model(**collate([], [], 32).inputs)) == set(StepOutput.__annotations__)


def test_attention_that_cannot_run_here_is_refused() -> None:
    from minigptv2.errors import ConfigError

    with pytest.raises(ConfigError, match="needs CUDA and bf16 or fp16"):
        choose_attention("flash_attention_2", CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match="not one of"):
        choose_attention("magic", CPU, torch.float32)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the published code's outputs beside the repository")
def test_forward_equals_the_published_code() -> None:
    """Maps the weights by hand, independently of `minigptv2 convert`."""
    from safetensors.torch import load_file

    expected = json.loads((REFERENCE / "expected.json").read_text())
    size = expected["vision"]
    llama = json.loads((REFERENCE / "llama" / "config.json").read_text())
    vision = VisionEncoderSpec(
        image_size=size["image_size"],
        patch_size=size["patch_size"],
        width=size["width"],
        depth=size["depth"],
        heads=size["heads"],
        mlp_width=size["mlp"],
    )
    language = LanguageModelSpec(
        width=llama["hidden_size"],
        depth=llama["num_hidden_layers"],
        heads=llama["num_attention_heads"],
        mlp_width=llama["intermediate_size"],
        vocab_size=llama["vocab_size"],
        key_value_heads=llama.get("num_key_value_heads"),
        norm_eps=llama["rms_norm_eps"],
    )
    model = MiniGPTv2(vision, language, vocab_size=llama["vocab_size"], num_tasks=len(TASKS), attention="packed_sdpa")
    from minigptv2.model.build import add_lora

    lora = expected["lora"]
    add_lora(model.language_model, LoraConfig(r=lora["r"], alpha=lora["alpha"], dropout=0.0))
    _load_published(model, load_file(str(REFERENCE / "llama" / "model.safetensors")), size)
    model.eval()
    inputs = load_file(str(REFERENCE / "inputs.safetensors"))
    with torch.no_grad():
        tokens = model.encode_images(inputs["pixel_values"])
    torch.testing.assert_close(tokens, inputs["image_tokens"], atol=1e-5, rtol=1e-5)

    tokenizer = load_tokenizer(REFERENCE / "llama")
    encoder = PromptEncoder(tokenizer, tokens_per_image=tokens.shape[1], max_tokens=2048)
    from minigptv2.tasks import RenderedTurn

    for case in expected["cases"]:
        many = case["kind"] == "batch"
        instructions = case["instruction"] if many else [case.get("instruction")]
        conversations = (
            [list(zip(case["questions"], case["answers"], strict=True))]
            if case["kind"] == "conversation"
            else [[pair] for pair in zip(instructions, case["answer"] if many else [case["answer"]], strict=True)]
        )
        image_ids = case["image"] if many else [case["image"]] if "image" in case else []
        examples = []
        for turns in conversations:
            rendered = [RenderedTurn("vqa", q.split("</Img> ")[-1].rstrip(" "), a) for q, a in turns]
            example = encoder.encode_rendered(rendered, num_images=int(bool(image_ids)))
            assert example is not None
            examples.append(example)
        blank = [torch.zeros(3, vision.image_size, vision.image_size, dtype=torch.uint8).numpy() for _ in image_ids]
        batch = collate(examples, blank, vision.image_size).inputs
        batch["pixel_values"] = inputs["pixel_values"][image_ids] if image_ids else batch["pixel_values"]
        with torch.no_grad():
            output = model(**batch)
        assert float(output["loss_sum"] / output["num_tokens"]) == pytest.approx(case["loss"], abs=1e-5)


def _load_published(model: MiniGPTv2, llama: dict[str, torch.Tensor], size: dict[str, int]) -> None:
    vit = torch.load(REFERENCE / "eva_vit_g.pth", weights_only=True)
    trained = torch.load(REFERENCE / "minigptv2_checkpoint.pth", weights_only=True)["model"]
    new: dict[str, torch.Tensor] = {f"language_model.{name}": value for name, value in llama.items()}
    side, grid = size["image_size"] // size["patch_size"], size["checkpoint_image_size"] // size["patch_size"]
    positions = vit["pos_embed"].float()
    patches = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    v = "vision_encoder."
    new[v + "embeddings.class_embedding"] = vit["cls_token"]
    new[v + "embeddings.position_embedding"] = torch.cat([positions[:, :1], patches], dim=1)
    for kind in ("weight", "bias"):
        new[v + f"embeddings.patch_embedding.{kind}"] = vit[f"patch_embed.proj.{kind}"]
    for i in range(size["depth"]):
        theirs, ours = f"blocks.{i}.", f"{v}encoder.layers.{i}."
        q, v_bias = vit[theirs + "attn.q_bias"], vit[theirs + "attn.v_bias"]
        new[ours + "self_attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v_bias])
        new[ours + "self_attn.qkv.weight"] = vit[theirs + "attn.qkv.weight"]
        for kind in ("weight", "bias"):
            for a, b in (
                ("attn.proj", "self_attn.projection"),
                ("norm1", "layer_norm1"),
                ("norm2", "layer_norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                new[f"{ours}{b}.{kind}"] = vit[f"{theirs}{a}.{kind}"]
    width = size["width"]
    new[v + "post_layernorm.weight"], new[v + "post_layernorm.bias"] = torch.ones(width), torch.zeros(width)
    for kind in ("weight", "bias"):
        new[f"projector.linear.{kind}"] = trained[f"llama_proj.{kind}"]
    for name, value in trained.items():
        if ".lora_" in name:
            new["language_model.model." + name.split("base_model.model.model.")[1]] = value
    named = named_canonical(model)
    assert named.keys() == new.keys(), sorted(named.keys() ^ new.keys())[:4]
    with torch.no_grad():
        for name, value in new.items():
            named[name].copy_(value)
