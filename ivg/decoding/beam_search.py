"""One prompt's search: its beams, the rows it owns in the batch, and what survives a chunk boundary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ivg.config import SearchConfig
from ivg.decoding.draws import Draws
from ivg.decoding.sequences import Boundary, Hypothesis, Task


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One hypothesis at a boundary.

    Attributes:
        row: its row within the prompt; beam w's successors are rows w*K ... w*K+K-1, and a hypothesis
            finished earlier stands once, in row w*K.
        value: its score v(x, y<=t).
        is_finished: it ended by EOS, stop string or length, now or earlier.
        was_finished: it had already ended at an earlier boundary; its value is frozen.
    """

    row: int
    value: float
    is_finished: bool
    was_finished: bool = False


def keep_best(candidates: Sequence[Candidate], num_beams: int) -> list[Candidate]:
    """Return the W best candidates, ordered by (value descending, row ascending).

    Raises:
        ValueError: no candidates, or a value that is not a number.
    """
    if not candidates:
        raise ValueError("no candidates to rank")
    if any(math.isnan(c.value) for c in candidates):
        raise ValueError("a candidate's value is NaN")
    return sorted(candidates, key=lambda c: (-c.value, c.row))[:num_beams]


def is_done(kept: Sequence[Candidate], num_beams: int, *, early_stopping: bool) -> bool:
    """Tell whether a prompt's search ends at this boundary.

    With `early_stopping` it ends once a hypothesis that was already finished at an earlier boundary is best
    again; with one beam, as soon as the best is finished. Without, once all kept beams are finished.

    Args:
        kept: what `keep_best` returned.
        num_beams: W.
    """
    if early_stopping:
        best = kept[0]
        return best.was_finished or (best.is_finished and num_beams == 1) or _all_finished(kept)
    return _all_finished(kept)


def _all_finished(kept: Sequence[Candidate]) -> bool:
    return all(c.is_finished for c in kept)


class Kept(NamedTuple):
    """What lives on of a prompt.

    Attributes:
        rows: which of its rows in the batch, in their new order; empty once the search is done.
        repeats: how many rows each of them becomes.
    """

    rows: list[int]
    repeats: int


class BeamSearch:
    """One task's beams and the rows it owns in the batch.

    A chunk may come in several pieces: rows that end in one of them leave the batch at once, and all are
    ranked when the chunk is whole.
    """

    def __init__(self, task: Task, search: SearchConfig, seed: int) -> None:
        self.task = task
        self.beams: list[Hypothesis] = []
        self.rows = list(range(search.rows_per_prompt))  # rows within the prompt, one per row of the batch
        self.trace: list[Boundary] = []
        self._search = search
        self._draws = Draws(seed, task.prompt_id, search.rows_per_prompt, first_row=task.sample)
        self._grown: dict[int, Hypothesis] = {}  # per row, what this chunk has made of it so far
        self._num_steps = 0  # of this chunk

    @property
    def num_tokens(self) -> int:
        """Length of the live rows so far."""
        return max((len(beam.ids) for beam in (*self.beams, *self._grown.values())), default=0)

    @property
    def max_rows(self) -> int:
        """How many rows it may own from now on: in its last chunk no more than now."""
        begun = self.num_tokens - self._num_steps
        is_last_chunk = begun + self._search.chunk_length >= self.task.max_tokens
        return len(self.rows) if is_last_chunk else self._search.rows_per_prompt

    @property
    def is_at_boundary(self) -> bool:
        """Whether the chunk is whole: it has its length, or every row has ended."""
        return self._num_steps >= self._search.chunk_length or all(
            hypothesis.finish_reason is not None for hypothesis in self._grown.values()
        )

    def uniforms(self, length: int) -> np.ndarray:
        """Return the next (rows, length) uniforms; every row's stream moves on, live or not."""
        return self._draws.next(length)[self.rows]

    def parent(self, row: int) -> Hypothesis:
        """Return what a row continues."""
        if row in self._grown:
            return self._grown[row]
        return self.beams[row // self._search.num_successors] if self.beams else Hypothesis()

    def grow(self, grown: Sequence[Hypothesis], num_steps: int) -> None:
        """Take in what a piece of a chunk has made of the rows: one hypothesis per row, in their order."""
        self._grown.update(zip(self.rows, grown, strict=True))
        self._num_steps += num_steps

    def candidates(self) -> list[Hypothesis]:
        """Return this chunk's hypotheses, to be valued at its boundary."""
        return list(self._grown.values())

    def add_values(self, values: Sequence[float]) -> None:
        """Add to the values of `candidates()`."""
        for (row, hypothesis), value in zip(list(self._grown.items()), values, strict=True):
            self._grown[row] = dataclasses.replace(hypothesis, value=hypothesis.value + value)

    def advance(self, *, keep_trace: bool) -> Kept:
        """Go on with the rows that have not ended or, at a boundary, with the best.

        Args:
            keep_trace: record the boundary.
        """
        place = {row: i for i, row in enumerate(self.rows)}
        if not self.is_at_boundary:
            self.rows = [row for row in self.rows if self._grown[row].finish_reason is None]
            return Kept([place[row] for row in self.rows], repeats=1)
        kept = self._rank(keep_trace=keep_trace)
        self._grown, self._num_steps = {}, 0
        successors = self._search.num_successors
        if is_done(kept, self._search.num_beams, early_stopping=self._search.early_stopping):
            return Kept([], successors)
        alive = [(w, place[c.row]) for w, c in enumerate(kept) if not c.is_finished]
        self.rows = [w * successors + k for w, _ in alive for k in range(successors)]
        return Kept([i for _, i in alive], successors)

    def _rank(self, *, keep_trace: bool) -> list[Candidate]:
        """Rank the grown rows with the beams finished earlier, and make the best the beams."""
        width, successors = self._search.num_beams, self._search.num_successors
        finished = {
            w * successors: beam for w, beam in enumerate(self.beams) if beam.finish_reason is not None
        }
        by_row = {**finished, **self._grown}
        candidates = [
            Candidate(row, hypothesis.value, hypothesis.finish_reason is not None, row in finished)
            for row, hypothesis in sorted(by_row.items())
        ]
        kept = keep_best(candidates, width)
        self.beams = [by_row[candidate.row] for candidate in kept]
        if keep_trace:
            rows = tuple(candidate.row for candidate in candidates)
            self.trace.append(Boundary(tuple(by_row[r] for r in rows), rows, tuple(c.row for c in kept)))
        return kept
