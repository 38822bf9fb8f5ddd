"""Which hypotheses survive a chunk boundary, and when a prompt is done. Knows values and rows, not models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


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
