"""Attacks a server on this machine for some seconds beside an ordinary client: `python -m tests.soak.attack 600`.

The server has a tiny model and a password. The result states how often the client was answered, the longest wait for
`/health`, the growth of memory, open files and files left behind. The exit code is 1 if any of them is wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

PASSWORD = "correct horse"
HEADERS = {"authorization": f"Bearer {PASSWORD}", "content-type": "application/json"}
CHAT = "/v1/chat/completions"
MAX_GROWTH_MIB = 50
SETTLE_S = 15
"""From the last request to the last measurement: longer than the server keeps freed memory."""
HALF_REQUESTS = 300


@dataclass
class Attack:
    """A running attack on the server at `address`, and what it counted."""

    address: str
    random: random.Random
    stop: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_answer_s: float = 0.0

    def connect(self) -> socket.socket:
        """A raw connection."""
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=5)

    def post(self, content: bytes, **headers: str) -> None:
        """Send a body, and count the status."""
        reply = httpx.post(self.address + CHAT, content=content, headers={**HEADERS, **headers}, timeout=60)
        self.counts[f"status {reply.status_code}"] += 1
        if reply.status_code >= 500:
            self.problems.append(f"status {reply.status_code}: {reply.text[:200]}")


def half_requests(attack: Attack) -> None:
    """Keep 300 requests open whose heads are incomplete."""
    held = [attack.connect() for _ in range(HALF_REQUESTS)]
    for connection in held:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localh")
    for _ in range(20):
        if attack.stop.wait(1):
            break
    for connection in held:
        connection.close()


def drip_bodies(attack: Attack) -> None:
    """Send bodies byte by byte."""
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    held = [attack.connect() for _ in range(20)]
    for connection in held:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: 9000\r\n\r\n".encode())
    for _ in range(30):
        for connection in held:
            connection.sendall(b" ")
        if attack.stop.wait(0.5):
            break
    for connection in held:
        connection.close()


def large_json(attack: Attack) -> None:
    """Send 24 MB of brackets, commas, objects, text, or an image that is none."""
    unit = attack.random.choice([b"[", b"1,", b'{"a":', b"a", b'"data:image', "\N{GRINNING FACE}".encode()])
    attack.post(b'{"model": "' + unit * (24_000_000 // len(unit)))


def odd_images(attack: Attack) -> None:
    """Send a JPEG with thousands of scans."""
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    start = data.rindex(b"\xff\xda")
    attack.post(chat("what?", data[:start] + data[start:-2] * 2000 + b"\xff\xd9"))


def wrong_passwords(attack: Attack) -> None:
    """Guess."""
    attack.post(chat("hi"), authorization=f"Bearer guess {attack.random.random()}")


def long_questions(attack: Attack) -> None:
    """Send questions over the limits of the server and of the model."""
    letters = "".join(attack.random.choices("abcdefg hij", k=1000))
    attack.post(chat(letters * attack.random.choice([31, 40, 400])))


def file_objects(attack: Attack) -> None:
    """Name files of the server."""
    named = attack.random.choice(["/proc/self/environ", "/dev/zero", "file:///etc/passwd"])
    attack.post(json.dumps({"data": [{"path": named, "meta": {"_type": "gradio.FileData"}}], "fn_index": 99}).encode())
    part = {"type": "image_url", "image_url": {"url": named}}
    attack.post(json.dumps({"model": "tiny", "messages": [{"role": "user", "content": [part]}]}).encode())


def dropped_streams(attack: Attack) -> None:
    """Leave while the answer is streamed, or do not read it."""
    body = json.loads(chat("tell me"))
    with httpx.stream("POST", attack.address + CHAT, json={**body, "stream": True}, headers=HEADERS) as reply:
        next(reply.iter_lines(), None)
        attack.stop.wait(attack.random.choice([0, 0.5]))


ATTACKS: tuple[Callable[[Attack], None], ...] = (
    half_requests,
    drip_bodies,
    large_json,
    odd_images,
    wrong_passwords,
    long_questions,
    file_objects,
    dropped_streams,
)


def chat(text: str, image: bytes | None = None) -> bytes:
    """The body of a request."""
    from minigptv2.serve.uploads import data_url

    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image:
        parts.insert(0, {"type": "image_url", "image_url": {"url": data_url(image)}})
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    return json.dumps(body).encode()


def repeat(attack: Attack, act: Callable[[Attack], None]) -> None:
    """Repeat an attack until the end. A connection that the server closes is what it should do."""
    while not attack.stop.wait(0.05):
        attack.counts[act.__name__] += 1
        try:
            act(attack)
        except (OSError, httpx.TransportError):
            attack.counts["closed by the server"] += 1


def ordinary_client(attack: Attack) -> None:
    """Ask with an image, again and again. Each question must be answered."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(stream, "JPEG")
    while not attack.stop.wait(0.2):
        began = time.monotonic()
        try:
            reply = httpx.post(
                attack.address + CHAT, content=chat("what?", stream.getvalue()), headers=HEADERS, timeout=30
            )
            if reply.status_code != 200:
                attack.problems.append(f"the client got {reply.status_code}: {reply.text[:200]}")
        except httpx.TransportError as error:
            attack.problems.append(f"the client got {error!r}")
        attack.counts["ordinary answers"] += 1
        attack.slowest_answer_s = max(attack.slowest_answer_s, time.monotonic() - began)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own, with `folder` for temporary files: its address and its process."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    program = [sys.executable, "-m", "tests.soak.attacked"]
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip(), psutil.Process(process.pid)
        finally:
            process.terminate()


@contextmanager
def probed(address: str) -> Iterator[dict[str, Any]]:
    """Probe `/health` in a process of its own. What it found is in the dictionary at the end."""
    found: dict[str, Any] = {}
    program = [sys.executable, "-m", "tests.soak.health", address.removeprefix("http://")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield found
        found |= json.loads(process.communicate()[0])


def run(seconds: float, seed: int, acts: tuple[Callable[[Attack], None], ...] = ATTACKS) -> dict[str, Any]:
    """Attack for some seconds. Returns the figures, with the problems found under `problems`."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (address, process):
        attack = Attack(address, random.Random(seed))
        for act in (large_json, odd_images, long_questions):  # the first of each loads code
            act(attack)
        attack.post(chat("what?"))
        before, files_before = process.memory_info().rss, process.num_fds()
        acting = [threading.Thread(target=repeat, args=(attack, act)) for act in acts]
        threads = [*acting, threading.Thread(target=ordinary_client, args=(attack,))]
        with probed(address) as health:
            for thread in threads:
                thread.start()
            most_files = report(attack, process, seconds)
            attack.stop.set()
        for thread in threads:
            thread.join()
        attack.problems += [f"/health took {took} s" for took in health["slow, s"]] + health["problems"]
        time.sleep(SETTLE_S)
        growth = (process.memory_info().rss - before) / 2**20
        left = [str(path) for path in Path(folder).rglob("*") if path.is_file()]
        if growth > MAX_GROWTH_MIB:
            attack.problems.append(f"memory grew by {growth:.0f} MiB")
        if left:
            attack.problems.append(f"files left behind: {left[:3]}")
        return {
            **attack.counts,
            "health probes": health["probes"],
            "slowest /health, s": health["slowest, s"],
            "slowest answer, s": round(attack.slowest_answer_s, 2),
            "memory growth, MiB": round(growth, 1),
            "open files: before, most, after": (files_before, most_files, process.num_fds()),
            "files left": len(left),
            "problems": attack.problems,
        }


def report(attack: Attack, process: psutil.Process, seconds: float) -> int:
    """Print a line every 30 s until the end. Returns the most open files."""
    began, most = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        most = max(most, process.num_fds())
        if int(passed) % 30 == 0:
            rss = process.memory_info().rss >> 20
            print(f"{passed:4.0f} s: {rss} MiB, {len(attack.problems)} problems, {dict(attack.counts)}", flush=True)
        time.sleep(1)
    return most


def main() -> int:
    """Run the attack of the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    result = run(args.seconds, args.seed)
    for name, value in result.items():
        print(f"{name:32} {value}")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
