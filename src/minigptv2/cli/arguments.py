"""Defines the parser, the argument types and the options that several commands share."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from minigptv2.errors import ConfigError, nearest
from minigptv2.files import home_expanded
from minigptv2.terminal_text import printable_json

if TYPE_CHECKING:
    from minigptv2.predict.jsonl import Outcome
    from minigptv2.predict.predictor import Predictor
    from minigptv2.predict.requests import Decoding


PATHS = ("DIR", "FILE", "PATH", "IMAGE", "EXPORT", "CORPUS", "RECIPE", "RUN_A", "RUN_B")
"""Metavars of arguments that are files or folders."""


class Parser(argparse.ArgumentParser):
    """A parser that takes options and words in any order, accepts old spellings and suggests the nearest option."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.arguments: list[argparse.Action] = []
        """What `add_argument` returned, for suggestions and shell completion."""
        self.old_spellings: dict[str, str] = {}
        """Old spelling of an option to the present one. Not in the help."""
        self.removed: dict[str, str] = {}
        """Removed option to what replaces it. Not in the help."""
        self.commands: dict[str, Parser] = {}
        """The parsers of the commands below this one."""
        keywords.setdefault("formatter_class", partial(argparse.HelpFormatter, max_help_position=28))
        super().__init__(*args, **keywords)

    def add_argument(self, *names: Any, url: bool = False, **keywords: Any) -> argparse.Action:
        """As in argparse. For a path (`PATHS`) `~` is the home folder, and a URL is refused unless `url` allows it."""
        if keywords.get("metavar") in PATHS:
            keywords["type"] = partial(_path, keywords.get("type", str), url)
        self.arguments.append(super().add_argument(*names, **keywords))
        return self.arguments[-1]

    @property
    def options(self) -> list[str]:
        """Every option, without its old spellings."""
        return [name for argument in self.arguments for name in argument.option_strings if name.startswith("--")]

    def add_commands(self) -> argparse._SubParsersAction[Parser]:
        """Let this parser take a command. Add each with `add_parser(name, help=...)` of the result."""
        group: argparse._SubParsersAction[Parser]
        group = self.add_subparsers(required=True, metavar="COMMAND", dest="word")
        self.commands = group.choices  # type: ignore[assignment]
        return group

    def add_old_spelling(self, old: str, new: str) -> None:
        """Keep accepting the option `old` under its present name `new`."""
        self.old_spellings[old] = new

    def add_removed(self, option: str, instead: str) -> None:
        """Reject `option`, which earlier versions had, with the text `instead`."""
        self.removed[option] = instead

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """The parsed words, options and others in any order. Exits with code 2 for an unknown option."""
        if self.commands:  # the command is missing, or an option such as --help stands before it
            return self.parse_args(words)
        end = words.index("--") if "--" in words else len(words)
        renamed = [*(self._present_spelling(word) for word in words[:end]), *words[end:]]
        for option in (word.partition("=")[0] for word in renamed[:end]):
            if option in self.removed:
                self.error(f"{option} was removed: {self.removed[option]}")
        args, unknown = self.parse_known_intermixed_args(renamed)
        if unknown:
            option = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            self.error(f"unknown argument '{option}'{nearest(option, self.options)}")
        return args

    def _present_spelling(self, word: str) -> str:
        option, equals, value = word.partition("=")
        return f"{self.old_spellings.get(option, option)}{equals}{value}"


def _path(kind: Callable[[str], Any], url: bool, text: str) -> Any:
    """A `type=` for files and folders, made by `kind` from the path with the home folder in the place of `~`."""
    if not url and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(f"{text} is a URL, but this command takes a file or folder: download it first")
    try:
        return kind(home_expanded(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def at_least(least: int) -> Callable[[str], int]:
    """A `type=` for whole numbers. argparse reports a number below `least`, and text that is no number."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
        return value

    return parse


def megapixels(text: str) -> int:
    """A `type=` for a number of pixels that is given in millions."""
    millions = at_least(1)(text)
    if millions > 10_000:
        right = -(-millions // 1_000_000)
        raise argparse.ArgumentTypeError(f"'{text}' is in millions of pixels: for that many pixels give {right}")
    return 1_000_000 * millions


def positive(text: str) -> float:
    """A `type=` for finite numbers above 0. argparse reports any other text."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """A `type=` for finite numbers of at least 0. argparse reports any other text."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def names(text: str) -> list[str]:
    """A `type=` for `add_names`: the names of a list with commas."""
    return [name for name in text.split(",") if name]


def column(text: str) -> tuple[str, str]:
    """A `type=` for a key and the column of a table that holds it. argparse reports any other text."""
    key, equals, name = text.partition("=")
    if not key or not equals or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=COLUMN, for example image=img")
    return key, name


def add_names(parser: Parser, option: str, *, metavar: str, help: str) -> None:
    """Add an option that takes several names: `--option A --option B`, or `--option A,B`."""
    parser.add_argument(
        option, action="extend", type=names, metavar=metavar, default=[], help=f"{help}. Repeat it for several"
    )


def add_config(parser: Parser, *, required: bool = True, help: str = "YAML file, as in launch/configs") -> None:
    """Add `--config FILE` and the `key=value` words that override its keys."""
    parser.add_argument("--config", required=required, metavar="FILE", help=help)
    add_overrides(parser)


def add_overrides(parser: Parser) -> None:
    """Add the `key=value` words that override keys of a config."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override YAML keys")


def add_json(parser: Parser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def print_json(value: Any) -> None:
    """Print a plain value as indented JSON."""
    print(printable_json(value, 1))


def add_model(parser: Parser, *, required: bool = True) -> None:
    """Add the options that name a model and say how it is loaded."""
    parser.add_argument("--model", required=required, metavar="DIR", help="model folder or export")
    parser.add_argument("--vision-weights", metavar="DIR", help="base weights of the vision encoder, if they moved")
    parser.add_argument("--language-weights", metavar="DIR", help="base weights of the language model, if they moved")
    parser.add_argument(
        "--prompt-style",
        default="trained",
        choices=("trained", "published"),
        help="published: format prompts as the published inference code does (two <s>, one space). Default: "
        "trained, and in `evaluate` that of the protocol",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1. Default: a GPU if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16. Default: that of the language model's files")


def load_model(args: argparse.Namespace) -> Predictor:
    """The predictor that the options of `add_model` name. Raises `CheckpointError` if it cannot be loaded."""
    from minigptv2.predict.predictor import load_predictor

    return load_predictor(
        args.model,
        style=args.prompt_style or "trained",
        device=args.device,
        dtype=args.dtype,
        vision_weights=args.vision_weights,
        language_weights=args.language_weights,
    )


def add_decoding(parser: Parser) -> None:
    """Add the options that say how answers are decoded."""
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=128, metavar="N", help="maximum tokens in an answer"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy decoding. Above 0: sampling")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus (top-p) threshold")
    parser.add_argument("--beams", type=at_least(1), default=1, metavar="N", help="number of beams of beam search")
    parser.add_argument("--seed", type=int, default=0, help="random seed")


def decoding_of(args: argparse.Namespace) -> Decoding:
    """The decoding that the options of `add_decoding` name."""
    from minigptv2.predict.requests import Decoding

    return Decoding(args.max_new_tokens, args.temperature, args.top_p, args.beams, args.seed)


def add_files(parser: Parser) -> None:
    """Add the options of commands that read and write a file of JSON lines."""
    parser.add_argument("--input", required=True, metavar="FILE", help="JSON lines. Image paths are relative to it")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON lines. An existing file is continued")
    parser.add_argument("--batch-size", type=at_least(1), default=16, metavar="N", help="requests per batch")


def warn(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr)


def print_outcome(verb: str, outcome: Outcome, args: argparse.Namespace, **more: Any) -> int:
    """Print what became of a file, with `--json` as JSON with the values of `more`. Returns the exit code."""
    from minigptv2.errors import DataError

    if args.json:
        counts = {verb: outcome.done, "before": outcome.before, "skipped": outcome.bad}
        print_json({**counts, "output": args.output, **more})
    else:
        before = f", {outcome.before} before" if outcome.before else ""
        print(f"{verb} {outcome.done}{before}, skipped {len(outcome.bad)}: {args.output}")
    return DataError.exit_code if outcome.bad else 0
