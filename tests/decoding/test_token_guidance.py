"""The formula of token guidance, on numbers worked out by hand."""

import torch

from ivg.decoding.token_guidance import WeightedScores, guide_logits

BASE = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, 1.0, 2.0]])
SCORES = torch.tensor([[1.0, -1.0, 5.0], [0.5, 0.0, -3.0]])


def test_one_weight_for_all_rows() -> None:
    guided = guide_logits(BASE, [WeightedScores(2.0, SCORES)])
    assert guided.tolist() == [[2.0, -1.0, -torch.inf], [1.0, 1.0, -4.0]]


def test_a_weight_for_each_row_beside_another_guide() -> None:
    each = torch.tensor([[2.0], [0.0]])
    guided = guide_logits(BASE, [WeightedScores(each, SCORES), WeightedScores(1, -SCORES)])
    assert guided.tolist() == [[1.0, 0.0, -torch.inf], [-0.5, 1.0, 5.0]]
    assert BASE.tolist() == [[0.0, 1.0, -torch.inf], [0.0, 1.0, 2.0]]  # not changed in place
