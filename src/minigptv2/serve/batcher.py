"""Continuous batching: requests of several users share every step of the model, joining and leaving at any token.

Requests in, tickets out, on which the answer arrives piece by piece. One thread owns the model. Greedy answers are
those of `Predictor.answer`; a sampled one depends on its own seed alone, not on who shares the batch. First come, first
served; a full queue refuses at once (`Busy`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from minigptv2.errors import ConfigError, MiniGPTv2Error
from minigptv2.predict.predictor import REPLACEMENT_CHARACTER, Predictor
from minigptv2.predict.requests import Decoding, ImageTokens, Request

log = logging.getLogger(__name__)

NEW_ROWS_PER_STEP = 8
"""Prompts that are read between two steps of the running answers: more would make those wait longer."""
REMEMBERED_IMAGES = 64
"""Encoded images that are kept for later turns about them."""


class Busy(MiniGPTv2Error):
    """The queue is full: ask again later."""


class Ticket:
    """One request on its way. Iterate it for the pieces of the answer; `cancel` it to stop.

    `finish_reason` is None until the end, then stop, length, cancelled or error. `text` is the answer so far; the
    pieces make it up, but for bytes that are no characters, which only the end can tell. `said`: characters handed on.
    """

    def __init__(self, request: Request, decoding: Decoding, stop: tuple[str, ...], prompt_tokens: int) -> None:
        self.request, self.decoding, self.stop = request, decoding, stop
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.text = ""
        self.said = 0
        self.finish_reason: str | None = None
        self.asked_at = time.monotonic()
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.cancelled = threading.Event()
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._listener: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Stop at the next step. What was said stays; cancelling twice, or after the end, does nothing."""
        self.cancelled.set()

    def __iter__(self) -> Iterator[str]:
        while True:
            piece = self._pieces.get()
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def ready(self) -> list[str | BaseException | None]:
        """Everything that arrived since the last call, without waiting; None marks the end."""
        arrived = []
        while True:
            try:
                arrived.append(self._pieces.get_nowait())
            except queue.Empty:
                return arrived

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` from the model's thread whenever something arrived, and once now."""
        self._listener = listener
        listener()

    def put(self, piece: str | BaseException | None) -> None:
        """Hand a piece, an error or the end (None) to the reader. For the batcher."""
        self._pieces.put(piece)
        if self._listener:
            self._listener()


@dataclass
class _Row:
    """A ticket being answered: its sampling, its tokens so far, and the length of its context."""

    ticket: Ticket
    generator: torch.Generator
    context: int
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """How busy the batcher is: answers under way, requests waiting, and whether its thread lives."""

    running: int
    waiting: int
    alive: bool


class Batcher:
    """Answers tickets with one model. `max_rows`: answers under way together; `max_waiting`: requests beside them."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_rows: int = 32,
        max_waiting: int = 128,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        if max_rows < 1 or max_waiting < 0:
            raise ConfigError(f"max_rows={max_rows}, max_waiting={max_waiting}: want at least 1 and 0")
        self.predictor = predictor
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self._observe = observe or (lambda rows, seconds: None)
        self._waiting: deque[Ticket] = deque()
        self._rows: list[_Row] = []
        self._changed = threading.Condition()
        self._closed = False
        self._cache = DynamicCache()
        self._mask: Tensor = torch.zeros(0, 0, dtype=torch.long)
        self._next: list[int] = []
        self._seen: ImageTokens = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request, decoding: Decoding | None = None, *, stop: tuple[str, ...] = ()) -> Ticket:
        """A ticket for the answer. Raises `Busy` if the queue is full, `DataError` for a prompt that is too long.

        `stop`: texts at which the answer ends; they are not part of it.
        """
        decoding = decoding or Decoding()
        if decoding.beams > 1:
            raise ConfigError("beam search cannot be shared or streamed: ask with beams=1")
        prompt = self.predictor.prompt_ids(request, decoding)
        ticket = Ticket(request, decoding, stop, len(prompt))
        with self._changed:
            if self._closed:
                raise Busy("the server is going down")
            if len(self._waiting) >= self.max_waiting + self.max_rows - len(self._rows):
                raise Busy(f"{len(self._rows)} answers under way and {len(self._waiting)} waiting: try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def load(self) -> Load:
        return Load(len(self._rows), len(self._waiting), self._thread.is_alive())

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    self._end_all("cancelled", None)
                    return
            try:
                with self.predictor.lock, self.predictor.model.generating(), torch.no_grad():
                    self._run_until_idle()
            except Exception as error:
                log.exception("the batch failed; the server goes on")
                with self._changed:
                    self._end_all("error", error)
                self._forget_batch()

    def _run_until_idle(self) -> None:
        while not self._closed:
            self._drop([row for row in self._rows if row.ticket.cancelled.is_set()], "cancelled")
            if newcomers := self._admit():
                self._read_prompts(newcomers)
            if not self._rows:
                with self._changed:
                    if not self._waiting:
                        return
                continue
            began = time.perf_counter()
            self._step()
            self._observe(len(self._rows), time.perf_counter() - began)

    def _admit(self) -> list[Ticket]:
        """The next tickets in order of arrival, as many as there is room for."""
        admitted: list[Ticket] = []
        with self._changed:
            while self._waiting and len(admitted) < min(NEW_ROWS_PER_STEP, self.max_rows - len(self._rows)):
                ticket = self._waiting.popleft()
                if ticket.cancelled.is_set():
                    _end(ticket, "cancelled")
                else:
                    admitted.append(ticket)
        return admitted

    def _read_prompts(self, tickets: list[Ticket]) -> None:
        """Run the prompts of `tickets` together, choose their first tokens, and join them to the batch."""
        try:
            prompts = [self.predictor.prompt_ids(ticket.request, ticket.decoding) for ticket in tickets]
            images = [image for ticket in tickets for image in ticket.request.images]
            embeddings, mask = self.predictor.padded(prompts, self.predictor.image_tokens(images, self._seen))
            cache = DynamicCache()
            logits = self.predictor.model.language_model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            rows = [
                _Row(ticket, _dice(ticket.decoding, logits.device), len(prompt))
                for ticket, prompt in zip(tickets, prompts, strict=True)
            ]
        except Exception as error:
            log.exception("a prompt could not be read")
            for ticket in tickets:
                _end(ticket, "error", error)
            return
        while len(self._seen) > REMEMBERED_IMAGES:
            self._seen.pop(next(iter(self._seen)))
        try:
            self._join(cache, mask)
        except Exception as error:  # the batch is half joined and ends with it; these are not among its rows yet
            for ticket in tickets:
                _end(ticket, "error", error)
            raise
        self._rows += rows
        self._next += [0] * len(rows)
        self._choose(rows, logits)

    def _join(self, cache: DynamicCache, mask: Tensor) -> None:
        """Put the newcomers' keys and values below those of the batch, both padded on the left to one length."""
        if not self._rows:
            self._cache, self._mask = cache, mask
            return
        length = max(self._mask.shape[1], mask.shape[1])
        for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
            ours.keys = torch.cat([_pad_left(ours.keys, length), _pad_left(theirs.keys, length)])
            ours.values = torch.cat([_pad_left(ours.values, length), _pad_left(theirs.values, length)])
        self._mask = torch.cat([_pad_left(self._mask, length, 1), _pad_left(mask, length, 1)])

    def _step(self) -> None:
        """One token more for every row."""
        ids = torch.tensor(self._next, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        logits = self.predictor.model.language_model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._mask.sum(-1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._choose(list(self._rows), logits)

    def _choose(self, rows: list[_Row], logits: Tensor) -> None:
        """Choose the next token of each of `rows` from `logits` [R, V], tell its reader, and drop rows that ended."""
        greedy = logits.argmax(-1).tolist()
        ended: dict[str, list[_Row]] = {"stop": [], "length": []}
        failed: list[tuple[_Row, RuntimeError]] = []
        places = {id(row): place for place, row in enumerate(self._rows)}
        for number, row in enumerate(rows):
            try:
                token = _sample(logits[number], row) if row.ticket.decoding.temperature else greedy[number]
            except RuntimeError as error:  # no chances to draw by: no other row's concern
                log.exception("a token could not be drawn")
                failed.append((row, error))
                continue
            if reason := self._take(row, token):
                ended[reason].append(row)
            self._next[places[id(row)]] = token
        for reason, gone in ended.items():
            self._drop(gone, reason)
        for row, cause in failed:
            self._drop([row], "error", cause)

    def _take(self, row: _Row, token: int) -> str | None:
        """Add `token` to a row's answer; why the row ends with it, if it does."""
        ticket = row.ticket
        ticket.first_token_at = ticket.first_token_at or time.monotonic()
        row.ids.append(token)
        ticket.completion_tokens = len(row.ids)
        at_end = token == self.predictor.tokenizer.eos_id
        full = len(row.ids) >= ticket.decoding.max_new_tokens
        text = self.predictor.tokenizer.decode(row.ids)
        found = [text.index(stop) for stop in ticket.stop if stop in text]
        if found:
            text, at_end = text[: min(found)], True
        if not (at_end or full):
            text = _held_back(text.rstrip(REPLACEMENT_CHARACTER), ticket.stop)
        if len(text) > ticket.said:
            piece, ticket.said = text[ticket.said :], len(text)
            ticket.put(piece)
        ticket.text = text
        return "stop" if at_end else "length" if full else None

    def _drop(self, rows: list[_Row], reason: str, error: BaseException | None = None) -> None:
        """End `rows` and take them out of the batch, and the columns that only they used."""
        if not rows:
            return
        leaving = {id(row) for row in rows}
        keep = [place for place, row in enumerate(self._rows) if id(row) not in leaving]
        for row in rows:
            _end(row.ticket, reason, error)
        if not keep:
            self._forget_batch()
            return
        index = torch.tensor(keep, device=self._mask.device)
        mask = self._mask.index_select(0, index)
        start = int(mask.any(0).int().argmax())
        for layer in self._cache.layers:
            layer.keys = layer.keys.index_select(0, index)[:, :, start:]
            layer.values = layer.values.index_select(0, index)[:, :, start:]
        self._mask = mask[:, start:]
        self._rows = [self._rows[place] for place in keep]
        self._next = [self._next[place] for place in keep]

    def _forget_batch(self) -> None:
        self._rows, self._next, self._cache = [], [], DynamicCache()

    def _end_all(self, reason: str, error: BaseException | None) -> None:
        for ticket in [*(row.ticket for row in self._rows), *self._waiting]:
            _end(ticket, reason, error)
        self._waiting.clear()
        self._rows = []


def _end(ticket: Ticket, reason: str, error: BaseException | None = None) -> None:
    ticket.finish_reason = reason
    ticket.ended_at = time.monotonic()
    ticket.put(error)


def _pad_left(tensor: Tensor, length: int, dim: int = 2) -> Tensor:
    """`tensor` with zeros before it along `dim`, up to `length`."""
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _dice(decoding: Decoding, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(decoding.seed)


def _sample(logits: Tensor, row: _Row) -> int:
    """A token drawn from `logits` [V] at the row's temperature among the likeliest of mass `top_p`."""
    decoding = row.ticket.decoding
    chances = (logits.float() / decoding.temperature).softmax(-1)
    if decoding.top_p < 1:
        ordered, order = chances.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered >= decoding.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=row.generator)])
    return int(torch.multinomial(chances, 1, generator=row.generator))


def _held_back(text: str, stops: tuple[str, ...]) -> str:
    """`text` without an ending that may turn out to be the beginning of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                longest = max(longest, length)
                break
    return text[: len(text) - longest]
