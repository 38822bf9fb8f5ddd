"""What the guides know of validation responses: how often the pair and the value model rank two rightly.

The pairs of responses are the base's own samples, the best and the worst for each prompt. `ivg eval
reward-accuracy` does the same from the command line.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.config import ModelConfig, PairConfig, ValueConfig
from ivg.evaluation.measures.candidates import read_candidates
from ivg.evaluation.measures.prefix_scores import log_ratios, values
from ivg.evaluation.measures.reward_accuracy import measure_scorers
from ivg.evaluation.report.tables import number
from ivg.models.loading import load_models

PREFERENCES = "rollouts_validation/preferences.jsonl"
MOST_PROMPTS = 100  # so that it takes seconds
BATCH_SIZE = 50
PAIR, VALUE = "pair, summed", "value"  # by these scores guidance goes
HALF = 50  # percent of a response: chunks are ranked all along it
# The methods that use one of the two alone.
PAIR_METHOD, VALUE_METHOD = "token_implicit", "chunk_explicit"


def measure_guides(runs: Path) -> dict[str, Any]:
    """Measure the guides of a run (see `reward_accuracy.measure_scorers`).

    Args:
        runs: its folder.
    """
    candidates = read_candidates(runs / PREFERENCES).first_prompts(MOST_PROMPTS)
    models = load_models(
        str(runs / "base"),
        pairs=[PairConfig(**{half: ModelConfig(path=str(runs / half)) for half in ("tuned", "untuned")})],
        values=[ValueConfig(model=ModelConfig(path=str(runs / "value")))],
    )
    summed, per_token = log_ratios(models.pairs[0], candidates, batch_size=BATCH_SIZE)
    valued = values(models.values[0].model, candidates, batch_size=BATCH_SIZE)
    return measure_scorers({PAIR: summed, "pair, per token": per_token, VALUE: valued}, candidates)


def accuracy(measured: Mapping[str, Any], scorer: str, percent: int = HALF) -> Mapping[str, Any]:
    """Return a scorer's pairwise accuracy after so much of the responses."""
    entry = next(row for row in measured["scorers"][scorer] if row["percent"] == percent)
    found: Mapping[str, Any] = entry["pairwise_accuracy"]
    return found


def prediction(measured: Mapping[str, Any], rewards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare what the guides' accuracies say of the methods with what the methods' rewards say.

    Args:
        measured: of `measure_guides`.
        rewards: estimates of the gold reward by method, `PAIR_METHOD` and `VALUE_METHOD` among them.

    Returns:
        JSON data: `holds`, whether the guide that ranks more couples of responses rightly, half-way, is the
        one whose method has the higher gold reward, or null where the accuracies are not told apart; and
        `text`, a sentence with the numbers.
    """
    pair, value = (accuracy(measured, scorer) for scorer in (PAIR, VALUE))
    by_pair, by_value = rewards[PAIR_METHOD], rewards[VALUE_METHOD]
    holds = None
    if not _holds_mean(pair, value) and not _holds_mean(value, pair):
        holds = (value["mean"] > pair["mean"]) == (by_value["mean"] > by_pair["mean"])
    says = {True: "tells", False: "does NOT tell", None: "is too much alike to tell"}[holds]
    return {
        "holds": holds,
        "text": (
            f"Half-way the value model ranks {value['mean']:.0%} of {value['n']} couples of responses "
            f"rightly, the pair {pair['mean']:.0%}; guided by the value model alone the gold reward is "
            f"{number(by_value)}, by the pair alone {number(by_pair)}: accuracy {says} their order."
        ),
    }


def _holds_mean(estimate: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether an estimate's interval holds another's mean."""
    low, high = estimate["ci95"]
    return bool(low <= other["mean"] <= high)


def describe_seeds(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Say in how many training seeds accuracy told the order, and in how many it misled."""
    told, misled = (sum(found["holds"] is is_right for found in predictions) for is_right in (True, False))
    return (
        f"Half-way accuracy told the order of pair and value model in {told} of {len(predictions)} training "
        f"seeds, told it wrongly in {misled}, and was too much alike in {len(predictions) - told - misled}."
    )
