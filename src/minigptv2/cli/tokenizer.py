"""`tokenizer`: train a small tokenizer on shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, at_least


def add_arguments(parser: Parser) -> None:
    """Add the options of `tokenizer`."""
    parser.epilog = "example: minigptv2 tokenizer --shards data/shards --output tokenizer --vocab-size 4096"
    parser.add_argument("--shards", required=True, metavar="DIR", help="folder with one folder of shards per corpus")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the tokenizer")
    parser.add_argument(
        "--vocab-size", type=at_least(1), default=1024, metavar="N", help="number of pieces. Default: 1024"
    )
    parser.set_defaults(run=_tokenizer)


def _tokenizer(args: argparse.Namespace) -> int:
    from minigptv2.corpora.token_texts import rendered_texts
    from minigptv2.tokenizer import load_tokenizer, train_tokenizer

    file = train_tokenizer(rendered_texts(Path(args.shards)), Path(args.output), args.vocab_size)
    tokenizer = load_tokenizer(file)
    print(f"{file}: {tokenizer.vocab_size} pieces, sha256 {tokenizer.sha256[:12]}")
    return 0
