"""Batched inference: questions about images in, texts out. Works on a plain model and on one sharded by ZeRO-3.

Under ZeRO-3 all ranks must ask the same questions together: generating is a collective there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from minigptv2.data.images import square
from minigptv2.model.backbones import tokens_per_image
from minigptv2.model.export import load_export
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import PromptEncoder, PromptStyle
from minigptv2.tokenizer import Tokenizer

MAX_PROMPT_TOKENS = 4096


@dataclass(frozen=True)
class Request:
    """A question, the image it is about (None: text only), and the turns before it as (question, answer) pairs."""

    question: str
    image: Image.Image | None = None
    history: tuple[tuple[str, str], ...] = ()


class Predictor:
    """Answers requests greedily with one model and tokenizer."""

    def __init__(self, model: MiniGPTv2, tokenizer: Tokenizer, *, tokens_per_image: int,
                 style: PromptStyle = PromptStyle.TRAINED) -> None:  # fmt: skip
        self.model = model
        self.tokenizer = tokenizer
        self.style = style
        self.encoder = PromptEncoder(tokenizer, tokens_per_image=tokens_per_image, max_tokens=MAX_PROMPT_TOKENS)

    def answer(self, requests: list[Request], *, max_new_tokens: int = 128, batch_size: int = 64) -> list[str]:
        """One text per request, in order. Requests of like length share a batch, longest first."""
        prompts = [
            self.encoder.encode_question(
                r.question, num_images=int(r.image is not None), history=r.history, style=self.style
            )
            for r in requests
        ]
        order = sorted(range(len(requests)), key=lambda i: -len(prompts[i]))
        answers = [""] * len(requests)
        with self.model.generating(), torch.no_grad():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                images = [requests[i].image for i in chosen]
                texts = self._generate([prompts[i] for i in chosen], images, max_new_tokens)
                for i, text in zip(chosen, texts, strict=True):
                    answers[i] = text
        return answers

    def _generate(self, prompts: list[np.ndarray], images: list[Image.Image | None], max_new_tokens: int) -> list[str]:
        device = next(self.model.parameters()).device
        longest = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), longest), self.tokenizer.eos_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):  # padded on the left, so that all answers begin in one column
            input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            attention_mask[row, longest - len(prompt) :] = 1
        side = self.model.image_size
        pixels = [square(image.convert("RGB"), side) for image in images if image is not None]
        pixel_values = (
            torch.from_numpy(np.stack(pixels)) if pixels else torch.zeros(0, 3, side, side, dtype=torch.uint8)
        )
        embeddings = self.model.embed(input_ids.to(device), pixel_values.to(device))
        generated = self.model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            bos_token_id=self.tokenizer.bos_id,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.eos_id,
        )
        return [self.tokenizer.decode(row) for row in generated.tolist()]


def load_predictor(export: str) -> Predictor:
    """A predictor for the model in an export folder, on this machine's device."""
    model, tokenizer, info = load_export(export)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(model.to(device), tokenizer, tokens_per_image=tokens_per_image(info.model.vision_encoder))
