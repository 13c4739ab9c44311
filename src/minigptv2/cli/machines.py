"""`plan`: memory, traffic and step time of a run on given machines, without a GPU. `doctor`: machines, examined."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minigptv2.cli.arguments import at_least, not_negative, positive


def add_commands(commands: Any) -> None:
    """Add this file's sub-commands."""
    plan = commands.add_parser("plan", help="memory, traffic and step time of a run for each ZeRO plan; no GPU needed")
    plan.add_argument("--config", required=True, help="a YAML in launch/configs")
    plan.add_argument("overrides", nargs="*", metavar="key=value")
    plan.add_argument("--gpus", type=at_least(1), default=8, help="GPUs in all")
    plan.add_argument("--gpus-per-node", type=at_least(1), default=8)
    plan.add_argument("--gpu", default="h100", help="a row of GPUS in planner/hardware.py")
    plan.add_argument("--gpu-memory", type=positive, metavar="GIB", help="default: the card's own")
    plan.add_argument(
        "--network", type=positive, default=45.0, metavar="GB/S", help="of a node, all its cards together"
    )
    plan.add_argument("--cores-per-gpu", type=positive, default=8.0, help="for decoding images")
    plan.add_argument("--tokens", type=positive, default=300.0, help="of a mean sample, image tokens included")
    plan.add_argument("--images", type=not_negative, default=1.0, help="of a mean sample")
    plan.add_argument("--supervised", type=positive, default=30.0, help="tokens of a mean sample that carry a label")
    plan.add_argument("--deepspeed-configs", default="deepspeed_configs", help="folder of the plans to compare")
    plan.add_argument("--json", action="store_true", help="for scripts")
    plan.set_defaults(run=_plan)

    doctor = commands.add_parser("doctor", help="what a run would trip over here: versions, disk, shards, weights")
    doctor.add_argument("--config", help="a YAML in launch/configs; without it the machine alone is examined")
    doctor.add_argument("overrides", nargs="*", metavar="key=value")
    doctor.add_argument("--world-size", type=at_least(1), help="processes of the run; default: one for each GPU")
    doctor.add_argument("--json", action="store_true", help="for scripts")
    doctor.add_argument(
        "--nodes",
        action="store_true",
        help="instead, in every rank of srun or torchrun: can these nodes train together",
    )
    doctor.add_argument("--shared", default="runs", metavar="DIR", help="with --nodes: a folder that all nodes see")
    doctor.add_argument("--seconds", type=positive, default=10.0, help="with --nodes: how long to gather")
    doctor.set_defaults(run=_doctor)


def _plan(args: argparse.Namespace) -> int:
    from minigptv2.planner.hardware import describe
    from minigptv2.planner.plan_table import plan_run, render_json, shipped_plans
    from minigptv2.planner.step_time import Samples
    from minigptv2.run_config import load_run_config

    config = load_run_config(args.config, args.overrides).value
    hardware = describe(
        gpu=args.gpu,
        gpus=args.gpus,
        gpus_per_node=args.gpus_per_node,
        memory_gib=args.gpu_memory,
        network_gbytes=args.network,
        cores_per_gpu=args.cores_per_gpu,
    )
    samples = Samples(
        tokens=args.tokens,
        images=args.images,
        supervised=args.supervised,
        max_pack_tokens=config.data.max_pack_tokens,
        max_tokens=config.data.max_tokens,
    )
    report = plan_run(config, hardware, samples, shipped_plans(config, Path(args.deepspeed_configs)))
    print(render_json(report) if args.json else report["text"])
    return 0


def _doctor(args: argparse.Namespace) -> int:
    if args.nodes:
        return _check_nodes(Path(args.shared), args.seconds)
    from minigptv2.doctor.examine import examine
    from minigptv2.doctor.finding import BAD, findings_as_json, render_findings
    from minigptv2.run_config import load_run_config

    config = load_run_config(args.config, args.overrides).value if args.config else None
    findings = examine(config, world_size=args.world_size)
    print(findings_as_json(findings) if args.json else render_findings(findings))
    return 1 if any(one.level == BAD for one in findings) else 0


def _check_nodes(shared: Path, seconds: float) -> int:
    """In each rank of a launcher: the report on rank 0, each rank's own failure where it happens."""
    import os

    from minigptv2.cluster import distributed
    from minigptv2.doctor.nodes import check_nodes

    distributed.adopt_launcher()
    report = check_nodes(shared, seconds=seconds)
    if os.environ["RANK"] == "0":
        print(report.text())
    return 1 if report.problems else 0
