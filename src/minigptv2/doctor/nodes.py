"""Checks before a long job whether its nodes can connect, exchange data and see each other's files in time.

Any launcher runs it in every rank. The ranks connect to a store first, so a rank that does not start is named. Then
they run all-gathers for some seconds and write files that the others wait for. Changes only a temporary folder.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from minigptv2 import __version__
from minigptv2.cluster import distributed
from minigptv2.errors import NodesError
from minigptv2.files import remove_or_report, write_atomically

_SIZES = (4 << 10, 1 << 20, 16 << 20)
"""Bytes that each rank sends in one all-gather, for latency, a gradient bucket and a large shard."""
_POLL_S = 0.02
_MAX_CLOCK_S = 30.0


@dataclass(frozen=True)
class RankInfo:
    """Host, device and versions of a rank. `clock` is its Unix time when the ranks meet."""

    rank: int
    host: str
    device: str
    versions: str
    clock: float


@dataclass(frozen=True)
class Gather:
    """All-gathers of one size. `bytes_per_s` is the rate received by a rank, `count` the number of all-gathers."""

    num_bytes: int
    count: int
    median_s: float
    slowest_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class NodesReport:
    """The result, equal on all ranks. `problems` is empty if the nodes can train together."""

    ranks: list[RankInfo]
    gathers: list[Gather]
    seen_after_s: dict[str, float]
    """For each host, the longest time until a file written elsewhere was visible there."""
    problems: list[str]

    def text(self) -> str:
        """The report as text, a line per rank, all-gather, host and problem."""
        lines = [f"rank {p.rank}: {p.host}, {p.device}, {p.versions}" for p in self.ranks]
        for gather in self.gathers:
            lines.append(
                f"all-gather of {gather.num_bytes / 1024:g} KiB a rank: median {1000 * gather.median_s:.2f} ms, "
                f"slowest {1000 * gather.slowest_s:.2f} ms of {gather.count}, "
                f"{gather.bytes_per_s / 1e6:.0f} MB/s received"
            )
        for host, seconds in self.seen_after_s.items():
            lines.append(f"files: {host} sees files of other nodes within {seconds:.2f} s")
        lines += [f"PROBLEM: {problem}" for problem in self.problems] or ["the nodes can train together"]
        return "\n".join(lines)


def check_nodes(shared: Path, *, seconds: float = 10.0, patience_s: float = 60.0) -> NodesReport:
    """Connect, run all-gathers for `seconds`, and exchange files in `shared`, waiting at most `patience_s` for each.

    Raises `NodesError` if the ranks cannot connect, naming the missing ones, or if an all-gather fails.
    """
    device = distributed.choose_device()
    store, rank, world = _rendezvous(patience_s)
    try:
        ranks = _meet(store, rank, world, device, patience_s)
    except dist.DistError as error:
        raise NodesError(f"{socket.gethostname()}, rank {rank}: rank 0 has exited; see its log") from error
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("nodes", store),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=patience_s),
        )
        try:
            gathers = [_gather(size, seconds / len(_SIZES), device) for size in _SIZES]
            seen, problems = _share_files(shared, ranks, patience_s)
            dist.barrier()
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        hosts = ", ".join(sorted({info.host for info in ranks}))
        raise NodesError(
            f"{ranks[rank].host}, rank {rank}: {hosts} connected, but cannot exchange data over {backend}: {error}. "
            "Name the network that connects them in NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, and check firewalls."
        ) from error
    return NodesReport(ranks, gathers, seen, _disagreements(ranks) + problems)


def _rendezvous(patience_s: float) -> tuple[dist.Store, int, int]:
    """Connect to the store of all ranks. Returns it with rank and world size."""
    distributed.adopt_launcher()
    distributed.describe_single_process()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has one already
    try:
        store = dist.TCPStore(
            host, port, is_master=hosts_store, wait_for_workers=False, timeout=timedelta(seconds=patience_s)
        )
    except (RuntimeError, ValueError) as error:
        raise NodesError(
            f"{socket.gethostname()}, rank {rank}: cannot reach {host}:{port} (MASTER_ADDR:MASTER_PORT) within "
            f"{patience_s:.0f} s: {error}. Check that "
            "the name resolves here, that the port is free there, and that no firewall blocks it."
        ) from error
    return dist.PrefixStore("doctor", store), rank, world


def _meet(store: dist.Store, rank: int, world: int, device: torch.device, patience_s: float) -> list[RankInfo]:
    """Information about all ranks, by rank. Raises `NodesError` naming the ranks that do not start."""
    what = f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    versions = f"python {platform.python_version()}, torch {torch.__version__}, minigptv2 {__version__}"
    mine = RankInfo(rank, socket.gethostname(), what, versions, time.time())
    store.set(f"place/{rank}", json.dumps(asdict(mine)))
    deadline = time.monotonic() + patience_s
    keys = [f"place/{other}" for other in range(world)]
    while not store.check(keys):
        if time.monotonic() > deadline:
            missing = [other for other, key in enumerate(keys) if not store.check([key])]
            raise NodesError(
                f"{mine.host}, rank {rank}: {len(missing)} of {world} ranks did not start within {patience_s:.0f} s: "
                f"{', '.join(map(str, missing[:20]))}. Check their logs and whether their nodes are up."
            )
        time.sleep(_POLL_S)
    return [RankInfo(**json.loads(store.get(key))) for key in keys]


def _gather(size: int, seconds: float, device: torch.device) -> Gather:
    """Run all-gathers of `size` bytes a rank for `seconds` and check their contents."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = torch.full((size,), rank % 251, dtype=torch.uint8, device=device)
    received = [torch.empty_like(mine) for _ in range(world)]
    times: list[float] = []
    more, began = torch.ones(1, device=device), time.monotonic()
    while bool(more.item()):
        start = time.monotonic()
        dist.all_gather(received, mine)
        total = [int(part[0]) for part in received]  # also synchronizes a GPU
        times.append(time.monotonic() - start)
        if total != [other % 251 for other in range(world)]:
            raise NodesError(f"{socket.gethostname()}, rank {rank}: an all-gather of {size} bytes returned wrong data")
        more.fill_(float(time.monotonic() - began < seconds))
        dist.broadcast(more, src=0)
    times = sorted(times[1:] or times)  # the first opens connections
    median = times[len(times) // 2]
    return Gather(size, len(times), median, times[-1], size * (world - 1) / median)


def _share_files(shared: Path, ranks: list[RankInfo], patience_s: float) -> tuple[dict[str, float], list[str]]:
    """For each host, how long files of other nodes take to become visible, and problems if they do not."""
    rank, world = dist.get_rank(), dist.get_world_size()
    name = str(distributed.agree(f".nodes-{uuid.uuid4().hex}"))
    folder = shared / name
    folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    write_atomically(folder / f"rank-{rank}", f"{name} {rank}".encode())
    written = time.monotonic()
    dist.barrier()
    unseen = [
        other
        for other in range(world)
        if not _is_seen(folder / f"rank-{other}", f"{name} {other}", written + patience_s)
    ]
    mine = (time.monotonic() - written, unseen)
    everyone: list[tuple[float, list[int]]] = [mine] * world
    dist.all_gather_object(everyone, mine)
    if rank == 0 or unseen:  # if unseen, this may be a folder of the same name on the node's own disk
        remove_or_report(folder)
    seen: dict[str, float] = {}
    problems: list[str] = []
    for info, (seconds, missing) in zip(ranks, everyone, strict=True):
        seen[info.host] = max(seen.get(info.host, 0.0), seconds)
        if missing:
            hosts = ", ".join(sorted({ranks[other].host for other in missing}))
            problems.append(
                f"{info.host} does not see files that {hosts} wrote in {shared} {patience_s:.0f} s ago: is it the "
                "same file system on both?"
            )
    return {host: seconds for host, seconds in seen.items() if not problems}, sorted(set(problems))


def _is_seen(file: Path, content: str, deadline: float) -> bool:
    while True:
        try:
            os.listdir(file.parent)  # makes a network file system refresh its cache
            if file.read_text() == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _disagreements(ranks: list[RankInfo]) -> list[str]:
    problems = []
    versions = sorted({info.versions for info in ranks})
    if len(versions) > 1:
        hosts = [f"{v} on {', '.join(sorted({p.host for p in ranks if p.versions == v}))}" for v in versions]
        problems.append(f"versions differ: {'; '.join(hosts)}")
    clocks = [info.clock for info in ranks]
    if max(clocks) - min(clocks) > _MAX_CLOCK_S:
        first, last = (choose(ranks, key=lambda info: info.clock).host for choose in (min, max))
        apart = max(clocks) - min(clocks)
        problems.append(
            f"{first} and {last} started {apart:.0f} s apart, or their clocks differ, so log times are not comparable"
        )
    return problems
