"""A lane's rows in buffers of fixed shape and address."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ivg.lockstep.lane import Lane, RowState


class FixedLayer(CacheLayerMixin):
    """One layer's keys and values in buffers that are written at a column held on the device."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.column = keys, values, column
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers are given."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, 1, head size) states at the column; return the whole buffers."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (all columns, offset 0); what may be attended to is in the mask."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Return all columns."""
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        """Return all columns."""
        return self.keys.shape[2]


class FixedLane:
    """A lane's rows in fixed buffers.

    Args:
        lane: a model whose layers all attend to everything.
        state: gives the shapes.
        num_rows: rows of the buffers, without branches.
        num_columns: columns of the buffers.
    """

    def __init__(self, lane: Lane, state: RowState, num_rows: int, num_columns: int) -> None:
        self.lane = lane
        rows = num_rows * lane.num_branches
        self.column = torch.zeros(1, dtype=torch.long, device=lane.device)
        self.cache = Cache(
            layers=[
                FixedLayer(
                    layer.keys.new_zeros(rows, layer.keys.shape[1], num_columns, layer.keys.shape[3]),
                    layer.values.new_zeros(rows, layer.values.shape[1], num_columns, layer.values.shape[3]),
                    self.column,
                )
                for layer in state.cache.layers
            ]
        )
        dtype = state.cache.layers[0].keys.dtype
        self._hidden = torch.finfo(dtype).min
        self.bias = state.cache.layers[0].keys.new_full((rows, 1, 1, num_columns), self._hidden)
        self.state = RowState(
            cache=state.cache,
            mask=state.mask,
            lengths=state.lengths.new_zeros(rows),
            last=state.last.new_zeros(rows, state.last.shape[1]),
            finite=state.finite.new_ones(rows),
        )

    def load(self, state: RowState) -> None:
        """Copy rows in."""
        rows, width = state.mask.shape
        for fixed, layer in zip(self.cache.layers, state.cache.layers, strict=True):
            fixed.keys[:rows, :, :width] = layer.keys[:rows, :, :width]
            fixed.values[:rows, :, :width] = layer.values[:rows, :, :width]
        self.bias.fill_(self._hidden)
        self.bias[:rows, 0, 0, :width].masked_fill_(state.mask, 0)
        self.column.fill_(width)
        self.state.lengths.zero_()[:rows] = state.lengths
        self.state.finite.fill_(True)[:rows] = state.finite

    def step(self, ids: Tensor) -> None:
        """Feed one token to every row (R,), in place."""
        ids = self.lane.per_branch(ids)
        self.bias.index_fill_(3, self.column, 0)
        positions = self.state.lengths
        if self.lane.max_length is not None:
            positions = positions.clamp(max=self.lane.max_length - 1)
        output = self.lane.forward(self.cache, ids[:, None], self.bias, positions[:, None], num_outputs=1)
        self.state.last.copy_(output[:, -1])
        self.state.finite.logical_and_(self.lane.is_finite(output))
        self.state.lengths.add_(1)
        self.column.add_(1)

    def unload(self, state: RowState, num_new: int) -> None:
        """Copy the new columns back."""
        rows, width = state.mask.shape
        for fixed, layer in zip(self.cache.layers, state.cache.layers, strict=True):
            new = slice(width, width + num_new)
            layer.update(fixed.keys[:rows, :, new], fixed.values[:rows, :, new])
        state.mask = torch.cat([state.mask, state.mask.new_ones(rows, num_new)], dim=1)
        state.lengths = state.lengths + num_new
        state.last = self.state.last[:rows].clone()
        state.finite = self.state.finite[:rows].clone()
        self.lane.tokens_fed += rows * num_new
