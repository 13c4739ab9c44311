"""Generates corpora for benchmarks: synthetic JPEG photographs of 640 x 480 pixels in our shards."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from minigptv2.record import Record, Turn
from minigptv2.shards.writer import Sample, write_corpus


def photograph(seed: int, width: int = 640, height: int = 480) -> bytes:
    """Return a JPEG of quality 90 and about 70 kB: soft shapes with a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    soft = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.normal(0, 5, soft.shape)
    buffer = io.BytesIO()
    Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_corpora(folder: Path, corpora: int, samples: int, *, samples_per_shard: int) -> list[str]:
    """Write `corpora` corpora of `samples` questions each about a few photographs. Returns their names."""
    photographs = [photograph(seed) for seed in range(16)]
    names = []
    for corpus in range(corpora):
        name = f"corpus{corpus:02d}"
        names.append(name)
        rows = [
            Sample(
                f"{n:06d}",
                Record((Turn("conversation", f"what is {n}?", (f"thing {n}",)),), 640, 480),
                photographs[(n + corpus) % len(photographs)],
            )
            for n in range(samples)
        ]
        if not (folder / name / "manifest.json").is_file():
            write_corpus(rows, folder / name, name, samples_per_shard=samples_per_shard)
    return names


class WordTokenizer:
    """A byte-level tokenizer with the interface that `PromptEncoder` needs, so only the loader is measured."""

    bos_id, eos_id, vocab_size = 1, 2, 260

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(3 + byte for byte in text.encode())
