"""Chunk-level beam search: which prefixes to extend, and which candidates survive a chunk boundary.

Every L tokens the W best of all candidates are kept, each continued by K successors. One beam with a chunk
as long as the response is best-of-N; W = K = 1 is plain sampling. Nothing here knows models or requests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ivg.config import SearchConfig
from ivg.decoding.draws import Draws
from ivg.decoding.sequences import Boundary, Finished, Hypothesis, Task


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


class Extension(NamedTuple):
    """A prefix to continue.

    Attributes:
        row: the row within the prompt, which decides the draws.
        prefix: what is continued.
        max_tokens: up to the chunk's end or the response's limit, whichever comes first.
    """

    row: int
    prefix: Hypothesis
    max_tokens: int


class Survivors(NamedTuple):
    """What lives on of the extensions that were taken back.

    Attributes:
        places: which of them go on, in their new order, by their place in `extensions`; empty once the search
            is done.
        repeats: how many extensions each of them becomes.
    """

    places: list[int]
    repeats: int


class BeamSearch:
    """The search of one task, as a state machine that knows no models.

    An engine asks `extensions()` what to continue, continues each by up to `max_tokens` tokens, hands back
    what became of them with `take`, and asks `advance()` which of them survive; over again until `is_done`.
    It may hand a chunk back in several pieces: rows that end in one of them leave at once, and all are
    ranked when the chunk is whole (`is_at_boundary`). Before, `add_values` takes scores from outside.

    Args:
        task: what to decode.
        search: W, K, L and when to stop.
        seed: of the draws.
        keep_trace: record every boundary.
    """

    def __init__(self, task: Task, search: SearchConfig, seed: int, *, keep_trace: bool = False) -> None:
        self.task = task
        self.beams: list[Hypothesis] = []  # kept at the last boundary, best first
        self.trace: list[Boundary] = []
        self.is_done = False
        self._search = search
        self._keep_trace = keep_trace
        self._rows = list(range(search.rows_per_prompt))  # rows within the prompt that are live
        self._draws = Draws(seed, task.prompt_id, search.rows_per_prompt, first_row=task.sample)
        self._grown: dict[int, Hypothesis] = {}  # per row, what this chunk has made of it so far
        self._num_steps = 0  # of this chunk

    @property
    def num_rows(self) -> int:
        """How many prefixes are being extended."""
        return len(self._rows)

    @property
    def num_tokens(self) -> int:
        """Length of the live rows so far."""
        return max((len(beam.ids) for beam in (*self.beams, *self._grown.values())), default=0)

    @property
    def max_rows(self) -> int:
        """How many rows it may own from now on: in its last chunk no more than now."""
        begun = self.num_tokens - self._num_steps
        is_last_chunk = begun + self._search.chunk_length >= self.task.max_tokens
        return len(self._rows) if is_last_chunk else self._search.rows_per_prompt

    @property
    def is_at_boundary(self) -> bool:
        """Whether the chunk is whole: it has its length, or every row has ended."""
        return self._num_steps >= self._search.chunk_length or all(
            hypothesis.finish_reason is not None for hypothesis in self._grown.values()
        )

    def extensions(self) -> list[Extension]:
        """Return what to continue, in the order of the rows."""
        left = self._search.chunk_length - self._num_steps
        prefixes = [self._prefix(row) for row in self._rows]
        return [
            Extension(row, prefix, min(left, self.task.max_tokens - len(prefix.ids)))
            for row, prefix in zip(self._rows, prefixes, strict=True)
        ]

    def uniforms(self, length: int) -> np.ndarray:
        """Return the next (extensions, length) uniforms; every row's stream moves on, live or not."""
        return self._draws.next(length)[self._rows]

    def take(self, candidates: Sequence[Hypothesis]) -> None:
        """Take back what became of the extensions.

        Args:
            candidates: one for each, in their order: all its tokens, the value of the whole prefix, and why
                it ended, if it did. Those that have not ended have grown by the same number of tokens.
        """
        grown_by = [
            len(candidate.ids) - len(self._prefix(row).ids)
            for row, candidate in zip(self._rows, candidates, strict=True)
        ]
        self._grown.update(zip(self._rows, candidates, strict=True))
        self._num_steps += max(grown_by)

    def candidates(self) -> list[Hypothesis]:
        """Return this chunk's hypotheses, to be valued at its boundary."""
        return list(self._grown.values())

    def add_values(self, values: Sequence[float]) -> None:
        """Add to the values of `candidates()`."""
        for (row, hypothesis), value in zip(list(self._grown.items()), values, strict=True):
            self._grown[row] = dataclasses.replace(hypothesis, value=hypothesis.value + value)

    def advance(self) -> Survivors:
        """Go on with the rows that have not ended or, at a boundary, with the best."""
        place = {row: i for i, row in enumerate(self._rows)}
        if not self.is_at_boundary:
            self._rows = [row for row in self._rows if self._grown[row].finish_reason is None]
            return Survivors([place[row] for row in self._rows], repeats=1)
        kept = self._rank()
        self._grown, self._num_steps = {}, 0
        successors = self._search.num_successors
        self.is_done = is_done(kept, self._search.num_beams, early_stopping=self._search.ends_when_best_again)
        if self.is_done:
            self._rows = []
            return Survivors([], successors)
        alive = [(w, place[c.row]) for w, c in enumerate(kept) if not c.is_finished]
        self._rows = [w * successors + k for w, _ in alive for k in range(successors)]
        return Survivors([i for _, i in alive], successors)

    def finished(self) -> Finished:
        """Return the result of a search that is done."""
        return Finished(self.task, tuple(self.beams), tuple(self.trace))

    def _prefix(self, row: int) -> Hypothesis:
        """Return what a row continues."""
        if row in self._grown:
            return self._grown[row]
        return self.beams[row // self._search.num_successors] if self.beams else Hypothesis()

    def _rank(self) -> list[Candidate]:
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
        if self._keep_trace:
            rows = tuple(candidate.row for candidate in candidates)
            self.trace.append(Boundary(tuple(by_row[r] for r in rows), rows, tuple(c.row for c in kept)))
        return kept
