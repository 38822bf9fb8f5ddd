"""Attention of single tokens in one compiled loop, on a CPU, where decoding spends its time reading caches.

The loop reads the columns that rows share once for all of them, and nothing else of the size of a cache. It
is compiled from a source checkout only (`setup.py`); elsewhere matrix products take its place.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_LANES = 8  # numbers that the loop takes at a time


class _Arguments(ctypes.Structure):
    """What the loop takes, as `Arguments` in `attention.cpp`; `Order` and `attend` say what each is."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("prefix_keys", ctypes.c_void_p),
        ("prefix_values", ctypes.c_void_p),
        ("own_keys", ctypes.c_void_p),
        ("own_values", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("row_starts", ctypes.c_void_p),
        ("prefixes", ctypes.c_void_p),
        ("prefix_starts", ctypes.c_void_p),
        ("common", ctypes.c_void_p),
        ("query_row", ctypes.c_int64),
        ("query_head", ctypes.c_int64),
        ("prefix_row", ctypes.c_int64),
        ("prefix_head", ctypes.c_int64),
        ("own_row", ctypes.c_int64),
        ("own_head", ctypes.c_int64),
        ("prefix_columns", ctypes.c_int64),
        ("own_columns", ctypes.c_int64),
        ("scratch_size", ctypes.c_int64),
        ("num_groups", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("queries_per_head", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("scaling", ctypes.c_float),
    )


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


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loop, or None where there is none or the CPU lacks the instructions for it."""
    found = importlib.util.find_spec("ivg.engines.lockstep.cpu._attention")
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if found is None or found.origin is None:
        return None
    if is_x86 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    return ctypes.CDLL(found.origin)


def can_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Tell whether `attend` takes these queries and masks, and keys and values kept like these."""
    size = query.shape[3]
    return (
        query.shape[2] == 1
        and query.dtype in _SUFFIXES
        and query.dtype == key.dtype == value.dtype
        and size % _LANES == 0
        and key.shape == value.shape
        and key.stride() == value.stride()
        and key.stride()[2:] == (size, 1)
        and (mask is None or mask.dtype == torch.bool)
        and library() is not None
    )


def attend(
    query: Tensor,
    prefix: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scaling: float,
    order: Order,
) -> Tensor:
    """Attend from one new token of each row to its prefix's columns and its own.

    Args:
        query: (R, heads, 1, size).
        prefix: keys and values (P, key heads, prefix columns, size).
        own: keys and values (R, key heads, own columns, size).
        mask: (R, 1, 1, columns of prefix and own) which may be seen; None: all.
        scaling: of the scores.
        order: of the rows.

    Returns:
        (R, 1, heads, size).

    Raises:
        ValueError: another number of rows than `own` has.
    """
    num_rows, num_heads, _, size = query.shape
    key_heads = prefix[0].shape[1]
    if not own[0].shape[0] == len(order.rows) == num_rows:
        raise ValueError(f"{num_rows} queries and {len(order.rows)} rows for {own[0].shape[0]}")
    queries_per_head = num_heads // key_heads
    columns = prefix[0].shape[2] + own[0].shape[2]
    scratch_size = order.most_rows * queries_per_head * (columns + _LANES + 2 * size + 1)
    num_threads = torch.get_num_threads()
    scratch = torch.empty(num_threads, scratch_size)
    output = query.new_empty(num_rows, 1, num_heads, size)
    mask = None if mask is None else mask.expand(num_rows, 1, 1, columns).contiguous()
    query = query if query.stride(3) == 1 else query.contiguous()
    pointers = (query, *prefix, *own, mask, output, scratch, *order[:-1])
    arguments = _Arguments(
        *(None if tensor is None else tensor.data_ptr() for tensor in pointers),
        *(stride for tensor in (query, prefix[0], own[0]) for stride in tensor.stride()[:2]),
        *(prefix[0].shape[2], own[0].shape[2], scratch_size),
        *(len(order.common), key_heads, queries_per_head, size),
        scaling,
    )
    loops = library()
    assert loops is not None
    loop = loops[f"ivg_attend_{_SUFFIXES[query.dtype]}"]
    loop(ctypes.byref(arguments), ctypes.c_int32(num_threads))
    return output


def _ints(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32)


def _starts(sizes: Iterable[int]) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)
