"""Checks what needs no config: vulnerable versions, GPUs, system limits, network and Slurm settings."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from minigptv2.doctor.finding import BAD, GOOD, WARNING, Finding

VERSION_FLOORS = {
    "torch": ("2.10", "CVE-2026-24747: a checkpoint can corrupt memory even with weights_only"),
    "transformers": ("5.3", "CVE-2026-4372: a model's config.json can load code from the hub"),
    "deepspeed": ("0.19.8", "applies NaN gradients under bf16 ZeRO-3, fails with LoRA and recomputation"),
    "pillow": ("12.3", "CVE-2026-40192 and others: small images that take all memory"),
    "safetensors": ("0.6", "older files and newer readers were not tested together"),
}
"""Package: oldest version without the known vulnerability, and the vulnerability."""
PYTHON_FLOORS = {(3, 11): 14, (3, 12): 12, (3, 13): 6}
"""Oldest patch of a Python whose tarfile does not loop forever on a crafted tar (CVE-2025-8194)."""
SHM_GIB = 1.0
OPEN_FILES = 4096
HARMFUL = {
    "NCCL_P2P_DISABLE": ("1", "GPUs of a node communicate through host memory; unset it unless their link is broken"),
    "NCCL_IB_DISABLE": ("1", "nodes communicate over TCP; unset it if there is InfiniBand"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": ("0", "a rank that lost its peers waits forever; unset it"),
    "TORCH_NCCL_BLOCKING_WAIT": ("1", "every collective blocks the host; unset it"),
    "CUDA_LAUNCH_BLOCKING": ("1", "kernels run one by one, several times slower; unset it after debugging"),
}
"""Settings often left set after debugging: variable, the harmful value, its effect and what to do."""


def parse_version(text: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])


def check_versions(installed: Mapping[str, str | None] | None = None) -> list[Finding]:
    """Compare packages with VERSION_FLOORS, and Python. `installed` replaces the versions of this machine."""
    findings = []
    for package, (floor, hole) in VERSION_FLOORS.items():
        here = _installed(package) if installed is None else installed.get(package)
        if here is None:
            findings.append(Finding(BAD, package, "not installed", "make install, or pip install minigptv2"))
        elif parse_version(here) < parse_version(floor):
            findings.append(Finding(BAD, package, f"{here}: {hole}", f"pip install '{package}>={floor}'"))
        else:
            findings.append(Finding(GOOD, package, here))
    findings.append(_check_python())
    return findings


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_python(here: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    text = ".".join(map(str, here))
    floor = PYTHON_FLOORS.get((here[0], here[1]))
    if floor is None or here[2] >= floor:
        return Finding(GOOD, "python", text)
    return Finding(
        WARNING,
        "python",
        f"{text}: tarfile loops forever on a crafted tar (CVE-2025-8194)",
        f"Python {here[0]}.{here[1]}.{floor} or newer before reading untrusted tars. Training reads by index",
    )


def check_gpus() -> list[Finding]:
    """The GPUs of this machine, and whether they support bf16 and the fused kernels."""
    import torch

    if not torch.cuda.is_available():
        return [
            Finding(
                WARNING,
                "GPUs",
                f"none that torch {torch.__version__} can use",
                "for the toy data on a CPU this is fine; otherwise check `nvidia-smi` and that torch is a CUDA build",
            )
        ]
    findings = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        capability = f"sm_{properties.major}{properties.minor}"
        text = f"{properties.name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free, {capability}"
        if properties.major < 8:
            findings.append(Finding(BAD, f"GPU {number}", text, "bf16 needs compute capability 8.0; use an fp16 JSON"))
        elif free < 0.9 * total:
            findings.append(Finding(WARNING, f"GPU {number}", text, "another process uses its memory; see nvidia-smi"))
        else:
            findings.append(Finding(GOOD, f"GPU {number}", text))
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    if (2, 28, 3) <= parse_version(nccl) < (2, 28, 9):
        findings.append(Finding(WARNING, "NCCL", f"{nccl}: exiting after a fault can hang", "NCCL 2.28.9 or newer"))
    else:
        findings.append(Finding(GOOD, "NCCL", nccl))
    return findings


def check_limits() -> list[Finding]:
    """Shared memory for loader processes, open files for shards, threads."""
    findings = []
    shm = shutil.disk_usage("/dev/shm").total / 2**30 if os.path.isdir("/dev/shm") else 0.0
    if shm < SHM_GIB:
        findings.append(
            Finding(
                BAD,
                "/dev/shm",
                f"{shm:.2f} GiB: loader processes end with a bus error",
                "docker run --ipc=host, or data.num_workers=0",
            )
        )
    else:
        findings.append(Finding(GOOD, "/dev/shm", f"{shm:.1f} GiB"))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < OPEN_FILES:
        findings.append(Finding(WARNING, "open files", str(files), f"ulimit -n {OPEN_FILES}: shards are kept open"))
    else:
        findings.append(Finding(GOOD, "open files", str(files)))
    threads, cores = os.environ.get("OMP_NUM_THREADS"), os.cpu_count() or 1
    if threads is None:
        findings.append(
            Finding(
                WARNING,
                "OMP_NUM_THREADS",
                f"unset on {cores} cores: several ranks on a machine compete for cores (8 x slower was measured)",
                "export OMP_NUM_THREADS=N with N = cores / ranks of the machine",
            )
        )
    else:
        findings.append(Finding(GOOD, "OMP_NUM_THREADS", threads))
    return findings


def check_network(environment: Mapping[str, str], *, nodes: int = 1) -> list[Finding]:
    """Variables that slow down collectives, hide failures or end long collectives too early."""
    findings = []
    for name, (value, what) in HARMFUL.items():
        if environment.get(name) == value:
            findings.append(Finding(WARNING, name, value, what))
    timeout = environment.get("DEEPSPEED_TIMEOUT")
    if timeout is not None:
        findings.append(
            Finding(
                WARNING,
                "DEEPSPEED_TIMEOUT",
                f"{timeout} minutes",
                "unset it; this package uses train.timeout_minutes",
            )
        )
    if nodes > 1 and not {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} & set(environment):
        findings.append(
            Finding(
                WARNING,
                "NCCL_SOCKET_IFNAME",
                f"unset on {nodes} nodes: a machine with several networks may pick one that the others cannot reach",
                "export NCCL_SOCKET_IFNAME=ib0 (see `ip -br addr`)",
            )
        )
    return findings or [Finding(GOOD, "network settings", "none that slows training or hides failures")]


def check_slurm(environment: Mapping[str, str], *, gpus: int, num_workers: int = 0) -> list[Finding]:
    """Compare the job's allocation with what a rank needs. Empty outside a job."""
    if "SLURM_JOB_ID" not in environment:
        return []
    job = f"{environment['SLURM_JOB_ID']} on {environment.get('SLURM_NNODES', '1')} node(s)"
    findings = [Finding(GOOD, "Slurm job", job)]
    tasks = environment.get("SLURM_NTASKS_PER_NODE", "")
    if gpus and tasks.isdigit() and int(tasks) != gpus:
        findings.append(
            Finding(BAD, "Slurm tasks", f"{tasks} a node on {gpus} GPU(s)", f"#SBATCH --ntasks-per-node={gpus}")
        )
    cores = environment.get("SLURM_CPUS_PER_TASK", "")
    if cores.isdigit() and int(cores) < num_workers + 1:
        findings.append(
            Finding(
                WARNING,
                "Slurm cores",
                f"{cores} a task for {num_workers} loader processes and the trainer",
                f"#SBATCH --cpus-per-task={num_workers + 2}, or fewer data.num_workers",
            )
        )
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        minutes = (int(end) - time.time()) / 60
        if minutes < 30:
            findings.append(
                Finding(WARNING, "Slurm time", f"{minutes:.0f} minutes left", "loading takes minutes; request more")
            )
    if "SLURM_JOB_ID" in environment and environment.get("SLURM_RESTART_COUNT", "0") not in ("0", ""):
        findings.append(Finding(GOOD, "Slurm restarts", environment["SLURM_RESTART_COUNT"]))
    return findings
