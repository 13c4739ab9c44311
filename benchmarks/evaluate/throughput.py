"""Measures answered questions per second of `minigptv2 evaluate` in batches and of stock `generate` one by one.

Both sides run the same toy model with random weights on the same questions and images, with greedy decoding to the same
lengths. The stock side does what evaluation scripts do: for each question it encodes one image, embeds one prompt and
calls `generate` of `transformers` once. The sides are interleaved. Run: python -m benchmarks.evaluate.throughput
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.results import report, spread
from minigptv2.corpora.sources import toy
from minigptv2.corpora.token_texts import rendered_texts
from minigptv2.evaluate.benchmarks import heldout_spec
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import Asking, questions_of
from minigptv2.evaluate.runner import Settings, evaluate_benchmark
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import save_untrained
from minigptv2.predict.predictor import Predictor, load_predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.record import Record
from minigptv2.shards.image_files import open_image
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tokenizer import train_tokenizer

QUESTIONS_PER_IMAGE = 4


def build(root: Path, images: int) -> tuple[str, Path]:
    """Make an untrained toy model and a corpus folder of `images` images with four questions each."""
    samples = []
    for number, sample in enumerate(toy.samples("vqa", images * QUESTIONS_PER_IMAGE, root, "val")):
        place, turn = divmod(number, QUESTIONS_PER_IMAGE)
        if turn == 0:
            samples.append(Sample(f"p{place}", Record((), *_size(sample.record)), sample.image, "jpg"))
        kept = samples[-1].record
        record = Record((*kept.turns, *sample.record.turns), *_size(kept), separate=True)
        samples[-1] = Sample(samples[-1].key, record, samples[-1].image, "jpg")
    write_corpus(samples, root / "toy", "toy", samples_per_shard=100)
    train_tokenizer(rendered_texts(root), root / "tokenizer", 512)
    config = ModelConfig(
        vision_encoder="toy_vit",
        language_model="toy_llama",
        tokenizer=str(root / "tokenizer"),
        lora=LoraConfig(r=0),
        trainable=["vision_encoder", "projector", "language_model"],
    )
    return str(save_untrained(root / "export", config, seed=0).folder), root / "toy"


def _size(record: Record) -> tuple[int, int]:
    assert record.width and record.height
    return record.width, record.height


def batched(predictor: Predictor, row: Benchmark, corpus: Path, output: Path) -> tuple[float, list[str]]:
    """Return the seconds of a complete evaluation, including reading, scoring and writing, and the answers."""
    began = time.perf_counter()
    outcome = evaluate_benchmark(predictor, row, corpus, output, Settings(batch_size=64))
    assert outcome is not None
    return time.perf_counter() - began, [prediction.answer for prediction in outcome.predictions]


def one_by_one(predictor: Predictor, row: Benchmark, corpus: Path) -> tuple[float, list[str]]:
    """Return the seconds of asking each question alone with stock `generate`, and the answers."""
    began = time.perf_counter()
    reader = CorpusReader(corpus)
    model, tokenizer, answers = predictor.model, predictor.tokenizer, []
    with model.generating(), torch.no_grad():
        for question in questions_of(reader, Asking(row.task)):
            image = predictor.prepare(open_image(reader.image(question.sample), reader.where(question.sample)))
            prompt = predictor.prompt_ids(Request(question.asked, (image,)), Decoding(row.max_new_tokens))
            embeddings, mask = predictor.padded([prompt], predictor.image_tokens([image]))
            ids = model.language_model.generate(
                inputs_embeds=embeddings,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=row.max_new_tokens,
                bos_token_id=tokenizer.bos_id,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.eos_id,
            )
            answers.append(tokenizer.decode(ids[0].tolist()).strip())
    return time.perf_counter() - began, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", "--pictures", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        export, corpus = build(root, args.images)
        predictor, row = load_predictor(export), heldout_spec("toy", "vqa")
        questions = args.images * QUESTIONS_PER_IMAGE
        seconds: dict[str, list[float]] = {"stock generate, one by one": [], "minigptv2 evaluate": []}
        same = []
        for number in range(args.rounds):
            alone, answers_alone = one_by_one(predictor, row, corpus)
            together, answers = batched(predictor, row, corpus, root / f"out{number}")
            seconds["stock generate, one by one"].append(alone)
            seconds["minigptv2 evaluate"].append(together)
            same.append(sum(a == b for a, b in zip(answers_alone, answers, strict=True)))
    pairs = zip(*seconds.values(), strict=True)
    ratio = spread([alone / together for alone, together in pairs])
    rows = [
        {
            "side": side,
            "questions/s, median": questions / spread(values)["median"],
            "slowest": questions / max(values),
            "fastest": questions / min(values),
        }
        for side, values in seconds.items()
    ]
    report(
        "evaluate_throughput",
        f"{questions} questions about {args.images} images, toy model, one CPU thread",
        rows,
        packages=["torch", "transformers"],
        notes=[
            f"{ratio['median']:.1f} times as many ({ratio['min']:.1f} to {ratio['max']:.1f}; goal 5)",
            f"the same answer to {min(same)} of {questions} questions",
            "not run on a GPU: this machine has none",
        ],
        more={"ratio": ratio},
    )


if __name__ == "__main__":
    main()
