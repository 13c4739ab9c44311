"""Collects the metrics of a server in the Prometheus text format: requests, tokens, queue, batch sizes, latencies."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from minigptv2.serve.batcher import Batcher, Ticket

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "minigptv2_requests", "Requests by route and HTTP status", ["route", "status"], registry=self._registry
        )
        self._answers = Counter("minigptv2_answers", "Answers by finish reason", ["reason"], registry=self._registry)
        self._prompt = Counter(
            "minigptv2_prompt_tokens", "Prompt tokens, image tokens included", registry=self._registry
        )
        self._generated = Counter("minigptv2_generated_tokens", "Generated tokens", registry=self._registry)
        self._first = Histogram(
            "minigptv2_first_token_seconds",
            "From request to first token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._whole = Histogram(
            "minigptv2_answer_seconds",
            "From request to last token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._rows = Histogram(
            "minigptv2_batch_rows", "Batch size of a decoding step", buckets=ROWS, registry=self._registry
        )
        self._steps = Histogram(
            "minigptv2_step_seconds", "Duration of a decoding step", buckets=SECONDS, registry=self._registry
        )
        self._running = Gauge("minigptv2_running", "Answers in progress", registry=self._registry)
        self._waiting = Gauge("minigptv2_waiting", "Requests in the queue", registry=self._registry)

    def step(self, rows: int, seconds: float) -> None:
        """Count a decoding step of `rows` answers."""
        self._rows.observe(rows)
        self._steps.observe(seconds)

    def ended(self, ticket: Ticket) -> None:
        """Count a finished answer."""
        self._answers.labels(ticket.finish_reason or "abandoned").inc()
        self._prompt.inc(ticket.prompt_tokens)
        self._generated.inc(ticket.completion_tokens)
        if ticket.first_token_at:
            self._first.observe(ticket.first_token_at - ticket.submitted_at)
        if ticket.ended_at:
            self._whole.observe(ticket.ended_at - ticket.submitted_at)

    def text(self, batcher: Batcher) -> bytes:
        """All metrics in the Prometheus text format."""
        self._running.set(batcher.load.running)
        self._waiting.set(batcher.load.waiting)
        return generate_latest(self._registry)
