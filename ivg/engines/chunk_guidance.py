"""Chunk guidance by what is no model of the batch: your own Python function, and several scorers as one.

A value function is any callable `f(record, responses) -> scores`: `record` is the input record of one prompt,
`responses` the texts of its unfinished or finished responses, and it returns one number for each. A
configuration names it: `values: [{function: package.module.name}]`, with `chunk_guidance: explicit`. Models
that score chunks are each engine's own: in lockstep `guides.py`, or `text_guides.py` where they read text.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from ivg.decoding.engine import PrefixScorer
from ivg.decoding.sequences import Hypothesis, Task
from ivg.decoding.stopping import INCOMPLETE, StopChecker
from ivg.errors import UserError, first_line
from ivg.models.plan import FunctionPlan
from ivg.rewards import import_function

ValueFunction = Callable[[dict[str, Any], list[str]], Sequence[float]]


class FunctionScorer:
    """A value function with its weight.

    Args:
        name: its dotted name, for messages.
        function: the callable.
        weight: in the chunk score.
        stop_checker: turns ids into text.
    """

    def __init__(self, name: str, function: ValueFunction, weight: float, stop_checker: StopChecker) -> None:
        self._name = name
        self._function = function
        self._weight = weight
        self._stop_checker = stop_checker

    def __call__(self, tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> list[float]:
        """Return the weighted score of each prefix; the function is asked once a prompt.

        Raises:
            UserError: it raised an error, or returned another number of scores than it was asked for, or
                something that is no finite number.
        """
        places: dict[int, list[int]] = {}
        for place, task in enumerate(tasks):
            places.setdefault(task.index, []).append(place)
        found = [0.0] * len(tasks)
        for of_prompt in places.values():
            task = tasks[of_prompt[0]]
            texts = [self._text(prefixes[place]) for place in of_prompt]
            for place, score in zip(of_prompt, self._ask(task, texts), strict=True):
                found[place] = self._weight * score
        return found

    def _text(self, prefix: Hypothesis) -> str:
        text = self._stop_checker.text(prefix)
        return text if prefix.finish_reason is not None else text.rstrip(INCOMPLETE)

    def _ask(self, task: Task, texts: list[str]) -> list[float]:
        where = f"value function {self._name}, prompt {task.prompt_id}"
        try:
            returned = self._function(dict(task.record), texts)
        except Exception as error:  # it is the user's code, which raises what it pleases
            raise UserError(f"{where}: it raised {first_line(error)}") from error
        try:
            scores = [float(score) for score in returned]
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: it returned {returned!r:.60}; return a list of numbers") from error
        if len(scores) != len(texts):
            raise UserError(
                f"{where}: it returned {len(scores)} scores for {len(texts)} responses; return one for each"
            )
        if not all(map(math.isfinite, scores)):
            raise UserError(f"{where}: it returned NaN or infinity; return finite numbers")
        return scores


def build_function_scorers(plans: Sequence[FunctionPlan], stop_checker: StopChecker) -> list[PrefixScorer]:
    """Import the value functions of a run.

    Raises:
        UserError: as `import_value_function` does.
    """
    return [
        FunctionScorer(plan.name, import_value_function(plan.name), plan.weight, stop_checker)
        for plan in plans
    ]


def import_value_function(name: str) -> ValueFunction:
    """Import a value function, and see from its parameters that it can be asked as one.

    Args:
        name: package.module.function.

    Raises:
        UserError: it cannot be imported, is no callable, is a reward, or takes other arguments.
    """
    function = import_function(name, "value function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C do not tell
        return function
    if next(iter(signature.parameters), "") == "rows":  # as every reward calls them
        raise UserError(
            f"value function {name}: takes {_names(signature)}, so it is a reward; give a function of "
            "(record, responses) that asks it about ([record] * len(responses), responses)"
        )
    try:
        signature.bind({}, [])
    except TypeError as error:
        raise UserError(
            f"value function {name}: takes {_names(signature)}; give a function of (record, responses)"
        ) from error
    return function


def _names(signature: inspect.Signature) -> str:
    return f"({', '.join(signature.parameters)})"


def add_scorers(scorers: Sequence[PrefixScorer]) -> PrefixScorer | None:
    """Return one scorer that adds up several, or None where there are none."""
    if not scorers:
        return None

    def score(tasks: Sequence[Task], prefixes: Sequence[Hypothesis]) -> list[float]:
        return [sum(values) for values in zip(*(scorer(tasks, prefixes) for scorer in scorers), strict=True)]

    return score
