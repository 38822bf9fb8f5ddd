"""GELU in one pass over memory, on a CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ivg.kernels.library import SUFFIXES, function, library


def can_gelu(x: Tensor) -> bool:
    """Tell whether `gelu` takes this."""
    return x.device.type == "cpu" and x.dtype in SUFFIXES and x.is_contiguous() and library() is not None


def gelu(x: Tensor) -> Tensor:
    """Return x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), computed in float32 and rounded once."""
    output = torch.empty_like(x)
    address, size = ctypes.c_void_p, ctypes.c_int64(x.numel())
    function("gelu", x.dtype)(
        address(x.data_ptr()), address(output.data_ptr()), size, ctypes.c_int32(torch.get_num_threads())
    )
    return output
