"""`shards` and `tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minigptv2.cli import corpora, shards
from minigptv2.cli.arguments import at_least


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    group = commands.add_parser("shards", help="build, list, index, verify, look at corpora")
    shard_commands = group.add_subparsers(dest="shard_command", required=True, metavar="COMMAND")
    corpora.add_commands(shard_commands)
    shards.add_commands(shard_commands)

    tokenizer = commands.add_parser("tokenizer", help="train a small tokenizer on shards")
    tokenizer.add_argument("--shards", required=True, help="folder with one folder of shards per corpus")
    tokenizer.add_argument("--output", required=True)
    tokenizer.add_argument("--vocab-size", type=at_least(1), default=1024)
    tokenizer.set_defaults(run=_tokenizer)


def _tokenizer(args: argparse.Namespace) -> int:
    from minigptv2.corpora.token_texts import rendered_texts
    from minigptv2.tokenizer import load_tokenizer, train_tokenizer

    file = train_tokenizer(rendered_texts(Path(args.shards)), Path(args.output), args.vocab_size)
    tokenizer = load_tokenizer(file)
    print(f"{file}: {tokenizer.vocab_size} pieces, sha256 {tokenizer.sha256[:12]}")
    return 0
