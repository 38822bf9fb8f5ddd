"""Rows copied within one buffer: no row is written over while it is still to be read."""

from __future__ import annotations

import itertools

import pytest
import torch

from ivg.lockstep.buffers import in_order, move_rows


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5])
def test_every_assignment_of_parents(num_rows: int) -> None:
    for parents in itertools.product(range(num_rows), repeat=num_rows):
        rows = torch.arange(6.0 * num_rows).view(num_rows, 1, 2, 3)
        expected = rows[list(parents)].clone()
        move_rows(rows, in_order(list(parents)))
        assert torch.equal(rows, expected), parents


def test_rows_that_stay_are_not_copied() -> None:
    assert in_order([0, 1, 2]) == []
    assert in_order([0, 0, 2]) == [(1, 0)]
