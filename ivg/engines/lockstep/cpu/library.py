"""The compiled loops: installing ivg builds them where it can; elsewhere callers do without."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform

import torch
from torch import Tensor

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LANES = 8  # numbers that the loops take at a time


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, or None where there are none or the CPU lacks the instructions for them."""
    found = importlib.util.find_spec("ivg.engines.lockstep.cpu._kernels")
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if found is None or found.origin is None:
        return None
    if is_x86 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    return ctypes.CDLL(found.origin)


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return where a tensor's numbers start; nowhere for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(name: str, dtype: torch.dtype, *arguments: ctypes.c_void_p | ctypes.Structure | int | float) -> None:
    """Run a loop over numbers of a dtype, on as many threads as torch uses.

    Args:
        name: without the dtype.
        dtype: one of `SUFFIXES`.
        arguments: addresses, structures (by reference), int64 and float32 numbers, in the loop's order.
    """
    converted = (
        ctypes.c_int64(a)
        if isinstance(a, int)
        else ctypes.c_float(a)
        if isinstance(a, float)
        else ctypes.byref(a)
        if isinstance(a, ctypes.Structure)
        else a
        for a in arguments
    )
    getattr(library(), f"ivg_{name}_{SUFFIXES[dtype]}")(*converted, ctypes.c_int32(torch.get_num_threads()))
