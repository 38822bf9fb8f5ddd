"""Where a response ends: EOS ids, stop strings and tokens, length.

Which ids are a model's EOS is read in `models/inspection.py`, and handed over in `engines/stop_checker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ivg.decoding.sequences import FinishReason, Hypothesis, Task

INCOMPLETE = "\ufffd"  # what decoders return for bytes that are no whole character yet


class Ending(NamedTuple):
    """How many of a chunk's tokens belong to a row, and why it ended there (None: it goes on)."""

    num_tokens: int
    reason: FinishReason | None


class StopChecker:
    """Finds where rows end: an EOS id, a stop string or token, or the length limit, whichever comes first.

    Args:
        eos_ids: every id that ends a response.
        stop: strings that do; they may cross token borders.
        decode: turns ids into text; needed for stop strings.
        stop_ids: special tokens that end a response as a stop string does; they are not part of its text.
    """

    def __init__(
        self,
        eos_ids: Sequence[int],
        stop: Sequence[str],
        decode: Callable[[Sequence[int]], str],
        *,
        stop_ids: Sequence[int] = (),
    ) -> None:
        self._last_ids = np.array(sorted({*eos_ids, *stop_ids}), dtype=np.int64)
        self._eos_ids = frozenset(eos_ids)
        self._stop = tuple(stop)
        self._decode = decode

    def find(self, prefix: Sequence[int], chunk: np.ndarray, task: Task) -> Ending:
        """Find the end of one row.

        Args:
            prefix: the row's tokens before the chunk.
            chunk: (L,) sampled tokens.
            task: gives the limit.
        """
        room = task.max_tokens - len(prefix)
        ending = Ending(room, task.limited_by) if room <= len(chunk) else Ending(len(chunk), None)
        is_last = np.isin(chunk[: ending.num_tokens], self._last_ids)
        if is_last.any():
            at = int(is_last.argmax())
            ending = Ending(at + 1, "eos" if int(chunk[at]) in self._eos_ids else "stop")
        if self._stop:
            ending = self._find_stop([*prefix, *chunk[: ending.num_tokens].tolist()], len(prefix), ending)
        return ending

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text, without special tokens."""
        return self._decode(ids)

    def text(self, hypothesis: Hypothesis) -> str:
        """Return a hypothesis' text, without special tokens and without its stop string."""
        text = self._decode(hypothesis.ids)
        if hypothesis.finish_reason == "stop":
            return text[: self._first_stop(text)]
        return text

    @property
    def has_stops(self) -> bool:
        """Whether anything but an EOS id can end a response before its limit."""
        return bool(self._stop)

    def content_ids(self, hypothesis: Hypothesis) -> tuple[int, ...] | None:
        """Return a hypothesis' tokens without what ended it: EOS, stop token, or the tokens of a stop string.

        None where the stop string begins inside a token, so that no tokens of it spell the text before.
        """
        ids = hypothesis.ids
        if hypothesis.finish_reason == "eos":
            return ids[:-1]
        if hypothesis.finish_reason != "stop":
            return ids
        text = self.text(hypothesis)
        for num_tokens in range(len(ids) - 1, -1, -1):
            before = self._decode(ids[:num_tokens])
            if before == text:
                return ids[:num_tokens]
            if len(before) < len(text):
                break
        return None

    def _find_stop(self, ids: list[int], num_before: int, ending: Ending) -> Ending:
        if self._first_stop(self._decode(ids)) is None:
            return ending
        for num_tokens in range(1, ending.num_tokens + 1):
            if self._first_stop(self._decode(ids[: num_before + num_tokens])) is not None:
                return Ending(num_tokens, "stop")
        return ending

    def _first_stop(self, text: str) -> int | None:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        return min(found) if found else None
