"""A model that reads whole sequences again and again, and feeds only what it has not seen.

Each call brings every live sequence. A row continues the cached sequence of its group with which it shares
the longest prefix: the cache is taken from there, cut to what is shared, and fed the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ivg.decoding.log_ratio import chosen, log_probs
from ivg.decoding.value_head import chosen_values, scalar_values
from ivg.engines.lockstep.guides import MAX_SCORES
from ivg.engines.lockstep.model_runner import BatchState, ModelRunner, Part
from ivg.engines.lockstep.state_check import require_exact_states
from ivg.engines.lockstep.variable_length import Piece, drop_last, feed_variable_length
from ivg.engines.response_encoding import TokenSequence, num_common


class _Origin(NamedTuple):
    """The cached row that a sequence continues, and how many of its tokens stay in the cache."""

    parent: int
    kept: int


class Rescorer:
    """Keeps one model's cache of the sequences read last.

    Args:
        runner: the model, with at most one branch.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._state: BatchState | None
        self._working: BatchState | None  # between `origins` and `feed`
        self.clear()

    def clear(self) -> None:
        """Forget every sequence and its cache."""
        self._state = self._working = None
        self._cached: list[TokenSequence] = []

    def origins(self, readings: Sequence[TokenSequence], *, num_again: int) -> list[_Origin]:
        """Find what each sequence continues; prefill the prompts of groups that are new.

        Args:
            readings: the sequences.
            num_again: how many of a sequence's last tokens must be fed even if they are cached.
        """
        # Nothing is cached until `feed` has ended: a call that runs out of memory halfway leaves no trace.
        state, cached = self._state, self._cached
        self._state, self._cached = None, []
        members: dict[int, list[int]] = {}
        for row, reading in enumerate(cached):
            members.setdefault(reading.group, []).append(row)
        fresh = list({r.group: r for r in readings if r.group not in members}.values())
        if fresh:
            prompts = [TokenSequence(r.group, r.num_prompt, r.ids[: r.num_prompt]) for r in fresh]
            parts = [Part(self.runner.prefill([p.ids for p in prompts]), self._rows(range(len(prompts))))]
            if state is not None:
                parts.insert(0, Part(state, self._rows(range(len(cached)))))
            state = self.runner.rebuild(parts)
            for prompt in prompts:
                members[prompt.group] = [len(cached)]
                cached.append(prompt)
        self._working = state
        return [_origin(cached, r, members[r.group], num_again) for r in readings]

    def feed(
        self, readings: Sequence[TokenSequence], origins: Sequence[_Origin], columns: int
    ) -> Iterator[Piece]:
        """Make the cache that of `readings`, and yield the model's outputs at the tokens not kept.

        Args:
            readings: the sequences.
            origins: where they come from.
            columns: how many tokens of each row to feed at once.
        """
        state, self._working = self._working, None
        assert state is not None
        self.runner.select(state, self._rows(o.parent for o in origins))
        kept = self._rows(o.kept for o in origins)
        drop_last(state, state.lengths - kept)
        ids, counts = self._unread(readings, origins)
        yield from feed_variable_length(self.runner, state, ids, counts, columns=columns)
        self._state, self._cached = state, list(readings)

    def _unread(self, readings: Sequence[TokenSequence], origins: Sequence[_Origin]) -> tuple[Tensor, Tensor]:
        """Return the ids still to be fed (R, n), padded with 0, and their counts (R,)."""
        rest = [r.ids[o.kept :] for r, o in zip(readings, origins, strict=True)]
        width = max(map(len, rest))
        ids = self._rows([*r, *[0] * (width - len(r))] for r in rest)
        return ids, self._rows(len(r) for r in rest)

    def _rows(self, numbers: object) -> Tensor:
        return torch.tensor(list(numbers), device=self.runner.device)  # type: ignore[call-overload]


class WholeReader(Rescorer):
    """Reads every sequence from its start: out of a recurrent state, no token can be taken again."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        require_exact_states(runner)

    def origins(self, readings: Sequence[TokenSequence], *, num_again: int) -> list[_Origin]:
        """Let every sequence continue nothing."""
        return [_Origin(0, 0)] * len(readings)

    def feed(
        self, readings: Sequence[TokenSequence], origins: Sequence[_Origin], columns: int
    ) -> Iterator[Piece]:
        """Yield the model's outputs at all tokens, sequences of one length side by side."""
        of_length: dict[int, list[int]] = {}
        for row, reading in enumerate(readings):
            of_length.setdefault(len(reading.ids), []).append(row)
        groups = [
            (self._rows(rows), self._rows(readings[row].ids for row in rows), self.runner.start(len(rows)))
            for rows in of_length.values()
        ]
        for start in range(0, max(of_length), columns):
            outputs = [
                (rows, self.runner.feed(state, ids[:, start : start + columns]))
                for rows, ids, state in groups
                if start < ids.shape[1]
            ]
            width = max(output.shape[1] for _, output in outputs)
            piece = outputs[0][1].new_zeros(len(readings), width, outputs[0][1].shape[2])
            for rows, output in outputs:
                piece[rows, : output.shape[1]] = output
            yield Piece(start, piece)


def reader_of(runner: ModelRunner) -> Rescorer:
    """Return what reads sequences again and again with a model."""
    return WholeReader(runner) if runner.has_states else Rescorer(runner)


class LogpRescorer:
    """Log-probability of each sequence's response under a causal language model.

    Args:
        runner: the model.
        num_ids: ids over which log-probabilities are normalised; the model's padded tail is cut.
    """

    def __init__(self, runner: ModelRunner, num_ids: int) -> None:
        self.reader = reader_of(runner)
        self._num_ids = num_ids
        self._logps: list[np.ndarray] = []  # per cached row, of every token but the first

    def clear(self) -> None:
        """Forget every sequence."""
        self.reader.clear()
        self._logps = []

    @torch.inference_mode()
    def read(self, readings: Sequence[TokenSequence]) -> list[float]:
        """Return log p(response | prompt) of every sequence."""
        known = dict(enumerate(self._logps))
        self._logps = []
        origins = self.reader.origins(readings, num_again=1)
        columns = max(1, MAX_SCORES // (len(readings) * self._num_ids))
        following = self._following(readings, origins)
        pieces = [
            chosen(log_probs(output[..., : self._num_ids]), following[:, start : start + output.shape[1]])
            for start, output in self.reader.feed(readings, origins, columns)
        ]
        fed = torch.cat(pieces, dim=1).double().cpu().numpy()  # (R, n)
        self._logps = [
            self._joined(known.get(o.parent), row, r, o)
            for row, r, o in zip(fed, readings, origins, strict=True)
        ]
        return [float(row[r.num_prompt - 1 :].sum()) for row, r in zip(self._logps, readings, strict=True)]

    def _following(self, readings: Sequence[TokenSequence], origins: Sequence[_Origin]) -> Tensor:
        """Return the token after each fed one (R, n); 0 where there is none."""
        rest = [[*r.ids[o.kept + 1 :], 0] for r, o in zip(readings, origins, strict=True)]
        width = max(map(len, rest))
        return torch.tensor([[*r, *[0] * (width - len(r))] for r in rest], device=self.reader.runner.device)

    @staticmethod
    def _joined(
        known: np.ndarray | None, fed: np.ndarray, reading: TokenSequence, origin: _Origin
    ) -> np.ndarray:
        """Put the kept tokens' log-probabilities before the fed ones; a fresh prompt's are not needed."""
        before = np.zeros(origin.kept) if known is None else known[: origin.kept]
        return np.concatenate([before, fed[: len(reading.ids) - 1 - origin.kept]])


class ValueRescorer:
    """The score of each sequence by a value head on a backbone.

    Args:
        runner: the backbone.
        head: one output (V of the sequence), or one per id (Q of its last token).
        is_vocabulary: which of the two.
    """

    def __init__(self, runner: ModelRunner, head: nn.Linear, *, is_vocabulary: bool) -> None:
        self.reader = reader_of(runner)
        self._head = head
        self._is_vocabulary = is_vocabulary

    def clear(self) -> None:
        """Forget every sequence."""
        self.reader.clear()

    @torch.inference_mode()
    def read(self, readings: Sequence[TokenSequence]) -> list[float]:
        """Return the score of every sequence; a vocabulary head has none for a single token: 0."""
        back = 2 if self._is_vocabulary else 1  # Q of a token comes from the state before it
        origins = self.reader.origins(readings, num_again=back)
        width = max(len(r.ids) - o.kept for r, o in zip(readings, origins, strict=True))
        (piece,) = self.reader.feed(readings, origins, width)
        at = [max(0, len(r.ids) - o.kept - back) for r, o in zip(readings, origins, strict=True)]
        hidden = piece.output[torch.arange(len(at)), at]  # (R, H)
        if not self._is_vocabulary:
            return scalar_values(hidden, self._head).double().tolist()
        last = torch.tensor([r.ids[-1] for r in readings], device=hidden.device)
        values = chosen_values(hidden, self._head, last).double().tolist()
        return [v if len(r.ids) > 1 else 0.0 for v, r in zip(values, readings, strict=True)]


def _origin(
    cached: Sequence[TokenSequence], reading: TokenSequence, members: Sequence[int], num_again: int
) -> _Origin:
    """Choose the member with the longest common prefix, the first of equals."""
    shared, parent = max((num_common(cached[m].ids, reading.ids), -m) for m in members)
    # The last shared token is fed again: its output scores the first token that is not shared.
    return _Origin(-parent, max(0, min(shared - 1, len(reading.ids) - num_again)))
