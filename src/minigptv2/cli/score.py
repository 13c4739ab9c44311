"""`score`: compute the likelihoods of given answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_files, add_json, add_model, load_model, print_outcome, warn


def add_arguments(parser: Parser) -> None:
    """Add the options of `score`."""
    parser.description = (
        'Score cases, one per line, every turn with its "answer". Each output line has the number of tokens of the '
        "sequence (length), target_ids, nll (nats, one per supervised token) and loss. An interrupted output is "
        "continued. The exit code is 3 if a line could not be scored."
    )
    parser.epilog = "example: minigptv2 score --model DIR --input cases.jsonl --output scores.jsonl"
    add_model(parser)
    add_files(parser)
    parser.add_argument(
        "--layout", default="packed", choices=("packed", "padded"), help="one packed sequence, or a padded batch"
    )
    add_json(parser)
    parser.set_defaults(run=_score)


def _score(args: argparse.Namespace) -> int:
    from minigptv2.predict.jsonl import mean_loss, score_file

    outcome = score_file(
        load_model(args),
        Path(args.input),
        Path(args.output),
        batch_size=args.batch_size,
        layout=args.layout,
        warn=warn,
    )
    # A terminal or a pipe cannot be read again.
    scored = bool(outcome.done or outcome.before) and Path(args.output).is_file()
    loss, tokens = mean_loss(Path(args.output)) if scored else (None, 0)
    if scored and not args.json:
        print(f"mean loss {loss:.6f} over {tokens} supervised tokens")
    return print_outcome("scored", outcome, args, mean_loss=loss, supervised_tokens=tokens)
