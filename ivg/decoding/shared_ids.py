"""Which ids base and guide have in common, and what guidance the others get."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True, slots=True)
class SharedIds:
    """The ids on which base and guide agree.

    Attributes:
        num_base: V, size of the base's output.
        num_shared: ids 0 ... num_shared-1 are scored; the guide's further ids are cut before normalising, the
            base's further ids get zero guidance.
        unguided: ids below num_shared that mean different special tokens; they get zero guidance too.
    """

    num_base: int
    num_shared: int
    unguided: tuple[int, ...] = ()

    def has(self, ids: Tensor) -> Tensor:
        """Tell which base ids the guide scores."""
        shared = ids < self.num_shared
        return shared & ~torch.isin(ids, ids.new_tensor(self.unguided)) if self.unguided else shared

    def widen(self, scores: Tensor) -> Tensor:
        """Turn (..., num_shared) scores into (..., V); the scores given may be changed."""
        if self.num_shared < self.num_base:  # else a copy of a whole vocabulary for nothing
            scores = functional.pad(scores, (0, self.num_base - self.num_shared))
        if self.unguided:
            scores[..., list(self.unguided)] = 0
        return scores
