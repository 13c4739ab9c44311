"""Checks at the start of a run that packed samples do not influence each other with the kernels of this machine.

A mask or kernel that leaks is silent, because the loss falls anyway. Every run therefore packs three samples, changes
two of them, and checks that the losses of the third are equal to the bit. It also compares the samples of the pack with
the same samples run alone, which finds wrong positions and masks that hide a sample from itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigptv2.errors import LeakError
from minigptv2.model.minigptv2 import MiniGPTv2

LENGTHS = (19, 7, 33)
NOISE_FACTOR = 5.0
"""Largest distance of a pack from its samples alone, in units of the rounding noise. SmolLM2-135M in bf16: at most 0.26
in 12 draws, and at least 20 with a broken mask."""
SMALLEST_LIMIT = 1e-4
"""Limit in nats where there is hardly any noise, as in a tiny model in float32."""


def prove_packing(model: MiniGPTv2, device: torch.device) -> str:
    """Run the check, a few forward passes of 59 tokens, on all ranks; return a line for the log.

    Rounding noise is the mean change of a loss when each value of the embeddings moves by one rounding step of its
    dtype. It grows with the model, and a fixed tolerance stops correct runs. Reordering the pack is no measure of it:
    on CPUs its losses are equal to the bit. Raises `LeakError` if the losses of a sample depend on its neighbors, or
    differ from those of the sample alone by more than `NOISE_FACTOR` times the noise.
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
            changed = _losses(model, embedding, [others[0], samples[1], others[2]])
            rounded = _losses(model, embedding, samples, noise=generator)
            alone = [_losses(model, embedding, [sample])[0] for sample in samples]
    finally:
        model.train(was_training)
    leak = float((packed[1] - changed[1]).abs().max())
    apart, noise = _distance(packed, alone), _distance(packed, rounded)
    where = f"attention {model.attention}, {device.type}, torch {torch.__version__}"
    found = f"they are {apart:.1e} from the samples alone, with a rounding noise of {noise:.1e}"
    if leak > 0 or not apart <= max(SMALLEST_LIMIT, NOISE_FACTOR * noise):
        raise LeakError(
            f"packed samples are not independent ({where}): losses changed by {leak:.1e} with neighbors (must be 0), "
            f"and {found} (must be at most {NOISE_FACTOR:g} times the noise). Set model.attention=packed_sdpa and "
            "report this. train.check_packing=false starts without this check."
        )
    return f"packing check passed: neighbors change losses by exactly 0 ({where}), {found}"


def _distance(losses: list[Tensor], others: list[Tensor]) -> float:
    """Return the mean absolute difference over all tokens of a pack."""
    return float((torch.cat(losses) - torch.cat(others)).abs().mean())


def _losses(
    model: MiniGPTv2, embedding: torch.nn.Module, samples: list[Tensor], *, noise: torch.Generator | None = None
) -> list[Tensor]:
    """Return the losses of each sample of a pack, without that of the first token.

    `noise` draws whether each value of the embeddings moves up or down by the rounding step of its dtype.
    """
    ids = torch.cat(samples, dim=1)
    positions = torch.cat([torch.arange(sample.shape[1], device=ids.device) for sample in samples])[None]
    embeddings = embedding(ids)
    if noise is not None:
        signs = 2 * torch.randint(0, 2, embeddings.shape, generator=noise).to(embeddings) - 1
        embeddings = embeddings + embeddings * signs * torch.finfo(embeddings.dtype).eps
    losses, supervised = model.token_losses(embeddings, ids, positions)
    lengths = [sample.shape[1] for sample in samples]
    by_token = losses.new_zeros(ids.shape[1])
    by_token[supervised] = losses
    # Drop the last position of each sample: it predicts the first token of the next sample.
    return [part[:-1] for part in by_token.split(lengths)]
