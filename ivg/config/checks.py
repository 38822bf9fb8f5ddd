"""How a configuration refuses what it was given."""

from __future__ import annotations

import math

from ivg.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_finite(name: str, weight: float | None) -> None:
    """Refuse NaN and infinity; None stands for a default."""
    require(weight is None or math.isfinite(weight), f"{name} is {weight}; give a finite number")


def require_beta(beta: float) -> None:
    """Refuse a weight of token guidance that is negative or no number."""
    require(math.isfinite(beta) and beta >= 0, f"beta is {beta}; give a finite number >= 0")
