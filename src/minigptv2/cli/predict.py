"""`predict`: answer a file of requests."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import (
    Parser,
    add_decoding,
    add_files,
    add_json,
    add_model,
    at_least,
    decoding_of,
    load_model,
    print_outcome,
    warn,
)


def add_arguments(parser: Parser) -> None:
    """Add the options of `predict`."""
    parser.description = (
        'Answer requests, one per line: {"image": "a.jpg", "turns": [{"question": "[vqa] what is it?"}]}. '
        "An interrupted output is continued. The exit code is 3 if a line could not be answered."
    )
    parser.epilog = "example: minigptv2 predict --model DIR --input requests.jsonl --output answers.jsonl"
    add_model(parser)
    add_files(parser)
    add_decoding(parser)
    parser.add_argument(
        "--top-tokens",
        type=at_least(0),
        default=0,
        metavar="K",
        help="also write the K most likely first tokens of each answer, with their logits",
    )
    add_json(parser)
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    from minigptv2.errors import ConfigError
    from minigptv2.predict.jsonl import predict_file

    predictor = load_model(args)
    most = predictor.tokenizer.vocab_size
    if not 0 <= args.top_tokens <= most:
        raise ConfigError(f"--top-tokens must be 0 to {most}, the size of the vocabulary, got {args.top_tokens}")
    outcome = predict_file(
        predictor,
        Path(args.input),
        Path(args.output),
        decoding_of(args),
        batch_size=args.batch_size,
        top=args.top_tokens,
        warn=warn,
    )
    return print_outcome("answered", outcome, args)
