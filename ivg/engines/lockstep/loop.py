"""The loop: sample a chunk, score it, keep the best, let waiting prompts in.

The batch holds live rows only: a finished hypothesis stays in its search as one candidate and costs no
computation. Long chunks are sampled in pieces, so that rows that end leave before the boundary and waiting
prompts take their place (continuous batching). Per-row host work happens here, once per piece.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.beam_search import BeamSearch, Extension, Survivors
from ivg.decoding.engine import NumericalError, PrefixScorer, Watcher
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.decoding.stopping import StopChecker
from ivg.engines.lockstep.batch import Chunk, NewRequest

# Tokens per piece: a row that ends wastes half a piece on average, and letting it go reorders the caches.
MIN_PIECE, MAX_PIECE = 5, 10


class Rows(Protocol):
    """What the loop asks of the models (`Lockstep`, or anything else that samples and scores rows)."""

    @property
    def runner_names(self) -> Sequence[str]:
        """How messages call the models, in the order of `Chunk.finite`."""
        ...

    def sample_chunk(self, uniforms: torch.Tensor) -> Chunk:
        """Sample (R, L) tokens and score every prefix."""
        ...

    def update_batch(
        self, keep: Sequence[int], repeats: Sequence[int], new_requests: Sequence[NewRequest]
    ) -> None:
        """Keep rows, make each into `repeats` of them, start new requests."""
        ...

    def clear(self) -> None:
        """Drop all rows."""
        ...


def piece_length(chunk_length: int, max_tokens: int) -> int:
    """Return how many tokens to sample before rows that ended are let go.

    All pieces of a chunk are equally long, so that prompts that joined at different times reach the ends of
    their pieces together.

    Args:
        chunk_length: L.
        max_tokens: the longest response's limit; a chunk this long is the only one, and may be cut anywhere.
    """
    if chunk_length >= max_tokens:
        return min(max_tokens, MAX_PIECE)
    lengths = range(MAX_PIECE, MIN_PIECE - 1, -1)
    return next((length for length in lengths if chunk_length % length == 0), chunk_length)


class _HostChunk(NamedTuple):
    ids: np.ndarray  # (R, L)
    values: np.ndarray  # (R, L)
    finite: np.ndarray  # (models, R)
    log_ratios: np.ndarray  # (R, L)


class Loop:
    """Runs many searches side by side over one batch of rows; tasks may join and leave at any step.

    Args:
        rows: the models.
        search: guidance and beam search.
        sampling: limits and seed.
        stop_checker: EOS ids and stop strings.
        max_rows: rows in the batch at most.
        max_tokens: rows times columns that they may come to fill, at most; a single prompt may have more.
            None: unbounded.
        scorer: adds to the value at boundaries.
        is_valued_outside: tells hypotheses that the batch cannot value; theirs is what the scorer says.
        keep_trace: record every boundary.
        watcher: is told at every boundary what is kept.
    """

    def __init__(
        self,
        rows: Rows,
        search: SearchConfig,
        sampling: SamplingConfig,
        stop_checker: StopChecker,
        *,
        max_rows: int,
        max_tokens: int | None = None,
        scorer: PrefixScorer | None = None,
        is_valued_outside: Callable[[Hypothesis], bool] | None = None,
        keep_trace: bool = False,
        watcher: Watcher | None = None,
    ) -> None:
        self.max_rows = max_rows
        self._max_tokens = max_tokens or sys.maxsize
        self._rows = rows
        self._search = search
        self._seed = sampling.seed
        self._piece = piece_length(search.chunk_length, sampling.max_new_tokens)
        self._stop_checker = stop_checker
        self._scorer = scorer
        self._is_valued_outside = is_valued_outside
        self._keep_trace = keep_trace
        self.watcher = watcher
        self.clear()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._waiting and not self._running

    def clear(self) -> None:
        """Forget all tasks and their rows."""
        self._waiting = deque[Task]()
        self._running = list[BeamSearch]()
        self._survivors = list[Survivors]()  # of each running search: places are rows of the batch
        self._rows.clear()

    def run(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        """Decode tasks, which join in their order; yields each as it finishes.

        Raises:
            NumericalError: NaN or infinite numbers, naming the model and the prompt.
        """
        self.clear()
        self.add(tasks)
        while not self.is_idle:
            yield from self.step()

    def add(self, tasks: Sequence[Task]) -> None:
        """Let tasks wait for their turn."""
        self._waiting.extend(tasks)

    def drop(self, index: int) -> None:
        """Forget the task of an index; its rows leave at the next step."""
        self._waiting = deque(task for task in self._waiting if task.index != index)
        live = [
            pair for pair in zip(self._running, self._survivors, strict=True) if pair[0].task.index != index
        ]
        self._running = [search for search, _ in live]
        self._survivors = [survivors for _, survivors in live]

    def step(self) -> list[Finished]:
        """Let waiting prompts in, sample one piece of every row's chunk, keep what survives.

        Returns:
            The tasks that have finished.
        """
        joining = self._admit()
        self._update_batch(joining)
        self._running += joining
        length = min(self._piece, max(s.task.max_tokens - s.num_tokens for s in self._running))
        uniforms = np.concatenate([search.uniforms(length) for search in self._running])
        chunk = self._rows.sample_chunk(torch.from_numpy(uniforms))
        self._take(_HostChunk(*(t.cpu().numpy() for t in chunk)))
        return self._advance()

    def _admit(self) -> list[BeamSearch]:
        """Take waiting prompts for which there is room: rows are padded to the longest among them."""
        joining = list[BeamSearch]()
        num_rows = sum(search.max_rows for search in self._running)
        width = max((search.task.width for search in self._running), default=0)
        while self._waiting:
            num_rows += self._search.rows_per_prompt
            width = max(width, self._waiting[0].width)
            is_first = not self._running and not joining
            if num_rows > self.max_rows or (num_rows * width > self._max_tokens and not is_first):
                break
            task = self._waiting.popleft()
            seed = self._seed if task.seed is None else task.seed
            joining.append(BeamSearch(task, self._search, seed, keep_trace=self._keep_trace))
        return joining

    def _update_batch(self, joining: Sequence[BeamSearch]) -> None:
        """Keep the rows that survived, and start the prompts that join."""
        keep = [row for survivors in self._survivors for row in survivors.places]
        repeats = [survivors.repeats for survivors in self._survivors for _ in survivors.places]
        # Samples of one prompt are prefilled once.
        groups = [(ids, list(group)) for ids, group in groupby(joining, key=lambda s: s.task.prompt_ids)]
        new_requests = [NewRequest(ids, len(group) * self._search.rows_per_prompt) for ids, group in groups]
        self._rows.update_batch(keep, repeats, new_requests)

    def _take(self, chunk: _HostChunk) -> None:
        """Append what was sampled to every row, up to where the row ends; ask scorers from outside."""
        self._check_finite(chunk)
        row = 0
        for search in self._running:
            extensions = search.extensions()
            search.take([self._grow(search.task, e, chunk, row + i) for i, e in enumerate(extensions)])
            row += len(extensions)
        if self._scorer is not None:
            self._add_values(self._scorer, [search for search in self._running if search.is_at_boundary])

    def _grow(self, task: Task, extension: Extension, chunk: _HostChunk, row: int) -> Hypothesis:
        """Return a prefix with its part of the chunk, which is in `row` of the batch."""
        prefix, ids = extension.prefix, chunk.ids[row]
        ending = self._stop_checker.find(prefix.ids, ids, task)
        ratios = chunk.log_ratios[row, : ending.num_tokens].tolist() if self._keep_trace else ()
        grown = Hypothesis(
            (*prefix.ids, *ids[: ending.num_tokens].tolist()),
            float(chunk.values[row, ending.num_tokens - 1]),
            ending.reason,
            (*prefix.log_ratios, *ratios),
        )
        if self._is_valued_outside is not None and self._is_valued_outside(grown):
            return dataclasses.replace(grown, value=0.0)
        return grown

    def _add_values(self, scorer: PrefixScorer, ranked: Sequence[BeamSearch]) -> None:
        """Add a scorer's values to the candidates of all prompts at a boundary at once."""
        candidates = [(search.task, hypothesis) for search in ranked for hypothesis in search.candidates()]
        if not candidates:
            return
        values = iter(scorer(*zip(*candidates, strict=True)))
        for search in ranked:
            search.add_values([next(values) for _ in search.candidates()])

    def _advance(self) -> list[Finished]:
        """Let what survives go on; return what is done."""
        alive, survivors, done = list[BeamSearch](), list[Survivors](), list[Finished]()
        first_row = 0
        for search in self._running:
            num_rows, is_ranked = search.num_rows, search.is_at_boundary
            places, repeats = search.advance()
            if search.is_done:
                done.append(search.finished())
            else:
                alive.append(search)
                survivors.append(Survivors([first_row + place for place in places], repeats))
            if is_ranked and self.watcher is not None:
                self.watcher(search.task, search.beams, search.is_done)
            first_row += num_rows
        self._running, self._survivors = alive, survivors
        return done

    def _check_finite(self, chunk: _HostChunk) -> None:
        if chunk.finite.all():
            return
        owners = [search.task.prompt_id for search in self._running for _ in range(search.num_rows)]
        runner, row = np.argwhere(~chunk.finite)[0]
        raise NumericalError(
            f"{self._rows.runner_names[runner]} returned NaN or infinite numbers on prompt {owners[row]}"
        )
