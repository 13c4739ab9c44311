"""`completion`: print a shell completion script."""

from __future__ import annotations

import argparse

import shtab

from minigptv2.cli.arguments import Parser

SHELLS = ("bash", "zsh")


def add_arguments(parser: Parser) -> None:
    """Add the options of `completion`."""
    parser.epilog = 'example: eval "$(minigptv2 completion bash)"'
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> int:
    from minigptv2.cli import build_parser

    print(shtab.complete(build_parser(), shell=args.shell))
    return 0
