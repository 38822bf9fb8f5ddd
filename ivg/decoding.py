"""The loop: sample a chunk, score it, keep the best, let waiting prompts in; yields finished prompts.

The batch holds rows of live beams only: a finished hypothesis stays in its search as one candidate and costs
no computation. Per-row host work happens here, once per chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ivg.config import SamplingConfig, SearchConfig
from ivg.hypotheses import Ending, Endings, Finished, Hypothesis, Task
from ivg.lockstep.rows import Chunk, Newcomer
from ivg.prompt_search import PromptSearch


class NumericalError(RuntimeError):
    """A model returned NaN or infinite numbers."""


class Rows(Protocol):
    """What the loop asks of the models (`Lockstep`, or anything else that samples and scores rows)."""

    @property
    def lane_names(self) -> Sequence[str]:
        """How messages call the models, in the order of `Chunk.finite`."""
        ...

    def sample_chunk(self, uniforms: torch.Tensor) -> Chunk:
        """Sample (R, L) tokens and score every prefix."""
        ...

    def keep_and_join(self, keep: Sequence[int], repeats: int, newcomers: Sequence[Newcomer]) -> None:
        """Keep rows, repeat each, start newcomers."""
        ...

    def clear(self) -> None:
        """Drop all rows."""
        ...


class TextScorer(Protocol):
    """Scores prefixes that a guide must read as text; asked at boundaries only."""

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Sequence[int]]) -> Sequence[float]:
        """Return the weighted score of each prefix, given in the base's ids."""
        ...


class Watcher(Protocol):
    """Is told at every boundary which hypotheses a search keeps."""

    def __call__(self, task: Task, beams: Sequence[Hypothesis], is_done: bool) -> None:
        """Look at the kept beams, best first; `is_done` where the search has ended."""
        ...


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
        endings: EOS ids and stop strings.
        text_scorer: adds to the value at boundaries.
        keep_trace: record every boundary.
        watcher: is told at every boundary what is kept.
    """

    def __init__(
        self,
        rows: Rows,
        search: SearchConfig,
        sampling: SamplingConfig,
        endings: Endings,
        *,
        text_scorer: TextScorer | None = None,
        keep_trace: bool = False,
        watcher: Watcher | None = None,
    ) -> None:
        self._rows = rows
        self._search = search
        self._sampling = sampling
        self._endings = endings
        self._text_scorer = text_scorer
        self._keep_trace = keep_trace
        self._watcher = watcher

    def run(self, tasks: Sequence[Task], max_rows: int) -> Iterator[Finished]:
        """Decode tasks with continuous batching; yields each as it finishes.

        Args:
            tasks: in the order in which they join.
            max_rows: rows in the batch at most.

        Raises:
            NumericalError: NaN or infinite numbers, naming the model and the prompt.
        """
        waiting, running, keep = deque(tasks), list[PromptSearch](), list[int]()
        self._rows.clear()
        while waiting or running:
            num_rows = len(keep) * self._search.num_successors
            joining = self._admit(waiting, max_rows - num_rows)
            self._rows.keep_and_join(keep, self._search.num_successors, self._newcomers(joining))
            running += joining
            length = min(self._search.chunk_length, max(s.task.max_tokens - s.num_tokens for s in running))
            uniforms = np.concatenate([search.uniforms(length) for search in running])
            chunk = self._rows.sample_chunk(torch.from_numpy(uniforms))
            keep, running, done = self._boundary(running, _HostChunk(*(t.cpu().numpy() for t in chunk)))
            yield from done

    def _admit(self, waiting: deque[Task], room: int) -> list[PromptSearch]:
        per_prompt = self._search.rows_per_prompt
        count = min(len(waiting), room // per_prompt)
        return [PromptSearch(waiting.popleft(), self._search, self._sampling.seed) for _ in range(count)]

    def _newcomers(self, joining: Sequence[PromptSearch]) -> list[Newcomer]:
        """Samples of one prompt are prefilled once."""
        groups = [(ids, list(group)) for ids, group in groupby(joining, key=lambda s: s.task.lane_ids)]
        return [Newcomer(ids, len(group) * self._search.rows_per_prompt) for ids, group in groups]

    def _boundary(
        self, running: list[PromptSearch], chunk: _HostChunk
    ) -> tuple[list[int], list[PromptSearch], list[Finished]]:
        self._check_finite(running, chunk)
        grown = self._grow(running, chunk)
        keep: list[int] = []
        alive: list[PromptSearch] = []
        done: list[Finished] = []
        start = 0
        for search in running:
            end = start + len(search.rows)
            kept = search.advance(grown[start:end], keep_trace=self._keep_trace)
            if kept:
                keep += [start + i for i in kept]
                alive.append(search)
            else:
                done.append(Finished(search.task, tuple(search.beams), tuple(search.trace)))
            if self._watcher is not None:
                self._watcher(search.task, search.beams, not kept)
            start = end
        return keep, alive, done

    def _grow(self, running: Sequence[PromptSearch], chunk: _HostChunk) -> list[Hypothesis]:
        """Append the chunk to every row, up to where the row ends."""
        owners = [(search, search.parent(row)) for search in running for row in search.rows]
        endings = [
            self._endings.find(parent.ids, ids, search.task)
            for (search, parent), ids in zip(owners, chunk.ids, strict=True)
        ]
        prefixes = [
            (*parent.ids, *ids[: ending.num_tokens].tolist())
            for (_, parent), ids, ending in zip(owners, chunk.ids, endings, strict=True)
        ]
        values = [
            float(row[ending.num_tokens - 1]) for row, ending in zip(chunk.values, endings, strict=True)
        ]
        if self._text_scorer is not None:
            added = self._text_scorer([search.task for search, _ in owners], prefixes)
            values = [value + more for value, more in zip(values, added, strict=True)]
        return [
            Hypothesis(ids, value, ending.reason, self._log_ratios(parent, ratios, ending))
            for (_, parent), ids, value, ending, ratios in zip(
                owners, prefixes, values, endings, chunk.log_ratios, strict=True
            )
        ]

    def _log_ratios(self, parent: Hypothesis, ratios: np.ndarray, ending: Ending) -> tuple[float, ...]:
        return (*parent.log_ratios, *ratios[: ending.num_tokens].tolist()) if self._keep_trace else ()

    def _check_finite(self, running: Sequence[PromptSearch], chunk: _HostChunk) -> None:
        if chunk.finite.all():
            return
        owners = [search.task.prompt_id for search in running for _ in search.rows]
        lane, row = np.argwhere(~chunk.finite)[0]
        raise NumericalError(
            f"{self._rows.lane_names[lane]} returned NaN or infinite numbers on prompt {owners[row]}"
        )
