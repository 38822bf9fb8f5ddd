"""What survives a boundary, ties and stop_checker, worked out by hand."""

from __future__ import annotations

import math

import pytest

from ivg.decoding.beam_search import Candidate, is_done, keep_best


def live(row: int, value: float) -> Candidate:
    return Candidate(row, value, is_finished=False)


def new(row: int, value: float) -> Candidate:
    """A hypothesis that finished in this chunk."""
    return Candidate(row, value, is_finished=True)


def old(row: int, value: float) -> Candidate:
    """A hypothesis that finished earlier."""
    return Candidate(row, value, is_finished=True, was_finished=True)


def test_best_come_first() -> None:
    kept = keep_best([live(0, 0.1), live(1, 0.9), live(2, -3.0), live(3, 0.5)], 2)
    assert [c.row for c in kept] == [1, 3]


def test_ties_go_to_the_lower_row_whatever_the_order_given() -> None:
    assert [c.row for c in keep_best([live(3, 1.0), live(0, 1.0), live(2, 1.0), live(1, 2.0)], 3)] == [
        1,
        0,
        2,
    ]


def test_fewer_candidates_than_beams_are_all_kept() -> None:
    assert [c.row for c in keep_best([old(0, 1.0), old(4, 2.0)], 4)] == [4, 0]


@pytest.mark.parametrize(
    ("values", "rows"), [((math.inf, 0.0), [0, 1]), ((-math.inf, 0.0), [1, 0]), ((-math.inf,) * 2, [0, 1])]
)
def test_infinite_values_are_ordered_too(values: tuple[float, float], rows: list[int]) -> None:
    assert [c.row for c in keep_best([live(i, v) for i, v in enumerate(values)], 2)] == rows


def test_nan_and_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        keep_best([live(0, 1.0), live(1, math.nan)], 1)
    with pytest.raises(ValueError, match="no candidates"):
        keep_best([], 1)


@pytest.mark.parametrize(
    ("kept", "early", "late"),
    [
        ([live(0, 2), live(1, 1)], False, False),
        ([new(0, 2), live(1, 1)], False, False),  # best for the first time: its rival may still overtake
        ([old(0, 2), live(1, 1)], True, False),  # best again
        ([live(0, 2), old(4, 1)], False, False),
        ([new(0, 2), old(4, 1)], True, True),
        ([new(0, 2), new(1, 1)], True, True),
        ([old(0, 2), old(4, 1)], True, True),
    ],
)
def test_two_beams_end(kept: list[Candidate], early: bool, late: bool) -> None:
    assert is_done(kept, 2, early_stopping=True) is early
    assert is_done(kept, 2, early_stopping=False) is late


@pytest.mark.parametrize("early_stopping", [True, False])
def test_one_beam_ends_at_once(early_stopping: bool) -> None:
    assert is_done([new(2, 1.0)], 1, early_stopping=early_stopping)
    assert not is_done([live(2, 1.0)], 1, early_stopping=early_stopping)
