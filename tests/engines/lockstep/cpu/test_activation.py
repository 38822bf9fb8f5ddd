"""GELU against its definition in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import gelu as reference

from ivg.engines.lockstep.cpu.activation import can_gelu, gelu


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-7), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("num", [1, 7, 8, 100_003])  # the last on several threads
def test_equals_the_definition(dtype: torch.dtype, rounding: float, num: int) -> None:
    x = torch.linspace(-14, 14, num).to(dtype)
    expected = reference(x.double(), approximate="tanh")
    assert ((gelu(x).double() - expected).abs() <= rounding * expected.abs() + 4e-7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_ends(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, 1e30, -1e30, 0.0], dtype=dtype)
    found = gelu(x)
    assert found[0].isnan()
    assert found[1:].tolist() == [math.inf, x[2].item(), 0.0, 0.0]


def test_what_the_loop_does_not_take() -> None:
    x = torch.zeros(4, 6)
    assert can_gelu(x)
    assert not can_gelu(x.double())
    assert not can_gelu(x.t())
    assert not can_gelu(x.requires_grad_())
