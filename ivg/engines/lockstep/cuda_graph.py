"""Token steps at fixed shapes and addresses, which a GPU replays as one graph: models, guidance and draw.

The rows' own caches stay as they are; at the start of a chunk their content is copied into buffers that never
move, the steps run there without asking the host anything, and the new columns are copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ivg.engines.lockstep.model_runner import BatchState, ModelRunner
from ivg.errors import UserError


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
    """A runner's rows in fixed buffers.

    Args:
        runner: a model whose layers all attend to everything.
        state: gives the shapes.
        num_rows: rows of the buffers, without branches.
        num_columns: columns of the buffers.
    """

    def __init__(self, runner: ModelRunner, state: BatchState, num_rows: int, num_columns: int) -> None:
        self.runner = runner
        rows = num_rows * runner.num_branches
        self.column = torch.zeros(1, dtype=torch.long, device=runner.device)
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
        self.state = BatchState(
            cache=state.cache,
            mask=state.mask,
            lengths=state.lengths.new_zeros(rows),
            last=state.last.new_zeros(rows, state.last.shape[1]),
            finite=state.finite.new_ones(rows),
        )

    def load(self, state: BatchState) -> None:
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
        ids = self.runner.per_branch(ids)
        self.bias.index_fill_(3, self.column, 0)
        positions = self.state.lengths
        if self.runner.max_length is not None:
            positions = positions.clamp(max=self.runner.max_length - 1)
        output = self.runner.forward(self.cache, ids[:, None], self.bias, positions[:, None], num_outputs=1)
        self.state.last.copy_(output[:, -1])
        self.state.finite.logical_and_(self.runner.is_finite(output))
        self.state.lengths.add_(1)
        self.column.add_(1)

    def unload(self, state: BatchState, num_new: int) -> None:
        """Copy the new columns back."""
        rows, width = state.mask.shape
        for fixed, layer in zip(self.cache.layers, state.cache.layers, strict=True):
            new = slice(width, width + num_new)
            layer.update(fixed.keys[:rows, :, new], fixed.values[:rows, :, new])
        state.mask = torch.cat([state.mask, state.mask.new_ones(rows, num_new)], dim=1)
        state.lengths = state.lengths + num_new
        state.last = self.state.last[:rows].clone()
        state.finite = self.state.finite[:rows].clone()
        self.runner.tokens_fed += rows * num_new


COLUMN_STEP = 256  # buffers hold a multiple of this many columns, so that few shapes are captured
ROW_STEP = 8
MAX_SHAPES = 4  # each holds buffers as large as the caches

NextTokens = Callable[[Sequence[BatchState], Tensor], tuple[Tensor, dict[int, Tensor]]]


class StaticSteps:
    """One shape's buffers and the step over them: captured as a graph on a GPU, plain calls elsewhere."""

    def __init__(
        self,
        runners: Sequence[ModelRunner],
        states: Sequence[BatchState],
        next_tokens: NextTokens,
        num_rows: int,
        num_columns: int,
    ) -> None:
        device = runners[0].device
        self._runners = [
            FixedLane(runner, state, num_rows, num_columns)
            for runner, state in zip(runners, states, strict=True)
        ]
        self._next_tokens = next_tokens
        self._ids = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._uniforms = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._scores: dict[int, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(
        self, states: Sequence[BatchState], ids: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Feed tokens and draw the next, as often as there are uniforms.

        Args:
            states: the runners' rows; the fed tokens are appended to them.
            ids: (R,) the first token to feed.
            uniforms: (R, n).

        Returns:
            (R, n) tokens, and per guide that guides tokens its (R, n) scores of them.
        """
        num_rows, num_steps = uniforms.shape
        if self._graph is None and self._ids.device.type == "cuda":
            self._capture(states)
        for runner, state in zip(self._runners, states, strict=True):
            runner.load(state)
        self._ids.zero_()[:num_rows] = ids
        columns, scores = [], []
        for t in range(num_steps):
            self._uniforms[:num_rows] = uniforms[:, t]
            self._step() if self._graph is None else self._graph.replay()
            columns.append(self._ids[:num_rows].clone())
            scores.append({i: score[:num_rows].clone() for i, score in self._scores.items()})
        for runner, state in zip(self._runners, states, strict=True):
            runner.unload(state, num_steps)
        return torch.stack(columns, dim=1), {
            i: torch.stack([score[i] for score in scores], dim=1) for i in self._scores
        }

    def _step(self) -> None:
        for runner in self._runners:
            runner.step(self._ids)
        ids, scores = self._next_tokens([runner.state for runner in self._runners], self._uniforms)
        self._ids.copy_(ids)
        for i, score in scores.items():
            self._scores.setdefault(i, torch.zeros_like(score)).copy_(score)

    def _capture(self, states: Sequence[BatchState]) -> None:
        for runner, state in zip(self._runners, states, strict=True):
            runner.load(state)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()  # kernels and scores are made before the capture
        torch.cuda.current_stream().wait_stream(side)
        for runner, state in zip(self._runners, states, strict=True):
            runner.load(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph


def check_runners(runners: Sequence[ModelRunner]) -> None:
    """Refuse models that fixed shapes cannot serve.

    Raises:
        UserError: a model whose layers do not all attend to everything, or models on several devices.
    """
    for runner in runners:
        if runner.has_windows:
            raise UserError(f"{runner.name}: static_steps needs full attention in every layer; turn it off")
        if runner.device != runners[0].device:
            raise UserError(f"{runner.name}: static_steps needs all models on one device; turn it off")


class StaticRunner:
    """Keeps the buffers of the shapes used last.

    Args:
        runners: the models that are fed at every token.
        next_tokens: draws from their outputs, given in the order of `runners`.

    Raises:
        UserError: models that fixed shapes cannot serve.
    """

    def __init__(self, runners: Sequence[ModelRunner], next_tokens: NextTokens) -> None:
        check_runners(runners)
        self._runners = runners
        self._next_tokens = next_tokens
        self._shapes: dict[tuple[int, int], StaticSteps] = {}

    def clear(self) -> None:
        """Give all buffers back."""
        self._shapes.clear()

    def run(
        self, states: Sequence[BatchState], ids: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Take (R, n) steps, as `StaticSteps.run` does, in buffers of a rounded shape."""
        width = max(state.mask.shape[1] for state in states) + uniforms.shape[1]
        shape = (-(-len(ids) // ROW_STEP) * ROW_STEP, -(-width // COLUMN_STEP) * COLUMN_STEP)
        if shape not in self._shapes:
            while len(self._shapes) >= MAX_SHAPES:
                del self._shapes[next(iter(self._shapes))]
            self._shapes[shape] = StaticSteps(self._runners, states, self._next_tokens, *shape)
        return self._shapes[shape].run(states, ids, uniforms)
