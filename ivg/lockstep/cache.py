"""A key-value cache over rows that can be reordered, shortened on the left and joined by others.

transformers' `DynamicCache` concatenates at every step; here tokens are written into buffers that keep some
room. All layers hold full attention states: models with sliding windows mask by column, which is exact
because a row's tokens are contiguous. Rows are right-aligned, so that all share the next column.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

COLUMN_STEP = 16  # buffers grow by this many columns; a reorder copies the spare ones too


class Source(NamedTuple):
    """Rows to take from a cache: `rows` indices (R',), leaving out the first `drop` columns."""

    cache: RowCache
    rows: Tensor
    drop: int


class RowLayer(CacheLayerMixin):
    """One layer's keys and values: (rows, heads, columns, head size), with spare columns at the end."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.num_rows = 0
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers shaped like the first states."""
        self.num_rows = key_states.shape[0]
        self.keys = _buffer_like(key_states, key_states.shape[0], 0)
        self.values = _buffer_like(value_states, value_states.shape[0], 0)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, n, head size) states; return all of the rows' states."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys = _grown(self.keys, self.num_rows, self.length, end)
            self.values = _grown(self.values, self.num_rows, self.length, end)
        keys, values = self.keys[: self.num_rows, :, :end], self.values[: self.num_rows, :, :end]
        keys[:, :, self.length :] = key_states
        values[:, :, self.length :] = value_states
        self.length = end
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (columns that a query of this length attends over, offset 0)."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: the buffers grow."""
        return -1


class RowCache(Cache):
    """The cache of one model over the rows of the batch."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowLayer)
        # One spare buffer rotates through the layers, so a reorder needs one layer's room, not the cache's.
        self._spares: dict[tuple[int, ...], Tensor] = {}

    @property
    def width(self) -> int:
        """Columns in use."""
        return int(self.layers[0].length) if self.layers else 0

    def select(self, rows: Tensor) -> None:
        """Replace the rows by `rows` (R',) of them, repeats allowed."""
        in_use = {tuple(b.shape[1:]) for layer in self.layers for b in (layer.keys, layer.values)}
        self._spares = {shape: spare for shape, spare in self._spares.items() if shape in in_use}
        for layer in self.layers:
            layer.keys = self._take(layer.keys, rows)
            layer.values = self._take(layer.values, rows)
            layer.num_rows = len(rows)

    def rebuild(self, sources: list[Source]) -> None:
        """Replace the content by the sources' rows one below the other, right-aligned."""
        width = max(source.cache.width - source.drop for source in sources)
        for index in range(max(len(source.cache.layers) for source in sources)):
            parts = [(source.cache.layers[index], source) for source in sources]
            keys = _stacked([(part.keys, source) for part, source in parts], width)
            values = _stacked([(part.values, source) for part, source in parts], width)
            if index == len(self.layers):
                self.layers.append(RowLayer())
            layer = self.layers[index]
            layer.keys, layer.values, layer.length = keys, values, width
            layer.num_rows, layer.is_initialized = keys.shape[0], True
        self._spares.clear()

    def drop_last(self, counts: Tensor, width: int) -> None:
        """Drop the last `counts` (R,) columns of each row, and keep the last `width` of what stays.

        Rows move right by as much as they lose, so that they end at one column again.
        """
        columns = torch.arange(self.width - width, self.width, device=counts.device)
        source = (columns - counts[:, None]).clamp(min=0)[:, None, :, None]  # (R, 1, width, 1)
        for layer in self.layers:
            layer.keys = _gathered(layer.keys, source)
            layer.values = _gathered(layer.values, source)
            layer.length = width
        self._spares.clear()

    def _take(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """Return a buffer whose first rows are `buffer[rows]`, written into the spare one."""
        shape = tuple(buffer.shape[1:])
        spare = self._spares.pop(shape, None)
        if spare is None or spare.shape[0] < len(rows):
            spare = buffer.new_zeros(max(len(rows), buffer.shape[0]), *shape)
        torch.index_select(buffer, 0, rows, out=spare[: len(rows)])
        self._spares[shape] = buffer
        return spare


def _buffer_like(states: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Zeros, never uninitialised memory: a masked column still enters products as 0 times its content."""
    room = -(-(num_columns + 1) // COLUMN_STEP) * COLUMN_STEP
    return states.new_zeros(num_rows, states.shape[1], room, states.shape[3])


def _grown(buffer: Tensor, num_rows: int, length: int, end: int) -> Tensor:
    grown = _buffer_like(buffer, num_rows, end)
    grown[:, :, :length] = buffer[:num_rows, :, :length]
    return grown


def _gathered(buffer: Tensor, source: Tensor) -> Tensor:
    """Return a fresh buffer whose columns are the `source` (R, 1, width, 1) columns of each row."""
    num_rows, width = source.shape[0], source.shape[2]
    used = buffer[:num_rows]
    gathered = _buffer_like(used, num_rows, width)
    index = source.to(buffer.device).expand(-1, buffer.shape[1], -1, buffer.shape[3])
    gathered[:, :, :width] = used.gather(2, index)
    return gathered


def _stacked(parts: list[tuple[Tensor, Source]], width: int) -> Tensor:
    """Right-align each part's selected rows at `width` columns in one fresh buffer."""
    num_rows = sum(len(source.rows) for _, source in parts)
    stacked = _buffer_like(parts[0][0], num_rows, width)
    start = 0
    for buffer, source in parts:
        end = start + len(source.rows)
        used = buffer[:, :, source.drop : source.cache.width]
        stacked[start:end, :, width - used.shape[2] : width] = used.index_select(0, source.rows)
        start = end
    return stacked
