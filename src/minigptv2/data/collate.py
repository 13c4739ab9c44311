"""Joins encoded examples and their images into micro-batches, by the contract in `batch.py`.

**Position and attention.** A token attends to the tokens before it in its own sample. Where question-answer pairs share
an image, a sample consists of a common part, which ends with the image, and one branch per pair. The positions of every
branch continue from the end of the common part. A position of 0 therefore begins a sample, and any other position that
does not follow the one before it begins a branch. The common part is the tokens of the sample before that position. The
tokens of a branch attend to the common part and to their own branch only. The first token of a branch has no label.
"""

from __future__ import annotations

import numpy as np
import torch

from minigptv2.batch import IGNORE, Batch, MicroBatch
from minigptv2.data.config import SHORTEST_TEXT_TOKENS, DataConfig
from minigptv2.pack_layout import PackLayout
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example


def collate(examples: list[Example], images: list[np.ndarray] | torch.Tensor, image_size: int) -> MicroBatch:
    """Return one pack as a micro-batch.

    `images` are uint8 [3, H, W] arrays or one tensor [N, 3, H, W], in the order of their use. An empty pack (all its
    samples were dropped) becomes one padding token without a label, so that its rank still takes part in the step.
    Raises `ValueError` if the number of images differs from what the examples contain.
    """
    expected = sum(example.num_images for example in examples)
    if expected != len(images):
        raise ValueError(f"expected {expected} images for these examples, got {len(images)}")
    weights = [example.loss_weights for example in examples if example.loss_weights is not None]
    if weights and len(weights) != len(examples):
        raise ValueError(f"{len(weights)} of {len(examples)} examples have loss weights: expected all or none")
    if not examples:
        return micro_batch_of(_padding(image_size))
    lengths = [len(example) for example in examples]
    inputs = _batch_of(
        np.concatenate([example.input_ids for example in examples]),
        np.concatenate([example.labels for example in examples]),
        np.concatenate([example.position_ids for example in examples]),
        np.repeat(np.arange(1, len(lengths) + 1), lengths),
        np.concatenate([example.task_ids for example in examples]),
        pixel_values=_pixels(images, image_size),
    )
    if weights:
        inputs["loss_weights"] = torch.from_numpy(np.concatenate(weights).astype(np.float32, copy=False))[None]
    return micro_batch_of(inputs)


def micro_batch_of(inputs: Batch) -> MicroBatch:
    """Return `inputs` with their weight (of all supervised tokens), counts of tokens and images, and layout."""
    supervised = inputs["labels"] != IGNORE
    weights = inputs.get("loss_weights")
    return MicroBatch(
        inputs,
        weight=float(supervised.sum() if weights is None else weights[supervised].double().sum()),
        counts={"tokens": int((inputs["segment_ids"] > 0).sum()), "images": inputs["pixel_values"].shape[0]},
        layout=PackLayout.of(inputs["position_ids"], inputs["labels"], inputs["input_ids"]),
    )


def fullest_pack(
    config: DataConfig, *, image_size: int, tokens_per_image: int, global_batch_size: int, weighted: bool = False
) -> MicroBatch:
    """Return a pack of `max_pack_tokens` tokens with as many images as fit and every text token supervised.

    It holds no more tokens than `global_batch_size` samples can fill. `weighted` packs have loss weights, all 1. All
    ranks get the same pack.
    """
    shortest, longest = tokens_per_image + SHORTEST_TEXT_TOKENS, tokens_per_image + config.max_tokens
    tokens = min(config.max_pack_tokens, longest * global_batch_size)
    count = max(1, min(tokens // shortest, global_batch_size))
    lengths = [shortest] * count
    remaining = tokens - sum(lengths)
    for number in range(count):  # with few samples, the remaining tokens make the texts longer
        extra = min(remaining, longest - shortest)
        lengths[number] += extra
        remaining -= extra
    rng = np.random.default_rng(0)
    examples = [_supervised_example(length, tokens_per_image, weighted) for length in lengths]
    images = [rng.integers(0, 256, (3, image_size, image_size), dtype=np.uint8) for _ in lengths]
    return collate(examples, images, image_size)


def _supervised_example(length: int, tokens_per_image: int, weighted: bool) -> Example:
    ids = np.full(length, 1)
    ids[1 : 1 + tokens_per_image] = IMAGE_PLACEHOLDER
    labels = np.where(ids == 1, ids, IGNORE)
    labels[0] = IGNORE
    weights = (labels != IGNORE).astype(np.float32) if weighted else None
    return Example(ids, labels, np.zeros(length, dtype=np.int64), 1, loss_weights=weights)


def _padding(image_size: int) -> Batch:
    zero = np.zeros(1, dtype=np.int64)
    return _batch_of(zero, zero + IGNORE, zero, zero, zero, pixel_values=_pixels([], image_size))


def _batch_of(
    input_ids: np.ndarray,
    labels: np.ndarray,
    position_ids: np.ndarray,
    segment_ids: np.ndarray,
    task_ids: np.ndarray,
    *,
    pixel_values: torch.Tensor,
) -> Batch:
    """Return the batch of the int64 [L] sequences as [1, L] parts of one tensor.

    A worker process sends it as one file of shared memory, and each file takes about half a millisecond.
    """
    joined = np.stack([input_ids, labels, position_ids, segment_ids, task_ids]).astype(np.int64, copy=False)
    ids, wanted, positions, segments, tasks = torch.from_numpy(joined).split(1)
    return Batch(
        input_ids=ids,
        labels=wanted,
        position_ids=positions,
        segment_ids=segments,
        pixel_values=pixel_values,
        task_ids=tasks,
    )


def _pixels(images: list[np.ndarray] | torch.Tensor, image_size: int) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        return images
    if not images:
        return torch.zeros((0, 3, image_size, image_size), dtype=torch.uint8)
    return torch.from_numpy(np.stack(images))
