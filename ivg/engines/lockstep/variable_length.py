"""Rows that grow by different numbers of tokens, or lose some: for guides with a vocabulary of their own.

Tokens are fed padded on the right; the padding is dropped at once, so that a row's tokens stay next to each
other and end at the common column (sliding windows are masked by column).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ivg.engines.lockstep.model_runner import BatchState, ModelRunner


class Piece(NamedTuple):
    """Outputs (R, n, ·) at the fed columns from `start` on; past a row's own count they are noise."""

    start: int
    output: Tensor


def feed_variable_length(
    runner: ModelRunner, state: BatchState, ids: Tensor, counts: Tensor, *, columns: int | None = None
) -> Iterator[Piece]:
    """Append each row's own number of tokens.

    Args:
        runner: the model.
        state: advanced in place, once the iterator is exhausted.
        ids: (R, n) token ids, padded on the right with any valid id.
        counts: (R,) how many of them are real; 0 is allowed.
        columns: how many to feed at once; default all.

    Yields:
        Outputs, a piece of columns at a time.
    """
    num_new = ids.shape[1]
    offsets = torch.arange(num_new, device=ids.device)
    is_real = offsets < counts[:, None]  # (R, n)
    # Padding takes the position of the row's last token: it must only be a position that exists.
    positions = torch.minimum(state.lengths[:, None] + offsets, (state.lengths + counts - 1)[:, None])
    last = state.last
    for start in range(0, num_new, columns or num_new):
        end = min(start + (columns or num_new), num_new)
        state.mask = torch.cat([state.mask, is_real[:, start:end]], dim=1)
        output = runner.forward(
            state.cache, ids[:, start:end], state.mask, positions[:, start:end], end - start
        )
        state.finite = state.finite & runner.is_finite(output, is_real[:, start:end])
        ends_here = (counts > start) & (counts <= end)
        at_end = output[
            torch.arange(len(ids), device=ids.device), (counts - 1 - start).clamp(0, end - start - 1)
        ]
        last = torch.where(ends_here[:, None], at_end, last)
        yield Piece(start, output)
    state.last = last
    state.lengths = state.lengths + num_new
    runner.tokens_fed += int(counts.sum())
    drop_last(state, num_new - counts)


def drop_last(state: BatchState, counts: Tensor) -> None:
    """Forget each row's last `counts` (R,) tokens; `state.last` is stale for rows that lose real ones."""
    lengths = state.lengths - counts
    width = int(lengths.max())
    state.cache.drop_last(counts, width)
    state.lengths = lengths
    state.mask = torch.arange(width, device=lengths.device) >= width - lengths[:, None]
