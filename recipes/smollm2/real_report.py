"""Judge the recipe's answers, and compare the methods on the same prompts.

    PYTHONPATH=recipes/quickstart python recipes/smollm2/real_report.py RUNS MODELS BASE

RUNS holds decoded/ (and surface/, the answers by both pairs), MODELS the guides, BASE the base. Writes
report.json (and trade_off.json, and how well the guides rank answers) into RUNS. `ivg eval report` draws it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import answer_rewards
import guides_accuracy
from real import METHODS
from rich.console import Console
from stages import hash_path, read_stamp

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.measures.decoded import Decoded, check_same_prompts, read_decoded
from ivg.evaluation.measures.distance import encode_response, response_nll
from ivg.evaluation.measures.measures import Measures, compare, measure, missing_reasons
from ivg.evaluation.reading import read_json
from ivg.evaluation.report.tables import costs_by_method_table, methods_table, paired_table, trade_off_table
from ivg.models.loading import load_models
from ivg.models.prompts import Record
from ivg.run.json_files import write_json
from ivg.run.output_files import manifest_path

NllScorer = Callable[[Sequence[Record]], list[float]]

ACCURACY = "reward_accuracy.json"
REWARD = "tone: mean VADER compound of the sentences, -1 to 1"
# Beside tone, which the first pair and the value model were trained on: a judge that nothing was trained on,
# the second pair's reward, and whether an answer is whole.
ALSO = {
    "TextBlob": answer_rewards.other_judge,
    "brevity": answer_rewards.brevity,
    "finished": answer_rewards.finished,
}


def base_scorer(folder: str) -> NllScorer:
    """Load the base, to score output rows: their negative log-likelihood in nats."""
    base = load_models(folder).base
    tokenizer, module = base.info.tokenizer, base.module
    # Scores over a large vocabulary: few tokens at a time.
    return lambda rows: response_nll(
        module, [encode_response(tokenizer, row) for row in rows], max_tokens=2048
    )


def measure_all(files: Sequence[Decoded], score_nll: NllScorer) -> dict[str, Measures]:
    """Score every answer by all rewards and by the base."""
    check_same_prompts(files)
    return {
        file.name: measure(
            file,
            answer_rewards.tone(file.rows, file.responses),
            score_nll(file.rows),
            {name: function(file.rows, file.responses) for name, function in ALSO.items()},
        )
        for file in files
    }


def compare_methods(files: Sequence[Decoded], score_nll: NllScorer) -> dict[str, Any]:
    """Compare every method with `ivg`."""
    report = compare(measure_all(files, score_nll), base="base", reference="ivg", also=list(ALSO))
    for file in files:
        rewards = answer_rewards.tone(file.rows, file.responses)
        report["methods"][file.name]["missing"] = missing_reasons(file, rewards)
    return report


def costs(files: Sequence[Decoded]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what a prompt of each method cost and how answers ended, and the seconds that it took."""
    found, seconds = {}, {}
    for file in files:
        assert file.path is not None
        summary = read_json(manifest_path(file.path), "the record of a run; run the decode stage")["summary"]
        number = len(file.rows)
        fed = list(summary["tokens_fed"].values())  # the base's first
        reasons = Counter(row["finish_reason"] for row in file.rows)
        found[file.name] = {
            "base_tokens_fed": fed[0] / number,
            "tokens_fed": sum(fed) / number,
            "gflop": summary["flops"] / number / 1e9,
            "finish_reasons": {reason: count / number for reason, count in sorted(reasons.items())},
        }
        seconds[file.name] = summary["seconds"] / number
    return found, seconds


def trade_off(points: Mapping[tuple[float, float], Decoded], score_nll: NllScorer) -> dict[str, Any]:
    """Measure the answers by both pairs.

    Args:
        points: the answers, by the weights of the pairs of tone and of brevity; (0, 0) is the base.
        score_nll: scores rows by the base.
    """
    measured = measure_all(list(points.values()), score_nll)
    base = points[0, 0].name
    estimates = compare(measured, base=base, reference=base)["methods"]
    also = [name for name in ALSO if name != "brevity"]
    return {
        "names": ["tone", "brevity"],
        "also": also,
        "points": [
            {
                "betas": list(betas),
                "rewards": [estimates[file.name][name] for name in ("gold_reward", "brevity")],
                "also": {name: estimates[file.name][name] for name in also},
                **{
                    key: estimates[file.name][key]
                    for key in ("distance_from_base", "distinct_2", "num_tokens")
                },
            }
            for betas, file in points.items()
        ],
    }


def read_points(folder: Path) -> dict[tuple[float, float], Decoded]:
    """Read the answers by both pairs, in the order of their weights."""
    points = {}
    for path in folder.glob("tone-*-brevity-*.jsonl"):
        _, tone, _, brevity = path.stem.split("-")
        points[float(tone), float(brevity)] = read_decoded(path.stem, path)
    return dict(sorted(points.items()))


def write_accuracies(models: Path, runs: Path, rewards: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what was measured of the guides beside a report, with what it says of the methods' order.

    Args:
        models: folder of the guides and of `accuracy_tone` and `accuracy_brevity`.
        runs: folder of the report.
        rewards: tone by method. Without both methods that use one guide alone, nothing is said of order.
    """
    for name in ("accuracy_tone", "accuracy_brevity"):
        measured = read_json(models / name / ACCURACY, "what the guides know; run recipes/smollm2/real.py")
        alone = {guides_accuracy.PAIR_METHOD, guides_accuracy.VALUE_METHOD}
        if name == "accuracy_tone" and alone <= rewards.keys():
            measured["prediction"] = guides_accuracy.prediction(measured, rewards)
        (runs / name).mkdir(exist_ok=True)
        write_json(runs / name / ACCURACY, measured)


def weights_check(stamps: Path, weights: Path) -> dict[str, Any]:
    """Compare the base's weights before the first answer was decoded with those that lie there now."""
    stamp = read_stamp(stamps, "decode")
    if stamp is None:
        raise UserError(f"{stamps} has no decode.stamp; run recipes/smollm2/real.py")
    before, after = stamp["inputs"][str(weights)], hash_path(weights)
    return {"sha256_before": before, "sha256_after": after, "identical": before == after}


def stage_seconds(*stamps: Path) -> dict[str, float]:
    """Collect the seconds of every finished stage."""
    names = [path.stem for folder in stamps for path in sorted(folder.glob("*.stamp"))]
    found = [read_stamp(folder, path.stem) for folder in stamps for path in sorted(folder.glob("*.stamp"))]
    return {name: stamp["seconds"] for name, stamp in zip(names, found, strict=True) if stamp is not None}


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    """Judge, compare, write, print."""
    if len(arguments) != 3:
        raise UserError(f"got {len(arguments)} arguments; give RUNS MODELS BASE")
    runs, models, base = map(Path, arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    paths = {method: runs / "decoded" / f"{method}.jsonl" for method in METHODS}
    files = [read_decoded(method, path) for method, path in paths.items() if path.exists()]
    score_nll = base_scorer(str(base))
    with console.status("judging the answers"):
        cost, seconds = costs(files)
        quality = read_json(models / "value" / "value_evaluation.json", "what ivg train value writes")
        report = {
            "reward": REWARD,
            **compare_methods(files, score_nll),
            "cost": cost,
            "value_model": quality,
            "base_weights": weights_check(runs / "stamps", base / "model.safetensors"),
            "timing": {
                "seconds_per_prompt": seconds,
                "stage_seconds": stage_seconds(*{models / "stamps": 0, runs / "stamps": 0}),
            },
        }
    write_json(runs / "report.json", report)
    if runs != models:
        tones = {name: found["gold_reward"] for name, found in report["methods"].items()}
        write_accuracies(models, runs, tones)
    shown = [methods_table(report), paired_table(report), costs_by_method_table(report)]
    if (runs / "surface").is_dir():
        with console.status("judging the trade-off"):
            surface = trade_off(read_points(runs / "surface"), score_nll)
        write_json(runs / "trade_off.json", surface)
        shown.append(trade_off_table(surface))
    for table in shown:
        if table is not None:
            console.print(table.console())


if __name__ == "__main__":
    main(sys.argv[1:])
