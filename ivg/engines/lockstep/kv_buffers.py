"""Memory for keys and values: buffers with spare columns, handed on from one use to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Buffers have a multiple of 16 columns, and grow by a third: growth copies all, a reorder the spare ones too.
COLUMN_STEP = 16
GROWTH = 4 / 3
SPARE = -1  # a row beside the buffer


def with_spare_columns(columns: Tensor) -> Tensor:
    """Return the whole buffer (rows, heads, room, size) whose first columns (rows, heads, n, size) are."""
    rows, heads, _, size = columns.shape
    return columns.as_strided((rows, heads, columns.stride(1) // size, size), columns.stride())


class Pool:
    """Memory of a buffer that was replaced, for the one that replaces the next.

    A reorder, a join or growth writes each buffer anew. Fresh memory would cost a page fault for every page,
    more than the copy itself; handing one spare around also needs one layer's room, not the cache's.

    Args:
        max_spares: how many buffers to put by, per device.
    """

    def __init__(self, max_spares: int = 1) -> None:
        self._max_spares = max_spares
        self._spares: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def take(self, like: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """Return a buffer (num_rows, heads, room for num_columns, head size) like another, not cleared."""
        room = -(-num_columns // COLUMN_STEP) * COLUMN_STEP
        shape = num_rows, like.shape[1], room, like.shape[3]
        spares = self._spares.setdefault((like.device, like.dtype), [])
        spare = spares.pop() if spares else None
        if spare is None or len(spare) < math.prod(shape):
            spare = None  # freed before its successor is allocated
            spare = like.new_empty(math.prod(shape))
        return spare[: math.prod(shape)].view(shape)

    def give(self, buffer: Tensor) -> None:
        """Put a buffer's memory by."""
        spares = self._spares.setdefault((buffer.device, buffer.dtype), [])
        if len(spares) < self._max_spares:
            spares.append(buffer.new_empty(0).set_(buffer.untyped_storage()))


class Move(NamedTuple):
    """One row written over by another, but for the first `start` columns, which they have in common."""

    to: int
    source: int
    start: int


def in_order(parents: Sequence[int], common: Callable[[int, int], int]) -> list[Move]:
    """Return moves after which row i holds what row `parents[i]` held.

    No row is written over while it is still to be read; a cycle goes by way of a spare row.

    Args:
        parents: rows.
        common: how many first columns two rows have in common.
    """
    pending = {row: parent for row, parent in enumerate(parents) if row != parent}
    moves = []
    while pending:
        read = set(pending.values())
        free = [row for row in pending if row not in read]
        if not free:
            first = next(iter(pending))
            waiting = [row for row, parent in pending.items() if parent == first]
            moves.append(Move(SPARE, first, min(common(row, first) for row in waiting)))
            pending = {row: SPARE if parent == first else parent for row, parent in pending.items()}
        for row in free:
            moves.append(Move(row, pending.pop(row), common(row, parents[row])))
    return moves


def move_rows(columns: Tensor, moves: Sequence[Move]) -> None:
    """Copy rows of (rows, heads, columns, size) in place, as `in_order` says."""
    spare, spare_start = columns[0], 0
    for to, source, start in moves:
        if to == SPARE:
            spare, spare_start = columns[source, :, start:].clone(), start
        elif source == SPARE:
            columns[to, :, start:] = spare[:, start - spare_start :]
        else:
            columns[to, :, start:] = columns[source, :, start:]
