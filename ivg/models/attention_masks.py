"""Masks for transformers' eager attention whose lowest number its softmax can hold.

Padding attends to nothing, so all its scores are the mask's lowest number. Most architectures take the
softmax in float32, which makes minus infinity of float64's lowest number, hence NaN of a row of them; the
next layer carries it into real tokens, for a weight of zero does not hide it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask


def use_finite_masks() -> None:
    """Let every model of this process that attends eagerly in float64 have such masks; others keep theirs."""
    AttentionMaskInterface.register("eager", _finite_eager_mask)


def _finite_eager_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """Make transformers' own mask, in float32 where it would be in float64: 0 or the lowest number."""
    mask: Tensor | None = eager_mask(
        *args, dtype=torch.float32 if dtype == torch.float64 else dtype, **kwargs
    )
    return mask if mask is None else mask.to(dtype)
