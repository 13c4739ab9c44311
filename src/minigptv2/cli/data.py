"""`shards` and `tokenizer`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
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
    complete = corpus.expected[args.split]
    expected = min(complete, args.limit or sys.maxsize) if complete is not None else None
    samples = islice(corpus.samples(Path(args.root), args.split), args.limit)
    bar = tqdm(samples, total=expected, desc=args.corpus, unit="sample", disable=not sys.stderr.isatty())
    manifest = write_corpus(
        bar, Path(args.output), args.corpus, samples_per_shard=corpus.samples_per_shard, license=corpus.license
    )
    turns = ", ".join(f"{count} {task}" for task, count in manifest.turns.items())
    print(f"{args.corpus} {args.split}: {manifest.samples} samples in {len(manifest.shards)} shards; turns: {turns}")
    if expected is not None and manifest.samples != expected:
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
