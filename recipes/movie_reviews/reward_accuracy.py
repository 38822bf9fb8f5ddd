"""How often the reward model prefers the positive sentence, beside a bag-of-words logistic regression.

    python recipes/movie_reviews/reward_accuracy.py

Both see the training sentences and are asked about the pairs of test sentences. Needs the extra `eval`.
Writes runs/movie_reviews/reward_accuracy.json.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ivg.errors import exit_on_user_error
from ivg.rewards import RewardConfig, load_reward
from ivg.training.data import read_jsonl

RUNS = Path("runs/movie_reviews")
Scores = Callable[[Sequence[str]], Sequence[float]]


def bag_of_words() -> Scores:
    """Fit a logistic regression on words and word pairs of the training sentences."""
    pairs = read_jsonl(RUNS / "data" / "pairs.train.jsonl")
    kinds = [list(dict.fromkeys(str(pair[kind]) for pair in pairs)) for kind in ("rejected", "chosen")]
    labels = [label for label, sentences in enumerate(kinds) for _ in sentences]
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), binary=True), LogisticRegression(C=0.3, max_iter=1000)
    )
    model.fit(list(itertools.chain(*kinds)), labels)
    return lambda texts: model.decision_function(texts)


def reward_model() -> Scores:
    """Load the trained reward model."""
    reward = load_reward(RewardConfig(model=str(RUNS / "reward"), template="{prompt}", batch_size=64))
    return lambda texts: reward([{"prompt": ""}] * len(texts), texts)


def accuracy(scores: Scores) -> dict[str, float]:
    """Compare the two sentences of every test pair; every sentence is scored once.

    The error is that of the mean over positive sentences: the pairs of one are not independent.
    """
    pairs = read_jsonl(RUNS / "data" / "pairs.test.jsonl")
    texts = list(dict.fromkeys(str(pair[side]) for pair in pairs for side in ("chosen", "rejected")))
    score = dict(zip(texts, scores(texts), strict=True))
    right: dict[str, list[bool]] = {}
    for pair in pairs:
        right.setdefault(pair["chosen"], []).append(score[pair["chosen"]] > score[pair["rejected"]])
    means = [np.mean(hits) for hits in right.values()]
    return {
        "accuracy": float(np.mean(means)),
        "stderr": float(np.std(means, ddof=1) / np.sqrt(len(means))),
        "num_pairs": len(pairs),
        "num_positive": len(means),
    }


@exit_on_user_error
def main() -> None:
    """Measure both, print, write."""
    results = {"reward model": accuracy(reward_model()), "bag of words": accuracy(bag_of_words())}
    (RUNS / "reward_accuracy.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = Table("model", "pairwise accuracy", "pairs", title="Positive against negative test sentences")
    for name, result in results.items():
        table.add_row(
            name, f"{result['accuracy']:.3f} ± {1.96 * result['stderr']:.3f}", str(result["num_pairs"])
        )
    Console().print(table)


if __name__ == "__main__":
    main()
