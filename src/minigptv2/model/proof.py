"""Checks at the start of a run that packed samples do not influence each other with the kernels of this machine.

A mask or kernel that leaks is silent, because the loss falls anyway. Every run therefore packs three samples, changes
two of them, and checks that the losses of the third are equal to the bit. It also compares the samples of the pack with
the same samples run alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigptv2.errors import LeakError
from minigptv2.model.minigptv2 import MiniGPTv2

LENGTHS = (19, 7, 33)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference between the mean loss of a sample in a pack and alone, by dtype of the weights; from rounding."""


def prove_packing(model: MiniGPTv2, device: torch.device) -> str:
    """Run the check, a few forward passes of 59 tokens, on all ranks; return a line for the log.

    Raises `LeakError` if the losses of a sample depend on its neighbors.
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
            f"packed samples influence each other ({where}): losses changed by {leak:.1e} with neighbors (must be 0) "
            f"and differs by {apart:.1e} from the sample alone. Set model.attention=packed_sdpa and report this."
        )
    return f"packing check passed: neighbors change a sample by exactly 0 ({where}), {apart:.1e} from the sample alone"


def _losses(model: MiniGPTv2, embedding: torch.nn.Module, samples: list[Tensor]) -> list[Tensor]:
    """Return the losses of each sample of a pack, without that of the first token."""
    ids = torch.cat(samples, dim=1)
    positions = torch.cat([torch.arange(sample.shape[1], device=ids.device) for sample in samples])[None]
    losses, supervised = model.token_losses(embedding(ids), ids, positions)
    lengths = [sample.shape[1] for sample in samples]
    by_token = losses.new_zeros(ids.shape[1])
    by_token[supervised] = losses
    # Drop the last position of each sample: it predicts the first token of the next sample.
    return [part[:-1] for part in by_token.split(lengths)]
