"""`replay`: run a skipped step again on one machine, one micro-batch at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Add the options of `replay`."""
    parser.description = "Find the micro-batches, samples and modules that made a step's loss or gradient not finite."
    parser.add_argument("bundle", type=Path, metavar="DIR", help="saved step, <run_dir>/bundles/step-...")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1. Default: cpu")
    parser.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    from minigptv2.train.replay import replay

    return replay(args.bundle, device=args.device)
