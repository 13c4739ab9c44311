"""`train`: train one stage. `launch/train.py` is this command for launchers that start a script."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from minigptv2.cli.arguments import Parser, add_config, at_least
from minigptv2.cluster.signals import listen
from minigptv2.errors import OTHER_ERROR, DataError, MiniGPTv2Error


def add_arguments(parser: Parser) -> None:
    """Add the options of `train`."""
    parser.description = (
        "Train one stage. The same command in a used run folder resumes from the newest intact checkpoint. Every "
        "launcher that sets RANK and WORLD_SIZE (torchrun, deepspeed, srun) starts it on several ranks."
    )
    parser.epilog = "example: minigptv2 train toy_stage1 --processes 2 train.steps=100"
    add_config(parser)
    parser.add_argument("--fresh", action="store_true", help="delete earlier results, start at step 0")
    parser.add_argument("--resume", action="store_true", help="fail if there is no checkpoint to resume from")
    parser.add_argument(
        "--processes",
        type=at_least(1),
        metavar="N",
        help="start N ranks on this machine with torchrun. It exits with 1 if a rank fails, whatever the rank's code",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.set_defaults(run=_train, outlives_reader=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`launch/train.py`: the command `train` with these words, by default the program's own."""
    from minigptv2.cli import main as run_command

    listen()
    return run_command(["train", *(sys.argv[1:] if argv is None else argv)])


def _train(args: argparse.Namespace) -> int:
    if args.processes is not None:
        _start_torchrun(args)
    listen()  # before the seconds of imports: a signal that comes while loading stops the run after its first step
    from minigptv2.cluster import distributed
    from minigptv2.run_config import load_run_config
    from minigptv2.train.stage import train

    try:
        distributed.adopt_launcher()
        train(load_run_config(args.config, args.overrides), fresh=args.fresh, resume=args.resume)
    except MiniGPTv2Error as error:
        # Config and checkpoint errors are the same on all ranks and printed once. A data error may be one rank's own.
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or isinstance(error, DataError):
            print(f"{f'[rank {rank}] ' if rank else ''}{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    except OSError:  # other commands print one line; hours into a run the traceback says where it happened
        traceback.print_exc()
        return OTHER_ERROR
    return 0


def _start_torchrun(args: argparse.Namespace) -> None:
    """Replace this process by torchrun, so that signals reach it. Raises `ConfigError` in a rank of a launcher."""
    from minigptv2.errors import ConfigError

    if "RANK" in os.environ:
        raise ConfigError(
            f"--processes {args.processes} starts a launcher, but RANK={os.environ['RANK']} says that one has started "
            "this process; leave --processes out"
        )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.processes)]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup, which torchrun would undo
        launcher += _without_hangup()
    options = [option for option, given in (("--fresh", args.fresh), ("--resume", args.resume)) if given]
    command = ["-m", "minigptv2", "train", "--config", args.config, *options, *args.overrides]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, *command])


def _without_hangup() -> list[str]:
    """The option of torchrun that leaves SIGHUP alone, of versions that have it."""
    from torch.distributed.run import get_args_parser

    option = "--signals_to_handle"
    return [option, "SIGTERM,SIGINT,SIGQUIT"] if option in get_args_parser().format_help() else []
