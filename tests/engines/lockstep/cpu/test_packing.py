"""Packed layers compute what the layers they replace compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from ivg.engines.lockstep.cpu.packing import FastGELU, PackedLinear, pack_weights, use_fast_gelu
from tests.engines.lockstep.rows import runner_over
from tests.engines.lockstep.test_kv_cache import BUILDERS, build

IDS = torch.tensor([[1, 2, 3, 9, 8, 7, 3, 2, 4, 11], [5, 30, 17, 21, 0, 4, 4, 9, 1, 2]])


def _types(module: nn.Module) -> set[type]:
    return {type(child) for child in module.modules()}


@pytest.mark.parametrize("shape", [(37, 53), (256, 1024), (1024, 256)])
@pytest.mark.parametrize("rows", [1, 2, 3, 32, 40, 200])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("by_mkl", [True, False])
def test_a_layer_multiplies_by_its_weights(
    shape: tuple[int, int], rows: int, bias: bool, by_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both orders, for any number of rows: weights are packed for one and used with every other."""
    if by_mkl and not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")):
        pytest.skip("this torch has no MKL")
    monkeypatch.setattr("ivg.engines.lockstep.cpu.packing._prefers_mkl", lambda: by_mkl)
    torch.manual_seed(0)
    linear, states = nn.Linear(*shape, bias=bias).requires_grad_(False), torch.randn(rows, 2, shape[0])
    packed = PackedLinear(linear.weight, linear.bias)
    product = torch.einsum("rni,oi->rno", states.double(), linear.weight.double())
    expected = product + (linear.bias.double() if bias else 0)
    torch.testing.assert_close(packed(states).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(packed.weight, linear.weight)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@torch.inference_mode()
def test_a_packed_model_computes_the_same(name: str) -> None:
    model = build(name)
    expected = model(IDS).logits
    num_weights = runner_over(model).num_matrix_weights
    pack_weights(model)
    use_fast_gelu(model)
    assert PackedLinear in _types(model)
    assert not {nn.Linear, Conv1D, NewGELUActivation} & _types(model)
    assert runner_over(model).num_matrix_weights == num_weights
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 1


def test_float64_has_no_faster_layers() -> None:
    model = build("llama").double()
    before = _types(model)
    pack_weights(model)
    assert _types(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fast_gelu_equals_its_definition(dtype: torch.dtype) -> None:
    x = torch.linspace(-14, 14, 10_001).to(dtype)
    expected = nn.functional.gelu(x.double(), approximate="tanh")
    rounding = {torch.float64: 1e-12, torch.float32: 4e-7, torch.bfloat16: 2**-8}[dtype]
    error = (FastGELU()(x).double() - expected).abs()
    assert (error <= rounding * expected.abs() + rounding).all()
