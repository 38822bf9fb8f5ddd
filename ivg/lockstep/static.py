"""Token steps at fixed shapes and addresses, which a GPU replays as one graph: models, guidance and draw.

The rows' own caches stay as they are; at the start of a chunk their content is copied into buffers that never
move, the steps run there without asking the host anything, and the new columns are copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ivg.errors import UserError
from ivg.lockstep.fixed import FixedLane
from ivg.lockstep.lane import Lane, RowState

COLUMN_STEP = 256  # buffers hold a multiple of this many columns, so that few shapes are captured
ROW_STEP = 8
MAX_SHAPES = 4  # each holds buffers as large as the caches

NextTokens = Callable[[Sequence[RowState], Tensor], tuple[Tensor, dict[int, Tensor]]]


class StaticSteps:
    """One shape's buffers and the step over them: captured as a graph on a GPU, plain calls elsewhere."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        states: Sequence[RowState],
        next_tokens: NextTokens,
        num_rows: int,
        num_columns: int,
    ) -> None:
        device = lanes[0].device
        self._lanes = [
            FixedLane(lane, state, num_rows, num_columns) for lane, state in zip(lanes, states, strict=True)
        ]
        self._next_tokens = next_tokens
        self._ids = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._uniforms = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._scores: dict[int, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(
        self, states: Sequence[RowState], ids: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Feed tokens and draw the next, as often as there are uniforms.

        Args:
            states: the lanes' rows; the fed tokens are appended to them.
            ids: (R,) the first token to feed.
            uniforms: (R, n).

        Returns:
            (R, n) tokens, and per guide that guides tokens its (R, n) scores of them.
        """
        num_rows, num_steps = uniforms.shape
        if self._graph is None and self._ids.device.type == "cuda":
            self._capture(states)
        for lane, state in zip(self._lanes, states, strict=True):
            lane.load(state)
        self._ids.zero_()[:num_rows] = ids
        columns, scores = [], []
        for t in range(num_steps):
            self._uniforms[:num_rows] = uniforms[:, t]
            self._step() if self._graph is None else self._graph.replay()
            columns.append(self._ids[:num_rows].clone())
            scores.append({i: score[:num_rows].clone() for i, score in self._scores.items()})
        for lane, state in zip(self._lanes, states, strict=True):
            lane.unload(state, num_steps)
        return torch.stack(columns, dim=1), {
            i: torch.stack([score[i] for score in scores], dim=1) for i in self._scores
        }

    def _step(self) -> None:
        for lane in self._lanes:
            lane.step(self._ids)
        ids, scores = self._next_tokens([lane.state for lane in self._lanes], self._uniforms)
        self._ids.copy_(ids)
        for i, score in scores.items():
            self._scores.setdefault(i, torch.zeros_like(score)).copy_(score)

    def _capture(self, states: Sequence[RowState]) -> None:
        for lane, state in zip(self._lanes, states, strict=True):
            lane.load(state)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()  # kernels and scores are made before the capture
        torch.cuda.current_stream().wait_stream(side)
        for lane, state in zip(self._lanes, states, strict=True):
            lane.load(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph


def check_lanes(lanes: Sequence[Lane]) -> None:
    """Refuse models that fixed shapes cannot serve.

    Raises:
        UserError: a model whose layers do not all attend to everything, or models on several devices.
    """
    for lane in lanes:
        if lane.has_windows:
            raise UserError(f"{lane.name}: static_steps needs full attention in every layer; turn it off")
        if lane.device != lanes[0].device:
            raise UserError(f"{lane.name}: static_steps needs all models on one device; turn it off")


class StaticRunner:
    """Keeps the buffers of the shapes used last.

    Args:
        lanes: the models that are fed at every token.
        next_tokens: draws from their outputs, given in the order of `lanes`.

    Raises:
        UserError: models that fixed shapes cannot serve.
    """

    def __init__(self, lanes: Sequence[Lane], next_tokens: NextTokens) -> None:
        check_lanes(lanes)
        self._lanes = lanes
        self._next_tokens = next_tokens
        self._shapes: dict[tuple[int, int], StaticSteps] = {}

    def clear(self) -> None:
        """Give all buffers back."""
        self._shapes.clear()

    def run(
        self, states: Sequence[RowState], ids: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Take (R, n) steps, as `StaticSteps.run` does, in buffers of a rounded shape."""
        width = max(state.mask.shape[1] for state in states) + uniforms.shape[1]
        shape = (-(-len(ids) // ROW_STEP) * ROW_STEP, -(-width // COLUMN_STEP) * COLUMN_STEP)
        if shape not in self._shapes:
            while len(self._shapes) >= MAX_SHAPES:
                del self._shapes[next(iter(self._shapes))]
            self._shapes[shape] = StaticSteps(self._lanes, states, self._next_tokens, *shape)
        return self._shapes[shape].run(states, ids, uniforms)
