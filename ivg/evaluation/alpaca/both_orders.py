"""One comparison in both orders, so that a judge's liking for a place cancels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ivg.evaluation.alpaca.annotators import Annotations, Annotator, annotate
from ivg.evaluation.alpaca.files import Output
from ivg.evaluation.alpaca.judge import Answers


class BothOrders(NamedTuple):
    """How far a judge prefers a system's answers, from 0 to 1; NaN where it gave no preference.

    Attributes:
        reference_first: one per comparison, asked with the reference's answer first.
        system_first: the same, asked with the system's answer first.
    """

    reference_first: list[float]
    system_first: list[float]

    def averaged(self) -> list[float]:
        """Return the mean of both orders; NaN where either gave no preference, since the place tells."""
        return [(one + two) / 2 for one, two in zip(*self, strict=True)]


def ask_both_orders(
    outputs: Sequence[Output],
    reference: Sequence[Output],
    annotator: Annotator,
    answers: Answers,
    **work: Any,
) -> BothOrders:
    """Have a judge compare outputs with the reference's, each pair twice.

    Args:
        outputs: the system's, in the reference's order.
        reference: the reference's.
        annotator: one that shows answers in the order given (see `annotators.in_given_order`).
        answers: who answers.
        work: what else `annotate` takes.
    """
    one = annotate(outputs, reference, annotator, answers, **work)
    two = annotate(reference, outputs, annotator, answers, **work)
    return BothOrders(shares(one), [1 - share for share in shares(two)])


def annotate_both_orders(
    outputs: Sequence[Output],
    reference: Sequence[Output],
    annotator: Annotator,
    answers: Answers,
    **work: Any,
) -> Annotations:
    """Annotate every pair in both orders; the preference is the mean, so that two that disagree are a tie.

    A pair with no preference in one of the orders has none. The arguments are those of `ask_both_orders`.
    """
    one = annotate(outputs, reference, annotator, answers, **work)
    two = annotate(reference, outputs, annotator, answers, **work)
    both = BothOrders(shares(one), [1 - share for share in shares(two)]).averaged()
    return [
        {**row, "preference": None if math.isnan(share) else 1 + share, "raw_completion_swapped": other}
        for row, share, other in zip(one, both, [row.get("raw_completion") for row in two], strict=True)
    ]


def shares(annotations: Annotations) -> list[float]:
    """Return how far the second answer was preferred, from 0 to 1; NaN where there is no preference."""
    preferences = [row["preference"] for row in annotations]
    return [math.nan if preference is None else float(preference) - 1 for preference in preferences]
