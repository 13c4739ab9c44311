"""Records one step with `torch.profiler`: how long the device was idle, its top kernels, and a picture.

Without a GPU the operators on the host take the place of kernels, so that everything can be tried.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "profiled step"
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
KINDS = {
    "matrix products": (r"gemm|cutlass|cublas|nvjet|xmma|addmm|::mm$|::bmm$|::linear|matmul", "#1f77b4"),
    "attention": (r"flash|fmha|attention|flex", "#d62728"),
    "communication": (r"nccl|c10d|all_?gather|reduce_scatter|all_?reduce", "#9467bd"),
    "copies": (r"memcpy|memset|copy|CatArray|::cat$", "#ff7f0e"),
}
"""Name of a kind of kernels to the pattern of their names, the first that matches, and its color."""
OTHER = ("other kernels", "#2ca02c")


@dataclass(frozen=True)
class Span:
    """Something that ran from `start` to `end`, in milliseconds since the step began."""

    name: str
    start: float
    end: float

    @property
    def kind(self) -> str:
        """One of `KINDS`, or the name in `OTHER`."""
        return next((kind for kind, (form, _) in KINDS.items() if re.search(form, self.name, re.IGNORECASE)), OTHER[0])


@dataclass(frozen=True)
class Trace:
    """A step of `length` milliseconds: what ran on the device, and the phases that the host marked."""

    length: float
    device: tuple[Span, ...]
    phases: tuple[Span, ...]

    @property
    def idle_share(self) -> float:
        """The share of the step in which nothing ran on the device."""
        return 1 - sum(end - start for start, end in _union(self.device)) / self.length

    def top_kernels(self, count: int) -> list[tuple[str, float, int]]:
        """Name, share of the step and number of calls of the kernels that took most of it, without nested ones."""
        times, calls = _own_times(self.device), Counter(span.name for span in self.device)
        return [(name, time / self.length, calls[name]) for name, time in times.most_common(count)]

    def draw(self, file: Path, title: str, *, kernels: int = 12) -> None:
        """Draw the step over time, by kind of kernel, above its top kernels."""
        figure, (above, below) = plt.subplots(2, 1, figsize=(12, 7), height_ratios=(2, 3), layout="constrained")
        lanes = [*KINDS, OTHER[0]]
        colors = {**{kind: color for kind, (_, color) in KINDS.items()}, OTHER[0]: OTHER[1]}
        for row, kind in enumerate(reversed(lanes)):
            bars = [(start, end - start) for start, end in _union(s for s in self.device if s.kind == kind)]
            above.broken_barh(bars, (row - 0.4, 0.8), color=colors[kind])
        phases = [(span.start, span.end - span.start) for span in self.phases]
        above.broken_barh(phases, (len(lanes) - 0.4, 0.8), color="#dddddd", edgecolor="#555555")
        for span in self.phases:
            if span.end - span.start > 0.04 * self.length:
                middle = (span.start + span.end) / 2
                above.text(middle, len(lanes), span.name, ha="center", va="center", fontsize=8)
        above.set_yticks(range(len(lanes) + 1), [*reversed(lanes), "host"])
        above.set_xlim(0, self.length)
        above.set_xlabel("ms")
        above.set_title(f"{title}: {self.length:.1f} ms, device idle {100 * self.idle_share:.0f} %")
        top = self.top_kernels(kernels)[::-1]
        shares = [100 * share for _, share, _ in top]
        below.barh(range(len(top)), shares, color=[colors[Span(name, 0, 0).kind] for name, _, _ in top])
        below.set_yticks(range(len(top)), [f"{_short(name)} ({calls} x)" for name, _, calls in top], fontsize=8)
        below.set_xlabel("% of the step")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)
        plt.close(figure)


def trace_step(run: Callable[[], object], device: torch.device, file: Path) -> Trace:
    """Return the trace of `run()`, and keep it in `file` for Perfetto or chrome://tracing."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled, record_function(STEP):
        run()
        if cuda:
            torch.cuda.synchronize()
    file.parent.mkdir(parents=True, exist_ok=True)
    profiled.export_chrome_trace(str(file))
    return parse_trace(json.loads(file.read_text())["traceEvents"], cuda=cuda)


def parse_trace(events: Sequence[dict[str, Any]], *, cuda: bool) -> Trace:
    """Return the trace in the events of a chrome trace, times in microseconds."""
    whole = next(e for e in events if e.get("name") == STEP and e.get("cat") == "user_annotation")
    origin, length = whole["ts"], whole["dur"] / 1e3
    wanted = DEVICE_CATEGORIES if cuda else ("cpu_op",)

    def spans(categories: Iterable[str]) -> tuple[Span, ...]:
        found = [e for e in events if e.get("ph") == "X" and e.get("cat") in categories and e["name"] != STEP]
        spans = [Span(e["name"], (e["ts"] - origin) / 1e3, (e["ts"] + e["dur"] - origin) / 1e3) for e in found]
        inside = [span for span in spans if span.start >= 0 and span.end <= length]
        return tuple(sorted(inside, key=lambda span: (span.start, -span.end)))

    return Trace(length, spans(wanted), spans(("user_annotation",)))


def _union(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """The intervals in which at least one of the spans, sorted by start, runs."""
    merged: list[tuple[float, float]] = []
    for span in spans:
        if merged and span.start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.end))
        else:
            merged.append((span.start, span.end))
    return merged


def _own_times(spans: Sequence[Span]) -> Counter[str]:
    """Milliseconds by name, in which no span nested in it ran. Kernels do not nest, operators on the host do."""
    times: Counter[str] = Counter()
    open_spans: list[Span] = []
    for span in spans:
        while open_spans and open_spans[-1].end <= span.start:
            open_spans.pop()
        if open_spans and span.end <= open_spans[-1].end:
            times[open_spans[-1].name] -= span.end - span.start  # type: ignore[assignment]
        times[span.name] += span.end - span.start  # type: ignore[assignment]
        open_spans.append(span)
    return times


def _short(name: str) -> str:
    return name if len(name) <= 70 else f"{name[:50]}...{name[-17:]}"
