"""`lineage`: show the stages that an export was trained in."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import Parser, add_json, print_json

_SHOWN = ("skipped", "recipe", "data_plan", "parent", "base_sha256", "versions")


def add_arguments(parser: Parser) -> None:
    """Add the options of `lineage`."""
    parser.add_argument("export", type=Path, metavar="DIR", help="export, or a run folder that has one")
    add_json(parser)
    parser.set_defaults(run=_lineage)


def _lineage(args: argparse.Namespace) -> int:
    from minigptv2.model.export import load_info
    from minigptv2.run_folder import RunFolder

    folder = args.export if (args.export / "config.json").exists() else RunFolder(args.export).export
    info = load_info(folder)
    if args.json:
        print_json([stage.as_json() for stage in info.lineage])
        return 0
    print(f"{info.folder}: weights {info.weights_sha256}")
    for number, stage in enumerate(info.lineage, 1):
        print("\n".join(_stage_lines(number, stage.as_json())))
    return 0


def _stage_lines(number: int, stage: Mapping[str, Any]) -> list[str]:
    lines = [f"{number}. {stage['stage']}: {stage['steps']} steps, seed {stage.get('seed')}"]
    for key in _SHOWN:
        if value := stage.get(key):
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            lines.append(f"     {key}: {text}")
    config = stage.get("config")
    config = config if isinstance(config, dict) else {}
    lines.append(
        f"     config: {len(config)} keys; lr {config.get('train.learning_rate')}, "
        f"batch {config.get('train.global_batch_size')}, trained {config.get('model.trainable')}"
    )
    return lines
