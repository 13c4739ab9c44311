"""Defines the `minigptv2` command: imports the file of the chosen command alone, parses the words and runs it."""

from __future__ import annotations

import errno
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from minigptv2 import __version__
from minigptv2.cli.arguments import Parser
from minigptv2.cli.streams import make_durable, open_standard_files
from minigptv2.errors import OTHER_ERROR, ExitCode, MiniGPTv2Error, nearest
from minigptv2.secrets import guarded_output


class Command(NamedTuple):
    """One command. The file of the same name in this package has its `add_arguments(parser)`."""

    name: str
    help: str


COMMANDS = (
    Command("train", "train one stage"),
    Command("ask", "answer one question about an image"),
    Command("predict", "answer a file of requests"),
    Command("score", "compute the likelihoods of given answers"),
    Command("evaluate", "run benchmarks and score held-out corpora"),
    Command("compare", "compare two evaluations question by question"),
    Command("serve", "start a chat page and an OpenAI-compatible API"),
    Command("chat", "talk about an image in the terminal"),
    Command("convert", "convert published checkpoints, exports and DeepSpeed checkpoints"),
    Command("shards", "build, list, index, verify, measure and preview corpora"),
    Command("tokenizer", "train a small tokenizer on shards"),
    Command("mix", "show the shares, epochs and images of a recipe over a run"),
    Command("config", "print a run's resolved config and the origin of each value"),
    Command("configs", "list the configs that come with the package, or copy them to edit them"),
    Command("checkpoint", "list, verify or show the checkpoints of a run"),
    Command("lineage", "show the stages that an export was trained in"),
    Command("replay", "run a skipped step again on one machine, one micro-batch at a time"),
    Command("plan", "predict memory, traffic and step time for each ZeRO config, without a GPU"),
    Command("doctor", "check this machine, or the nodes of a job, before a run"),
    Command("demo", "build the toy data, train three stages, evaluate and write a report"),
    Command("slurm", "decide for the batch scripts whether a job starts or is requeued"),
    Command("completion", "print a shell completion script"),
)
_PLACE_ERRORS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EBUSY,
)
"""Errors of the system about a file or folder that the user chose."""
_BROKEN_PIPE = 141
"""Exit code of a program that SIGPIPE ends, as shells report it."""


def build_parser(only: str | None = None) -> Parser:
    """The parser of all commands. With `only`, it has the options of that command alone, and imports its file alone."""
    parser = Parser(prog="minigptv2", description="Train, evaluate and use MiniGPT-v2.")
    parser.add_argument("--version", action="version", version=__version__)
    group = parser.add_commands()
    for command in COMMANDS:
        below = group.add_parser(command.name, help=command.help)
        if only is None or only == command.name:
            import_module(f"{__name__}.{command.name}").add_arguments(below)
    return parser


def parse(words: Sequence[str]) -> Namespace:
    """The parsed words of a command line. Options and other words come in any order after the command.

    Exits with code 2 for words that are not understood, naming the nearest command or option.
    """
    rest = list(words)
    parser = build_parser(only=rest[0] if rest else "")
    while parser.commands and rest and not rest[0].startswith("-"):
        if rest[0] not in parser.commands:
            parser.error(f"unknown command '{rest[0]}'{nearest(rest[0], list(parser.commands))}")
        parser = parser.commands[rest.pop(0)]
    return parser.parse_words(rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. A user's error is one message on stderr and a non-zero code."""
    open_standard_files()
    streams = sys.stdout, sys.stderr
    try:
        with guarded_output():
            args = parse(sys.argv[1:] if argv is None else argv)
            if getattr(args, "outlives_reader", False):
                make_durable()
            return _run(args)
    finally:
        sys.stdout, sys.stderr = streams


def _run(args: Namespace) -> int:
    try:
        return args.run(args) or 0
    except MiniGPTv2Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return _BROKEN_PIPE
    except OSError as error:  # a full disk, a missing permission: the user can fix it, so no traceback
        if error.filename is not None and error.errno in _PLACE_ERRORS:
            print(f"ConfigError: {error.filename}: {error.strerror}", file=sys.stderr)
            return ExitCode.CONFIG
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return OTHER_ERROR
