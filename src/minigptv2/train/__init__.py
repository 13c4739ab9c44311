"""Trains a stage: takes a `RunConfig`, joins data, model and engine, and writes an export.

Every launcher (`minigptv2 train`, `deepspeed launch/train.py`, `torchrun`, `srun`, `make stage1`) calls `stage.train`.
`resume` decides where a run starts, `assembly` builds the model and its trainer, `run` holds the parts, `loop` runs the
steps.
"""

from minigptv2.train.stage import train

__all__ = ["train"]
