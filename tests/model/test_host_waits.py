"""Tests that no micro-batch makes the host wait for its device, without a GPU.

Tensors of the `meta` device have no values, so that whatever would copy a value to the host raises there. Copies to the
device that the host would wait for, and what waits on a GPU only, are found by the modes below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from minigptv2.batch import MicroBatch
from minigptv2.data.collate import collate
from minigptv2.engine.config import TrainConfig
from minigptv2.engine.frozen import drop_frozen_inputs
from minigptv2.engine.guard import StepGuard
from minigptv2.engine.trainer import Trainer
from minigptv2.model import head
from minigptv2.model.attention import PACKED_DENSE, PACKED_SDPA
from minigptv2.pack_layout import PackLayout
from minigptv2.prompt import share_image
from tests.model.tiny import ALL_PARTS, random_examples, tiny_model

META = torch.device("meta")
WAITING_OPERATORS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "equal",
    "masked_scatter_backward",
)
"""Operators of ATen whose result is on the host, or has a shape that depends on values."""
WAITING_CALLS = (torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.tolist, Tensor.numpy, Tensor.item, Tensor.cpu)
"""Calls that read values on the host, or copy from the host and wait for the copy."""


class Operators(TorchDispatchMode):
    """Counts operators for which the host waits, also in the backward pass."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name().split("::")[1].split(".")[0], kwargs or {}
        if name in WAITING_OPERATORS:
            self.found[name] += 1
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.found[f"{name} of booleans"] += 1
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if target is not None and torch.device(target).type != source.device.type and waits:
                self.found[f"{name} from {source.device.type}"] += 1
        return func(*args, **kwargs)


class Calls(TorchFunctionMode):
    """Counts calls for which the host waits. Torch shows them to no dispatch mode."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING_CALLS:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Within it, count what makes the host wait, by name."""
    found: Counter[str] = Counter()
    with Operators(found), Calls(found):
        yield found


def micro_batch(kind: str) -> MicroBatch:
    examples, images = random_examples(4, seed=1, with_images=kind != "text")
    if kind == "shared":
        for example in examples:  # the same beginning, up to the end of the image
            example.input_ids[:6] = examples[0].input_ids[:6]
        examples, images = [share_image(examples)], images[:1]
    return collate([] if kind == "empty" else examples, [] if kind == "empty" else images, 32)


def trained(parts: list[str], attention: str = PACKED_SDPA, device: torch.device = META, **settings: Any) -> nn.Module:
    """A model as the trainer makes it: LoRA, frozen linear layers, two of its layers recomputed."""
    model = tiny_model(parts, **settings)
    model.language_model.set_attn_implementation(attention)
    model.attention = attention
    model.recompute(1)
    drop_frozen_inputs(model)
    return model.to(device).train()


@pytest.mark.parametrize("kind", ["images", "text", "shared", "empty"])
@pytest.mark.parametrize("attention", [PACKED_SDPA, PACKED_DENSE])
@pytest.mark.parametrize(("parts", "lora"), [(ALL_PARTS, 0), (["projector", "lora"], 4)])
def test_a_micro_batch_makes_the_host_wait_for_nothing(kind: str, attention: str, parts: list[str], lora: int) -> None:
    model = trained(parts, attention, lora_r=lora)
    model.encode_images(torch.empty(1, 3, 32, 32, dtype=torch.uint8, device=META))  # copies the pixel statistics once
    micro = micro_batch(kind)
    with waits() as found:
        output = model(**micro.arguments_on(META))
        output["loss_sum"].backward()
    assert not found


@pytest.mark.parametrize("kind", ["images", "shared"])
def test_loss_weights_and_chunks_of_the_head_wait_for_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 2000)
    micro = micro_batch(kind)
    weights = (micro.inputs["labels"] >= 0).float()
    for parts, lora in ((ALL_PARTS, 0), (["lora"], 4)):
        model = trained(parts, lora_r=lora)
        model.encode_images(torch.empty(1, 3, 32, 32, dtype=torch.uint8, device=META))
        with waits() as found:
            model(**micro.arguments_on(META), loss_weights=weights.to(META, non_blocking=True))["loss_sum"].backward()
        assert not found


def _boolean_rows(tokens: Tensor) -> Tensor:
    return tokens[tokens > 0]


WAITING: dict[str, Callable[[Tensor], object]] = {
    "_local_scalar_dense": lambda t: float(t.sum()),
    "if": lambda t: t.sum() > 0 or None,
    "nonzero": torch.nonzero,
    "boolean rows": _boolean_rows,
    "masked_select": lambda t: t.masked_select(t > 0),
    "unique": torch.unique,
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "cpu": lambda t: t.cpu(),
    "new_tensor": lambda t: t.new_tensor([1, 2]),
    "tensor": lambda t: torch.tensor(1.0, device=t.device),
    "masked_scatter": lambda t: torch.zeros(3).masked_scatter(t > 0, t.requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("way", WAITING)
def test_every_way_to_wait_is_found(way: str) -> None:
    with waits() as found:
        WAITING[way](torch.ones(3))
    assert found, way


def test_a_layout_that_a_batch_does_not_bring_is_computed_and_gives_equal_sums() -> None:
    """As for a predictor or a program that calls the model with a batch alone."""
    for kind in ("images", "text", "shared", "empty"):
        micro = micro_batch(kind)
        results = []
        for arguments in (micro.arguments_on(torch.device("cpu")), micro.inputs):
            model = trained(ALL_PARTS, device=torch.device("cpu"))
            output = model(**arguments)
            output["loss_sum"].backward()
            results.append([*output.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert len(results[0]) == len(results[1]) > 10
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True)), kind


def test_rows_placed_by_position_equal_those_of_masked_scatter() -> None:
    """The placement before: bit for bit the same embeddings and gradients, also in batches of several rows."""
    model = tiny_model(ALL_PARTS)
    ids = torch.tensor([[3, -1, -1, -1, -1, 5, 6], [-1, -1, -1, -1, 7, 8, 9]])
    width = model.language_model.config.hidden_size
    upstream = torch.randn(2, 7, width)
    results = []
    for place in (model.place, lambda i, t: _masked(model, i, t)):
        tokens = torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        model.zero_grad()
        embedded = place(ids, tokens)
        embedded.backward(upstream)
        results.append((embedded, tokens.grad, model.language_model.model.embed_tokens.weight.grad))
    assert all(torch.equal(ours, before) for ours, before in zip(*results, strict=True))


def _masked(model: Any, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
    text = model.language_model.model.embed_tokens(input_ids.clamp(min=0))
    return text.masked_scatter((input_ids < 0)[..., None], image_tokens)


@pytest.mark.parametrize("kind", ["images", "text", "shared", "empty"])
def test_a_layout_names_the_placeholders_and_the_tokens_before_a_label(kind: str) -> None:
    micro = micro_batch(kind)
    ids, labels = micro.inputs["input_ids"][0].tolist(), micro.inputs["labels"][0].tolist()
    layout = micro.layout
    assert layout is not None and layout.indices.dtype == torch.int64
    assert layout.placeholders.tolist() == [n for n, token in enumerate(ids) if token < 0]
    assert layout.supervised.tolist() == [n - 1 for n, label in enumerate(labels) if n and label >= 0]
    assert layout.row_starts.dtype == layout.cu_seqlens.dtype == torch.int32
    moved = layout.to(META)
    assert moved.cells.shape == layout.cells.shape and moved.cells.is_meta and moved.batches == layout.batches


def test_a_step_reads_from_the_device_as_often_with_three_micro_batches_as_with_one() -> None:
    examples, images = random_examples(3, seed=1)
    micros = [replace(collate([e], [i], 32), log_sums=(1.0, 2.0)) for e, i in zip(examples, images, strict=True)]
    counts = []
    for number in (1, 3):
        trainer = _trainer(trained(["projector", "lora"], lora_r=4, device=torch.device("cpu")))
        trainer.model.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        with waits() as found:
            report = trainer.train_step(micros[:number])
        assert report.log_sums == (number, 2.0 * number) and report.images == number
        assert report.tokens == sum(len(e) for e in examples[:number])
        counts.append(found)
    assert counts[0] == counts[1]


def _trainer(model: nn.Module) -> Trainer:
    """A trainer whose engine runs the model without DeepSpeed, which reads values of its own."""
    trainer = object.__new__(Trainer)
    trainer.engine = _Engine(model)
    trainer.config = TrainConfig(steps=1, global_batch_size=1, learning_rate=1e-3)
    trainer.device, trainer.seed, trainer.step = torch.device("cpu"), 0, 0
    trainer.guard = StepGuard(trainer.config.guard)
    trainer.zero = SimpleNamespace(  # type: ignore[assignment]
        squared_norm=lambda: torch.ones(1, dtype=torch.float64), update=lambda: 1.0
    )
    trainer.optimizer = SimpleNamespace(param_groups=[])
    return trainer


class _Engine:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.train = module.train

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> None:
        loss.backward()

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        return None


def test_a_layout_is_one_tensor_for_the_worker_that_sends_it() -> None:
    micro = micro_batch("images")
    storages = {t.untyped_storage().data_ptr() for key, t in micro.inputs_on(torch.device("cpu")).items()}
    assert len(storages) == 2, "the sequences, and the images"
    assert isinstance(micro.layout, PackLayout) and isinstance(micro.layout.indices, Tensor)
