"""One prompt's search: its beams, the rows it owns in the batch, and what survives a chunk boundary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ivg.config import SearchConfig
from ivg.hypotheses import Boundary, Hypothesis, Task
from ivg.sampling import Draws
from ivg.search import Candidate, is_done, keep_best


class PromptSearch:
    """One task's beams and the rows it owns in the batch."""

    def __init__(self, task: Task, search: SearchConfig, seed: int) -> None:
        self.task = task
        self.beams: list[Hypothesis] = []
        self.rows = list(range(search.rows_per_prompt))  # rows within the prompt, one per row of the batch
        self.trace: list[Boundary] = []
        self._search = search
        self._draws = Draws(seed, task.prompt_id, search.rows_per_prompt, first_row=task.sample)

    @property
    def num_tokens(self) -> int:
        """Length of the live beams so far."""
        return max((len(beam.ids) for beam in self.beams), default=0)

    def uniforms(self, length: int) -> np.ndarray:
        """Return the next (rows, length) uniforms; every row's stream moves on, live or not."""
        return self._draws.next(length)[self.rows]

    def parent(self, row: int) -> Hypothesis:
        """Return the beam that a row continues."""
        return self.beams[row // self._search.num_successors] if self.beams else Hypothesis()

    def advance(self, grown: Sequence[Hypothesis], *, keep_trace: bool) -> list[int]:
        """Rank the grown rows with the beams finished earlier, and keep the best.

        Args:
            grown: one hypothesis per row of the batch, in the order of `rows`.
            keep_trace: record the boundary.

        Returns:
            Which of the batch's rows live on, best first; empty once the search is done.
        """
        width, successors = self._search.num_beams, self._search.num_successors
        finished = {
            w * successors: beam for w, beam in enumerate(self.beams) if beam.finish_reason is not None
        }
        by_row = {**finished, **dict(zip(self.rows, grown, strict=True))}
        candidates = [
            Candidate(row, hypothesis.value, hypothesis.finish_reason is not None, row in finished)
            for row, hypothesis in sorted(by_row.items())
        ]
        kept = keep_best(candidates, width)
        self.beams = [by_row[candidate.row] for candidate in kept]
        if keep_trace:
            rows = tuple(candidate.row for candidate in candidates)
            self.trace.append(Boundary(tuple(by_row[r] for r in rows), rows, tuple(c.row for c in kept)))
        if is_done(kept, width, early_stopping=self._search.early_stopping):
            return []
        place = {row: i for i, row in enumerate(self.rows)}
        alive = [(w, place[c.row]) for w, c in enumerate(kept) if not c.is_finished]
        self.rows = [w * successors + k for w, _ in alive for k in range(successors)]
        return [i for _, i in alive]
