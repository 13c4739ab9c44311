"""`plan`: predict memory, traffic and step time for each ZeRO config, without a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigptv2.cli.arguments import Parser, add_config, add_json, at_least, not_negative, positive


def add_arguments(parser: Parser) -> None:
    """Add the options of `plan`."""
    parser.epilog = "example: minigptv2 plan --config launch/configs/stage1_pretrain.yaml --gpus 16 --gpu h100"
    add_config(parser)
    parser.add_argument("--gpus", type=at_least(1), default=8, metavar="N", help="total number of GPUs")
    parser.add_argument("--gpus-per-node", type=at_least(1), default=8, metavar="N", help="default: 8")
    parser.add_argument("--gpu", default="h100", help="name in GPUS of planner/hardware.py. Default: h100")
    parser.add_argument("--gpu-memory", type=positive, metavar="GIB", help="default: the memory of --gpu")
    parser.add_argument(
        "--network", type=positive, default=45.0, metavar="GB/S", help="bandwidth of a node, over all its cards"
    )
    parser.add_argument("--cores-per-gpu", type=positive, default=8.0, metavar="N", help="CPU cores that decode images")
    parser.add_argument(
        "--tokens", type=positive, default=300.0, metavar="N", help="mean tokens per sample, image tokens included"
    )
    parser.add_argument("--images", type=not_negative, default=1.0, metavar="N", help="mean images per sample")
    parser.add_argument(
        "--supervised", type=positive, default=30.0, metavar="N", help="mean tokens per sample that have a label"
    )
    parser.add_argument(
        "--deepspeed-configs", default="deepspeed_configs", metavar="DIR", help="folder of the configs to compare"
    )
    add_json(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from minigptv2.model.backbones import tokens_per_image
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
        longest=config.data.max_tokens + tokens_per_image(config.model.vision_encoder),
    )
    report = plan_run(config, hardware, samples, shipped_plans(config, Path(args.deepspeed_configs)))
    print(render_json(report) if args.json else report["text"])
    return 0
