"""Starts the process group and wraps the collectives the package needs. Works with and without a launcher."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from minigptv2.cluster.rendezvous import free_port, rank_environment
from minigptv2.errors import ConfigError, MiniGPTv2Error

T = TypeVar("T")
_SINGLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def adopt_launcher() -> None:
    """Set RANK and the other variables of torch in a task that plain `srun` started."""
    os.environ.update(rank_environment(os.environ))


def describe_single_process() -> None:
    """Without a launcher, describe a group of this one process in the environment, on a free port."""
    if "RANK" not in os.environ:
        os.environ.update(_SINGLE)
        os.environ["MASTER_PORT"] = str(free_port())


def world_size_from_environment() -> int:
    """Number of processes that the launcher started, 1 without a launcher. Needs no process group."""
    adopt_launcher()
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device() -> torch.device:
    """This rank's device: its GPU, or the CPU if there is none or `DS_ACCELERATOR=cpu` is set.

    LOCAL_RANK becomes the number of that GPU, because DeepSpeed 0.19.8 takes its device from there (`zero.Init`, the
    groups of hpZ). Raises `ConfigError` if a node runs more ranks than it has visible GPUs.
    """
    adopt_launcher()
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        device = torch.device("cuda", gpu_of(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)
        return device
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed reads it when it is imported
    return torch.device("cpu")


def gpu_of(local_rank: int, visible: int) -> int:
    """Number of the GPU of a node's rank `local_rank`, out of `visible` ones.

    It is 0 if the launcher shows each rank only its own GPU (`srun --gpus-per-task=1`).
    """
    if local_rank < visible:
        return local_rank
    if visible == 1 and "SLURM_LOCALID" in os.environ:
        return 0
    raise ConfigError(f"this is rank {local_rank} of its node, which shows it {visible} GPU(s); start fewer ranks")


def start_process_group(device: torch.device, timeout_minutes: float) -> None:
    """Join the process group that the launcher described, or create one of a single process."""
    adopt_launcher()
    describe_single_process()
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 renames, and torch says so at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    # On CPUs DeepSpeed would compile an all-reduce for inference, which training never calls. The first time takes a
    # minute, and a process killed meanwhile leaves a lock that all later ones wait for, silently and forever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend, timeout=timedelta(minutes=timeout_minutes), auto_mpi_discovery=False, verbose=False
    )


def stop_process_group() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes logs and files."""
    return rank() == 0


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The tensor summed over all ranks. The argument is unchanged."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def any_over_ranks(flags: list[bool]) -> list[bool]:
    """For each position, whether any rank's flag is set. Equal on all ranks. A collective."""
    if world_size() == 1:
        return list(flags)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    votes = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def broadcast(value: torch.Tensor) -> torch.Tensor:
    """The main rank's tensor on all ranks. The arguments of all ranks must have the same shape and dtype."""
    if world_size() > 1:
        dist.broadcast(value, src=0)
    return value


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def agree(value: object) -> object:
    """Rank 0's value on every rank. Small plain data only."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_on_main(value: T) -> list[T]:
    """All ranks' values on the main rank, by rank. An empty list on the others. Small plain data only."""
    if world_size() == 1:
        return [value]
    box: list[T] | None = [value] * world_size() if is_main() else None
    dist.gather_object(value, box, dst=0)
    return box or []


def on_main(work: Callable[[], T]) -> T:
    """Run `work` on the main rank and return its result on all ranks. A `MiniGPTv2Error` is raised on all ranks."""
    value: T | MiniGPTv2Error | None = None
    if is_main():
        try:
            value = work()
        except MiniGPTv2Error as error:
            value = error
    agreed = agree(value)
    if isinstance(agreed, MiniGPTv2Error):
        raise agreed
    return cast(T, agreed)
