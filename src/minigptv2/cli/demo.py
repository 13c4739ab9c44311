"""`demo`: build the toy data, train three stages, evaluate and write a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, at_least
from minigptv2.errors import ConfigError


def add_arguments(parser: Parser) -> None:
    """Add the options of `demo`."""
    parser.add_argument("--output", metavar="DIR", help="default: runs/demo, or runs/demo-pretrained")
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="train a projector and LoRA on photographs instead, with frozen DINOv2 and SmolLM2 from pip packages",
    )
    parser.add_argument("--quick", action="store_true", help="train for a few minutes. Only the loss shows learning")
    parser.add_argument("--processes", type=at_least(1), default=2, metavar="N", help="ranks to train on")
    parser.add_argument("--data-only", action="store_true", help="write the toy shards and tokenizer, then stop")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    if args.pretrained and args.data_only:
        raise ConfigError("--data-only writes the toy data, which --pretrained does not use; leave one of them out")
    if args.pretrained:
        from minigptv2.demo.pretrained import run_pretrained

        return run_pretrained(Path(args.output or "runs/demo-pretrained"), processes=args.processes)
    from minigptv2.demo.toy import run_toy

    output = Path(args.output or "runs/demo")
    return run_toy(output, quick=args.quick, processes=args.processes, data_only=args.data_only)
