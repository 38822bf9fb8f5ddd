"""Text as it becomes certain: the prefix on which all surviving beams agree.

A search decides at chunk boundaries, so the text lags behind the sampling, by a chunk at least and by more
while beams disagree. What was given out is never taken back, and the pieces add up to the final text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import INCOMPLETE, StopChecker


class NewText(NamedTuple):
    """A piece of a response.

    Attributes:
        prompt_id: identity of the prompt.
        sample: which of its samples this is.
        text: what was added; may be empty in the last piece.
        is_last: whether the response is complete.
    """

    prompt_id: str
    sample: int
    text: str
    is_last: bool


class AgreedText:
    """Turns the beams kept at each boundary into pieces of text (a `decoding.engine.Watcher`).

    Args:
        stop_checker: decodes, and knows the stop strings.
        stop: what may still turn out to be a stop string is held back.
        on_text: gets each piece.
    """

    def __init__(
        self, stop_checker: StopChecker, stop: Sequence[str], on_text: Callable[[NewText], None]
    ) -> None:
        self._stop_checker = stop_checker
        self._stop = tuple(stop)
        self._on_text = on_text
        self._given: dict[int, str] = {}

    def __call__(self, task: Task, beams: Sequence[Hypothesis], is_done: bool) -> None:
        """Give out what is new.

        Args:
            task: whose response it is.
            beams: the kept ones, best first.
            is_done: the search has ended: the best is the answer.
        """
        given = self._given.get(task.index, "")
        text = (
            self._stop_checker.text(beams[0]) if is_done else _common([self._certain(beam) for beam in beams])
        )
        # A block that is decoded again, or an odd decoder, may fall behind what was given: wait for more.
        added = text[len(given) :] if text.startswith(given) else ""
        self._given[task.index] = given + added
        if added or is_done:
            self._on_text(NewText(task.prompt_id, task.sample, added, is_done))
        if is_done:
            del self._given[task.index]

    def _certain(self, beam: Hypothesis) -> str:
        """Return the part of a beam's text that no further token can change."""
        text = self._stop_checker.text(beam)
        if beam.finish_reason is not None:
            return text
        # Decoders may drop a space before what follows it.
        text = text.rstrip(INCOMPLETE).rstrip()
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many of the text's last characters could be the beginning of the stop string."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))


def _common(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # in order, all others share what these two share
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]
