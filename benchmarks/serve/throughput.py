"""Measures answers per second of one server for 50 concurrent clients and for one client after another, interleaved.

`minigptv2 serve` serves a small model with random weights. Each client asks its own question about its own image and
gets at most 32 tokens, the same on both sides. Prints a table and writes `benchmarks/results/serve_throughput.json`.
`--model DIR` measures another model.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from minigptv2.model.config import ModelConfig
from minigptv2.model.export import save_untrained
from minigptv2.tokenizer import train_tokenizer

RESULTS = Path(__file__).parent.parent / "results" / "serve_throughput.json"
CLIENTS, ROUNDS, MAX_TOKENS = 50, 3, 32
WORDS = [
    "[vqa] what color is the circle?",
    "a red circle and a blue bar",
    "{<1><2><30><40>}",
    "how many shapes are here?",
]
GOAL = 3.0


@dataclass
class Side:
    """Results of one side over all rounds: answers per second, and the seconds that each client waited."""

    rates: list[float]
    waits: list[float]
    errors: int = 0


def make_model(folder: Path) -> Path:
    """Write an export with random weights, the demo's sizes and a tokenizer of a few hundred pieces."""
    train_tokenizer(WORDS, folder / "tokenizer", 400)
    config = ModelConfig(
        vision_encoder="toy_vit",
        language_model="toy_llama",
        tokenizer=str(folder / "tokenizer"),
        trainable=["vision_encoder", "projector", "language_model"],
    )
    save_untrained(folder / "export", config, seed=1)
    return folder / "export"


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Run `minigptv2 serve` for `model` and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "minigptv2",
        "serve",
        "--model",
        str(model),
        "--port",
        str(port),
        "--api-only",
        "--name",
        "model",
        "--max-batch-size",
        str(CLIENTS),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(address + "/health").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def bodies() -> list[dict[str, Any]]:
    """Return one request per client."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(CLIENTS):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(stream, "PNG")
        url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": f"[vqa] what is {number}?"},
        ]
        made.append({"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS})
    return made


def ask_all(address: str, requests: list[dict[str, Any]], at_once: int, side: Side) -> list[str]:
    """Send all requests with `at_once` concurrent clients. Returns the answers in order."""

    def ask(body: dict[str, Any]) -> tuple[str, float]:
        began = time.perf_counter()
        reply = client.post(address + "/v1/chat/completions", json=body)
        if reply.status_code != 200:
            side.errors += 1
            return reply.text, time.perf_counter() - began
        return reply.json()["choices"][0]["message"]["content"], time.perf_counter() - began

    with httpx.Client(timeout=600, limits=httpx.Limits(max_connections=at_once)) as client:
        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(ask, requests))
        side.rates.append(len(requests) / (time.perf_counter() - began))
    side.waits += [wait for _, wait in answers]
    return [text for text, _ in answers]


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder or export. Default: a small model with random weights")
    args = parser.parse_args()
    requests = bodies()
    together, single = Side([], []), Side([], [])
    with tempfile.TemporaryDirectory() as folder, served(args.model or make_model(Path(folder))) as address:
        ask_all(address, requests[:4], 2, Side([], []))  # warm up
        for _ in range(ROUNDS):
            one_by_one = ask_all(address, requests, 1, single)
            at_once = ask_all(address, requests, CLIENTS, together)
            equal = sum(a == b for a, b in zip(one_by_one, at_once, strict=True))
    ratio = statistics.median(together.rates) / statistics.median(single.rates)
    print(f"{'':24}{'answers/s: min':>16}{'median':>9}{'max':>9}{'wait s: median':>17}{'max':>8}{'errors':>8}")
    for name, side in ((f"{CLIENTS} clients at once", together), ("one after another", single)):
        rates, waits = spread(side.rates), spread(side.waits)
        print(
            f"{name:24}{rates['min']:16.1f}{rates['median']:9.1f}{rates['max']:9.1f}"
            f"{waits['median']:17.2f}{waits['max']:8.2f}{side.errors:8}"
        )
    print(f"ratio {ratio:.1f} (goal {GOAL:g}); {equal} of {len(requests)} answers are the same on both sides")
    result = {
        "what": "answers per second of `minigptv2 serve`, 50 concurrent clients and one after another",
        "model": str(args.model) if args.model else "toy_vit + toy_llama, random weights",
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "max_tokens": MAX_TOKENS,
        "ratio": ratio,
        "goal": GOAL,
        "at_once": {"rate": spread(together.rates), "wait_s": spread(together.waits), "errors": together.errors},
        "one_by_one": {"rate": spread(single.rates), "wait_s": spread(single.waits), "errors": single.errors},
        "same_answers": equal,
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("torch", "transformers", "fastapi", "uvicorn")},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
