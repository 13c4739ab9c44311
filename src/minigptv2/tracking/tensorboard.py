"""Records the curves and images of a run as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from minigptv2.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np


class TensorBoard:
    """Writes to `<run_dir>/tensorboard`. What an interrupted start wrote after `step` is hidden."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step by name, and flush."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Record uint8 images [H, W, 3] of a step by name."""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write everything and close."""
        self._writer.close()
