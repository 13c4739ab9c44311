"""Tests question-answer pairs that share an image's tokens: each has the loss and gradient that it has alone."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn as VARLEN_ATTN

from minigptv2.batch import IGNORE
from minigptv2.data.collate import collate
from minigptv2.errors import ConfigError
from minigptv2.model import attention as attention_module
from minigptv2.model.attention import (
    CAUSAL,
    PACKED,
    check_shared_images,
    packed_dense,
    packed_flex,
    packed_sdpa,
    packed_varlen,
)
from minigptv2.model.config import ModelConfig
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.pack_layout import PackLayout
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example, share_image
from minigptv2.run_config import RunConfig
from minigptv2.train import stage
from tests.model.conftest import varlen_attn_stand_in
from tests.model.tiny import ALL_PARTS, VOCABULARY, random_examples, tiny_model

RUNS_HERE = ("packed_sdpa", "packed_varlen", "packed_dense")
"""Attention over packs that trains on a CPU, `packed_varlen` with a stand-in for its kernel. `packed_flex` has no
backward pass there, and flash-attn needs CUDA."""
Images = list[np.ndarray]


def pairs(count: int, seed: int) -> tuple[list[Example], np.ndarray]:
    """Return examples of 9 to 25 tokens that begin with the same prompt and image, and that image."""
    rng = np.random.default_rng(seed)
    prompt = np.concatenate([rng.integers(3, VOCABULARY, 2), np.full(4, IMAGE_PLACEHOLDER)])
    examples = []
    for _ in range(count):
        ids = np.concatenate([prompt, rng.integers(3, VOCABULARY, int(rng.integers(3, 20)))])
        labels = np.full(len(ids), IGNORE)
        labels[8:] = ids[8:]
        examples.append(Example(ids, labels, np.full(len(ids), int(rng.integers(0, 8))), 1))
    return examples, rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)


def run(model: MiniGPTv2, packs: list[tuple[list[Example], Images]]) -> tuple[float, dict[str, Tensor]]:
    """Return the loss sum over the packs and its gradient by name."""
    model.zero_grad()
    total = 0.0
    for examples, images in packs:
        loss = model(**collate(examples, images, 32).inputs)["loss_sum"]
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def use(model: MiniGPTv2, attention: str) -> MiniGPTv2:
    model.attention = attention
    model.language_model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("attention", RUNS_HERE)
@pytest.mark.parametrize("branches", range(1, 9))
def test_a_shared_image_has_the_loss_and_gradients_of_separate_samples(branches: int, attention: str) -> None:
    model = use(tiny_model(ALL_PARTS), attention)
    alone, image = pairs(branches, seed=branches)
    before, other_images = random_examples(2, seed=90 + branches)
    text, _ = random_examples(1, seed=5, with_images=False)
    tree = share_image(alone) if branches > 1 else alone[0]
    packed = [before[0], tree, text[0], before[1]]
    loss, gradients = run(model, [(packed, [other_images[0], image, other_images[1]])])
    singles = [([e], [i]) for e, i in zip(before, other_images, strict=True)]
    singles += [([e], [image]) for e in alone] + [(text, [])]
    expected, expected_gradients = run(model, singles)
    assert len(tree) == sum(len(e) for e in alone) - (branches - 1) * 6
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("attention", PACKED)
def test_another_pair_changes_a_pair_by_exactly_zero(attention: str) -> None:
    model = use(tiny_model(ALL_PARTS).eval(), attention)
    (a, b, c), image = pairs(3, seed=2)
    (neighbor,), images = random_examples(1, seed=4)
    changed = b.input_ids.copy()
    changed[6:] = (changed[6:] + 7) % VOCABULARY
    other = Example(changed, b.labels, b.task_ids, 1)
    seen = []
    for middle in (b, other):
        norm: list[Tensor] = []
        handle = model.language_model.model.norm.register_forward_hook(lambda m, i, o, n=norm: n.append(o[0]))
        with torch.no_grad():
            model(**collate([share_image([a, middle, c]), neighbor], [image, images[0]], 32).inputs)
        handle.remove()
        seen.append(norm[0])
    start, end = len(a), len(a) + len(b) - 6
    assert torch.equal(seen[0][:start], seen[1][:start]) and torch.equal(seen[0][end:], seen[1][end:])
    assert not torch.equal(seen[0][start:end], seen[1][start:end])


@pytest.mark.parametrize("seed", range(4))
def test_all_attentions_over_packs_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions: list[int] = []
    for branches in rng.integers(1, 9, 4):
        shared = int(rng.integers(1, 12))
        positions += range(shared)
        for length in rng.integers(1, 15, branches):
            positions += range(shared, shared + int(length))
    layout = PackLayout.of(torch.tensor([positions]))
    q, k, v = (torch.randn(1, heads, len(positions), 8) for heads in (4, 2, 2))
    outputs = [f(torch.nn.Module(), q, k, v, None, pack_layout=layout)[0] for f in PACKED.values()]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)
    assert list(PACKED.values()) == [packed_sdpa, packed_varlen, packed_flex, packed_dense]


def test_a_run_with_shared_images_stops_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash_attention_2` in the config, on a GPU with flash-attn, where it would fail in the first batch."""
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    config = RunConfig(model=ModelConfig(attention="flash_attention_2"))
    where = (torch.device("cuda"), {"bf16": {"enabled": True}})
    with pytest.raises(ConfigError, match="share_images of the recipe is not supported"):
        stage._check_attention(config, SimpleNamespace(shares_images=True), *where)  # type: ignore[arg-type]
    stage._check_attention(config, SimpleNamespace(shares_images=False), *where)  # type: ignore[arg-type]
    config.model.attention = "auto"
    stage._check_attention(config, SimpleNamespace(shares_images=True), *where)  # type: ignore[arg-type]


def test_torch_takes_the_arguments_with_which_its_kernel_is_called() -> None:
    """The stand-in has the signature of torch 2.11. Later versions add arguments."""
    for kernel in (VARLEN_ATTN, varlen_attn_stand_in):
        inspect.signature(kernel).bind(*7 * [None], scale=None, window_size=CAUSAL)


def test_position_ids_alone_define_the_attention() -> None:
    layout = PackLayout.of(torch.tensor([[0, 1, 2, 3, 2, 3, 4, 0, 1]]))
    assert layout.branches.tolist() == [0, 0, 1, 1, 2, 2, 2, 0, 0]
    assert layout.shares_images and not PackLayout.of(torch.tensor([[0, 1, 0, 1, 2]])).shares_images
    sees = [[int(k) for k in torch.nonzero(row).flatten()] for row in layout.mask]
    assert sees == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6], [7], [7, 8]]


def test_flash_attention_refuses_shared_images() -> None:
    with pytest.raises(ConfigError, match="Set model.attention to auto, packed_sdpa or packed_flex"):
        check_shared_images("flash_attention_2")
    for attention in PACKED:
        check_shared_images(attention)


def test_pairs_of_different_images_or_with_supervised_prompts_cannot_share() -> None:
    (a, b), _ = pairs(2, seed=3)
    other = b.input_ids.copy()
    other[0] += 1
    with pytest.raises(ValueError, match="begin with the same prompt"):
        share_image([a, Example(other, b.labels, b.task_ids, 1)])
    with pytest.raises(ValueError, match="must not be supervised"):
        share_image([a, Example(b.input_ids, b.input_ids, b.task_ids, 1)])
