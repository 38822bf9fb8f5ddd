"""Layers of a frozen model replaced by faster ones that compute the same.

On a CPU a matrix product first brings its weights into the order in which the processor reads them, which
takes a good part of its time for the few rows of a decoding step. Frozen weights are brought there once.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from ivg.models.inspection import HEAD_NAMES

# Heads are read row by row, and adapters are small and asked for their weights.
_LEFT_AS_THEY_ARE = frozenset({*HEAD_NAMES, "lora_A", "lora_B"})
_NUM_ROWS = 64  # for which the order is chosen; it suits other numbers as well


class PackedLinear(nn.Linear):
    """A linear layer whose weights lie in oneDNN's or MKL's order; they are not in the original's any more.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # a linear layer's own would allocate the weights once more
        self.out_features, self.in_features = weight.shape
        self.bias = bias  # type: ignore[assignment]  # None, or a part of the model as it was
        weight = weight.detach().contiguous()
        self._is_by_mkl = weight.dtype == torch.float32 and _prefers_mkl()
        if self._is_by_mkl:
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, _NUM_ROWS)
            self._shape = weight.new_empty(1).expand_as(weight)  # of the original, all that MKL asks of it
        else:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _NUM_ROWS)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # nothing trains these
        """The weights (out, in), copied back into the usual order."""
        if self._is_by_mkl:
            return self._multiply(torch.eye(self.in_features), None).t().contiguous()
        dense: Tensor = self._packed.to_dense()
        return dense

    def forward(self, states: Tensor) -> Tensor:
        """Multiply (..., in) states: (..., out)."""
        return self._multiply(states, self.bias)

    def _multiply(self, states: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor
        if self._is_by_mkl:
            # Told of another number of rows than there are, the operator would look for unpacked weights.
            num_rows = states.numel() // self.in_features
            output = torch.ops.mkl._mkl_linear(states, self._packed, self._shape, bias, num_rows)
        else:
            output = torch.ops.mkldnn._linear_pointwise(states, self._packed, bias, "none", [], "")
        return output


class FastGELU(nn.Module):
    """GELU in its tanh form, on a CPU with the sigmoid: tanh(z) = 2 sigmoid(2z) - 1.

    The CPU's vectorized tanh takes three times as long as its sigmoid.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return nn.functional.gelu(x, approximate="tanh")  # rounds once, not at each step
        inner = torch.addcmul(x, x.square(), x, value=0.044715)
        return inner.mul_(math.sqrt(8 / math.pi)).sigmoid_().mul_(x)


def pack_weights(module: nn.Module) -> None:
    """Replace a frozen module's linear layers in place, in the dtypes for which the CPU has kernels.

    The weights keep their size, except that an output layer tied to the embedding becomes a copy of its own.
    """
    for name, child in list(module.named_children()):
        if name in _LEFT_AS_THEY_ARE:
            continue
        if type(child) is nn.Linear and _has_kernel(child.weight):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        elif type(child) is Conv1D and _has_kernel(child.get_parameter("weight")):
            weight, bias = child.get_parameter("weight"), child.get_parameter("bias")
            setattr(module, name, PackedLinear(weight.t(), bias))
        else:
            pack_weights(child)


def use_fast_gelu(module: nn.Module) -> None:
    """Replace GELUs that take eight operations, each with a pass over memory."""
    for name, child in list(module.named_children()):
        if type(child) is NewGELUActivation:
            setattr(module, name, FastGELU())
        else:
            use_fast_gelu(child)


@functools.cache
def _prefers_mkl() -> bool:
    """Tell whether MKL multiplies few rows faster than oneDNN: on the CPUs of its maker it does."""
    cpu = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkl, "_mkl_linear")
        and cpu.exists()
        and "GenuineIntel" in cpu.read_text(encoding="utf-8")
    )


def _has_kernel(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return weight.dtype == torch.float32
