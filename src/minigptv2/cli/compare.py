"""`compare`: compare two evaluations question by question."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_json, at_least


def add_arguments(parser: Parser) -> None:
    """Add the options of `compare`."""
    parser.description = "Print differences with their significance, and questions answered right by one run alone."
    parser.epilog = "example: minigptv2 compare eval/stage2 eval/stage3 --output eval/difference.json"
    parser.add_argument("run_a", metavar="RUN_A", help="output folder of `minigptv2 evaluate`")
    parser.add_argument("run_b", metavar="RUN_B", help="output folder of another evaluation")
    parser.add_argument(
        "--flips", type=at_least(0), default=5, metavar="N", help="changed answers to print in each direction"
    )
    parser.add_argument("--output", metavar="FILE", help="write everything as JSON to this file")
    add_json(parser)
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from minigptv2.evaluate.compare import as_json, compare_runs, render
    from minigptv2.redacted_files import write_text

    comparisons = compare_runs(Path(args.run_a), Path(args.run_b))
    print(as_json(comparisons).rstrip() if args.json else render(comparisons, flips=args.flips))
    if args.output:
        write_text(Path(args.output), as_json(comparisons))
        if not args.json:
            print(args.output)
    return 0
