"""Examples and images to a batch: the contract between data and model.

| key | dtype, shape | meaning |
|---|---|---|
| `input_ids` | int64 [1, L] | packed tokens; each image is a run of placeholders |
| `labels` | int64 [1, L] | -100 but on answers; not shifted |
| `position_ids`, `segment_ids` | int64 [1, L] | restart / number per packed sample; segment 0 is padding |
| `pixel_values` | uint8 [N, 3, H, W] | the images, in order of their runs |
| `task_ids` | int64 [1, L] | for the loss by task |

**Position and attention.** A token attends to those before it in its own sample. Where question-answer pairs share an
image, the sample is: what is common up to the end of the image, then each pair's own part, whose positions all go on
from the end of the common part. So a position of 0 begins a sample, and any other position that does not follow the
one before it begins a pair, common part = the sample's tokens before that position. A pair's tokens attend to the
common part and to their own pair; no pair sees another. The first token of a pair carries no label.
"""

from __future__ import annotations

import numpy as np
import torch

from minigptv2.data.config import DataConfig
from minigptv2.prompt import IGNORE, IMAGE_PLACEHOLDER, Example

Batch = dict[str, torch.Tensor]
BATCH_KEYS = ("input_ids", "labels", "position_ids", "segment_ids", "pixel_values", "task_ids")


def collate(examples: list[Example], images: list[np.ndarray] | torch.Tensor, image_size: int) -> Batch:
    """One pack as a batch. `images` are uint8 [3, H, W] or one [N, 3, H, W], in the order of their use.

    An empty pack (all its samples were dropped) becomes one padding token without a label, so that its rank still
    takes part in the step.
    """
    expected = sum(example.num_images for example in examples)
    if expected != len(images):
        raise ValueError(f"{len(images)} images for examples that hold {expected}")
    if not examples:
        return _padding_batch(image_size)
    lengths = [len(example) for example in examples]
    return {
        "input_ids": _row(np.concatenate([example.input_ids for example in examples])),
        "labels": _row(np.concatenate([example.labels for example in examples])),
        "position_ids": _row(np.concatenate([example.position_ids for example in examples])),
        "segment_ids": _row(np.repeat(np.arange(1, len(lengths) + 1), lengths)),
        "pixel_values": _pixels(images, image_size),
        "task_ids": _row(np.concatenate([example.task_ids for example in examples])),
    }


def _padding_batch(image_size: int) -> Batch:
    zero = np.zeros(1, dtype=np.int64)
    rows = {key: _row(zero) for key in ("input_ids", "position_ids", "segment_ids", "task_ids")}
    return rows | {"labels": _row(zero + IGNORE), "pixel_values": _pixels([], image_size)}


def _row(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))[None]


def _pixels(images: list[np.ndarray] | torch.Tensor, image_size: int) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        return images
    if not images:
        return torch.zeros((0, 3, image_size, image_size), dtype=torch.uint8)
    return torch.from_numpy(np.stack(images))


TEXT_TOKENS = 16
"""Text of the shortest sample about an image: the shorter, the more images a pack may hold."""


def fullest_pack(config: DataConfig, *, image_size: int, tokens_per_image: int, global_batch_size: int) -> Batch:
    """A pack of `max_pack_tokens` tokens, as many images as fit, each text token supervised.

    A step of `global_batch_size` samples cannot fill more than its own tokens. The same on every rank.
    """
    length = tokens_per_image + TEXT_TOKENS
    tokens = min(config.max_pack_tokens, config.max_tokens * global_batch_size)
    count = max(1, min(tokens // length, global_batch_size))
    lengths = [length] * count
    room = tokens - sum(lengths)
    for number in range(count):  # few samples: the room goes to longer texts
        more = min(room, config.max_tokens - length)
        lengths[number] += more
        room -= more
    rng = np.random.default_rng(0)
    examples = [_example(one, tokens_per_image) for one in lengths]
    images = [rng.integers(0, 256, (3, image_size, image_size), dtype=np.uint8) for _ in lengths]
    return collate(examples, images, image_size)


def _example(length: int, tokens_per_image: int) -> Example:
    ids = np.full(length, 1)
    ids[1 : 1 + tokens_per_image] = IMAGE_PLACEHOLDER
    labels = np.where(ids == 1, ids, IGNORE)
    labels[0] = IGNORE
    return Example(ids, labels, np.zeros(length, dtype=np.int64), 1)
