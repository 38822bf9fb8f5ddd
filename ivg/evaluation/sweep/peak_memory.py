"""Peak memory of a piece of work, on a GPU or in this process."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

_CLEAR_PEAK = "5"  # what /proc/self/clear_refs takes for "forget the peak resident size"
MIB = 2**20


def reset_peak() -> None:
    """Forget the peak so far, where the system lets us."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError:
        return  # not Linux, or forbidden: `peak_mib` then counts from the process's start


def peak_mib() -> float | None:
    """Return the peak since `reset_peak` in MiB, weights included; None where it cannot be known."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / MIB
    return resident_peak_mib()


def resident_peak_mib() -> float | None:
    """Return the most memory that this process has held, in MiB; None where it cannot be known.

    `ru_maxrss` will not do on Linux: a process that was started by a larger one inherits that one's peak.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else float(line.split()[1]) / 1024


def peak_in_fresh_process(work: Callable[[], object]) -> float | None:
    """Return the peak in MiB of a new process that does only this work.

    On a CPU memory that was freed can stay with the process, so that what ran before would count.

    Args:
        work: something that can be pickled, such as a `functools.partial` of a module's function.
    """
    spawn = multiprocessing.get_context("spawn")
    # Ctrl-C reaches both processes, and this one speaks for the two.
    quietly = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=signal.signal, initargs=quietly) as pool:
        return pool.submit(_peak_of, work).result()


def _peak_of(work: Callable[[], object]) -> float | None:
    reset_peak()
    work()
    return peak_mib()
