"""The packing proof of a run's start: on this machine's kernels, one sample's neighbours cannot change it.

A mask or a kernel that leaks is silent: the loss falls all the same. So every run packs three samples, changes one, and
looks whether the others' losses moved by a single bit; and compares the pack with its samples one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigptv2.errors import MiniGPTv2Error
from minigptv2.model.minigptv2 import MiniGPTv2

LENGTHS = (19, 7, 33)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far a packed sample's mean loss may be from its own alone, by the weights' type: rounding, not leaking."""


class LeakError(MiniGPTv2Error):
    """Attention over packs is broken on this machine: training on it would be wrong."""


def prove_packing(model: MiniGPTv2, device: torch.device) -> str:
    """Run the proof (a few forward passes of 59 tokens; the same on all ranks) and return what it found, in words.

    Raises `LeakError` if a sample's losses depend on its neighbours.
    """
    embedding = model.language_model.get_input_embeddings()
    vocabulary = model.language_model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(0, vocabulary, (1, length), generator=generator).to(device) for length in LENGTHS]
    others = [(sample + 1) % vocabulary for sample in samples]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = _losses(model, embedding, samples)
            moved = _losses(model, embedding, [others[0], samples[1], others[2]])
            alone = [_losses(model, embedding, [sample])[0] for sample in samples]
    finally:
        model.train(was_training)
    leak = float((packed[1] - moved[1]).abs().max())
    apart = max(float((together - single).abs().mean()) for together, single in zip(packed, alone, strict=True))
    dtype = next(model.language_model.parameters()).dtype
    where = f"attention {model.attention}, {device.type}, torch {torch.__version__}"
    if leak > 0 or not apart <= TOLERANCE.get(dtype, 0.1):
        raise LeakError(
            f"packing is not safe here ({where}): a sample moved by {leak:.1e} when its neighbours changed (must be 0) "
            f"and is {apart:.1e} from itself alone. Set model.attention=packed_sdpa and report this."
        )
    return f"packing proof: a sample's neighbours move it by exactly 0 ({where}); {apart:.1e} from alone"


def _losses(model: MiniGPTv2, embedding: torch.nn.Module, samples: list[Tensor]) -> list[Tensor]:
    """Losses of each sample of a pack, the first token's aside."""
    ids = torch.cat(samples, dim=1)
    positions = torch.cat([torch.arange(sample.shape[1], device=ids.device) for sample in samples])[None]
    losses, supervised = model.token_losses(embedding(ids), ids, positions)
    lengths = [sample.shape[1] for sample in samples]
    by_token = losses.new_zeros(ids.shape[1])
    by_token[supervised] = losses
    # The last token of a sample predicts the first of the next, which is no business of its own.
    return [part[:-1] for part in by_token.split(lengths)]
