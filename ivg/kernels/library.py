"""The loops of `kernels.cpp`: installing ivg compiles them where it can; elsewhere callers do without."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
from typing import Any

import torch

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LANES = 8  # numbers that the loops take at a time


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, or None where there are none or the CPU lacks the instructions for them."""
    found = importlib.util.find_spec("ivg.kernels._kernels")
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if found is None or found.origin is None:
        return None
    if is_x86 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    return ctypes.CDLL(found.origin)


def function(name: str, dtype: torch.dtype) -> Any:
    """Return a loop for numbers of a dtype."""
    return getattr(library(), f"ivg_{name}_{SUFFIXES[dtype]}")
