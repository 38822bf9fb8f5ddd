"""How a configuration refuses what it was given: what was given, what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from ivg.errors import UserError

LARGEST_INTEGER = 2**63 - 1  # what a tensor's length, a file's line or a seed's hash can hold


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices."""
    require(value in choices, f"{name} is {value!r}; give one of {', '.join(choices)}")


def require_integer(name: str, value: object, at_least: int | None = None, note: str = "") -> None:
    """Refuse what is no integer (`True` is none), is too small, or has more than 64 bits."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        raise UserError(f"{name} is a number of {value.bit_length()} bits; give an integer of at most 64")
    limit = "" if at_least is None else f" >= {at_least}"
    is_large_enough = is_integer and (at_least is None or value >= at_least)  # type: ignore[operator]
    require(is_large_enough, f"{name} is {value!r}; give an integer{limit}{note}")


def is_finite(value: object) -> bool:
    """Tell numbers from NaN, infinity, `True` and what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def require_finite(name: str, weight: float | None) -> None:
    """Refuse what is no finite number; None stands for a default."""
    require(weight is None or is_finite(weight), f"{name} is {weight!r}; give a finite number")


def require_not_negative(name: str, value: float, note: str = "") -> None:
    """Refuse what is no finite number >= 0."""
    require(is_finite(value) and value >= 0, f"{name} is {value!r}; give a finite number >= 0{note}")
