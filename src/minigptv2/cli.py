"""The `minigptv2` command. Parses and calls; heavy imports happen inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minigptv2 import __version__
from minigptv2.errors import MiniGPTv2Error


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(prog="minigptv2", description="Train, evaluate and ask MiniGPT-v2.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    config = commands.add_parser("config", help="print a run's resolved config and where each value came from")
    config.add_argument("file", help="a YAML in launch/configs")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.add_argument("--world-size", type=int, default=1, help="also check batch sizes for this many processes")
    config.set_defaults(run=_config)

    ask = commands.add_parser(
        "ask",
        help="one answer about an image",
        epilog='example: minigptv2 ask --model runs/demo/stage3/export photo.jpg "[refer] the dog" --draw out.png',
    )
    ask.add_argument("--model", required=True, help="an export folder")
    ask.add_argument("image", help="a JPEG, PNG or WebP file")
    ask.add_argument("question", help='e.g. "[refer] the dog on the left"')
    ask.add_argument("--draw", metavar="FILE", help="write the picture with the answer's boxes drawn")
    ask.add_argument("--max-new-tokens", type=int, default=128)
    ask.set_defaults(run=_ask)

    shards = commands.add_parser("shards", help="build and list corpora")
    shard_commands = shards.add_subparsers(dest="shard_command", required=True, metavar="COMMAND")
    build = shard_commands.add_parser("build", help="write a corpus as webdataset shards")
    build.add_argument("corpus", help="a row of CORPORA; see `minigptv2 shards list`")
    build.add_argument("--output", required=True, help="folder of the corpus's shards")
    build.add_argument("--root", default=".", help="folder with the corpus's original files")
    build.add_argument("--split", default="train")
    build.add_argument("--limit", type=int, help="stop after this many samples")
    build.set_defaults(run=_shards_build)
    shard_commands.add_parser("list", help="all corpora").set_defaults(run=_shards_list)

    tokenizer = commands.add_parser("tokenizer", help="train a small tokenizer on shards")
    tokenizer.add_argument("--shards", required=True, help="folder with one folder of shards per corpus")
    tokenizer.add_argument("--output", required=True)
    tokenizer.add_argument("--vocab-size", type=int, default=1024)
    tokenizer.set_defaults(run=_tokenizer)

    evaluate = commands.add_parser("evaluate", help="held-out figures of an export, per task")
    evaluate.add_argument("--model", required=True, help="an export folder")
    evaluate.add_argument("--shards", required=True, help="folder of held-out shards, one folder per corpus")
    evaluate.add_argument("--corpus", action="append", required=True, help="repeat for several")
    evaluate.add_argument("--limit", type=int, help="samples per corpus")
    evaluate.add_argument("--output", help="folder for results.json and predictions.jsonl")
    evaluate.set_defaults(run=_evaluate)

    demo = commands.add_parser("demo", help="the toy world: build, train three stages, evaluate, report")
    demo.add_argument("--output", default="runs/demo")
    demo.add_argument("--quick", action="store_true", help="a few minutes; learning shows in the loss alone")
    demo.add_argument("--processes", type=int, default=2)
    demo.set_defaults(run=_demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; errors of the user become one message and a non-zero exit code."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except MiniGPTv2Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 141


def _config(args: argparse.Namespace) -> int:
    from minigptv2.config import render_value
    from minigptv2.run_config import check_run_config, load_run_config

    loaded = load_run_config(args.file, args.overrides)
    width = max(len(key) for key in loaded.flat)
    rendered = {key: render_value(value) for key, value in loaded.flat.items()}
    value_width = min(48, max(len(text) for text in rendered.values()))
    for key, text in rendered.items():
        print(f"{key:<{width}}  {text:<{value_width}}  # {loaded.origins[key]}")
    check_run_config(loaded.value, args.world_size)
    return 0


def _ask(args: argparse.Namespace) -> int:
    from minigptv2.data.images import open_image
    from minigptv2.draw import draw_boxes
    from minigptv2.errors import DataError
    from minigptv2.predict.predictor import Request, load_predictor
    from minigptv2.tasks import parse_answer, task_of

    file = Path(args.image)
    if not file.is_file():
        raise DataError(f"no image {file}")
    image = open_image(file.read_bytes(), str(file))
    answer = load_predictor(args.model).answer([Request(args.question, image)], max_new_tokens=args.max_new_tokens)[0]
    print(answer)
    parsed = parse_answer(answer, task_of(args.question), *image.size)
    for item in parsed.grounded:
        for box in item.boxes:
            print(f"box {box} px" + (f"  {item.phrase}" if item.phrase else ""))
    if args.draw:
        boxes = [(box, item.phrase) for item in parsed.grounded for box in item.boxes]
        draw_boxes(image, boxes).save(args.draw)
        print(f"drawn {len(boxes)} box(es) in {args.draw}")
    return 0


def _shards_build(args: argparse.Namespace) -> int:
    from itertools import islice

    from tqdm import tqdm

    from minigptv2.data.shards import write_corpus
    from minigptv2.data.sources import CORPORA
    from minigptv2.errors import ConfigError, nearest

    if args.corpus not in CORPORA:
        known = ", ".join(CORPORA)
        raise ConfigError(f"unknown corpus '{args.corpus}'{nearest(args.corpus, list(CORPORA))} Corpora: {known}")
    corpus = CORPORA[args.corpus]
    if args.split not in corpus.expected:
        raise ConfigError(f"{args.corpus} has no split '{args.split}'; it has {', '.join(corpus.expected)}")
    expected = min(corpus.expected[args.split], args.limit or sys.maxsize)
    samples = islice(corpus.samples(Path(args.root), args.split), args.limit)
    bar = tqdm(samples, total=expected, desc=args.corpus, unit="sample", disable=not sys.stderr.isatty())
    manifest = write_corpus(
        bar, Path(args.output), args.corpus, samples_per_shard=corpus.samples_per_shard, license=corpus.license
    )
    turns = ", ".join(f"{count} {task}" for task, count in manifest.turns.items())
    print(f"{args.corpus} {args.split}: {manifest.samples} samples in {len(manifest.shards)} shards; turns: {turns}")
    if manifest.samples != expected:
        print(f"warning: expected {expected} samples", file=sys.stderr)
    return 0


def _shards_list(args: argparse.Namespace) -> int:
    from minigptv2.data.sources import CORPORA

    for name, corpus in CORPORA.items():
        sizes = ", ".join(f"{split} {count}" for split, count in corpus.expected.items())
        print(f"{name:<20} {', '.join(corpus.tasks):<14} {sizes:<24} {corpus.license}")
    return 0


def _tokenizer(args: argparse.Namespace) -> int:
    from minigptv2.data.texts import spoken_texts
    from minigptv2.tokenizer import load_tokenizer, train_tokenizer

    file = train_tokenizer(spoken_texts(Path(args.shards)), Path(args.output), args.vocab_size)
    tokenizer = load_tokenizer(file)
    print(f"{file}: {tokenizer.vocab_size} pieces, sha256 {tokenizer.sha256[:12]}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from minigptv2.evaluate.run import evaluate_export

    evaluate_export(
        args.model, Path(args.shards), args.corpus, limit=args.limit, output=Path(args.output) if args.output else None
    )
    return 0


def _demo(args: argparse.Namespace) -> int:
    from minigptv2.demo import run_demo

    return run_demo(Path(args.output), quick=args.quick, processes=args.processes)


if __name__ == "__main__":
    sys.exit(main())
