"""What a judge's annotations amount to: win rates, length control, the public leaderboard beside them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd

from ivg.config.yaml_file import nearest
from ivg.errors import UserError
from ivg.evaluation.alpaca.alpaca_eval_package import constants, metrics, quiet
from ivg.evaluation.alpaca.annotators import OFFICIAL_ANNOTATOR, Annotations, Annotator
from ivg.evaluation.alpaca.files import (
    NUM_INSTRUCTIONS,
    Output,
    are_official,
    read_outputs,
    why_not_the_reference,
)
from ivg.evaluation.measures.statistics import paired_difference

HUB_DATASET = "the Hub dataset tatsu-lab/alpaca_eval"
DOWNLOAD = "hf download tatsu-lab/alpaca_eval df_gamed.csv --repo-type dataset"


def results(annotations: Annotations, *, may_download: bool = True) -> dict[str, Any]:
    """Sum up annotations.

    Args:
        annotations: a judge's.
        may_download: see `length_controlled`.

    Returns:
        JSON data: `win_rate` and `standard_error` in percent over `n_total` preferences, `num_instructions`,
        `num_null` answers that are missing or hold no preference, `avg_length` in characters,
        `length_controlled_winrate` and `lc_standard_error`, or null and `lc_missing`, the reason.

    Raises:
        UserError: no answer has a preference.
    """
    preferences = [row["preference"] for row in annotations]
    nulls = [row for row in annotations if _is_null(row["preference"])]
    if len(nulls) == len(preferences):
        raise UserError(
            f"none of the {len(nulls)} answers holds a preference; is this judge fit for the annotator?"
        )
    raw = metrics.get_winrate(annotations)
    lengths = [len(row["output_2"]) for row in annotations]
    return {
        **{key: float(raw[key]) for key in ("win_rate", "standard_error", "discrete_win_rate")},
        "n_total": int(raw["n_total"]),
        "num_instructions": len(annotations),
        "num_null": len(nulls),
        "avg_length": int(sum(lengths) / len(lengths)),
        **length_controlled(annotations, may_download=may_download),
    }


def sum_up(
    annotations: Mapping[str, Annotations],
    annotator: Annotator,
    reference: Sequence[Output],
    endpoint: str,
    *,
    may_download: bool = True,
) -> dict[str, Any]:
    """Sum up every system, and compare the last with the first on the same instructions.

    Args:
        annotations: the judge's, by system.
        annotator: which question was asked.
        reference: the answers that the systems were compared with.
        endpoint: URL of the judge.
        may_download: see `length_controlled`.

    Returns:
        JSON data: `judge`, `not_comparable` (why not with the leaderboard, or null), `arms` (see `results`)
        and, for several systems, `paired`: the last's win rate minus the first's, in percent.
    """
    report: dict[str, Any] = {
        "judge": {"annotator": annotator.name, "model": annotator.model, "endpoint": endpoint},
        "not_comparable": why_not_comparable(annotator, reference),
        "arms": {name: results(rows, may_download=may_download) for name, rows in annotations.items()},
    }
    if len(annotations) > 1:
        scores = [
            {r["instruction"]: math.nan if _is_null(r["preference"]) else 100 * r["preference"] for r in rows}
            for rows in annotations.values()
        ]
        report["paired"] = paired_difference(scores[-1], scores[0]).as_dict()
    return report


def _is_null(preference: object) -> bool:
    return preference is None or (isinstance(preference, float) and math.isnan(preference))


def length_controlled(annotations: Annotations, *, may_download: bool = True) -> dict[str, Any]:
    """Return the length-controlled win rate, or null and the reason why there is none.

    Args:
        annotations: a judge's.
        may_download: fetch a file that it needs from the Hub, where the cache lacks it; not for local data.
    """
    missing = {"length_controlled_winrate": None, "lc_standard_error": None}
    if not are_official(annotations):
        reason = f"needs AlpacaEval's {NUM_INSTRUCTIONS} instructions in their own order"
        return {**missing, "lc_missing": reason}
    if hub_file("df_gamed.csv", may_download=may_download) is None:
        remedy = "" if may_download else f"; fetch it once: {DOWNLOAD}"
        reason = f"needs df_gamed.csv of {HUB_DATASET}, which cannot be had here{remedy}"
        return {**missing, "lc_missing": reason}
    with quiet(), warnings.catch_warnings():
        # It calls scikit-learn in a way that ends with 1.10; the `eval` extra stays below.
        warnings.simplefilter("ignore", FutureWarning)
        found = metrics.get_length_controlled_winrate(pd.DataFrame(annotations), save_weights_dir=None)
    return {key: float(found[key]) for key in missing}


def leaderboard(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the named rows of the public AlpacaEval 2 leaderboard that comes with the package.

    Raises:
        UserError: a name that is not on it.
    """
    folder = Path(constants.CURRENT_DIR) / "leaderboards" / "data_AlpacaEval_2"
    table = pd.read_csv(folder / f"{OFFICIAL_ANNOTATOR}_leaderboard.csv", index_col=0)
    for name in names:
        if name not in table.index:
            raise UserError(f"{name!r} is not on the leaderboard; {nearest(name, table.index)}")
    return {name: table.loc[name].dropna().to_dict() for name in names}


def why_not_comparable(annotator: Annotator, reference: Sequence[Mapping[str, Any]]) -> str | None:
    """Say why rates must not be compared with the public leaderboard; None where they may."""
    if not annotator.is_official:
        place = f" of {annotator.path}" if annotator.name == OFFICIAL_ANNOTATOR else ""
        return f"judge {annotator.name}{place} is not the leaderboard's {OFFICIAL_ANNOTATOR}"
    return why_not_the_reference(reference)


def hub_reference() -> list[Output]:
    """Fetch the leaderboard's reference answers from the Hub.

    Raises:
        UserError: they cannot be had.
    """
    path = hub_file("alpaca_eval_gpt4_baseline.json")
    if path is None:
        raise UserError(f"the reference answers cannot be had from {HUB_DATASET}; give them by --reference")
    return read_outputs(path)


def hub_file(name: str, *, may_download: bool = True) -> Path | None:
    """Return a file of AlpacaEval's dataset, downloaded if need be, or None where it cannot be had."""
    with quiet():
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    "tatsu-lab/alpaca_eval", name, repo_type="dataset", local_files_only=not may_download
                )
            )
        except OSError:  # every failure of the Hub's client is one
            return None
