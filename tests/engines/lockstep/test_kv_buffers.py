"""Rows copied within one buffer: no row is written over while it is still to be read."""

from __future__ import annotations

import itertools

import pytest
import torch

from ivg.engines.lockstep.kv_buffers import SPARE, in_order, move_rows


def apart(row: int, other: int) -> int:
    return 0


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5])
def test_every_assignment_of_parents(num_rows: int) -> None:
    for parents in itertools.product(range(num_rows), repeat=num_rows):
        rows = torch.arange(6.0 * num_rows).view(num_rows, 1, 2, 3)
        expected = rows[list(parents)].clone()
        move_rows(rows, in_order(parents, apart))
        assert torch.equal(rows, expected), parents


def test_rows_that_stay_are_not_copied() -> None:
    assert in_order([0, 1, 2], apart) == []
    assert in_order([0, 0, 2], apart) == [(1, 0, 0)]


def test_columns_in_common_are_not_copied() -> None:
    """The first two rows have two columns in common, the others none."""

    def common(row: int, other: int) -> int:
        return 2 if {row, other} == {0, 1} else 0

    for parents in itertools.product(range(4), repeat=4):
        rows = torch.arange(4.0 * 2 * 5 * 3).view(4, 2, 5, 3)
        rows[1, :, :2] = rows[0, :, :2]
        expected = rows[list(parents)].clone()
        move_rows(rows, in_order(parents, common))
        assert torch.equal(rows, expected), parents
    assert in_order([1, 0, 2, 3], common) == [(SPARE, 0, 2), (0, 1, 2), (1, SPARE, 2)]
