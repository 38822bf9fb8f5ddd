"""When a search ends, on trees whose nodes have values: no model, and the paper's code as the reference."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import numpy as np
import pytest

from ivg.config import SearchConfig
from ivg.decoding.beam_search import BeamSearch
from ivg.decoding.sequences import Hypothesis, Task

Path = tuple[int, ...]
Child = Callable[[Path, int], Hypothesis]  # what a row makes of a prefix
LENGTH = 8


def search_of(width: int, successors: int, early_stopping: bool | None = None) -> SearchConfig:
    return SearchConfig(
        chunk_guidance="explicit",
        num_beams=width,
        num_successors=successors,
        chunk_length=1,
        early_stopping=early_stopping,
    )


def best_value(search: SearchConfig, child: Child) -> float:
    """Run our search over a tree."""
    task = Task(0, "tree", {"base": (0,)}, LENGTH)
    beams = BeamSearch(task, search, seed=0)
    while not beams.is_done:
        beams.take([child(extension.prefix.ids, extension.row) for extension in beams.extensions()])
        beams.advance()
    return beams.finished().beams[0].value


def papers_value(width: int, successors: int, child: Child) -> float:
    """Search as the paper's code does: a finished hypothesis stays as K equal rows."""
    rows = [Hypothesis()] * (width * successors)
    while True:
        grown = [row if row.finish_reason else child(row.ids, number) for number, row in enumerate(rows)]
        kept = sorted(grown, key=lambda row: -row.value)[:width]
        if all(row.finish_reason for row in kept):
            return kept[0].value
        rows = [row for row in kept for _ in range(successors)]


def random_tree(seed: int) -> Child:
    """A tree that ends a quarter of its branches at every step; values are random walks."""

    def child(prefix: Path, row: int) -> Hypothesis:
        path = (*prefix, random.Random(hash((seed, prefix, row))).randrange(6))
        value = sum(node(path[: t + 1])[0] for t in range(len(path)))
        ends = node(path)[1] or len(path) == LENGTH
        return Hypothesis(path, value, "eos" if ends else None)

    @functools.cache
    def node(path: Path) -> tuple[float, bool]:
        draw = random.Random(hash((seed, path)))  # of whole numbers: the same in every process
        return draw.gauss(0, 1), draw.random() < 0.25

    return child


def test_the_rule_for_k_at_least_w_ends_too_early_for_fewer_successors() -> None:
    # Row 0 ends at once with value 1. Row 1 is behind at the second boundary (0.5), ahead at the third (2).
    values = {1: 0.0, 2: 0.5, 3: 2.0}

    def child(prefix: Path, row: int) -> Hypothesis:
        if row == 0 and not prefix:
            return Hypothesis((0,), 1.0, "eos")
        path = (*prefix, 1)
        return Hypothesis(path, values[len(path)], "eos" if len(path) == 3 else None)

    assert best_value(search_of(2, 1, early_stopping=True), child) == 1.0
    assert best_value(search_of(2, 1), child) == papers_value(2, 1, child) == 2.0


@pytest.mark.parametrize(
    ("width", "successors", "early"), [(2, 2, True), (2, 3, True), (4, 2, False), (1, 1, True)]
)
def test_unset_depends_on_width_and_successors(width: int, successors: int, early: bool) -> None:
    assert search_of(width, successors).ends_when_best_again is early
    assert search_of(width, successors, early_stopping=not early).ends_when_best_again is not early


def test_unset_is_no_worse_than_the_papers_rule_where_the_old_rule_was() -> None:
    trees = [random_tree(seed) for seed in range(1200)]
    papers = np.array([papers_value(4, 2, tree) for tree in trees])
    unset = np.array([best_value(search_of(4, 2), tree) for tree in trees]) - papers
    early = np.array([best_value(search_of(4, 2, early_stopping=True), tree) for tree in trees]) - papers
    stderr = early.std(ddof=1) / np.sqrt(len(trees))
    assert early.mean() < -3 * stderr
    assert unset.mean() > -unset.std(ddof=1) / np.sqrt(len(trees))
