"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ivg.decoding.sequences import Task


class NumericalError(RuntimeError):
    """A model returned NaN or infinite numbers."""


class TextScorer(Protocol):
    """Scores prefixes that a guide must read as text; asked at boundaries only."""

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Sequence[int]]) -> Sequence[float]:
        """Return the weighted score of each prefix, given in the base's ids."""
        ...
