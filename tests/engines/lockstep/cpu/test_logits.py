"""Draws against the cumulative distribution in double precision; log-ratios against their definition."""

from __future__ import annotations

import math

import pytest
import torch

from ivg.engines.lockstep.cpu.logits import can_compare, can_draw, draw, log_ratios

SIZES = [1, 2, 7, 8, 9, 64, 1000, 2049, 50257]
LAST = 1 - 2**-53  # the largest uniform there is


@pytest.mark.parametrize("num_ids", SIZES)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_invert_the_cumulative_distribution(num_ids: int, temperature: float) -> None:
    torch.manual_seed(num_ids)
    logits, uniforms = 3 * torch.randn(400, num_ids), torch.rand(400, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, LAST])
    ids = draw(logits, uniforms, temperature)
    assert ids.dtype == torch.long
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    upper = cumulative.gather(1, ids[:, None])[:, 0]
    lower = torch.where(ids > 0, cumulative.gather(1, (ids - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    assert (uniforms > lower - 2e-6).all()
    assert (uniforms < upper + 2e-6).all()
    # Borders are hit by rounding alone: nearly all draws are those of double precision.
    exact = torch.searchsorted(cumulative, uniforms[:, None], right=True)[:, 0].clamp(max=num_ids - 1)
    assert (ids == exact).double().mean() > 0.98


@pytest.mark.parametrize("num_ids", [5, 8, 700, 3000])
@pytest.mark.parametrize("where", ["first", "last", "middle"])
def test_impossible_tokens_are_never_drawn(num_ids: int, where: str) -> None:
    possible = {"first": 0, "last": num_ids - 1, "middle": num_ids // 2}[where]
    logits = torch.full((3, num_ids), -math.inf)
    logits[:, possible] = -2.0
    assert draw(logits, torch.tensor([0.0, 0.5, LAST], dtype=torch.float64)).tolist() == [possible] * 3


def test_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log().repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, LAST], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_a_row_that_is_not_a_number_gets_some_valid_id() -> None:
    logits = torch.zeros(4, 30)
    logits[0, 3], logits[1, 0], logits[2] = math.nan, math.inf, -math.inf
    ids = draw(logits, torch.full((4,), 0.5))
    assert ((ids >= 0) & (ids < 30)).all()
    assert ids[3] == 15


def test_rows_apart_in_memory_and_in_any_company() -> None:
    torch.manual_seed(0)
    wide, uniforms = torch.randn(50, 333), torch.rand(50, dtype=torch.float64)
    part = wide[::2, 30:230]
    ids = draw(part, uniforms[::2])
    assert torch.equal(ids, draw(part.contiguous(), uniforms[::2]))
    assert torch.equal(draw(part.t().contiguous().t(), uniforms[::2]), ids)
    assert [int(draw(part[[i]], uniforms[[2 * i]])) for i in range(25)] == ids.tolist()


@pytest.mark.parametrize("num_ids", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_ratios_equal_their_definition(num_ids: int, dtype: torch.dtype) -> None:
    torch.manual_seed(num_ids)
    tuned, untuned = (4 * torch.randn(2, 6, num_ids + 3).to(dtype) for _ in range(2))
    tuned, untuned = tuned[..., :num_ids], untuned[..., 1 : num_ids + 1]  # rows apart in memory
    found = log_ratios(tuned, untuned, 1e9)
    expected = tuned.double().log_softmax(-1) - untuned.double().log_softmax(-1)
    assert found.dtype == torch.float32
    assert found.shape == (2, 6, num_ids)
    assert (found - expected).abs().max() < 1e-5


def test_ids_that_a_model_rules_out() -> None:
    tuned = torch.tensor([[0.0, -math.inf, 1.0, -math.inf, math.nan]])
    untuned = torch.tensor([[0.0, 2.0, -math.inf, -math.inf, 0.0]])
    finite = log_ratios(tuned[:, :4], untuned[:, :4], 1e9)[0]
    assert finite[1:].tolist() == [-1e9, 1e9, 0.0]
    assert finite[0] == pytest.approx(-math.log(1 + math.e) + math.log(1 + math.e**2), abs=1e-6)
    assert log_ratios(tuned, untuned, 1e9).tolist() == [[0.0] * 5]  # as torch's, whose NaN become 0


def test_what_the_loops_do_not_take() -> None:
    logits = torch.zeros(2, 5)
    assert can_draw(logits)
    assert not can_draw(logits.double())
    assert can_compare(logits, logits)
    assert not can_compare(logits, logits.bfloat16())
    assert not can_compare(logits.double(), logits.double())
    assert not can_compare(logits, logits.clone().requires_grad_())
