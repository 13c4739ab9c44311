"""Batches requests continuously: they share every step of the model and join or leave between two tokens.

Requests go in and tickets come out, on which the answer arrives in pieces. One thread runs the model. Greedy answers
equal those of `Predictor.answer`. A sampled answer depends on its own seed only, not on the other requests in the
batch. Requests are served in order of arrival, and a full queue refuses at once (`Busy`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from minigptv2.errors import CheckpointError, ConfigError, MiniGPTv2Error
from minigptv2.predict.predictor import NOT_FINITE, REPLACEMENT_CHARACTER, Predictor
from minigptv2.predict.requests import Decoding, ImageTokens, Request

log = logging.getLogger(__name__)

NEW_ROWS_PER_STEP = 8
"""Prompts processed between two steps. More would delay the answers in progress."""
KEPT_IMAGES = 64
"""The number of encoded images kept for later turns."""


class Busy(MiniGPTv2Error):
    """The queue is full or the server is stopping. The request can be repeated later."""


class Ticket:
    """A submitted request. Iterate over it for the pieces of the answer, and `cancel` it to stop.

    `finish_reason` is None until the end, then stop, length, cancelled or error. `text` is the answer so far. The
    concatenated pieces equal it, except for invalid UTF-8, which is only known at the end. `num_sent` is the number of
    characters sent so far.
    """

    def __init__(self, request: Request, decoding: Decoding, stop: tuple[str, ...], prompt_tokens: int) -> None:
        self.request, self.decoding, self.stop = request, decoding, stop
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.text = ""
        self.num_sent = 0
        self.finish_reason: str | None = None
        self.submitted_at = time.monotonic()
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.cancelled = threading.Event()
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._listener: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Stop at the next step and keep the text so far. Does nothing if called twice or after the end."""
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
        """The pieces that arrived since the last call, without waiting. None marks the end, an exception a failure."""
        arrived = []
        while True:
            try:
                arrived.append(self._pieces.get_nowait())
            except queue.Empty:
                return arrived

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` now, and from the thread of the model whenever a piece arrives."""
        self._listener = listener
        listener()

    def put(self, piece: str | BaseException | None) -> None:
        """Send a piece, an error or the end (None) to the reader. Called by the batcher."""
        self._pieces.put(piece)
        if self._listener:
            self._listener()


@dataclass
class _Row:
    """A ticket in the batch: its random generator and its tokens so far."""

    ticket: Ticket
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """The load: answers in progress, requests in the queue, and whether the thread of the model is alive."""

    running: int
    waiting: int
    alive: bool


class Batcher:
    """Answers tickets with one model.

    `max_rows` is the maximum batch size and `max_waiting` the length of the queue. `observe` is called after each step
    with the number of rows and the duration in seconds.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_rows: int = 32,
        max_waiting: int = 128,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        if max_rows < 1 or max_waiting < 0:
            raise ConfigError(f"max_rows must be at least 1 and max_waiting 0, got {max_rows} and {max_waiting}")
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
        """A ticket for the answer, which ends before the first of the texts in `stop`, or at the end of the context.

        Raises `Busy` for a full queue, `DataError` for a prompt that is too long, `ConfigError` for beam search.
        """
        decoding = decoding or Decoding()
        if decoding.beams > 1:
            raise ConfigError("beam search cannot be batched continuously or streamed: set beams=1")
        prompt = self.predictor.prompt_ids(request, replace(decoding, max_new_tokens=1))
        decoding = self.predictor.fitted(decoding, len(prompt))
        ticket = Ticket(request, decoding, stop, len(prompt))
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            if len(self._waiting) >= self.max_waiting + self.max_rows - len(self._rows):
                raise Busy(f"{len(self._rows)} answers in progress and {len(self._waiting)} waiting: try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def load(self) -> Load:
        """The current load."""
        return Load(len(self._rows), len(self._waiting), self._thread.is_alive())

    def close(self) -> None:
        """Cancel all requests and stop the thread."""
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
                log.exception("a batch failed; its requests are answered with the error")
                with self._changed:
                    self._end_all("error", error)
                self._forget_batch()

    def _run_until_idle(self) -> None:
        while not self._closed:
            self._drop([row for row in self._rows if row.ticket.cancelled.is_set()], "cancelled")
            if admitted := self._admit():
                self._process_prompts(admitted)
            if not self._rows:
                with self._changed:
                    if not self._waiting:
                        return
                continue
            began = time.perf_counter()
            self._step()
            self._observe(len(self._rows), time.perf_counter() - began)

    def _admit(self) -> list[Ticket]:
        """The next tickets in order of arrival, as many as fit into the batch."""
        admitted: list[Ticket] = []
        with self._changed:
            while self._waiting and len(admitted) < min(NEW_ROWS_PER_STEP, self.max_rows - len(self._rows)):
                ticket = self._waiting.popleft()
                if ticket.cancelled.is_set():
                    _end(ticket, "cancelled")
                else:
                    admitted.append(ticket)
        return admitted

    def _process_prompts(self, tickets: list[Ticket]) -> None:
        """Run the prompts of `tickets` together, add them to the batch, and choose their first tokens."""
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
            rows = [_Row(ticket, _generator(ticket.decoding, logits.device)) for ticket in tickets]
        except Exception as error:
            log.exception("failed to process a prompt")
            for ticket in tickets:
                _end(ticket, "error", error)
            return
        while len(self._seen) > KEPT_IMAGES:
            self._seen.pop(next(iter(self._seen)))
        try:
            self._join(cache, mask)
        except Exception as error:  # the batch is inconsistent and ends too; these tickets are not yet among its rows
            for ticket in tickets:
                _end(ticket, "error", error)
            raise
        self._rows += rows
        self._next += [0] * len(rows)
        self._choose(rows, logits)

    def _join(self, cache: DynamicCache, mask: Tensor) -> None:
        """Append the keys and values of new rows to the batch, both padded on the left to the same length."""
        if not self._rows:
            self._cache, self._mask = cache, mask
            return
        length = max(self._mask.shape[1], mask.shape[1])
        for running, joining in zip(self._cache.layers, cache.layers, strict=True):
            running.keys = torch.cat([_pad_left(running.keys, length), _pad_left(joining.keys, length)])
            running.values = torch.cat([_pad_left(running.values, length), _pad_left(joining.values, length)])
        self._mask = torch.cat([_pad_left(self._mask, length, 1), _pad_left(mask, length, 1)])

    def _step(self) -> None:
        """Generate one token for every row."""
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
        """Choose the next token of each of `rows` from `logits` [R, V], send it, and drop the rows that ended."""
        greedy, finite = logits.argmax(-1).tolist(), logits.isfinite().all(-1).tolist()
        ended: dict[str, list[_Row]] = {"stop": [], "length": []}
        failed: list[tuple[_Row, Exception]] = []
        places = {id(row): place for place, row in enumerate(self._rows)}
        for number, row in enumerate(rows):
            if not finite[number]:
                log.error("failed to choose a token: %s", NOT_FINITE)
                failed.append((row, CheckpointError(NOT_FINITE)))
                continue
            try:
                token = _sample(logits[number], row) if row.ticket.decoding.temperature else greedy[number]
            except RuntimeError as error:  # invalid probabilities of this row; the others continue
                log.exception("failed to sample a token")
                failed.append((row, error))
                continue
            if reason := self._take(row, token):
                ended[reason].append(row)
            self._next[places[id(row)]] = token
        for reason, finished in ended.items():
            self._drop(finished, reason)
        for row, cause in failed:
            self._drop([row], "error", cause)

    def _take(self, row: _Row, token: int) -> str | None:
        """Add `token` to the answer of a row. Returns the finish reason if the answer ends with it."""
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
            text = _without_partial_stop(text.rstrip(REPLACEMENT_CHARACTER), ticket.stop)
        if len(text) > ticket.num_sent:
            piece, ticket.num_sent = text[ticket.num_sent :], len(text)
            ticket.put(piece)
        ticket.text = text
        return "stop" if at_end else "length" if full else None

    def _drop(self, rows: list[_Row], reason: str, error: BaseException | None = None) -> None:
        """End `rows` and remove them from the batch, together with the columns that only they used."""
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


def _generator(decoding: Decoding, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(decoding.seed)


def _sample(logits: Tensor, row: _Row) -> int:
    """A token sampled from `logits` [V] with the temperature and the nucleus (`top_p`) of the row."""
    decoding = row.ticket.decoding
    probabilities = (logits.float() / decoding.temperature).softmax(-1)
    if decoding.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered >= decoding.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=row.generator)])
    return int(torch.multinomial(probabilities, 1, generator=row.generator))


def _without_partial_stop(text: str, stops: tuple[str, ...]) -> str:
    """`text` without an ending that may be the beginning of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                longest = max(longest, length)
                break
    return text[: len(text) - longest]
