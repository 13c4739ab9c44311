"""Measures loaders: 20 corpora of tars, JPEGs of 640 x 480 resized to 448 px, two loader processes.

Our pixels are within 2 gray levels of Pillow's bicubic. The sides run in turn, several times. The plain recipe is the
common one: webdataset, `decode("pilrgb")`, Pillow's bicubic, floats. `webdataset, our pixels` reads in the same way and
uses our decoder and resize.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.data.corpus import WordTokenizer, write_corpora
from benchmarks.results import report, spread
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepDataset, iterate_steps
from minigptv2.data.plan import DataPlan
from minigptv2.prompt import PromptEncoder
from minigptv2.shards.fast_decode import Stopwatch, square_pixels

SIDE, WORKERS, BATCH = 448, 2, 12
CORPORA, SAMPLES = 20, 120
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


def ours(shards: Path, names: list[str], images: int) -> Iterator[int]:
    """Yield packed uint8 batches in the order of the plan."""
    recipe = Recipe(corpora={name: CorpusShare(ratio=1) for name in names})
    encoder = PromptEncoder(WordTokenizer(), tokens_per_image=256, max_tokens=1024)  # type: ignore[arg-type]
    dataset = StepDataset(
        DataPlan(recipe, shards, seed=0),
        encoder,
        DataConfig(recipe="", num_workers=WORKERS),
        image_size=SIDE,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        rank=0,
        world_size=1,
    )
    for step in iterate_steps(dataset, position=0, num_steps=-(-images // BATCH)):
        yield sum(batch.counts["images"] for batch in step.batches)


def plain_pixels(image: Image.Image) -> torch.Tensor:
    """Resize with Pillow's bicubic and normalize to float32 [3, 448, 448]."""
    square = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (torch.from_numpy(square.transpose(2, 0, 1).copy()).float() / 255 - MEAN) / STD


def _plain(sample: dict[str, Any]) -> torch.Tensor:
    return plain_pixels(sample["jpg"])


def _raw(sample: dict[str, Any]) -> torch.Tensor:
    return square_pixels(sample["jpg"], sample["__key__"], SIDE, Stopwatch())


def webdataset_recipe(shards: Path, names: list[str], images: int, *, our_pixels: bool) -> Iterator[int]:
    """Yield batches of a fixed size from one pipeline per corpus, mixed by webdataset."""
    import webdataset

    parts = []
    for name in names:
        urls = [str(file) for file in sorted((shards / name).glob("*.tar"))]
        part = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(100)
        parts.append(part.map(_raw) if our_pixels else part.decode("pilrgb", only=["jpg"]).map(_plain))
    mixed = webdataset.RandomMix(parts, [1.0] * len(parts))
    loader = torch.utils.data.DataLoader(_Endless(mixed), batch_size=BATCH, num_workers=WORKERS)
    done = 0
    for batch in loader:
        yield len(batch)
        done += len(batch)
        if done >= images:
            return


class _Endless(torch.utils.data.IterableDataset[torch.Tensor]):
    def __init__(self, mixed: Any) -> None:
        self._mixed = mixed

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._mixed)


def litdata_recipe(folder: Path, images: int) -> Iterator[int]:
    """Read litdata's chunks of JPEG bytes, combined from 20 data sets by litdata, with Pillow's bicubic."""
    import litdata

    parts = sorted(folder.iterdir())
    sets = [litdata.StreamingDataset(str(part), shuffle=True, transform=_litdata_pixels) for part in parts]
    mixed = litdata.CombinedStreamingDataset(sets, weights=[1.0] * len(sets), iterate_over_all=False)
    done = 0
    while done < images:
        for batch in litdata.StreamingDataLoader(mixed, batch_size=BATCH, num_workers=WORKERS):
            yield len(batch)
            done += len(batch)
            if done >= images:
                return


def _litdata_pixels(sample: dict[str, Any]) -> torch.Tensor:
    import io

    return plain_pixels(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))


def write_litdata(shards: Path, names: list[str], folder: Path) -> None:
    """Write the same photographs as chunks of litdata."""
    import litdata

    from minigptv2.shards.reader import CorpusReader

    for name in names:
        reader = CorpusReader(shards / name)
        writer = litdata.streaming.writer.BinaryWriter(str(folder / name), chunk_bytes="32MB")
        for sample in range(len(reader)):
            writer.add_item(sample, {"jpg": reader.image(sample)})
        writer.done()
        writer.merge(1)


def prepare_energon(shards: Path, names: list[str]) -> Path:
    """Write energon's index next to our tars, and a blend of all of them."""
    for name in names:
        command = [
            sys.executable,
            "-m",
            "megatron.energon.cli.main",
            "prepare",
            str(shards / name),
            "--non-interactive",
            "--split-ratio",
            "1,0,0",
            "--sample-type",
            "CrudeWebdataset",
            "--num-workers",
            "1",
        ]
        subprocess.run(command, check=True, capture_output=True)
    blend = "".join(f"      - weight: 1\n        path: ./{name}\n" for name in names)
    file = shards / "blend.yaml"
    file.write_text(f"__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n{blend}")
    return file


def energon_recipe(blend: Path, images: int) -> Iterator[int]:
    """Read energon's blend of 20 prepared data sets with its decoder, Pillow's bicubic and floats."""
    from megatron import energon

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc, name-defined]
        decoder = energon.SampleDecoder(image_decode="pilrgb")
        cookers = [energon.Cooker(energon.stateless(_cook))]

    data = energon.get_train_dataset(
        str(blend),
        batch_size=BATCH,
        shuffle_buffer_size=100,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
    )
    done = 0
    for batch in energon.get_loader(data):
        yield len(batch.image)
        done += len(batch.image)
        if done >= images:
            return


def _cook(sample: dict[str, Any]) -> Any:
    from megatron import energon

    return energon.CaptioningSample(
        **energon.basic_sample_keys(sample), image=plain_pixels(sample["jpg"]), caption="thing"
    )


def pixel_costs(shards: Path, name: str) -> dict[str, float]:
    """Return the milliseconds per image of reading, decoding and resizing on a thread with a core to itself."""
    from minigptv2.shards.reader import CorpusReader

    reader, watch, count = CorpusReader(shards / name), Stopwatch(), 64
    for sample in range(-8, count):
        if sample == 0:
            watch.seconds.clear()
        with watch.measure("read"):
            data = reader.image(sample % count)
        square_pixels(data, "", SIDE, watch)
    return {stage: 1000 * seconds / count for stage, seconds in watch.seconds.items()}


def rate(side: Callable[[], Iterator[int]], images: int) -> float:
    """Return images per second after the first batch. `growth` measures the start."""
    batches = side()
    next(batches)
    began, done = time.perf_counter(), 0
    for count in batches:
        done += count
        if done >= images:
            break
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    return done / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=240)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards, chunks = Path(folder) / "shards", Path(folder) / "litdata"
        names = write_corpora(shards, CORPORA, SAMPLES, samples_per_shard=40)
        sides: dict[str, Callable[[], Iterator[int]]] = {
            "ours": partial(ours, shards, names, 10 * args.images),
            "plain recipe (webdataset, pilrgb, bicubic, float)": partial(
                webdataset_recipe, shards, names, 10 * args.images, our_pixels=False
            ),
            "webdataset, our pixels": partial(webdataset_recipe, shards, names, 10 * args.images, our_pixels=True),
        }
        missing = []
        try:
            write_litdata(shards, names, chunks)
            sides["litdata, bicubic, float"] = partial(litdata_recipe, chunks, 10 * args.images)
        except ModuleNotFoundError as error:
            missing.append(f"litdata was not measured: {error}")
        try:
            sides["energon, pilrgb, bicubic, float"] = partial(
                energon_recipe, prepare_energon(shards, names), 10 * args.images
            )
        except (ModuleNotFoundError, subprocess.CalledProcessError) as error:
            missing.append(f"energon was not measured: {error}")
        costs = ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in pixel_costs(shards, names[0]).items())
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, side in sides.items():
                rates[name].append(rate(side, args.images))
        rows = []
        plain = np.array(rates["plain recipe (webdataset, pilrgb, bicubic, float)"])
        for name, values in rates.items():
            ratio = float(np.median(np.array(values) / plain))
            found = spread(values)
            rows.append(
                {
                    "side": name,
                    "images/s": found["median"],
                    "min": found["min"],
                    "max": found["max"],
                    "of the plain recipe": ratio,
                }
            )
        peers = [row for row in rows[2:] if row["side"] != "webdataset, our pixels"] + [rows[1]]
        over_plain = float(rows[0]["of the plain recipe"])
        over_peer = over_plain / max(float(row["of the plain recipe"]) for row in peers)
        notes = [
            f"{CORPORA} corpora, {WORKERS} loader processes, batches of {BATCH}, {os.cpu_count()} cores, "
            f"{args.rounds} rounds of {args.images} images per side, sides interleaved, ratios within a round",
            f"ours, per image on a thread with a core to itself: {costs}; decoding and resizing limit the speed",
            *missing,
            f"goal: >= 4 x the plain recipe: {over_plain:.2f} ({'met' if over_plain >= 4 else 'MISSED'}); "
            f">= 1.5 x the fastest other loader measured: {over_peer:.2f} ({'met' if over_peer >= 1.5 else 'MISSED'})",
        ]
        report(
            "data_loader",
            "Loader",
            rows,
            packages=["webdataset", "litdata", "megatron-energon", "pillow", "simplejpeg", "torch"],
            notes=notes,
        )


if __name__ == "__main__":
    main()
