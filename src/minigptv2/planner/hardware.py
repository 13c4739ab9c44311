"""Lists GPUs and the rates that predictions of step time use. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from minigptv2.errors import ConfigError, nearest

GIB = 2.0**30


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 FLOP/s by the data sheet (`peak`) and of a large matrix product (`matmul`), memory and link.

    `matmul` was measured for h100 (8192 cubed, 798 TFLOP/s). The other GPUs are assumed to reach the same share of
    `peak`, 0.81. `link` is the bytes/s of one GPU to the others of its node in all-gathers, by NVLink or else PCIe.
    """

    peak: float
    matmul: float
    memory_gib: float
    link: float


GPUS = {
    "h100": Gpu(peak=989e12, matmul=798e12, memory_gib=80, link=360e9),
    "h200": Gpu(peak=989e12, matmul=798e12, memory_gib=141, link=360e9),
    "b200": Gpu(peak=2250e12, matmul=1820e12, memory_gib=180, link=700e9),
    "a100": Gpu(peak=312e12, matmul=252e12, memory_gib=80, link=230e9),
    "a100-40": Gpu(peak=312e12, matmul=252e12, memory_gib=40, link=230e9),
    "l40s": Gpu(peak=362e12, matmul=292e12, memory_gib=48, link=20e9),
    "rtx4090": Gpu(peak=165e12, matmul=133e12, memory_gib=24, link=20e9),
}
"""GPUs by the name that `plan --gpu` accepts."""
KERNEL_SHARE = 0.70
"""Share of the rate of a large matrix product that whole layers reach, with norms, rotations and kernel launches."""
DECODE_RATE = 300.0
"""Images/s that one core decodes and resizes (640 x 480 JPEG to 448 px). `make bench-data` measures it."""
RESERVED_GIB = 2.0
"""Memory of a process besides its tensors: CUDA context, NCCL buffers and fragmentation."""


@dataclass(frozen=True)
class Hardware:
    """The cluster of a prediction. `memory` is bytes of a GPU. Rates are FLOP/s of a GPU (`matmul`), bytes/s of a node
    (`network`) and of a GPU (`link`), and images/s of a core (`decode_rate`)."""

    gpus: int
    gpus_per_node: int
    memory: float
    matmul: float
    network: float
    link: float
    cores_per_gpu: float
    kernel_share: float = KERNEL_SHARE
    decode_rate: float = DECODE_RATE

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def gather_rate(self) -> float:
        """Bytes/s that a rank receives in a collective over all ranks, limited by the network between nodes."""
        return self.link if self.nodes == 1 else min(self.link, self.network)


def describe(
    *,
    gpu: str,
    gpus: int,
    gpus_per_node: int = 8,
    memory_gib: float | None = None,
    network_gbytes: float = 45.0,
    cores_per_gpu: float = 8.0,
) -> Hardware:
    """The cluster of `gpus` GPUs of the kind `gpu`. `network_gbytes` is the GB/s of a node with all its GPUs.

    Raises `ConfigError` for an unknown GPU or a number that is not positive.
    """
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu} is not known{nearest(gpu, list(GPUS))} Known: {', '.join(GPUS)}")
    if gpus < 1 or gpus_per_node < 1 or network_gbytes <= 0:
        raise ConfigError("--gpus, --gpus-per-node and --network must be positive")
    spec = GPUS[gpu]
    return Hardware(
        gpus=gpus,
        gpus_per_node=min(gpus, gpus_per_node),
        memory=(memory_gib or spec.memory_gib) * GIB,
        matmul=spec.matmul,
        network=network_gbytes * 1e9,
        link=spec.link,
        cores_per_gpu=cores_per_gpu,
    )
