"""How long one call takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_seconds(work: Callable[[], object], device: str, *, times: int = 20) -> float:
    """Return the median of several calls, each waited for."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
