"""Reward models behind one call: rows and finished responses in, one number each out.

A reward is any callable `f(rows, responses) -> list[float]`. `rows` are prompt rows as `ivg.models.prompts`
knows them, `responses` plain texts. `vader` and `vader_completion` are such functions; `ClassifierReward`
wraps a Hugging Face sequence classifier; `load_reward` finds the one a configuration names.
"""

from __future__ import annotations

import hashlib
import importlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError, first_line, require_module
from ivg.models.prompts import Record
from ivg.rewards.classifier import ClassifierReward
from ivg.rewards.config import Reward, RewardConfig
from ivg.rewards.sentiment import sentiment, vader, vader_completion

__all__ = [
    "ClassifierReward",
    "Reward",
    "RewardConfig",
    "import_function",
    "load_also",
    "load_reward",
    "score",
    "sentiment",
    "source_hash",
    "vader",
    "vader_completion",
]


def load_reward(config: RewardConfig) -> Reward:
    """Find the reward that a configuration names; every check comes before weights are loaded.

    Raises:
        UserError: no such function, not a sequence classifier, or a label that it does not have.
    """
    if config.function is not None:
        return resolve_function(config.function)
    return ClassifierReward.load(config)


def load_also(functions: Mapping[str, str]) -> dict[str, Reward]:
    """Import the reward functions that are reported beside the gold reward.

    Args:
        functions: dotted name by the name that tables show.

    Raises:
        UserError: no such function.
    """
    return {name: resolve_function(function) for name, function in functions.items()}


def resolve_function(name: str) -> Reward:
    """Import a reward function by its dotted name.

    Raises:
        UserError: as `import_function` does, or what it needs is not installed.
    """
    function = import_function(name, "reward function")
    if function in (vader, vader_completion):
        require_module("vaderSentiment", "train", f"reward function {name}")
    reward: Reward = function
    return reward


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import a callable by its dotted name.

    Args:
        name: package.module.function.
        what: how messages call it.

    Raises:
        UserError: the module or the function does not exist, or it cannot be called.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise UserError(f"{what} {name!r} is not a dotted name; give package.module.function")
    try:
        module = importlib.import_module(module_name)
    # A user's module raises what it pleases, and may end the process.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{what} {name}: cannot import {module_name} ({first_line(error)}); "
            "check the name, and that it is on PYTHONPATH"
        ) from error
    if attribute not in vars(module):
        raise UserError(f"{what} {name}: module {module_name} defines no {attribute}; check the name")
    function = vars(module)[attribute]
    if not callable(function):
        raise UserError(f"{what} {name} is a {type(function).__name__}; give a callable")
    found: Callable[..., Any] = function
    return found


def source_hash(name: str) -> str | None:
    """Return a hash of the source file of a function's module, or None where it has none.

    Args:
        name: a dotted name that `import_function` takes.
    """
    file = importlib.import_module(name.rpartition(".")[0]).__file__
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def score(reward: Reward, rows: Sequence[Record], responses: Sequence[str], name: str) -> list[float]:
    """Call a reward and check that it returned one number per response; None, no score, becomes NaN.

    Args:
        reward: the callable.
        rows: prompt rows, one per response.
        responses: finished responses.
        name: what to call the reward in an error message.

    Raises:
        UserError: it raises, or returns another number of scores than responses or something that is no
            number.
    """
    try:
        returned = reward(rows, responses)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's function raises what it pleases
        if isinstance(reward, ClassifierReward):
            raise
        raise UserError(f"reward {name} failed at {_place(error)}: {first_line(error)}") from error
    try:
        scores = [float("nan") if value is None else float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"reward {name} returned {returned!r:.60}; return a list of numbers or None"
        ) from error
    if len(scores) != len(responses):
        raise UserError(
            f"reward {name} returned {len(scores)} scores for {len(responses)} responses; return one for each"
        )
    return scores


def _place(error: BaseException) -> str:
    """Return the file and line that raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
