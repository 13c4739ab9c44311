"""`completion`: print a shell completion script."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from minigptv2.cli.arguments import Parser

SHELLS = ("bash", "zsh")
_COMPLETED = {**dict.fromkeys(("FILE", "PATH", "IMAGE", "RECIPE"), shtab.FILE), "DIR": shtab.DIR, "EXPORT": shtab.DIR}
"""What the shell completes for a placeholder of the help."""


def add_arguments(parser: Parser) -> None:
    """Add the options of `completion`."""
    parser.epilog = 'example: eval "$(minigptv2 completion bash)"'
    parser.add_argument("shell", choices=SHELLS, help="shell to complete in")
    parser.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> int:
    from minigptv2.cli import build_parser

    parser = build_parser()
    for argument in _arguments(parser):
        if argument.metavar in _COMPLETED:
            argument.complete = _COMPLETED[argument.metavar]  # type: ignore[attr-defined]  # shtab reads it
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _arguments(parser: Parser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    yield from parser.arguments
    for below in parser.commands.values():
        yield from _arguments(below)
