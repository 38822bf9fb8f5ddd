"""A key-value cache over rows that can be reordered, shortened on the left and joined by others.

transformers' `DynamicCache` concatenates at every step; here tokens are written into buffers that keep some
room. All layers hold full attention states: models with sliding windows mask by column, which is exact
because a row's tokens are contiguous. Rows are right-aligned, so that all share the next column.

Rows can fork: what is cached becomes a prefix that several rows continue, each with columns of its own, until
`merge` makes the rows that live on whole again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ivg.engines.lockstep.kv_buffers import (
    COLUMN_STEP,
    GROWTH,
    Move,
    Pool,
    in_order,
    move_rows,
    with_spare_columns,
)
from ivg.engines.lockstep.shared_prefix import Behind, Fork, Prefix, Trunks


class Source(NamedTuple):
    """Rows to take from a cache: `rows` indices (R',), leaving out the first `drop` columns."""

    cache: RowCache
    rows: Tensor
    drop: int


class _Merge(NamedTuple):
    """Which forked rows (R',) become whole, the prefix of each, and how the prefixes get there in place."""

    rows: Tensor
    parents: list[int]
    moves: list[Move]
    drop: int
    length: int


class RowLayer(CacheLayerMixin):
    """One layer's keys and values: (rows, heads, columns, head size), with spare columns at the end."""

    is_sliding = False

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.num_rows = 0
        self.length = 0  # columns of the rows' own
        self.prefix: Prefix | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers shaped like the first states."""
        self.num_rows = key_states.shape[0]
        self.keys = self.pool.take(key_states, self.num_rows, key_states.shape[2])
        self.values = self.pool.take(value_states, self.num_rows, value_states.shape[2])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, n, head size) states; return the rows' states, behind a prefix without it.

        Behind a prefix the new columns are yet to be written: `forks.attend` does so.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            room = max(end, int(self.length * GROWTH))
            self.keys, self.values = self._grown(self.keys, room), self._grown(self.values, room)
        keys, values = self.keys[: self.num_rows, :, :end], self.values[: self.num_rows, :, :end]
        if self.prefix is None:
            keys[:, :, self.length :], values[:, :, self.length :] = key_states, value_states
        else:
            keys.behind = Behind(self.prefix, key_states, value_states)  # type: ignore[attr-defined]
        self.length = end
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (columns that a query of this length attends over, offset 0)."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.length + (0 if self.prefix is None else self.prefix.keys.shape[2])

    def get_max_length(self) -> int:
        """Return -1: the buffers grow."""
        return -1

    def _grown(self, buffer: Tensor, num_columns: int) -> Tensor:
        grown = self.pool.take(buffer, self.num_rows, num_columns)
        grown[:, :, : self.length] = buffer[: self.num_rows, :, : self.length]
        self.pool.give(buffer)
        return grown


class RowCache(Cache):
    """The cache of one model over the rows of the batch.

    Attributes:
        num_expected: columns that the rows may come to have, as far as is known.
    """

    def __init__(self) -> None:
        self.num_expected = 0
        self._pool = Pool()
        self._own_pool = Pool(max_spares=2**16)  # for the rows' own columns behind a prefix, in every layer
        self._known_trunks = Trunks()  # of the rows, or of the prefixes while rows are forked
        super().__init__(layer_class_to_replicate=functools.partial(RowLayer, self._pool))

    @property
    def width(self) -> int:
        """Columns in use."""
        return int(self.layers[0].get_seq_length()) if self.layers else 0

    @property
    def trunks(self) -> Trunks:
        """What the rows, or the prefixes while rows are forked, have in common."""
        if not self._known_trunks.ids and self.layers:
            self._known_trunks = Trunks.apart(self.layers[0].num_rows)
        return self._known_trunks

    @property
    def is_forked(self) -> bool:
        """Whether the rows continue shared prefixes."""
        return bool(self.layers) and self.layers[0].prefix is not None

    def pays_to_stay_forked(self, rows: Tensor) -> bool:
        """Tell whether `rows` (R',) of these forked rows would still share enough."""
        fork = self.layers[0].prefix.fork
        return Fork.pays(fork.parents[rows], fork.num_prefixes)

    def select(self, rows: Tensor) -> None:
        """Replace the rows by `rows` (R',) of them, repeats allowed; prefixes stay where they are."""
        fork = self.layers[0].prefix.fork if self.is_forked else None
        fewer = None if fork is None else Fork(fork.parents[rows], fork.trunks)
        if fork is None:
            self._known_trunks = _of_rows(self.trunks, rows)
        for layer in self.layers:
            layer.keys = self._taken(layer.keys, rows, layer.pool)
            layer.values = self._taken(layer.values, rows, layer.pool)
            layer.num_rows = len(rows)
            if fewer is not None:
                layer.prefix = layer.prefix._replace(fork=fewer)

    def fork(self, parents: Tensor) -> None:
        """Make what is cached a prefix, and let rows (R,) continue row `parents` (R,) of it."""
        fork = Fork(parents, self.trunks)
        for layer in self.layers:
            keys, values = (b[: layer.num_rows, :, : layer.length] for b in (layer.keys, layer.values))
            layer.prefix = Prefix(keys, values, fork)
            layer.keys = self._own_pool.take(keys, len(parents), COLUMN_STEP)
            layer.values = self._own_pool.take(values, len(parents), COLUMN_STEP)
            layer.num_rows, layer.length, layer.pool = len(parents), 0, self._own_pool

    def merge(self, rows: Tensor, drop: int) -> None:
        """Keep `rows` (R',), each whole again with its prefix, without the prefix's first `drop` columns."""
        first = self.layers[0]
        parents, width = first.prefix.fork.parents[rows].tolist(), first.prefix.keys.shape[2]
        merge = _Merge(rows, parents, in_order(parents, self.trunks.in_common), drop, first.length)
        self._known_trunks = self.trunks.continued(parents, width).shifted(-drop)
        for layer in self.layers:
            prefix = layer.prefix
            layer.keys = self._merged(prefix.keys, layer.keys, merge)
            layer.values = self._merged(prefix.values, layer.values, merge)
            layer.length = prefix.keys.shape[2] - drop + merge.length
            layer.num_rows, layer.prefix, layer.pool = len(rows), None, self._pool

    def rebuild(self, sources: list[Source]) -> None:
        """Replace the content by the sources' rows one below the other, right-aligned.

        Args:
            sources: the first may be this cache itself; the others stay as they are.
        """
        if any(source.cache.is_forked for source in sources):
            raise ValueError("forked rows must be merged before they are stacked")
        columns = [slice(source.drop, source.cache.width) for source in sources]
        width = max(c.stop - c.start for c in columns)
        self._known_trunks = functools.reduce(
            Trunks.followed_by,
            (
                _of_rows(source.cache.trunks, source.rows).shifted(width - source.cache.width)
                for source in sources
            ),
        )
        for index, layer in enumerate(self.layers):
            parts = [source.cache.layers[index] for source in sources]
            rows = [source.rows for source in sources]
            layer.keys = self._stacked(layer.keys, [part.keys for part in parts], rows, columns)
            layer.values = self._stacked(layer.values, [part.values for part in parts], rows, columns)
            layer.num_rows, layer.length = sum(map(len, rows)), width

    def drop_last(self, counts: Tensor, width: int) -> None:
        """Drop the last `counts` (R,) columns of each row, and keep the last `width` of what stays.

        Rows move right by as much as they lose, so that they end at one column again.
        """
        if self.is_forked:
            raise ValueError("forked rows must be merged before they lose columns")
        self._known_trunks = Trunks.apart(len(counts))
        columns = torch.arange(self.width - width, self.width, device=counts.device)
        source = (columns - counts[:, None]).clamp(min=0)[:, None, :, None]  # (R, 1, width, 1)
        for layer in self.layers:
            layer.keys = self._gathered(layer.keys, source)
            layer.values = self._gathered(layer.values, source)
            layer.length = width

    def _taken(self, buffer: Tensor, rows: Tensor, pool: Pool) -> Tensor:
        """Return `buffer[rows]`, and put the buffer's memory by."""
        taken = pool.take(buffer, len(rows), buffer.shape[2])
        torch.index_select(buffer, 0, rows, out=taken)
        pool.give(buffer)
        return taken

    def _merged(self, prefix: Tensor, own: Tensor, merge: _Merge) -> Tensor:
        """Return prefixes and own columns side by side; where there is room, in the prefixes' own buffer."""
        kept, num_rows = prefix[:, :, merge.drop :], len(merge.parents)
        border, end = kept.shape[2], kept.shape[2] + merge.length
        merged = with_spare_columns(prefix)
        is_roomy = end <= merged.shape[2] and num_rows <= len(merged) <= GROWTH * num_rows
        # Row by row, since to gather all would take fresh memory of their size.
        if merge.drop == 0 and is_roomy:
            move_rows(kept, merge.moves)
            merged = merged[:num_rows]
        else:
            # Much room costs nothing on a CPU, where rows fork: memory is taken as it is written.
            merged = self._pool.take(prefix, num_rows, max(end, self.num_expected))
            for row, parent in enumerate(merge.parents):
                merged[row, :, :border] = kept[parent]
            self._pool.give(prefix)
        merged[:, :, border:end] = own[:, :, : merge.length].index_select(0, merge.rows)
        self._own_pool.give(own)
        return merged

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
        self._pool.give(own)
        return stacked

    def _gathered(self, buffer: Tensor, source: Tensor) -> Tensor:
        """Return the `source` (R, 1, width, 1) columns of each row, and put the buffer's memory by."""
        num_rows, width = source.shape[0], source.shape[2]
        gathered = self._pool.take(buffer, num_rows, width + 1)
        index = source.to(buffer.device).expand(-1, buffer.shape[1], -1, buffer.shape[3])
        gathered[:, :, :width] = buffer[:num_rows].gather(2, index)
        self._pool.give(buffer)
        return gathered


def _of_rows(trunks: Trunks, rows: Tensor) -> Trunks:
    """Return what holds for `rows`; on a GPU, where nothing forks, without waiting for their numbers."""
    return trunks.select(rows.tolist()) if rows.device.type == "cpu" else Trunks.apart(len(rows))
