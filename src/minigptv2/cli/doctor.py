"""`doctor`: check this machine, or the nodes of a job, before a run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_config, add_json, at_least, positive, print_json


def add_arguments(parser: Parser) -> None:
    """Add the options of `doctor`."""
    parser.description = "Check versions, GPUs, disk, shards and weights. The exit code is 1 if something is wrong."
    parser.epilog = "example: minigptv2 doctor --config launch/configs/stage1_pretrain.yaml"
    add_config(parser, required=False, help="YAML file of the run. Without it, only the machine is checked")
    parser.add_argument(
        "--world-size", type=at_least(1), metavar="N", help="number of ranks of the run. Default: one for each GPU"
    )
    add_json(parser)
    parser.add_argument(
        "--nodes",
        action="store_true",
        help="check whether these nodes can train together instead. Run it in every rank of srun or torchrun",
    )
    parser.add_argument("--shared", default="runs", metavar="DIR", help="with --nodes: folder that all nodes share")
    parser.add_argument(
        "--seconds", type=positive, default=10.0, metavar="S", help="with --nodes: duration of the communication test"
    )
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    if args.nodes:
        return _check_nodes(args)
    from minigptv2.doctor import examine
    from minigptv2.doctor.finding import BAD, findings_as_json, render_findings
    from minigptv2.run_config import load_run_config

    config = load_run_config(args.config, args.overrides).value if args.config else None
    findings = examine(config, world_size=args.world_size)
    print(findings_as_json(findings) if args.json else render_findings(findings))
    return 1 if any(one.level == BAD for one in findings) else 0


def _check_nodes(args: argparse.Namespace) -> int:
    """Check the nodes, in each rank of a launcher. Rank 0 prints the report, each rank its own failure."""
    import os

    from minigptv2.cluster import distributed
    from minigptv2.doctor.nodes import check_nodes

    distributed.adopt_launcher()
    report = check_nodes(Path(args.shared), seconds=args.seconds)
    if os.environ["RANK"] == "0":
        if args.json:
            print_json(asdict(report))
        else:
            print(report.text())
    return 1 if report.problems else 0
