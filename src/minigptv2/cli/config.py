"""`config`: print a run's resolved config and the origin of each value."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from minigptv2.cli.arguments import Parser, add_json, add_overrides, at_least, print_json, warn

if TYPE_CHECKING:
    from minigptv2.config import Loaded

_VALUE_WIDTH = 48
"""Widest column of values. Longer values push their origin to the right."""


def add_arguments(parser: Parser) -> None:
    """Add the options of `config`."""
    parser.description = "The exit code is 2 if the config cannot work."
    parser.epilog = "example: minigptv2 config launch/configs/stage1_pretrain.yaml train.micro_batch_size=6"
    parser.add_argument("file", metavar="FILE", help="YAML file, for example in launch/configs")
    add_overrides(parser)
    parser.add_argument(
        "--world-size", type=at_least(1), default=1, metavar="N", help="also check the batch sizes for N ranks"
    )
    add_json(parser)
    parser.set_defaults(run=_config)


def _config(args: argparse.Namespace) -> int:
    from minigptv2.run_config import FILES, check_places, check_run_config, doubts_about, load_run_config

    loaded = load_run_config(args.file, args.overrides)
    if args.json:
        print_json({key: {"value": value, "from": loaded.origins[key]} for key, value in loaded.flat.items()})
    else:
        print(_table(loaded))
    for doubt in doubts_about(loaded.value):
        warn(f"warning: {doubt}")
    check_places(loaded, FILES)
    check_run_config(loaded.value, args.world_size)
    return 0


def _table(loaded: Loaded[Any]) -> str:
    from minigptv2.config import render_value

    width = max(len(key) for key in loaded.flat)
    rendered = {key: render_value(value) for key, value in loaded.flat.items()}
    value_width = min(_VALUE_WIDTH, max(len(text) for text in rendered.values()))
    return "\n".join(
        f"{key:<{width}}  {text:<{value_width}}  # {loaded.origins[key]}" for key, text in rendered.items()
    )
