"""Attention of single tokens in one loop, on a CPU, where decoding spends its time reading caches.

The loop reads the columns that rows share once for all of them, and nothing else of the size of a cache. It
also writes the tokens' own columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ivg.engines.lockstep.cpu.library import LANES, SUFFIXES, call, library

_FIELDS: dict[type[ctypes._SimpleCData[Any]], str] = {
    ctypes.c_void_p: "query new_keys new_values prefix_keys prefix_values own_keys own_values "
    "mask output scratch rows row_starts prefixes prefix_starts common",
    ctypes.c_int64: "query_row query_head new_key_row new_key_head new_value_row new_value_head "
    "prefix_row prefix_head own_row own_head prefix_columns own_columns scratch_size",
    ctypes.c_int32: "num_groups num_heads queries_per_head size",
    ctypes.c_float: "scaling",
}


class Arguments(ctypes.Structure):
    """What the loop takes; `Order` and `attend` say what each is."""

    _fields_ = tuple((name, kind) for kind, names in _FIELDS.items() for name in names.split())


class Order(NamedTuple):
    """How rows stand below prefixes, and prefixes in groups that begin alike; all int32.

    Attributes:
        rows: (R,) by their prefix, in the order of `prefixes`.
        row_starts: (P + 1,) where each prefix's rows start in `rows`, and the end.
        prefixes: (P,) by their group.
        prefix_starts: (groups + 1,) where each group starts in `prefixes`, and the end.
        common: (groups,) columns that the group's prefixes have in common, from the first on.
        most_rows: of a group.
    """

    rows: Tensor
    row_starts: Tensor
    prefixes: Tensor
    prefix_starts: Tensor
    common: Tensor
    most_rows: int


def order(parents: Sequence[int], groups: Sequence[int], common: Sequence[int]) -> Order:
    """Sort rows by their prefixes.

    Args:
        parents: (R,) each row's prefix.
        groups: (P,) each prefix's group.
        common: (P,) how many first columns all prefixes of its group have in common.
    """
    children: list[list[int]] = [[] for _ in groups]
    for row, parent in enumerate(parents):
        children[parent].append(row)
    members: dict[int, list[int]] = {}
    for prefix, group in enumerate(groups):
        if children[prefix]:
            members.setdefault(group, []).append(prefix)
    prefixes = [prefix for group in members.values() for prefix in group]
    return Order(
        _ints(row for prefix in prefixes for row in children[prefix]),
        _starts(len(children[prefix]) for prefix in prefixes),
        _ints(prefixes),
        _starts(len(group) for group in members.values()),
        _ints(common[group[0]] for group in members.values()),
        max(sum(len(children[prefix]) for prefix in group) for group in members.values()),
    )


def can_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Tell whether `attend` takes these queries and masks, and keys and values kept like these."""
    size = query.shape[3]
    return (
        query.shape[2] == 1
        and query.device.type == "cpu"
        and query.dtype in SUFFIXES
        and query.dtype == key.dtype == value.dtype
        and size % LANES == 0
        and key.shape == value.shape
        and key.stride() == value.stride()
        and key.stride()[2:] == (size, 1)
        and (mask is None or mask.dtype == torch.bool)
        and library() is not None
    )


def attend(
    query: Tensor,
    new: tuple[Tensor, Tensor],
    prefix: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scaling: float,
    order: Order,
) -> Tensor:
    """Attend from one new token of each row to its prefix's columns and its own.

    Args:
        query: (R, heads, 1, size).
        new: keys and values (R, key heads, 1, size) of the tokens themselves, written to the last of `own`.
        prefix: keys and values (P, key heads, prefix columns, size).
        own: keys and values (R, key heads, own columns, size); the last columns are written here.
        mask: (R, 1, 1, columns of prefix and own) which may be seen; None: all.
        scaling: of the scores.
        order: of the rows.

    Returns:
        (R, 1, heads, size).

    Raises:
        ValueError: rows or new states that are not those of `own`.
    """
    num_rows, num_heads, _, size = query.shape
    key_heads = prefix[0].shape[1]
    one_each = (num_rows, key_heads, 1, size)
    if not (new[0].shape == new[1].shape == one_each and own[0].shape[0] == len(order.rows) == num_rows):
        raise ValueError(f"new states {tuple(new[0].shape)} and {tuple(new[1].shape)} for {one_each}")
    queries_per_head = num_heads // key_heads
    columns = prefix[0].shape[2] + own[0].shape[2]
    scratch_size = order.most_rows * queries_per_head * (columns + LANES + 2 * size + 1)
    scratch = torch.empty(torch.get_num_threads(), scratch_size)
    output = query.new_empty(num_rows, 1, num_heads, size)
    mask = None if mask is None else mask.expand(num_rows, 1, 1, columns).contiguous()
    new = new[0].to(query.dtype), new[1].to(query.dtype)  # the loop copies bytes
    query, *states = (t if t.stride(3) == 1 else t.contiguous() for t in (query, *new))
    pointers = (query, *states, *prefix, *own, mask, output, scratch, *order[:-1])
    arguments = Arguments(
        *(None if tensor is None else tensor.data_ptr() for tensor in pointers),
        *(stride for tensor in (query, *states, prefix[0], own[0]) for stride in tensor.stride()[:2]),
        *(prefix[0].shape[2], own[0].shape[2], scratch_size),
        *(len(order.common), key_heads, queries_per_head, size),
        scaling,
    )
    call("attend", query.dtype, arguments)
    return output


def _ints(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32)


def _starts(sizes: Iterable[int]) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)
