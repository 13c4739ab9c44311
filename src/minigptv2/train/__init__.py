"""The composition root: a `RunConfig` to a trained stage. Data, model and engine meet here and nowhere else.

Whatever starts it (`deepspeed launch/train.py`, `torchrun`, `srun`, `make stage1`, plain `python`) ends here. `run`
joins the parts, `start` says what a run goes on from, `trainer` builds the model, `loop` runs the steps.
"""

from minigptv2.train.run import train

__all__ = ["train"]
