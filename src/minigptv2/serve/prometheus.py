"""What a server counts, in Prometheus' text format: requests, tokens, waiting, batch sizes, latencies."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from minigptv2.serve.batcher import Batcher, Ticket

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One server's figures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "minigptv2_requests", "Requests by route and HTTP status", ["route", "status"], registry=self._registry
        )
        self._answers = Counter("minigptv2_answers", "Answers by how they ended", ["reason"], registry=self._registry)
        self._prompt = Counter(
            "minigptv2_prompt_tokens", "Tokens of prompts, image tokens included", registry=self._registry
        )
        self._generated = Counter("minigptv2_generated_tokens", "Tokens of answers", registry=self._registry)
        self._first = Histogram(
            "minigptv2_first_token_seconds", "From request to first token", buckets=SECONDS, registry=self._registry
        )
        self._whole = Histogram(
            "minigptv2_answer_seconds", "From request to the end", buckets=SECONDS, registry=self._registry
        )
        self._rows = Histogram(
            "minigptv2_batch_rows", "Answers that shared a step", buckets=ROWS, registry=self._registry
        )
        self._steps = Histogram(
            "minigptv2_step_seconds", "One token for a batch", buckets=SECONDS, registry=self._registry
        )
        self._running = Gauge("minigptv2_running", "Answers under way", registry=self._registry)
        self._waiting = Gauge("minigptv2_waiting", "Requests that wait", registry=self._registry)

    def step(self, rows: int, seconds: float) -> None:
        """Count a step of the batch."""
        self._rows.observe(rows)
        self._steps.observe(seconds)

    def ended(self, ticket: Ticket) -> None:
        """Count an answer that is over."""
        self._answers.labels(ticket.finish_reason or "abandoned").inc()
        self._prompt.inc(ticket.prompt_tokens)
        self._generated.inc(ticket.completion_tokens)
        if ticket.first_token_at:
            self._first.observe(ticket.first_token_at - ticket.asked_at)
        if ticket.ended_at:
            self._whole.observe(ticket.ended_at - ticket.asked_at)

    def text(self, batcher: Batcher) -> bytes:
        """All figures, as Prometheus reads them."""
        self._running.set(batcher.load.running)
        self._waiting.set(batcher.load.waiting)
        return generate_latest(self._registry)
