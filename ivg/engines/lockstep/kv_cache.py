"""The KV cache of a batch: rows can be reordered, shortened on the left and joined by others.

transformers' `DynamicCache` concatenates at every step; here tokens are written into buffers that keep some
room. All layers hold full attention states: models with sliding windows mask by column, which is exact
because a row's tokens are contiguous. Rows are right-aligned, so that all share the next column.
Layers with a recurrent or convolutional state keep one state for each row, which has no columns.
On a CPU, rows that continue one prefix may share it instead of holding copies (`cpu/shared_prefix.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin, LinearAttentionLayer

# Buffers have a multiple of 16 columns, and grow by a third: growth copies all, a reorder the spare ones too.
COLUMN_STEP = 16
GROWTH = 4 / 3


class Source(NamedTuple):
    """Rows to take from a cache: `rows` indices (R',), leaving out the first `drop` columns."""

    cache: RowCache
    rows: Tensor
    drop: int


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

    def give_back(self, buffer: Tensor) -> None:
        """Put a buffer's memory by."""
        spares = self._spares.setdefault((buffer.device, buffer.dtype), [])
        if len(spares) < self._max_spares:
            spares.append(buffer.new_empty(0).set_(buffer.untyped_storage()))


class RowLayer(CacheLayerMixin):
    """One layer's keys and values: (rows, heads, columns, head size), with spare columns at the end."""

    is_sliding = False

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.num_rows = 0
        self.length = 0  # columns in use

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers shaped like the first states."""
        self.num_rows = key_states.shape[0]
        self.keys = self.pool.take(key_states, self.num_rows, key_states.shape[2])
        self.values = self.pool.take(value_states, self.num_rows, value_states.shape[2])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, n, head size) states; return all that are kept here."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            room = max(end, int(self.length * GROWTH))
            self.keys, self.values = self._grown(self.keys, room), self._grown(self.values, room)
        keys, values = self.keys[: self.num_rows, :, :end], self.values[: self.num_rows, :, :end]
        keys[:, :, self.length :], values[:, :, self.length :] = key_states, value_states
        self.length = end
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (columns that a query of this length attends over, offset 0)."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of columns that a row has."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: the buffers grow."""
        return -1

    def _grown(self, buffer: Tensor, num_columns: int) -> Tensor:
        grown = self.pool.take(buffer, self.num_rows, num_columns)
        grown[:, :, : self.length] = buffer[: self.num_rows, :, : self.length]
        self.pool.give_back(buffer)
        return grown


class StateLayer(LinearAttentionLayer):
    """One layer's recurrent and convolutional states: tensors whose first dimension is the rows."""

    def take_rows(self, parts: Sequence[tuple[StateLayer, Tensor]]) -> None:
        """Hold the parts' states at their rows (R',), one below the other; this layer may be a part."""
        for i in range(self.number_of_states):
            self.conv_states[i] = _rows_of([(layer.conv_states[i], rows) for layer, rows in parts])
            self.recurrent_states[i] = _rows_of([(layer.recurrent_states[i], rows) for layer, rows in parts])


class StateAndRowLayer(StateLayer, RowLayer):
    """One layer that has both: attention beside a state-space mixer."""

    def __init__(self, pool: Pool, number_of_states: int) -> None:
        RowLayer.__init__(self, pool)
        LinearAttentionLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *keys_and_values: Tensor, **states: Any) -> None:
        """Allocate buffers for keys and values, or states: transformers gives the former without names."""
        kind = RowLayer if keys_and_values else StateLayer
        kind.lazy_initialization(self, *keys_and_values, **states)


def _rows_of(parts: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
    """Return the selected rows of all parts; None where a layer has no such state."""
    found = [states.index_select(0, rows) for states, rows in parts if states is not None]
    return torch.cat(found) if found else None


def _layers_for(config: PretrainedConfig, pool: Pool) -> list[Any] | None:
    """Return a layer for each of a model's, or None where all keep keys and values alone."""
    layers: list[Any] = []
    for native in DynamicCache(config=config).layers:
        has_states = isinstance(native, LinearAttentionCacheLayerMixin)
        has_columns = isinstance(native, CacheLayerMixin)
        if has_states and has_columns:
            layers.append(StateAndRowLayer(pool, native.number_of_states))
        elif has_states:
            layers.append(StateLayer(native.number_of_states))
        else:
            layers.append(RowLayer(pool) if has_columns else native)  # else it keeps nothing
    return None if all(type(layer) is RowLayer for layer in layers) else layers


class RowCache(Cache):
    """The cache of one model over the rows of the batch.

    Args:
        layer_class: how a layer keeps its keys and values, where all layers do.
        config: the model's, which says whether some layers keep something else.
    """

    def __init__(
        self, layer_class: type[RowLayer] = RowLayer, config: PretrainedConfig | None = None
    ) -> None:
        self._pool = Pool()
        layers = None if config is None else _layers_for(config, self._pool)
        if layers is not None:
            super().__init__(layers=layers)
        else:
            super().__init__(layer_class_to_replicate=functools.partial(layer_class, self._pool))

    @property
    def row_layers(self) -> list[RowLayer]:
        """The layers that keep keys and values."""
        return [layer for layer in self.layers if isinstance(layer, RowLayer)]

    @property
    def width(self) -> int:
        """Columns in use."""
        layers = self.row_layers
        return layers[0].get_seq_length() if layers else 0

    @property
    def forward_arguments(self) -> dict[str, object]:
        """What the model must be called with beside the cache: nothing, for an attention of transformers."""
        return {}

    def select(self, rows: Tensor, drop: int = 0) -> None:
        """Replace the rows by `rows` (R',) of them, repeats allowed, without their first `drop` columns."""
        if drop:
            self.rebuild([Source(self, rows, drop)])
            return
        for layer in self.row_layers:
            layer.keys = self._taken(layer.keys, rows, layer.pool)
            layer.values = self._taken(layer.values, rows, layer.pool)
            layer.num_rows = len(rows)
        self._take_states([Source(self, rows, drop)])

    def rebuild(self, sources: list[Source]) -> None:
        """Replace the content by the sources' rows one below the other, right-aligned.

        Args:
            sources: the first may be this cache itself; the others stay as they are.
        """
        columns = [slice(source.drop, source.cache.width) for source in sources]
        width = max(c.stop - c.start for c in columns)
        for index, layer in enumerate(self.row_layers):
            parts = [source.cache.row_layers[index] for source in sources]
            rows = [source.rows for source in sources]
            layer.keys = self._stacked(layer.keys, [part.keys for part in parts], rows, columns)
            layer.values = self._stacked(layer.values, [part.values for part in parts], rows, columns)
            layer.num_rows, layer.length = sum(map(len, rows)), width
        self._take_states(sources)

    def drop_last(self, counts: Tensor, width: int) -> None:
        """Drop the last `counts` (R,) columns of each row, and keep the last `width` of what stays.

        Rows move right by as much as they lose, so that they end at one column again. A state cannot lose
        tokens, so no layer may have one.
        """
        assert not any(isinstance(layer, StateLayer) for layer in self.layers), "states cannot be cut back"
        columns = torch.arange(self.width - width, self.width, device=counts.device)
        source = (columns - counts[:, None]).clamp(min=0)[:, None, :, None]  # (R, 1, width, 1)
        for layer in self.row_layers:
            layer.keys = self._gathered(layer.keys, source)
            layer.values = self._gathered(layer.values, source)
            layer.length = width

    def _take_states(self, sources: list[Source]) -> None:
        for index, layer in enumerate(self.layers):
            if isinstance(layer, StateLayer):
                layer.take_rows([(source.cache.layers[index], source.rows) for source in sources])

    def _taken(self, buffer: Tensor, rows: Tensor, pool: Pool) -> Tensor:
        """Return `buffer[rows]`, and put the buffer's memory by."""
        taken = pool.take(buffer, len(rows), buffer.shape[2])
        torch.index_select(buffer, 0, rows, out=taken)
        pool.give_back(buffer)
        return taken

    def _stacked(
        self, own: Tensor, buffers: list[Tensor], rows: list[Tensor], columns: list[slice]
    ) -> Tensor:
        """Return each buffer's selected rows and columns, right-aligned, and put `own` memory by."""
        width = max(c.stop - c.start for c in columns)
        stacked = self._pool.take(own, sum(map(len, rows)), width + 1)
        start = 0
        for buffer, selected, kept in zip(buffers, rows, columns, strict=True):
            used = buffer[:, :, kept]
            part, padding = stacked[start : start + len(selected)], width - used.shape[2]
            # Cleared, since a masked column still enters products as 0 times its content.
            part[:, :, :padding] = 0
            part[:, :, padding:width] = used.index_select(0, selected)
            start += len(selected)
        self._pool.give_back(own)
        return stacked

    def _gathered(self, buffer: Tensor, source: Tensor) -> Tensor:
        """Return the `source` (R, 1, width, 1) columns of each row, and put the buffer's memory by."""
        num_rows, width = source.shape[0], source.shape[2]
        gathered = self._pool.take(buffer, num_rows, width + 1)
        index = source.to(buffer.device).expand(-1, buffer.shape[1], -1, buffer.shape[3])
        gathered[:, :, :width] = buffer[:num_rows].gather(2, index)
        self._pool.give_back(buffer)
        return gathered
