"""Attention over shared and own columns against the definition in double precision."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ivg.engines.lockstep.cpu.attention import attend, can_attend, order

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@dataclasses.dataclass
class Case:
    """Rows below prefixes: row r continues prefix `parents[r]`, prefixes of one group begin alike."""

    parents: list[int]
    groups: list[int]
    common: list[int]
    key_heads: int
    queries_per_head: int
    size: int
    prefix_columns: int
    own_columns: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def states(*shape: int) -> Tensor:
            """Numbers in a buffer with spare columns, as caches are; what is spare must not be read."""
            *rows, columns, size = shape
            buffer = torch.full((*rows, columns + 5, size), torch.nan, dtype=self.dtype)
            buffer[..., :columns, :] = torch.randn(shape, generator=generator).to(self.dtype)
            return buffer[..., :columns, :]

        num_rows, heads = len(self.parents), self.key_heads * self.queries_per_head
        self.query = states(num_rows, heads, 1, self.size).clone(memory_format=torch.contiguous_format)
        self.prefix = tuple(
            states(len(self.groups), self.key_heads, self.prefix_columns, self.size) for _ in range(2)
        )
        self.own = tuple(states(num_rows, self.key_heads, self.own_columns, self.size) for _ in range(2))
        for kept in self.prefix:
            for p, group in enumerate(self.groups):
                kept[p, :, : self.common[p]] = kept[self.groups.index(group), :, : self.common[p]]
        columns = self.prefix_columns + self.own_columns
        self.mask = torch.rand(num_rows, 1, 1, columns, generator=generator) < 0.7
        self.mask[..., -1] = True  # a token sees itself
        self.scaling = 3 / math.sqrt(self.size)

    def attend(self, *, groups: list[int] | None = None, masked: bool = True) -> Tensor:
        apart = groups is not None
        common = [0] * len(self.groups) if apart else self.common
        ordered = order(self.parents, groups or self.groups, common)
        mask = self.mask if masked else None
        assert can_attend(self.query, *self.own, mask)
        return attend(self.query, self.prefix, self.own, mask, self.scaling, ordered)

    def expected(self, *, masked: bool = True) -> Tensor:
        keys, values = (
            torch.cat([kept[self.parents], own], dim=2)
            .repeat_interleave(self.queries_per_head, dim=1)
            .double()
            for kept, own in zip(self.prefix, self.own, strict=True)
        )
        scores = self.scaling * self.query.double() @ keys.transpose(2, 3)
        scores = scores.masked_fill(~self.mask, -torch.inf) if masked else scores
        return (scores.softmax(-1) @ values).transpose(1, 2)


CASES = {
    "two beams": Case([0, 0, 1, 1], [0, 0], [9, 9], 2, 1, 64, 21, 3),
    "four beams, each continued four times": Case(
        [i // 4 for i in range(16)], [0] * 4, [40] * 4, 2, 1, 64, 50, 5
    ),
    "uneven, out of order": Case([2, 0, 2, 1, 0, 2, 4], [7, 3, 7, 5, 3], [3, 11, 3, 0, 11], 3, 1, 24, 17, 8),
    "all in common": Case([0, 1, 2], [0, 0, 0], [12] * 3, 1, 1, 8, 12, 1),
    "grouped queries": Case([0, 0, 1], [0, 0], [16, 16], 2, 3, 40, 33, 2),
    "one row": Case([0], [0], [0], 1, 1, 128, 1, 1),
    "long": Case([0, 0], [0], [700], 1, 2, 16, 700, 31),
}
EVERY = [
    dataclasses.replace(case, dtype=dtype)
    for case in CASES.values()
    for dtype in (torch.float32, torch.bfloat16)
]
NAMES = [f"{name}, {dtype}" for name in CASES for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize("case", EVERY, ids=NAMES)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_definition(case: Case, masked: bool) -> None:
    found, expected = case.attend(masked=masked), case.expected(masked=masked)
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    assert (found.double() - expected).abs().max() < ROUNDING[case.dtype]


@pytest.mark.parametrize("case", EVERY, ids=NAMES)
def test_sharing_changes_no_bit(case: Case) -> None:
    """Nor does the company: a row alone is as it is among others."""
    together = case.attend()
    assert torch.equal(together, case.attend(groups=list(range(len(case.groups)))))
    for row, parent in enumerate(case.parents):
        alone = attend(
            case.query[[row]],
            tuple(kept[[parent]] for kept in case.prefix),
            tuple(own[[row]] for own in case.own),
            case.mask[[row]],
            case.scaling,
            order([0], [0], [0]),
        )
        assert torch.equal(alone[0], together[row])


def test_columns_said_to_be_in_common_are_read_from_the_first_prefix() -> None:
    """So a wrong count shows."""
    case = CASES["two beams"]
    wrong = order(case.parents, case.groups, [10, 10])
    found = attend(case.query, case.prefix, case.own, case.mask, case.scaling, wrong)
    assert torch.equal(found[:2], case.attend()[:2])
    assert (found.double() - case.expected())[2:].abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_stays_so(dtype: torch.dtype, bad: float) -> None:
    case = Case([0, 0, 1, 1], [0, 1], [0, 0], 2, 1, 16, 9, 3, dtype)
    case.mask[:] = True
    case.own[0][1, :, 1] = bad
    found = case.attend()
    assert found[1].isnan().all()
    assert found[[0, 2, 3]].isfinite().all()


def test_scores_far_apart() -> None:
    """Weights below the smallest float are zero, and the largest score decides whatever its size."""
    case = Case([0], [0], [0], 1, 1, 8, 4, 1)
    case.query[:] = 1
    case.prefix[0][:] = torch.tensor([-1000.0, 400.0, -3.0, 399.0])[:, None]
    case.own[0][:] = -1e30
    case.mask[:] = True
    case.scaling = 0.5
    weight = math.exp(-4)  # eight times half a unit less
    values = case.prefix[1][0, 0]
    expected = (values[1] + weight * values[3]) / (1 + weight)
    assert torch.allclose(case.attend()[0, 0, 0], expected, atol=1e-6)


def test_what_the_loop_does_not_take() -> None:
    query, mask = torch.zeros(2, 3, 1, 16), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    kept = torch.zeros(2, 3, 5, 16)
    assert can_attend(query, kept, kept, mask)
    assert can_attend(query, kept, kept, None)
    assert not can_attend(query.double(), kept.double(), kept.double(), mask)
    assert not can_attend(query, kept.bfloat16(), kept.bfloat16(), mask)
    assert not can_attend(query.expand(2, 3, 2, 16), kept, kept, mask)  # several new tokens
    assert not can_attend(query[..., :12], kept[..., :12], kept[..., :12], mask)  # not whole vectors
    assert not can_attend(query, kept, kept, mask.float())  # to be added
    assert not can_attend(query, kept, kept[..., :8], mask)  # values of another size
    assert not can_attend(query, kept, kept.transpose(1, 2).contiguous().transpose(1, 2), mask)
