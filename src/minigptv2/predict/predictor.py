"""Batched inference: questions about images in, texts out. Works on a plain model and on one sharded by ZeRO-3.

Under ZeRO-3 all ranks must ask the same questions together: generating is a collective there.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, RLock, Thread
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from minigptv2.batch import IGNORE
from minigptv2.errors import ConfigError, DataError
from minigptv2.model.export import load_export
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import Example, PromptEncoder, PromptStyle
from minigptv2.shards.image_files import square
from minigptv2.tasks import RenderedTurn, task_of
from minigptv2.tokenizer import Tokenizer

IMAGES_AT_ONCE = 32
"""Images that go through the vision encoder together."""
MIN_TEMPERATURE, MIN_TOP_P = 1e-3, 1e-6
"""Smaller ones are greedy but for what float32 makes of them: logits that overflow, a mass of nothing."""
HALF_A_CHARACTER = "\ufffd"
"""What bytes that are no character (yet) are decoded to."""
LAYOUTS = ("packed", "padded")
"""How a batch of scored samples is laid out: one row of samples end to end, or a row each, padded on the right."""


@dataclass(frozen=True)
class Request:
    """A question, the images it is about (none: text only), and the turns before it as (question, answer) pairs."""

    question: str
    images: tuple[Image.Image, ...] = ()
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Case:
    """A conversation with its answers given, to be scored: (question, answer) pairs, images in the first turn."""

    turns: tuple[tuple[str, str], ...]
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen: greedily; with `temperature` > 0 by sampling; with `beams` > 1 by beam search."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):  # NaN neither
            raise ConfigError(f"temperature={self.temperature}: want 0 (greedy) or at least {MIN_TEMPERATURE:g}")
        if not MIN_TOP_P <= self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: want {MIN_TOP_P:g} to 1")
        if self.beams < 1 or self.max_new_tokens < 1 or not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"impossible decoding: {self}")
        if self.temperature and self.beams > 1:
            raise ConfigError("beams and temperature exclude each other: search is not sampling")

    def options(self) -> dict[str, Any]:
        """Arguments of `transformers`' `generate`."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": bool(self.temperature),
            "num_beams": self.beams,
            **sampling,
        }


@dataclass(frozen=True)
class Reply:
    """An answer, the length of its prompt in tokens (image tokens included), and the likeliest first tokens as
    (id, logit), best first."""

    text: str
    context_length: int
    next_top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Score:
    """A scored case: tokens of its sequence, the supervised ones, and the negative log likelihood of each (nats)."""

    length: int
    target_ids: tuple[int, ...]
    nll: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean over the supervised tokens."""
        return sum(self.nll) / len(self.nll)


ImageTokens = dict[int, tuple[Image.Image, Tensor]]
"""Encoded images by the `id` of their object, which is kept beside so that no other takes its id."""


class Predictor:
    """Answers requests and scores answers with one model and tokenizer.

    `style`: how questions are written. `identity`: what tells this model's outputs from another's. `in_step`: for a
    model sharded by ZeRO-3: a rank whose answers are complete runs on until those of all ranks are.
    """

    def __init__(
        self,
        model: MiniGPTv2,
        tokenizer: Tokenizer,
        *,
        style: PromptStyle = PromptStyle.TRAINED,
        identity: str = "",
        in_step: bool = False,
    ) -> None:
        self.model = model
        self.in_step = in_step
        self.identity = identity
        self.turn = RLock()
        """Held while the model runs: generating changes its mode and the random state, one at a time."""
        self.tokenizer = tokenizer
        self.style = style
        self.encoder = PromptEncoder(tokenizer, tokens_per_image=model.tokens_per_image, max_tokens=model.max_positions)

    def answer(
        self,
        requests: list[Request],
        decoding: Decoding | None = None,
        *,
        batch_size: int = 64,
        seen: ImageTokens | None = None,
    ) -> list[str]:
        """One text per request, in order."""
        return [reply.text for reply in self.reply(requests, decoding, batch_size=batch_size, seen=seen)]

    def reply(
        self,
        requests: list[Request],
        decoding: Decoding | None = None,
        *,
        batch_size: int = 64,
        top: int = 0,
        seen: ImageTokens | None = None,
    ) -> list[Reply]:
        """One reply per request, in order, with the `top` likeliest first tokens.

        Requests of like length share a batch, longest first. An image that several requests share (the same object)
        is encoded once; `seen` carries encoded images from call to call. Sampling depends on the seed, the requests
        and the batch size alone. Raises `DataError` for a prompt too long for the model.
        """
        decoding = decoding or Decoding()
        prompts = [self.prompt_ids(request, decoding) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(prompts[i]))
        replies: dict[int, Reply] = {}
        seen = {} if seen is None else seen
        if top and decoding.beams > 1:
            raise ConfigError("beam search weighs sequences: it has no likeliest first tokens to show")
        with self.turn, self.model.generating(), torch.no_grad():
            torch.manual_seed(decoding.seed)
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                images = [image for i in chosen for image in requests[i].images]
                embeddings, mask = self.padded([prompts[i] for i in chosen], self.image_tokens(images, seen))
                first = _FirstStep(top)
                generated = self._generate(embeddings, mask, decoding, logits_processor=[first])
                for row, i in enumerate(chosen):
                    text = self.tokenizer.decode(generated[row].tolist())
                    replies[i] = Reply(text, len(prompts[i]), first.top[row] if top else ())
        return [replies[i] for i in range(len(requests))]

    def stream(self, request: Request, decoding: Decoding | None = None) -> Generator[str, None, None]:
        """The answer to one request, piece by piece as it is generated. Closing the iterator stops the model.

        The pieces make up what `answer` says, but for bytes that are no characters, which only the end can tell.
        """
        decoding = decoding or Decoding()
        if decoding.beams > 1:
            raise ConfigError("beam search has no first token before its last: it cannot be streamed")
        prompt = self.prompt_ids(request, decoding)
        streamer, stop = _Streamer(), Event()

        def work() -> None:
            try:
                with self.turn, self.model.generating(), torch.no_grad():
                    torch.manual_seed(decoding.seed)
                    embeddings, mask = self.padded([prompt], self.image_tokens(list(request.images), {}))
                    self._generate(
                        embeddings, mask, decoding, streamer=streamer, stopping_criteria=[_StopWhenAsked(stop)]
                    )
            except BaseException as error:  # noqa: BLE001  handed to the thread that reads the stream
                streamer.pieces.put(error)
            else:
                streamer.pieces.put(None)

        thread = Thread(target=work, daemon=True)
        thread.start()
        ids: list[int] = []
        said = ""
        try:
            while (piece := streamer.pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                ids += piece
                text = self.tokenizer.decode(ids).rstrip(HALF_A_CHARACTER)  # its rest may come yet
                if len(text) > len(said):
                    yield text[len(said) :]
                    said = text
            if rest := self.tokenizer.decode(ids)[len(said) :]:
                yield rest
        finally:
            stop.set()
            thread.join()

    def score(
        self, cases: list[Case], *, batch_size: int = 16, layout: str = "packed", seen: ImageTokens | None = None
    ) -> list[Score]:
        """The likelihood of given answers, as training sees them: loss on every answer and its `</s>`, in order.

        `layout`: one of `LAYOUTS`; results agree within rounding. Raises `DataError` for a case too long for the model.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout} is not one of {', '.join(LAYOUTS)}")
        examples = [self._example(case) for case in cases]
        order = sorted(range(len(cases)), key=lambda i: -len(examples[i]))
        seen = {} if seen is None else seen
        scores: dict[int, Score] = {}
        with self.turn, torch.no_grad():
            self.model.eval()
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                tokens = self.image_tokens([image for i in chosen for image in cases[i].images], seen)
                losses = (self._packed_losses if layout == "packed" else self._padded_losses)(
                    [examples[i] for i in chosen], tokens
                )
                for i, nll in zip(chosen, losses, strict=True):
                    targets = examples[i].labels[examples[i].labels != IGNORE]
                    scores[i] = Score(len(examples[i]), tuple(targets.tolist()), tuple(nll.tolist()))
        return [scores[i] for i in range(len(cases))]

    def image_tokens(self, images: list[Image.Image], seen: ImageTokens | None = None) -> Tensor | None:
        """[N, tokens_per_image, D] of images, those in `seen` (which is added to) not encoded again; None for none."""
        seen = {} if seen is None else seen
        new = list({id(image): image for image in images if id(image) not in seen}.values())
        side = self.model.image_size
        with torch.no_grad():
            for start in range(0, len(new), IMAGES_AT_ONCE):
                chosen = new[start : start + IMAGES_AT_ONCE]
                pixels = torch.from_numpy(np.stack([square(image.convert("RGB"), side) for image in chosen]))
                tokens = self.model.encode_images(pixels.to(self._device))
                seen.update({id(image): (image, row) for image, row in zip(chosen, tokens, strict=True)})
        return torch.stack([seen[id(image)][1] for image in images]) if images else None

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image as small as the model sees it. Answers are the same; many fit into memory."""
        return Image.fromarray(square(image.convert("RGB"), self.model.image_size).transpose(1, 2, 0))

    def check(self, request: Request, decoding: Decoding) -> None:
        """Raise `DataError` for a request too long for the model."""
        self.prompt_ids(request, decoding)

    def check_case(self, case: Case) -> None:
        """Raise `DataError` for a case too long for the model."""
        self._example(case)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prompt_ids(self, request: Request, decoding: Decoding) -> np.ndarray:
        """Token ids int64 [L] that prompt the answer. Raises `DataError` if no room is left for it."""
        prompt = self.encoder.encode_question(
            request.question, num_images=len(request.images), history=request.history, style=self.style
        )
        if len(prompt) + decoding.max_new_tokens > self.model.max_positions:
            raise DataError(
                f"a prompt of {len(prompt)} tokens and {decoding.max_new_tokens} new ones: the model holds "
                f"{self.model.max_positions}"
            )
        return prompt

    def _example(self, case: Case) -> Example:
        turns = [RenderedTurn(task_of(question).name, question, answer) for question, answer in case.turns]
        example = self.encoder.encode_rendered(turns, num_images=len(case.images))
        if example is None or example.num_turns < len(turns):
            raise DataError(f"{case.turns[0][0]!r}: longer than the {self.model.max_positions} tokens the model holds")
        return example

    def padded(self, prompts: list[np.ndarray], image_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] and mask [B, L], padded on the left, so that all answers begin in one column."""
        longest = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), longest), self.tokenizer.eos_id, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        return self._place(input_ids, image_tokens), mask.to(self._device)

    def _place(self, input_ids: Tensor, image_tokens: Tensor | None) -> Tensor:
        if image_tokens is None:
            image_tokens = torch.zeros(0, self.model.tokens_per_image, 0, device=self._device)
        return self.model.place(input_ids.to(self._device), image_tokens)

    def _generate(self, embeddings: Tensor, mask: Tensor, decoding: Decoding, **more: Any) -> Tensor:
        return self.model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            bos_token_id=self.tokenizer.bos_id,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.eos_id,
            synced_gpus=self.in_step,
            **decoding.options(),
            **more,
        )

    def _packed_losses(self, examples: list[Example], image_tokens: Tensor | None) -> list[Tensor]:
        ids, labels = (np.concatenate([getattr(e, key) for e in examples])[None] for key in ("input_ids", "labels"))
        positions = np.concatenate([np.arange(len(e)) for e in examples])[None]
        embeddings = self._place(torch.from_numpy(ids), image_tokens)
        losses, _ = self.model.token_losses(
            embeddings, torch.from_numpy(labels).to(self._device), torch.from_numpy(positions).to(self._device)
        )
        return list(losses.cpu().split([e.num_supervised for e in examples]))

    def _padded_losses(self, examples: list[Example], image_tokens: Tensor | None) -> list[Tensor]:
        shape = (len(examples), max(len(e) for e in examples))
        ids, labels = torch.full(shape, self.tokenizer.eos_id), torch.full(shape, IGNORE)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example)] = torch.from_numpy(example.input_ids)
            labels[row, : len(example)] = torch.from_numpy(example.labels)
            mask[row, : len(example)] = 1
        with self.model.generating():
            hidden = self.model.language_model.model(
                inputs_embeds=self._place(ids, image_tokens), attention_mask=mask.to(self._device), use_cache=False
            ).last_hidden_state
        targets = labels[:, 1:].to(self._device)
        supervised = targets != IGNORE
        logits = self.model.language_model.lm_head(hidden[:, :-1][supervised]).float()
        losses = cross_entropy(logits, targets[supervised], reduction="none")
        return list(losses.cpu().split([e.num_supervised for e in examples]))


class _FirstStep(LogitsProcessor):
    """Changes nothing; remembers the likeliest first tokens of each row."""

    def __init__(self, count: int) -> None:
        self.top: list[tuple[tuple[int, float], ...]] = []
        self._count = count

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._count and not self.top:
            best = scores.float().topk(self._count)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            self.top = [tuple(zip(ids, logits, strict=True)) for ids, logits in pairs]
        return scores


class _Streamer(BaseStreamer):
    """Hands token ids on as they come; the reader decodes."""

    def __init__(self) -> None:
        self.pieces: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()

    def put(self, value: Tensor) -> None:
        self.pieces.put(value.flatten().tolist())

    def end(self) -> None:
        """Nothing: the worker says when it is done."""


class _StopWhenAsked(StoppingCriteria):
    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)


DTYPES = ("float32", "bfloat16", "float16")


def load_predictor(
    folder: str,
    *,
    style: str = PromptStyle.TRAINED,
    device: str | None = None,
    dtype: str | None = None,
    vision_weights: str | None = None,
    language_weights: str | None = None,
) -> Predictor:
    """A predictor for a model folder or an export, whose bases may be given if they lie elsewhere now.

    `device` None: a GPU if there is one. `dtype` None: bfloat16 on a GPU, float32 on a CPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype} is not one of {', '.join(DTYPES)}")
    if style not in list(PromptStyle):
        raise ConfigError(f"prompt style {style} is not one of {', '.join(PromptStyle)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    model, tokenizer, info = load_export(
        folder,
        vision_weights=vision_weights,
        language_weights=language_weights,
        dtype=getattr(torch, dtype),
        device=device,
    )
    identity = f"{info.weights_sha256} {sorted(info.base_sha256.items())}"
    return Predictor(model, tokenizer, style=PromptStyle(style), identity=identity)
