"""`config` and `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import at_least
from minigptv2.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    config = commands.add_parser("config", help="print a run's resolved config and where each value came from")
    config.add_argument("file", help="a YAML in launch/configs")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.add_argument(
        "--world-size", type=at_least(1), default=1, help="also check batch sizes for this many processes"
    )
    config.set_defaults(run=_config)

    demo = commands.add_parser("demo", help="the toy world: build, train three stages, evaluate, report")
    demo.add_argument("--output", help="default: runs/demo, or runs/demo-pretrained")
    demo.add_argument(
        "--pretrained",
        action="store_true",
        help="instead: DINOv2 and SmolLM2 from pip, frozen; projector and LoRA learn photographs",
    )
    demo.add_argument("--quick", action="store_true", help="a few minutes; learning shows in the loss alone")
    demo.add_argument("--processes", type=at_least(1), default=2)
    demo.add_argument("--data-only", action="store_true", help="make the toy world's shards and tokenizer, then stop")
    demo.set_defaults(run=_demo)


def _config(args: argparse.Namespace) -> int:
    from minigptv2.config import render_value
    from minigptv2.run_config import check_run_config, load_run_config

    loaded = load_run_config(args.file, args.overrides)
    width = max(len(key) for key in loaded.flat)
    rendered = {key: render_value(value) for key, value in loaded.flat.items()}
    value_width = min(48, max(len(text) for text in rendered.values()))
    for key, text in rendered.items():
        print(f"{key:<{width}}  {text:<{value_width}}  # {loaded.origins[key]}")
    check_run_config(loaded.value, args.world_size)
    return 0


def _demo(args: argparse.Namespace) -> int:
    if args.pretrained and args.data_only:
        raise ConfigError("--data-only makes the toy world's data; --pretrained has none of it")
    if args.pretrained:
        from minigptv2.demo.pretrained import run_pretrained

        return run_pretrained(Path(args.output or "runs/demo-pretrained"), processes=args.processes)
    from minigptv2.demo.toy import run_toy

    output = Path(args.output or "runs/demo")
    return run_toy(output, quick=args.quick, processes=args.processes, data_only=args.data_only)
