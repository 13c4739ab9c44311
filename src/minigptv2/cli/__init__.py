"""The `minigptv2` command. Parses and calls; heavy imports happen inside the command that needs them."""

from __future__ import annotations

import argparse
import sys

from minigptv2 import __version__
from minigptv2.cli import checkpoints, convert, data, evaluation, inference, machines, mix, runs, serve, slurm
from minigptv2.errors import MiniGPTv2Error
from minigptv2.secrets import guarded_output


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(prog="minigptv2", description="Train, evaluate and ask MiniGPT-v2.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (inference, evaluation, serve, convert, data, mix, runs, checkpoints, machines, slurm):
        room.add_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; a mistake of the user's is one message and a non-zero exit code."""
    args = build_parser().parse_args(argv)
    with guarded_output():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        return args.run(args) or 0
    except MiniGPTv2Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 141
    except OSError as error:  # a full disk, a missing right: the operator's to mend
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
