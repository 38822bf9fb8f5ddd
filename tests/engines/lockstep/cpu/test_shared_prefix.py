"""Rows that share prefixes equal recomputation, whatever happens to them; and bugs would show."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ivg.engines.lockstep.cpu import attention, shared_prefix
from ivg.engines.lockstep.cpu.shared_prefix import (
    ATTENTION,
    CommonColumns,
    SharedPrefixCache,
    Sharing,
    attend,
    in_order,
    move_rows,
    share_prefixes,
)
from ivg.engines.lockstep.kv_cache import RowCache
from ivg.engines.lockstep.variable_length import drop_last
from tests.engines.lockstep import test_kv_cache as plain_tests
from tests.engines.lockstep.rows import PROMPTS, Batch, runner_over
from tests.engines.lockstep.test_kv_cache import BUILDERS, COPYING, EXACT, VISIBLE, build


class SharedBatch(Batch):
    """Rows that share prefixes wherever they are repeated."""

    def __init__(
        self, model: PreTrainedModel, prompts: list[list[int]], *, is_compiled: bool = True, **changed: bool
    ) -> None:
        runner = runner_over(model)
        new_cache = functools.partial(SharedPrefixCache, is_compiled=is_compiled, **changed)
        self.shares = share_prefixes(runner, new_cache)
        super().__init__(model, prompts, plain=model, runner=runner)

    @property
    def cache(self) -> RowCache:
        return self.state.cache

    @property
    def is_shared(self) -> bool:
        return isinstance(self.cache, SharedPrefixCache) and self.cache.sharing is not None

    def make_whole(self) -> None:
        """As cutting does: here by nothing."""
        drop_last(self.state, torch.zeros(len(self.histories), dtype=torch.long))
        assert not self.is_shared


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=["compiled loop", "torch alone"])
def is_compiled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "compiled loop")


@pytest.fixture(params=[name for name in BUILDERS if name != COPYING])
def batch(request: pytest.FixtureRequest, is_compiled: bool) -> SharedBatch:
    return SharedBatch(build(request.param), PROMPTS, is_compiled=is_compiled)


@pytest.mark.parametrize(
    "scenario",
    [
        plain_tests.test_every_step_equals_recomputation,
        plain_tests.test_a_trim_to_padded_rows_keeps_the_columns_of_the_longest,
        plain_tests.test_ragged_rows_equal_recomputation,
    ],
    ids=lambda scenario: scenario.__name__,
)
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_all_that_holds_of_whole_rows(name: str, scenario: Callable[[Batch], None]) -> None:
    scenario(SharedBatch(build(name), PROMPTS))


@pytest.mark.parametrize(
    ("parents", "kept"),
    [([0, 0, 1, 1, 2, 2], (0, 1, 3)), ([2, 0, 0, 1, 0], (4, 1, 3))],
    ids=["equal groups", "uneven"],
)
def test_rows_that_share_a_prefix_equal_recomputation(
    batch: SharedBatch, parents: list[int], kept: tuple[int, ...]
) -> None:
    assert batch.shares
    batch.select(*parents)
    assert batch.is_shared
    assert batch.error() < EXACT
    batch.feed(*[[i] for i in range(len(parents))])
    assert batch.error() < EXACT
    fed = batch.feed(*[[i, i + 3, 4] for i in range(len(parents))])  # several tokens at once
    for row, history in enumerate(batch.histories):
        alone = batch.plain(input_ids=torch.tensor([history])).logits[0, -3:]
        assert torch.allclose(fed[row], alone, rtol=0, atol=EXACT)
    batch.select(*kept)  # of the first prefix two rows are left, of another one, of the third none
    assert batch.is_shared
    batch.feed(*[[i + 9] for i in range(3)])
    assert batch.error() < EXACT
    for token in range(20):  # past the rows' own spare columns
        batch.feed([token], [token + 1], [token + 3])
    assert batch.error() < EXACT
    batch.select(2, 0)
    batch.make_whole()
    assert batch.cache.width == int(batch.state.lengths.max())
    batch.feed([1], [2])
    assert batch.error() < EXACT
    batch.select(1, 1, 0, 1)  # again, in memory that was put by
    assert batch.is_shared
    batch.feed([1], [2], [3], [4])
    batch.select(3, 2, 3, 2)  # rows that share become prefixes themselves
    assert batch.is_shared
    batch.feed([1], [2], [3], [4])
    assert batch.error() < EXACT
    batch.join([1, 0], [[3, 3, 4]], [0])
    assert not batch.is_shared
    batch.feed([5], [6], [7])
    assert batch.error() < EXACT


def test_common_padding_goes_when_rows_become_whole(batch: SharedBatch) -> None:
    batch.select(0, 0, 1, 1, 2, 2)
    batch.feed(*[[i] for i in range(6)])
    batch.runner.select(batch.state, torch.tensor([5, 2]), drop=4)  # the longest prompt's rows leave
    batch.histories = [batch.histories[5], batch.histories[2]]
    assert not batch.is_shared
    assert batch.cache.width == len(PROMPTS[2]) + 1
    batch.feed([1, 2], [3, 4])
    assert batch.error() < EXACT


@pytest.mark.parametrize(
    "parents", [[0, 0, 2, 1], [1, 0, 2], [2, 2, 0], [2, 0, 1]], ids=["stay", "swap", "repeat", "rotate"]
)
def test_rows_become_whole_in_the_memory_of_their_prefixes(batch: SharedBatch, parents: list[int]) -> None:
    before = {layer.keys.data_ptr() for layer in batch.cache.layers}
    batch.cache._share(torch.tensor(parents))  # also where it does not pay
    batch.state.mask, batch.state.lengths = batch.state.mask[parents], batch.state.lengths[parents]
    batch.state.finite = batch.state.finite[parents]
    batch.histories = [list(batch.histories[parent]) for parent in parents]
    batch.feed(*[[i + 4] for i in range(len(parents))])
    batch.cache._make_whole(range(3), 0)
    batch.histories = batch.histories[:3]
    batch.state.mask, batch.state.lengths = batch.state.mask[:3], batch.state.lengths[:3]
    batch.state.finite = batch.state.finite[:3]
    assert {layer.keys.data_ptr() for layer in batch.cache.layers} == before
    batch.feed([1], [2], [3])
    assert batch.error() < EXACT


def test_rows_that_hardly_share_any_more_become_whole(batch: SharedBatch) -> None:
    batch.select(0, 0, 0, 1, 1, 1, 2, 2, 2)
    batch.feed(*[[i] for i in range(9)])
    batch.select(1, 2, 0, 8)  # one group of three, padded to it another of one, and an empty one: 9 for 4
    assert not batch.is_shared
    batch.feed([1], [2], [3], [4])
    assert batch.error() < EXACT


def test_a_prefix_is_held_once() -> None:
    batch = SharedBatch(build("llama"), PROMPTS)
    before = [layer.keys.data_ptr() for layer in batch.cache.layers]
    batch.select(*[0, 1, 2] * 20)
    layers = batch.cache.layers
    assert [layer.prefix.keys.data_ptr() for layer in layers] == before
    assert {layer.keys.shape[2] for layer in layers} == {16}  # room for the rows' own columns only


def _own_columns(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    kwargs.pop("shared_prefixes", None)
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def _too_large(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return attend(*args, **kwargs)[0] * (1.5 if "shared_prefixes" in kwargs else 1), None


@pytest.mark.parametrize("change", ["eager", "latent", "another attention", "wrong"])
def test_rows_of_models_that_cannot_share_are_copied(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(COPYING if change == "latent" else "llama")
    if change == "eager":
        model.set_attn_implementation("eager")
    before = model.config._attn_implementation
    if change == "another attention":  # its layers would see the rows' own columns alone
        monkeypatch.setattr(shared_prefix, "attend", _own_columns)
    if change == "wrong":
        monkeypatch.setattr(shared_prefix, "attend", _too_large)
    batch = SharedBatch(model, PROMPTS)
    assert not batch.shares
    assert model.config._attn_implementation == before
    assert batch.runner.tokens_fed == sum(map(len, PROMPTS))  # trying is not counted
    batch.select(0, 0, 2, 1)
    assert not batch.is_shared
    batch.feed([1], [2], [3], [4])
    assert batch.error() < EXACT


def test_the_attention_stays_and_whole_rows_see_that_of_transformers() -> None:
    model, untouched = build("llama"), build("llama")
    SharedBatch(model, PROMPTS)
    assert model.config._attn_implementation == ATTENTION
    ids = torch.tensor([PROMPTS[0]])
    assert torch.equal(model(input_ids=ids).logits, untouched(input_ids=ids).logits)


def _wrong_parent(batch: SharedBatch) -> None:
    batch.select(0, 0, 1, 1, 2, 2)
    batch.cache.sharing = Sharing(torch.tensor([0, 1, 1, 0, 2, 2]), CommonColumns.unknown(3))
    batch.feed(*[[row] for row in range(6)])


def _too_much_in_common(batch: SharedBatch) -> None:
    """Rows with prompts of their own taken for beams of one."""
    batch.select(0, 0, 1, 1, 2, 2)
    width = batch.cache.width
    common = CommonColumns((0, 0, 0), (width,) * 3)
    batch.cache.sharing = Sharing(torch.tensor([0, 0, 1, 1, 2, 2]), common)
    batch.feed(*[[row] for row in range(6)])


def _stale_own_column(batch: SharedBatch) -> None:
    batch.select(0, 0, 1, 1, 2, 2)
    batch.feed(*[[row] for row in range(6)])
    for layer in batch.cache.layers:
        layer.keys[:, :, 0] = layer.keys[:, :, 0].roll(1, dims=0)
    batch.feed(*[[row] for row in range(6)])


@pytest.mark.parametrize("plant", [_wrong_parent, _too_much_in_common, _stale_own_column])
def test_a_planted_bug_is_seen(batch: SharedBatch, plant: Callable[[Batch], None]) -> None:
    if plant is _too_much_in_common and not batch.cache.is_compiled:
        pytest.skip("torch alone does not read common columns once")
    plant(batch)
    assert batch.error() > VISIBLE


def check_common(cache: SharedPrefixCache) -> None:
    """Compare the columns of all rows of a group, bit by bit."""
    common = cache.common
    for layer in cache.layers:
        keys, values = (layer.keys, layer.values) if cache.sharing is None else layer.prefix[:2]
        assert len(common.groups) == (layer.num_rows if cache.sharing is None else len(keys))
        for row, group in enumerate(common.groups):
            first, columns = common.groups.index(group), common.columns[row]
            assert columns == common.columns[first]
            for kept in (keys, values):
                assert torch.equal(kept[row, :, :columns], kept[first, :, :columns])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_rows_have_in_common_what_is_said(data: Any) -> None:
    model = build("llama")

    def some_rows(num_rows: int, *, most: int = 6) -> list[int]:
        return data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=most))

    with torch.inference_mode():
        batch = SharedBatch(model, PROMPTS)
        for _ in range(data.draw(st.integers(3, 8))):
            num_rows = len(batch.histories)
            what = data.draw(st.sampled_from(["feed", "select", "repeat", "trim", "join", "drop"]))
            if what == "feed":
                batch.feed(*[[row] for row in range(num_rows)])
            elif what == "select":
                batch.select(*some_rows(num_rows))
            elif what == "repeat":
                batch.select(*[row for row in range(num_rows) for _ in range(2)][:12])
                batch.feed(*[[row + 3] for row in range(len(batch.histories))])
            elif what == "trim":
                batch.trim(*some_rows(num_rows))
            elif what == "join":
                batch.join(some_rows(num_rows), [PROMPTS[0], PROMPTS[2]], some_rows(2, most=3))
            elif what == "drop":
                counts = torch.tensor([min(row % 2, len(h) - 1) for row, h in enumerate(batch.histories)])
                drop_last(batch.state, counts)
                batch.histories = [h[: len(h) - int(n)] for h, n in zip(batch.histories, counts, strict=True)]
            check_common(batch.cache)
        batch.feed(*[[row] for row in range(len(batch.histories))])
        largest = float(batch.state.last.abs().max())
        assert batch.error() < EXACT * largest  # single precision rounds in proportion; a bug is VISIBLE


def test_beams_keep_what_they_said_before_they_parted() -> None:
    """Two beams of one prompt: both continue the first, then each itself, then both the second."""
    batch = SharedBatch(build("llama"), [[1, 2, 3, 4]])
    found = []
    batch.select(0, 0, 0, 0)
    for kept in ([0, 1], [1, 2], [2, 3]):
        batch.feed(*[[row, row + 1] for row in range(4)])
        batch.select(*[row for row in kept for _ in range(2)])
        found.append(batch.cache.common.columns)
    assert found == [(4, 4), (4, 4), (8, 8)]
    assert set(batch.cache.common.groups) == {0}


def test_nothing_in_common_is_kept_where_that_is_off() -> None:
    batch = SharedBatch(build("llama"), [[1, 2, 3, 4]], keeps_common=False)
    batch.select(0, 0, 0, 0)
    batch.feed(*[[row, row + 1] for row in range(4)])
    batch.select(0, 0, 1, 1)
    assert batch.cache.common == CommonColumns.unknown(2)
    batch.feed(*[[row] for row in range(4)])
    assert batch.error() < EXACT


def test_common_columns_by_hand() -> None:
    common = CommonColumns((5, 5, 2), (3, 3, 1))
    assert common.between(0, 1) == 3
    assert common.between(0, 2) == 0
    assert common.between(0, 3) == 0  # a row that is not there yet
    assert common.select([2, 0, 0]) == CommonColumns((2, 5, 5), (1, 3, 3))
    assert common.continued([0, 1, 2, 2], width=9) == CommonColumns((5, 5, 2, 2), (3, 3, 9, 9))
    assert common.shifted(-2) == CommonColumns((5, 5, 2), (1, 1, 0))
    unknown = CommonColumns.unknown(2)
    assert common.followed_by(unknown) == CommonColumns((5, 5, 2, 6, 7), (3, 3, 1, 0, 0))


@pytest.mark.parametrize("num_rows", [0, 3])
def test_nothing_is_known_of_new_rows(num_rows: int) -> None:
    assert CommonColumns.unknown(num_rows).columns == (0,) * num_rows


def apart(row: int, other: int) -> int:
    return 0


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5])
def test_every_assignment_of_parents(num_rows: int) -> None:
    """No row is written over while it is still to be read."""
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
    assert in_order([1, 0, 2, 3], common) == [(-1, 0, 2), (0, 1, 2), (1, -1, 2)]


def test_the_loop_is_there() -> None:
    assert attention.library() is not None
