"""`launch/train.py`: parse, load the config, train; errors as one message and a non-zero exit code."""

from __future__ import annotations

import argparse
import os

from minigptv2.cluster import distributed
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.run_config import load_run_config
from minigptv2.secrets import guarded_output
from minigptv2.train.run import train


def main(argv: list[str] | None = None) -> int:
    """`launch/train.py`: parse, load the config, train; errors as one message and a non-zero exit code."""
    parser = argparse.ArgumentParser(description="Train one stage of MiniGPT-v2.")
    parser.add_argument("--config", required=True, help="a YAML in launch/configs")
    parser.add_argument("--fresh", action="store_true", help="start over in a used run folder")
    parser.add_argument("--resume", action="store_true", help="fail if there is nothing to resume")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the YAML")
    args = parser.parse_args(argv)
    with guarded_output():
        return _main(args)


def _main(args: argparse.Namespace) -> int:
    try:
        distributed.adopt_launcher()
        train(load_run_config(args.config, args.overrides), fresh=args.fresh, resume=args.resume)
    except MiniGPTv2Error as error:
        # Config and checkpoint errors are the same on all ranks and said once; a data error may be one rank's own.
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or isinstance(error, DataError):
            print(f"{f'[rank {rank}] ' if rank else ''}{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0
