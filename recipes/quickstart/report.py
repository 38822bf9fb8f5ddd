"""Judge the quickstart's responses and compare the methods on the same prompts.

    python recipes/quickstart/report.py

Reads runs/quickstart; writes report.json and reward_accuracy.json there, and the tables to the console.
`ivg eval report` draws both.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import guides_accuracy
import review_reward
from rich.console import Console
from stages import hash_path, read_stamp

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.measures.decoded import Decoded, check_same_prompts, read_decoded
from ivg.evaluation.measures.distance import encode_response, response_nll
from ivg.evaluation.measures.measures import compare, measure, missing_reasons
from ivg.evaluation.reading import read_json
from ivg.evaluation.report.tables import Table, methods_table, paired_table, reward_accuracy_table
from ivg.models.loading import load_models
from ivg.models.prompts import Record
from ivg.rewards import vader_completion
from ivg.run.json_files import write_json
from ivg.run.output_files import manifest_path

NllScorer = Callable[[Sequence[Record]], list[float]]

RUNS = Path("runs/quickstart")
METHODS = ("base", "token_implicit", "best_of_n", "chunk_explicit", "token_implicit_best_of_n", "ivg")
STAGES = ("prepare", "base", "untuned", "rollouts", "dpo", "value", "decode", "sweep")
RECORD = "the record of a run; run the decode stage"
REWARD_UNIT = "quality of a valid review, 0 to 1; 0 for any other text"
ALSO = {"valid": review_reward.valid, "VADER": vader_completion}  # the second: the mean over any sentences


def base_scorer(folder: Path) -> NllScorer:
    """Load the base, to score output rows: their negative log-likelihood in nats."""
    base = load_models(str(folder)).base
    tokenizer, module = base.info.tokenizer, base.module
    return lambda rows: response_nll(module, [encode_response(tokenizer, row) for row in rows])


def compare_methods(files: list[Decoded], score_nll: NllScorer) -> dict[str, Any]:
    """Score every response with both rewards, validity and the base, and compare with `ivg`."""
    check_same_prompts(files)
    rewards = {file.name: review_reward.gold(file.rows, file.responses) for file in files}
    measured = {
        file.name: measure(file, rewards[file.name], score_nll(file.rows), scores_beside(file))
        for file in files
    }
    report = compare(measured, base="base", reference="ivg", also=list(ALSO))
    for file in files:
        report["methods"][file.name]["missing"] = missing_reasons(file, rewards[file.name])
        report["methods"][file.name]["finished"] = finished(file)
    return report


def scores_beside(file: Decoded) -> dict[str, list[float]]:
    """Score validity, and the reward that a text without a valid review can have too."""
    return {name: function(file.rows, file.responses) for name, function in ALSO.items()}


def finished(file: Decoded) -> float:
    """Return the share of responses that ended by themselves, not at the length limit."""
    return sum(row["finish_reason"] == "eos" for row in file.rows) / len(file.rows)


def weights_check(weights: Path) -> dict[str, Any]:
    """Compare the base's weights before the first response was decoded with those that lie there now."""
    stamp = read_stamp(RUNS / "stamps", "decode")
    if stamp is None:
        raise UserError(f"{RUNS}/stamps has no decode.stamp; run recipes/quickstart/run.py")
    before, after = stamp["inputs"][str(weights)], hash_path(weights)
    return {"sha256_before": before, "sha256_after": after, "identical": before == after}


def timing() -> dict[str, Any]:
    """Collect the seconds of every finished stage, and what each decoding run said of itself."""
    stamps = {name: read_stamp(RUNS / "stamps", name) for name in STAGES}
    manifests = {m: manifest_path(RUNS / "decoded" / f"{m}.jsonl") for m in METHODS}
    return {
        "stage_seconds": {name: stamp["seconds"] for name, stamp in stamps.items() if stamp is not None},
        "decoding": {m: read_json(path, RECORD)["summary"] for m, path in manifests.items()},
    }


def value_table(quality: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate how well the value model ranks validation responses from the first part of them."""
    header = ["part of the response read", "rank correlation", "pairwise accuracy"]
    rows = [
        [
            f"{entry['percent']}%",
            *(_write_number(entry[name]) for name in ("rank_correlation", "pairwise_accuracy")),
        ]
        for entry in quality
    ]
    return Table("Value model against the final gold reward", header, rows)


def _write_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def task_facts() -> dict[str, Any]:
    """Say what is judged, and how high a review can score."""
    return {"gold_reward": REWARD_UNIT, "attainable_maximum": 1.0}


@exit_on_user_error
def main() -> None:
    """Judge, compare, write, print."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    with console.status("judging the responses"):
        files = [read_decoded(method, RUNS / "decoded" / f"{method}.jsonl") for method in METHODS]
        quality = read_json(
            RUNS / "value" / "value_evaluation.json", "what `ivg train value` writes; run the stage"
        )
        report = {
            "task": task_facts(),
            **compare_methods(files, base_scorer(RUNS / "base")),
            "value_model": quality,
            "base_weights": weights_check(RUNS / "base" / "model.safetensors"),
            "timing": timing(),
        }
        guides = guides_accuracy.measure_guides(RUNS)
        rewards = {name: measures["gold_reward"] for name, measures in report["methods"].items()}
        guides["prediction"] = guides_accuracy.prediction(guides, rewards)
    write_json(RUNS / "report.json", report)
    write_json(RUNS / "reward_accuracy.json", guides)
    tables = (methods_table(report), paired_table(report), value_table(quality))
    for table in (*tables, reward_accuracy_table(guides)):
        console.print(table.console())
    console.print(guides["prediction"]["text"])
    same = "the same" if report["base_weights"]["identical"] else "NOT the same"
    console.print(f"The base's weights are {same} before and after decoding.")


if __name__ == "__main__":
    main()
