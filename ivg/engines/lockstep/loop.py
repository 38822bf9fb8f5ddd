"""The loop: sample a chunk, score it, keep the best, let waiting prompts in; yields finished prompts.

The batch holds live rows only: a finished hypothesis stays in its search as one candidate and costs no
computation. Long chunks are sampled in pieces, so that rows that end leave before the boundary and waiting
prompts take their place. Per-row host work happens here, once per piece.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.decoding.beam_search import BeamSearch
from ivg.decoding.engine import NumericalError, TextScorer
from ivg.decoding.sequences import Finished, Hypothesis, Task
from ivg.decoding.stopping import Ending, StopChecker
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
        """Keep rows, make each into `repeats` of them, start new_requests."""
        ...

    def clear(self) -> None:
        """Drop all rows."""
        ...


class Watcher(Protocol):
    """Is told at every boundary which hypotheses a search keeps."""

    def __call__(self, task: Task, beams: Sequence[Hypothesis], is_done: bool) -> None:
        """Look at the kept beams, best first; `is_done` where the search has ended."""
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


class Decoder:
    """Runs many searches side by side over one batch of rows.

    Args:
        rows: the models.
        search: guidance and beam search.
        sampling: limits and seed.
        stop_checker: EOS ids and stop strings.
        text_scorer: adds to the value at boundaries.
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
        text_scorer: TextScorer | None = None,
        keep_trace: bool = False,
        watcher: Watcher | None = None,
    ) -> None:
        self._rows = rows
        self._search = search
        self._sampling = sampling
        self._stop_checker = stop_checker
        self._text_scorer = text_scorer
        self._keep_trace = keep_trace
        self._watcher = watcher

    def run(self, tasks: Sequence[Task], max_rows: int, max_tokens: int | None = None) -> Iterator[Finished]:
        """Decode tasks with continuous batching; yields each as it finishes.

        Args:
            tasks: in the order in which they join.
            max_rows: rows in the batch at most.
            max_tokens: rows times columns that they may come to fill, at most; a single prompt may have more.

        Raises:
            NumericalError: NaN or infinite numbers, naming the model and the prompt.
        """
        waiting, running = deque(tasks), list[BeamSearch]()
        keep, repeats = list[int](), list[int]()
        piece = piece_length(self._search.chunk_length, max((task.max_tokens for task in tasks), default=1))
        self._rows.clear()
        while waiting or running:
            joining = self._admit(waiting, running, max_rows, max_tokens or sys.maxsize)
            self._rows.update_batch(keep, repeats, self._new_requests(joining))
            running += joining
            length = min(piece, max(search.task.max_tokens - search.num_tokens for search in running))
            uniforms = np.concatenate([search.uniforms(length) for search in running])
            chunk = self._rows.sample_chunk(torch.from_numpy(uniforms))
            self._grow(running, _HostChunk(*(t.cpu().numpy() for t in chunk)))
            keep, repeats, running, done = self._advance(running)
            yield from done

    def _admit(
        self, waiting: deque[Task], running: Sequence[BeamSearch], max_rows: int, max_tokens: int
    ) -> list[BeamSearch]:
        """Take waiting prompts for which there is room: rows are padded to the longest among them."""
        joining = list[BeamSearch]()
        num_rows = sum(search.max_rows for search in running)
        width = max((search.task.width for search in running), default=0)
        while waiting:
            num_rows += self._search.rows_per_prompt
            width = max(width, waiting[0].width)
            is_first = not running and not joining
            if num_rows > max_rows or (num_rows * width > max_tokens and not is_first):
                break
            joining.append(BeamSearch(waiting.popleft(), self._search, self._sampling.seed))
        return joining

    def _new_requests(self, joining: Sequence[BeamSearch]) -> list[NewRequest]:
        """Samples of one prompt are prefilled once."""
        groups = [(ids, list(group)) for ids, group in groupby(joining, key=lambda s: s.task.prompt_ids)]
        per_prompt = self._search.rows_per_prompt
        return [
            NewRequest(ids, len(group) * per_prompt, max(search.task.max_tokens for search in group))
            for ids, group in groups
        ]

    def _advance(
        self, running: Sequence[BeamSearch]
    ) -> tuple[list[int], list[int], list[BeamSearch], list[Finished]]:
        """Return the rows that live on, how many each becomes, the searches that go on, and what is done."""
        keep, repeats = list[int](), list[int]()
        alive, done = list[BeamSearch](), list[Finished]()
        start = 0
        for search in running:
            num_rows, is_ranked = len(search.rows), search.is_at_boundary
            kept = search.advance(keep_trace=self._keep_trace)
            keep += [start + row for row in kept.rows]
            repeats += [kept.repeats] * len(kept.rows)
            if kept.rows:
                alive.append(search)
            else:
                done.append(Finished(search.task, tuple(search.beams), tuple(search.trace)))
            if is_ranked and self._watcher is not None:
                self._watcher(search.task, search.beams, not kept.rows)
            start += num_rows
        return keep, repeats, alive, done

    def _grow(self, running: Sequence[BeamSearch], chunk: _HostChunk) -> None:
        """Append what was sampled to every row, up to where the row ends; value what reads text."""
        self._check_finite(running, chunk)
        start = 0
        for search in running:
            rows = range(start, start + len(search.rows))
            search.grow(
                [self._grown(search, row, chunk, i) for row, i in zip(search.rows, rows, strict=True)],
                chunk.ids.shape[1],
            )
            start = rows.stop
        if self._text_scorer is not None:
            self._add_text_values([search for search in running if search.is_at_boundary])

    def _grown(self, search: BeamSearch, row: int, chunk: _HostChunk, i: int) -> Hypothesis:
        """Return a row with its part of the chunk, which is row `i` of the batch."""
        parent, ids = search.parent(row), chunk.ids[i]
        ending = self._stop_checker.find(parent.ids, ids, search.task)
        grown = Hypothesis(
            (*parent.ids, *ids[: ending.num_tokens].tolist()),
            float(chunk.values[i, ending.num_tokens - 1]),
            ending.reason,
            self._log_ratios(parent, chunk.log_ratios[i], ending),
        )
        if self._text_scorer is not None and self._text_scorer.must_read(grown):
            return dataclasses.replace(grown, value=0.0)  # valued at the boundary
        return grown

    def _add_text_values(self, ranked: Sequence[BeamSearch]) -> None:
        """Add what is scored at boundaries only, for all prompts at one at once."""
        candidates = [(search.task, hypothesis) for search in ranked for hypothesis in search.candidates()]
        if not candidates:
            return
        assert self._text_scorer is not None
        values = iter(self._text_scorer(*zip(*candidates, strict=True)))
        for search in ranked:
            search.add_values([next(values) for _ in search.candidates()])

    def _log_ratios(self, parent: Hypothesis, ratios: np.ndarray, ending: Ending) -> tuple[float, ...]:
        return (*parent.log_ratios, *ratios[: ending.num_tokens].tolist()) if self._keep_trace else ()

    def _check_finite(self, running: Sequence[BeamSearch], chunk: _HostChunk) -> None:
        if chunk.finite.all():
            return
        owners = [search.task.prompt_id for search in running for _ in search.rows]
        runner, row = np.argwhere(~chunk.finite)[0]
        raise NumericalError(
            f"{self._rows.runner_names[runner]} returned NaN or infinite numbers on prompt {owners[row]}"
        )
