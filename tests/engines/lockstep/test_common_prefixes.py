"""What rows are said to have in common they have, whatever happens to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivg.engines.lockstep.kv_cache import RowCache
from ivg.engines.lockstep.shared_prefix import Trunks
from ivg.engines.lockstep.variable_length import drop_last
from tests.engines.lockstep.test_kv_cache import PROMPTS, Batch, build


def check(cache: RowCache) -> None:
    """Compare the columns of all rows of a trunk, bit by bit."""
    trunks = cache.trunks
    for layer in cache.layers:
        keys, values = layer.prefix[:2] if cache.is_forked else (layer.keys, layer.values)
        assert len(trunks.ids) == (len(keys) if cache.is_forked else layer.num_rows)
        for row, trunk in enumerate(trunks.ids):
            first, common = trunks.ids.index(trunk), trunks.common[row]
            assert common == trunks.common[first]
            for kept in (keys, values):
                assert torch.equal(kept[row, :, :common], kept[first, :, :common])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_have_in_common_what_is_said(data: Any) -> None:
    model = build("llama")

    def some_rows(num_rows: int, *, most: int = 6) -> list[int]:
        return data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=most))

    with torch.inference_mode():
        batch = Batch(model, PROMPTS, plain=model)
        for _ in range(data.draw(st.integers(3, 8))):
            num_rows = len(batch.histories)
            what = data.draw(st.sampled_from(["feed", "select", "fork", "merge", "trim", "join", "drop"]))
            if what == "feed":
                batch.feed(*[[row] for row in range(num_rows)])
            elif what == "select":
                batch.select(*some_rows(num_rows))
            elif batch.state.cache.is_forked:
                batch.merge(*some_rows(num_rows))
            elif what == "fork":
                batch.fork(*some_rows(num_rows))
                batch.feed(*[[row + 3] for row in range(len(batch.histories))])
            elif what == "trim":
                batch.trim(*some_rows(num_rows))
            elif what == "join":
                batch.join(some_rows(num_rows), [PROMPTS[0], PROMPTS[2]], some_rows(2, most=3))
            elif what == "drop":
                counts = torch.tensor([min(row % 2, len(h) - 1) for row, h in enumerate(batch.histories)])
                drop_last(batch.state, counts)
                batch.histories = [h[: len(h) - int(n)] for h, n in zip(batch.histories, counts, strict=True)]
            check(batch.state.cache)
        batch.feed(*[[row] for row in range(len(batch.histories))])
        assert batch.error() < 1e-5


def test_beams_keep_what_they_said_before_they_parted() -> None:
    """Two beams of one prompt: both continue the first, then each itself, then both the second."""
    model = build("llama")
    with torch.inference_mode():
        batch = Batch(model, [[1, 2, 3, 4]], plain=model)
        found = []
        batch.fork(0, 0, 0, 0)
        for kept in ([0, 1], [1, 2], [2, 3]):
            batch.feed(*[[row, row + 1] for row in range(4)])
            batch.merge(*kept)
            found.append(batch.state.cache.trunks.common)
            batch.fork(0, 0, 1, 1)
        assert found == [(4, 4), (4, 4), (8, 8)]
        assert set(batch.state.cache.trunks.ids) == {0}


def test_by_hand() -> None:
    trunks = Trunks((5, 5, 2), (3, 3, 1))
    assert trunks.in_common(0, 1) == 3
    assert trunks.in_common(0, 2) == 0
    assert trunks.in_common(0, 3) == 0  # a row that is not there yet
    assert trunks.select([2, 0, 0]) == Trunks((2, 5, 5), (1, 3, 3))
    assert trunks.continued([0, 1, 2, 2], width=9) == Trunks((5, 5, 2, 2), (3, 3, 9, 9))
    assert trunks.shifted(-2) == Trunks((5, 5, 2), (1, 1, 0))
    assert trunks.followed_by(Trunks.apart(2)) == Trunks((5, 5, 2, 6, 7), (3, 3, 1, 0, 0))


@pytest.mark.parametrize("num_rows", [0, 3])
def test_nothing_is_known_of_new_rows(num_rows: int) -> None:
    assert Trunks.apart(num_rows).common == (0,) * num_rows
