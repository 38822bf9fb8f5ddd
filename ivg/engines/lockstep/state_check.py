"""Models with recurrent states are tried before they decode: whether rows move and grow by chunks exactly.

Architectures keep states in ways of their own, and some cannot go on from one by several tokens at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivg.engines.lockstep.model_runner import ModelRunner
from ivg.errors import UserError, first_line

# Of the outputs' standard deviation. A bug makes half of it and more.
_SAME, _SAME_IN_16_BITS = 0.01, 0.1


def require_exact_states(runner: ModelRunner) -> None:
    """Refuse a model with states whose outputs depend on how its rows were moved.

    Raises:
        UserError: naming the model and how far it is off.
    """
    if not runner.has_states:
        return
    num_fed = runner.tokens_fed
    try:
        found, expected = _move_rows(runner)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{runner.name}: its rows cannot be reordered with this version of transformers "
            f"({first_line(error)}); use another model"
        ) from error
    runner.tokens_fed = num_fed
    off = float((found - expected).abs().max() / expected.std())
    if not off < (_SAME_IN_16_BITS if found.dtype.itemsize == 2 else _SAME):
        raise UserError(
            f"{runner.name}: fed by chunks, with rows that change places, its outputs are off by {off:.2g} "
            "standard deviations with this version of transformers; use another model"
        )


@torch.inference_mode()
def _move_rows(runner: ModelRunner) -> tuple[Tensor, Tensor]:
    """Return outputs (R, ·) after everything that happens to rows, and those of the whole sequences alone."""
    device = runner.device
    state = runner.prefill([(0, 1, 2, 3, 2), (1,)])
    runner.feed(state, torch.tensor([[2, 3], [3, 0]], device=device))
    runner.select(state, torch.tensor([1, 0, 1], device=device))
    runner.feed(state, torch.tensor([[1], [2], [2]], device=device))
    wholes = [(1, 3, 0, 1), (0, 1, 2, 3, 2, 2, 3, 2), (1, 3, 0, 2)]
    return state.last, torch.cat([runner.prefill([whole]).last for whole in wholes])
