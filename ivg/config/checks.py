"""How a configuration refuses what it was given: what was given, what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from ivg.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices."""
    require(value in choices, f"{name} is {value!r}; give one of {', '.join(choices)}")


def require_integer(name: str, value: object, at_least: int | None = None, note: str = "") -> None:
    """Refuse what is no integer (`True` is none), or is too small."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    limit = "" if at_least is None else f" >= {at_least}"
    is_large_enough = is_integer and (at_least is None or value >= at_least)  # type: ignore[operator]
    require(is_large_enough, f"{name} is {value!r}; give an integer{limit}{note}")


def is_finite(value: object) -> bool:
    """Tell numbers from NaN, infinity, `True` and what is no number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def require_finite(name: str, weight: float | None) -> None:
    """Refuse what is no finite number; None stands for a default."""
    require(weight is None or is_finite(weight), f"{name} is {weight!r}; give a finite number")


def require_not_negative(name: str, value: float, note: str = "") -> None:
    """Refuse what is no finite number >= 0."""
    require(is_finite(value) and value >= 0, f"{name} is {value!r}; give a finite number >= 0{note}")
