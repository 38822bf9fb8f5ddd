"""Every value objective against numbers worked out by hand."""

import math

import pytest
import torch

from ivg.training.value import losses

# Two rows: a prompt token first (masked), then 3 and 2 response tokens.
MASK = torch.tensor([[False, True, True, True], [False, True, True, False]])
VALUES = torch.tensor([[9.0, 1.0, 2.0, 4.0], [9.0, 0.0, -1.0, 9.0]])
REWARDS = torch.tensor([3.0, -1.0])


def test_fudge_sums_squared_errors_over_response_tokens() -> None:
    # (1-3)² + (2-3)² + (4-3)² = 6 and (0+1)² + (-1+1)² = 1; masked entries (9) do not count.
    assert losses.fudge_loss(VALUES, REWARDS, MASK).item() == 7.0


def test_fudge_bce_is_the_cross_entropy_of_the_final_label() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(3.0), 50.0]])
    mask = torch.tensor([[True, True], [True, False]])
    # Row one, label 1: σ(0) = 1/2, σ(log 3) = 3/4; row two, label 0: 1 − σ(log 3) = 1/4.
    expected = -(math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 4))
    loss = losses.fudge_bce_loss(logits, torch.tensor([1.0, 0.0]), mask)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_cd_q_bootstraps_from_the_next_value() -> None:
    # Row one: (1-2)² + (2-4)² + (4-3)² = 6; row two: (0+1)² + (-1+1)² = 1.
    assert losses.cd_q_loss(VALUES, REWARDS, MASK).item() == 7.0
    shifted = VALUES + torch.tensor([[0.0], [1.0]])
    # Row two is now 1, 0 with reward -1: (1-0)² + (0+1)² = 2.
    assert losses.cd_q_loss(shifted, REWARDS, MASK).item() == 8.0


def test_cd_q_sends_no_gradient_through_its_targets() -> None:
    values = torch.tensor([[1.0, 5.0]], requires_grad=True)
    losses.cd_q_loss(values, torch.tensor([5.0]), torch.tensor([[True, True]])).backward()
    # Only V_1 moves, by 2·(1 − 5); were the target not detached, V_2 would get +8.
    assert values.grad is not None
    assert values.grad.tolist() == [[-8.0, 0.0]]


def test_cd_q_takes_given_expectations_except_at_the_end() -> None:
    expected = torch.tensor([[0.0, 3.0, 1.0, 100.0], [0.0, 2.0, 100.0, 0.0]])
    # Row one: (1-3)² + (2-1)² + (4-3)² = 6; row two: (0-2)² + (-1+1)² = 4.
    assert losses.cd_q_loss(VALUES, REWARDS, MASK, expected).item() == 10.0


def test_expected_values_weigh_next_tokens_by_the_policy() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, -3.0]])
    # π = 1/4, 1/4, 1/2, then 1/6, 1/2, 1/3: (1 + 2 + 8)/4 and (0 + 9 - 6)/6.
    logits = torch.tensor([[1.0, 1.0, 2.0], [1.0, 3.0, 2.0]]).log()
    assert losses.expected_values(values, logits).tolist() == pytest.approx([2.75, 0.5])
    # An id that only one side has does not count, however likely or valuable it is.
    likely = torch.cat([logits, torch.full((2, 1), 50.0)], dim=1)
    assert losses.expected_values(values, likely).tolist() == pytest.approx([2.75, 0.5])
    valuable = torch.cat([values, torch.full((2, 1), 1e6)], dim=1)
    assert losses.expected_values(valuable, logits).tolist() == pytest.approx([2.75, 0.5])


def test_prefix_bt_compares_common_positions() -> None:
    chosen = torch.tensor([[9.0, math.log(3.0), 0.0, 7.0]])
    rejected = torch.tensor([[-9.0, 0.0, 0.0, -7.0]])
    mask = torch.tensor([[False, True, True, False]])
    # σ(log 3) = 3/4 and σ(0) = 1/2.
    loss = losses.prefix_bt_loss(chosen, rejected, mask).item()
    assert loss == pytest.approx(-math.log(3 / 4) - math.log(1 / 2), rel=1e-6)
