"""Logs the progress of loading weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch import Tensor, nn

from minigptv2.engine.zero import assign, shape_of


class LoadProgress:
    """An `assign` that logs a line for every tenth of the elements, once loading takes longer than `quiet_s`."""

    def __init__(self, elements: int, log: Callable[[str], None], *, quiet_s: float = 5.0) -> None:
        self._total, self._log, self._quiet_s = max(1, elements), log, quiet_s
        self._done, self._logged_tenths = 0, 0
        self._start = time.monotonic()

    def __call__(self, parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
        assign(parameter, value)
        self._done += math.prod(shape_of(parameter))
        tenths = 10 * self._done // self._total
        seconds = time.monotonic() - self._start
        if tenths > self._logged_tenths and seconds > self._quiet_s:
            self._logged_tenths = tenths
            self._log(f"loading weights: {10 * tenths} % after {seconds:.0f} s")
