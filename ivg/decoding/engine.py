"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ivg.decoding.sequences import Hypothesis, Task


class NumericalError(RuntimeError):
    """A model returned NaN or infinite numbers."""


class TextScorer(Protocol):
    """Scores prefixes that guides cannot score while they are sampled; asked at boundaries only."""

    def must_read(self, hypothesis: Hypothesis) -> bool:
        """Tell whether a hypothesis ended otherwise than the guides that score by ids were trained.

        Its value is then what this scorer returns, and nothing of what was scored while it was sampled.
        """
        ...

    def __call__(self, tasks: Sequence[Task], hypotheses: Sequence[Hypothesis]) -> Sequence[float]:
        """Return the weighted score of each hypothesis, given in the base's ids.

        Of those that `must_read` names, all guides' scores; of others, those of the guides that read text.
        """
        ...
