"""A loop that an error leaves half-way leaves no thread behind, whoever collects garbage."""

from __future__ import annotations

import threading
import time

import pytest

from ivg.evaluation.progress import tracked


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    return set(threading.enumerate()) - before


def check_threads_end(before: set[threading.Thread]) -> None:
    """The one that draws looks up ten times a second whether it is still wanted."""
    deadline = time.monotonic() + 10
    while new_threads(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not new_threads(before)


def test_items_come_in_order_and_the_bar_ends_with_the_block() -> None:
    before = set(threading.enumerate())
    with tracked(range(3), "counting") as numbers:
        assert new_threads(before)  # the bar draws itself
        assert list(numbers) == [0, 1, 2]
    check_threads_end(before)


def test_an_error_half_way_leaves_nothing_to_the_garbage_collector() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError) as raised, tracked([1, 0, 2], "dividing") as numbers:
        {number: 1 / number for number in numbers}
    # The traceback still holds the loop's own iterator, as a program that is about to end does.
    assert raised.value.__traceback__ is not None
    check_threads_end(before)
