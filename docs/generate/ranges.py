"""Which values a key takes, in the words of the program's own refusal.

A number is tried far below and far above what most keys take; where the dataclass refuses one, its message
ends in "; give WHAT IT WANTS", which is what the reference prints. So no range is written down a second time.
(The values that a text may have stand in its type, or in its effect.)
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, get_args

from ivg.config import ModelConfig, SearchConfig
from ivg.errors import UserError

_TRIED = (-1, 10**9)
# What some classes need beside the key that is tried.
_NEEDED: dict[str, dict[str, Any]] = {
    "ValueConfig": {"function": "package.function"},
    "RewardConfig": {"function": "package.function"},
    "Preset": {"search": SearchConfig(token_guidance="implicit")},
}


def accepted(cls: type, name: str, hint: Any, try_value: Callable[[str, object], None] | None = None) -> str:
    """Return which values of its type a key takes; empty where nothing narrower than the type is asked for.

    Args:
        cls: the dataclass.
        name: the field.
        hint: its type.
        try_value: see `docs.generate.keys.keys_of`.
    """
    kinds = {hint, *get_args(hint)}
    if not kinds & {int, float}:
        return ""
    build = try_value or (lambda key, value: _build(cls, key, value))
    wanted = [_wanted(build, name, number) for number in _TRIED]
    return "; ".join(dict.fromkeys(text for text in wanted if text))


def _wanted(build: Callable[[str, object], None], name: str, value: object) -> str:
    """Return what a refusal of this value asks for; empty where the value is taken."""
    try:
        build(name, value)
    except UserError as error:
        problem, _, wanted = str(error).partition("; give ")
        return wanted if name in problem else ""
    return ""


def _build(cls: type, name: str, value: object) -> None:
    hints = typing.get_type_hints(cls)
    needed = {
        field.name: ModelConfig(path="model") if hints[field.name] is ModelConfig else "text"
        for field in dataclasses.fields(cls)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    cls(**{**needed, **_NEEDED.get(cls.__name__, {}), name: value})
