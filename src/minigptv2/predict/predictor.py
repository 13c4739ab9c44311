"""Runs a model on batches of requests: generates answers, streams one, or scores given answers.

It works on a plain model and on one sharded by ZeRO-3. Under ZeRO-3 all ranks must call it together, because every
forward pass is a collective operation.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
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
from minigptv2.errors import CheckpointError, ConfigError, DataError, TooLongError
from minigptv2.model.export import load_export
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.pack_layout import PackLayout
from minigptv2.predict.requests import Case, Decoding, ImageRef, ImageTokens, Reply, Request, Score
from minigptv2.prompt import Example, PromptEncoder, PromptStyle
from minigptv2.shards.image_files import square
from minigptv2.tasks import RenderedTurn, task_of
from minigptv2.tokenizer import Tokenizer

IMAGES_AT_ONCE = 32
"""The most images in one forward pass of the vision encoder."""
REPLACEMENT_CHARACTER = "\ufffd"
"""What the tokenizer decodes invalid UTF-8 to, for example the first bytes of a character whose rest is not generated
yet."""
NOT_FINITE = (
    "the model's outputs are not finite (NaN or infinite): its weights are damaged, or its numbers overflow in this "
    "dtype (bfloat16 and float32 have a larger range than float16)"
)
LAYOUTS = ("packed", "padded")
"""Layouts of a batch of scored examples: one packed sequence, or one row per example, padded on the right."""


class Predictor:
    """Answers requests and scores answers with one model and tokenizer.

    `style` is the prompt template. `identity` distinguishes the outputs of this model from those of another. Set
    `synced_ranks` for a model sharded by ZeRO-3 on several ranks: a rank whose answers are complete then continues
    until the answers of all ranks are. Every method that runs the model raises `CheckpointError` for logits that are
    not finite, except with `refuse_nonfinite=False`, during training, which has its own guard.
    """

    def __init__(
        self,
        model: MiniGPTv2,
        tokenizer: Tokenizer,
        *,
        style: PromptStyle = PromptStyle.TRAINED,
        identity: str = "",
        synced_ranks: bool = False,
        refuse_nonfinite: bool = True,
    ) -> None:
        self.model = model
        self.synced_ranks = synced_ranks
        self._refuse_nonfinite = refuse_nonfinite
        self.identity = identity
        self.lock = RLock()
        """Held while the model runs, because generating changes its mode and the random state."""
        self.tokenizer = tokenizer
        self.style = style
        self.encoder = PromptEncoder(tokenizer, tokens_per_image=model.tokens_per_image, max_tokens=None)

    def answer(
        self,
        requests: list[Request],
        decoding: Decoding | None = None,
        *,
        batch_size: int = 64,
        seen: ImageTokens | None = None,
    ) -> list[str]:
        """The texts of the answers, one per request, in order. See `reply` for the arguments and errors."""
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
        """One reply per request, in order, with the `top` most likely first tokens.

        Requests of similar length share a batch, the longest first. An image that several requests share (the same
        object) is encoded once. `seen` carries encoded images from call to call. Sampled answers depend on the seed,
        the requests and the batch size only. Raises `DataError` for a prompt that is too long for the model and
        `ConfigError` for `top` together with beam search.
        """
        decoding = decoding or Decoding()
        prompts = [self.prompt_ids(request, decoding) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(prompts[i]))
        replies: dict[int, Reply] = {}
        seen = {} if seen is None else seen
        if top and decoding.beams > 1:
            raise ConfigError("the most likely first tokens are not available with beam search: set beams=1")
        with self.lock, self.model.generating(), torch.no_grad():
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
        """Yield the answer to one request in pieces while it is generated. Closing the iterator stops the model.

        The concatenated pieces equal the text of `answer`, except for invalid UTF-8, which is only known at the end.
        Raises `DataError` for a prompt that is too long and `ConfigError` for beam search.
        """
        decoding = decoding or Decoding()
        if decoding.beams > 1:
            raise ConfigError("beam search cannot be streamed, because its first token is known last: set beams=1")
        prompt = self.prompt_ids(request, decoding)
        streamer, stop = _Streamer(), Event()

        def work() -> None:
            try:
                with self.lock, self.model.generating(), torch.no_grad():
                    torch.manual_seed(decoding.seed)
                    embeddings, mask = self.padded([prompt], self.image_tokens(list(request.images), {}))
                    self._generate(
                        embeddings, mask, decoding, streamer=streamer, stopping_criteria=[_StopOnEvent(stop)]
                    )
            except BaseException as error:  # noqa: BLE001  raised again in the thread that reads the stream
                streamer.pieces.put(error)
            else:
                streamer.pieces.put(None)

        thread = Thread(target=work, daemon=True)
        thread.start()
        ids: list[int] = []
        sent = ""
        try:
            while (piece := streamer.pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                ids += piece
                text = self.tokenizer.decode(ids).rstrip(REPLACEMENT_CHARACTER)  # the rest of the character may follow
                if len(text) > len(sent):
                    yield text[len(sent) :]
                    sent = text
            if rest := self.tokenizer.decode(ids)[len(sent) :]:
                yield rest
        finally:
            stop.set()
            thread.join()

    def score(
        self, cases: list[Case], *, batch_size: int = 16, layout: str = "packed", seen: ImageTokens | None = None
    ) -> list[Score]:
        """The likelihoods of given answers, one score per case, in order. As in training, the supervised tokens are
        those of every answer and its `</s>`. Questions are formatted in the style of the predictor.

        `layout` is one of `LAYOUTS`; both give the same result up to rounding. Raises `DataError` for a case that is
        too long for the model.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout}")
        examples = [self._example(case) for case in cases]
        order = sorted(range(len(cases)), key=lambda i: -len(examples[i]))
        seen = {} if seen is None else seen
        scores: dict[int, Score] = {}
        with self.lock, torch.no_grad():
            self.model.eval()
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                tokens = self.image_tokens([image for i in chosen for image in cases[i].images], seen)
                losses = (self._packed_losses if layout == "packed" else self._padded_losses)(
                    [examples[i] for i in chosen], tokens
                )
                for i, nll in zip(chosen, losses, strict=True):
                    if self._refuse_nonfinite and not nll.isfinite().all():
                        raise CheckpointError(NOT_FINITE)
                    targets = examples[i].labels[examples[i].labels != IGNORE]
                    scores[i] = Score(len(examples[i]), tuple(targets.tolist()), tuple(nll.tolist()))
        return [scores[i] for i in range(len(cases))]

    def image_tokens(self, images: list[Image.Image], seen: ImageTokens | None = None) -> Tensor | None:
        """Image tokens [N, tokens_per_image, D], or None without images.

        Images in `seen` are not encoded again. New ones are added to it.
        """
        seen = {} if seen is None else seen
        refs = [ImageRef(image) for image in images]
        new = [ref for ref in dict.fromkeys(refs) if ref not in seen]
        side = self.model.image_size
        with torch.no_grad():
            for start in range(0, len(new), IMAGES_AT_ONCE):
                chosen = new[start : start + IMAGES_AT_ONCE]
                pixels = torch.from_numpy(np.stack([square(ref.image.convert("RGB"), side) for ref in chosen]))
                tokens = self.model.encode_images(pixels.to(self._device))
                seen.update(zip(chosen, tokens, strict=True))
        return torch.stack([seen[ref] for ref in refs]) if refs else None

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image resized to the input of the model, which takes less memory. The answers are the same."""
        return Image.fromarray(square(image.convert("RGB"), self.model.image_size).transpose(1, 2, 0))

    def check(self, request: Request, decoding: Decoding) -> None:
        """Raise `DataError` for a request that is too long for the model."""
        self.prompt_ids(request, decoding)

    def fitted(self, decoding: Decoding, prompt_tokens: int) -> Decoding:
        """`decoding` with at most the new tokens that fit into the context after `prompt_tokens`."""
        return replace(decoding, max_new_tokens=min(decoding.max_new_tokens, self.model.max_positions - prompt_tokens))

    def check_case(self, case: Case) -> None:
        """Raise `DataError` for a case that is too long for the model."""
        self._example(case)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prompt_ids(self, request: Request, decoding: Decoding) -> np.ndarray:
        """Token ids int64 [L] of the prompt. Raises `TooLongError` if prompt and answer exceed the model's context."""
        prompt = self.encoder.encode_question(
            request.question,
            num_images=len(request.images),
            history=request.history,
            style=self.style,
            images_by_turn=request.images_by_turn,
        )
        if len(prompt) + decoding.max_new_tokens > self.model.max_positions:
            raise TooLongError(
                f"prompt ({len(prompt)} tokens) and max_new_tokens ({decoding.max_new_tokens}) must fit into the "
                f"{self.model.max_positions} positions of the model"
            )
        return prompt

    def _example(self, case: Case) -> Example:
        turns = [RenderedTurn(task_of(question).name, question, answer) for question, answer in case.turns]
        example = self.encoder.encode_rendered(turns, num_images=len(case.images), style=self.style)
        if example is None or len(example) > self.model.max_positions:
            raise DataError(f"{case.turns[0][0]!r}: longer than the {self.model.max_positions} positions of the model")
        return example

    def padded(self, prompts: list[np.ndarray], image_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] and mask [B, L], padded on the left so that all answers start in the same column."""
        longest = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), longest), self.tokenizer.eos_id, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        return self._place(input_ids, image_tokens), mask.to(self._device)

    def _place(self, input_ids: Tensor, image_tokens: Tensor | None) -> Tensor:
        if image_tokens is None:
            width = self.model.projector.linear.out_features
            image_tokens = torch.zeros(0, self.model.tokens_per_image, width, device=self._device)
        return self.model.place(input_ids.to(self._device), image_tokens)

    def _generate(self, embeddings: Tensor, mask: Tensor, decoding: Decoding, **more: Any) -> Tensor:
        if self._refuse_nonfinite:
            more["logits_processor"] = [_RefuseNonfinite(), *more.get("logits_processor", ())]
        return self.model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            bos_token_id=self.tokenizer.bos_id,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.eos_id,
            synced_gpus=self.synced_ranks,
            **decoding.options(),
            **more,
        )

    def _packed_losses(self, examples: list[Example], image_tokens: Tensor | None) -> list[Tensor]:
        parts = [np.concatenate([getattr(e, key) for e in examples]) for key in ("input_ids", "labels")]
        joined = np.stack([*parts, np.concatenate([np.arange(len(e)) for e in examples])])
        ids, labels, positions = torch.from_numpy(joined).split(1)
        layout = PackLayout.of(positions, labels).to(self._device)
        embeddings = self._place(ids, image_tokens)
        losses, _ = self.model.token_losses(embeddings, labels.to(self._device), positions.to(self._device), layout)
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


class _RefuseNonfinite(LogitsProcessor):
    """Raises `CheckpointError` for logits that are not finite and leaves the others unchanged."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not scores.isfinite().all():
            raise CheckpointError(NOT_FINITE)
        return scores


class _FirstStep(LogitsProcessor):
    """Records the most likely first tokens of each row and leaves the logits unchanged."""

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
    """Passes token ids to the reading thread, which decodes them."""

    def __init__(self) -> None:
        self.pieces: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()

    def put(self, value: Tensor) -> None:
        self.pieces.put(value.flatten().tolist())

    def end(self) -> None:
        """Do nothing: the generating thread marks the end itself, after errors too."""


class _StopOnEvent(StoppingCriteria):
    """Stops all rows once the event is set."""

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
    """A predictor for a model folder or an export.

    `vision_weights` and `language_weights` are the base weights, for an export whose base weights have moved. `device`
    defaults to a GPU if there is one, `dtype` to that of the language model's files. Raises `ConfigError` for an
    unknown dtype or prompt style, an unavailable device or too little memory, and `CheckpointError` for a folder that
    cannot be loaded.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if style not in list(PromptStyle):
        raise ConfigError(f"prompt style must be one of {', '.join(PromptStyle)}, got {style}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device} is not available: {str(error).splitlines()[0]}") from error
    model, tokenizer, info = load_export(
        folder,
        vision_weights=vision_weights,
        language_weights=language_weights,
        dtype=None if dtype is None else getattr(torch, dtype),
        device=device,
    )
    identity = f"{info.weights_sha256} {sorted(info.base_sha256.items())}"
    return Predictor(model, tokenizer, style=PromptStyle(style), identity=identity)
