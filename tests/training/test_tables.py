"""Rows as tables: every column, one type each, and a file that all processes find."""

from pathlib import Path
from typing import Any

import pytest

from ivg.errors import UserError
from ivg.training.tables import stored, table_of


def test_columns_that_only_later_rows_have_are_kept() -> None:
    table = table_of([{"prompt": "a"}, {"prompt": "b", "finish_reason": "length"}], "rows")
    assert list(table) == [
        {"prompt": "a", "finish_reason": None},
        {"prompt": "b", "finish_reason": "length"},
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["x", [{"role": "user", "content": "y"}], None, "z"],
            r"column prompt is of several types, text in 2 \(first: row 1\) and a list in 1 .* of 4 rows",
        ),
        ([1, "x"], "a number in 1 .* and text in 1"),
        ([{"a": 1}, [1]], "an object in 1 .* and a list in 1"),
        (["\ud800"], "surrogates not allowed"),
        ([2**80], "rows: "),
        ([[1, "x"]], "rows: "),
    ],
)
def test_what_no_table_holds_is_refused(values: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table_of([{"prompt": value} for value in values], "rows")


def test_whole_numbers_beside_others_are_one_type() -> None:
    assert table_of([{"reward": 1}, {"reward": 0.5}], "rows")["reward"] == [1.0, 0.5]


def test_stored_rows_keep_what_is_computed_from_them_in_one_place(tmp_path: Path) -> None:
    table = table_of([{"prompt": "a"}, {"prompt": "b"}], "rows")
    here, there = stored(table, tmp_path / "_rows"), stored(table, tmp_path / "_rows")
    assert list(here) == list(table)
    # Where TRL puts the reference's log-probabilities: for rows in memory, another random path on every call.
    assert table._get_cache_file_path("x") != table._get_cache_file_path("x")
    assert here._get_cache_file_path("x") == there._get_cache_file_path("x")
    assert Path(here._get_cache_file_path("x")).parent.parent == tmp_path / "_rows"
    assert not list(tmp_path.rglob("*.partial"))


def test_stored_rows_of_another_content_lie_elsewhere(tmp_path: Path) -> None:
    first, second = (table_of([{"prompt": text}], "rows") for text in "ab")
    assert list(stored(first, tmp_path)) == [{"prompt": "a"}]
    assert list(stored(second, tmp_path)) == [{"prompt": "b"}]
    assert len(list(tmp_path.iterdir())) == 2
