"""Judge the quickstart's responses, compare the methods on the same prompts, and write the report.

    python recipes/quickstart/report.py

Reads runs/quickstart; writes report.json, report.md and figures/ there, and the tables to the console.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import corpus
from frontier import FrontierConfig, Setting
from frontier import read_config as read_frontier
from rich.console import Console
from stages import hash_path, read_stamp
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.decoded import Decoded, check_same_prompts, read_decoded
from ivg.evaluation.distance import encode_response, response_nll
from ivg.evaluation.figures import FrontierPoint, frontier, reward_by_method, save_png
from ivg.evaluation.measures import compare, measure, missing_reasons
from ivg.evaluation.statistics import estimate
from ivg.evaluation.tables import Table, methods_table, paired_table
from ivg.prompts import Row
from ivg.records import manifest_path
from ivg.rewards import sentiment, vader_completion

NllScorer = Callable[[Sequence[Row]], list[float]]

RUNS = Path("runs/quickstart")
METHODS = ("base", "token_implicit", "best_of_n", "chunk_explicit", "token_implicit_best_of_n", "ivg")
STAGES = ("prepare", "base", "untuned", "rollouts", "dpo", "value", "decode", "frontier")
FRONTIER = "recipes/quickstart/frontier.yaml"
REWARD_UNIT = "mean VADER compound over sentences"


def base_scorer(folder: Path) -> NllScorer:
    """Load the base, to score output rows: their negative log-likelihood in nats."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return lambda rows: response_nll(model, [encode_response(tokenizer, row) for row in rows])


def compare_methods(files: list[Decoded], score_nll: NllScorer) -> dict[str, Any]:
    """Score every response with the gold reward and under the base, and compare with `ivg`."""
    check_same_prompts(files)
    rewards = {file.name: vader_completion(file.rows, file.responses) for file in files}
    measured = {file.name: measure(file, rewards[file.name], score_nll(file.rows)) for file in files}
    report = compare(measured, base="base", reference="ivg")
    for file in files:
        report["methods"][file.name]["missing"] = missing_reasons(file, rewards[file.name])
        report["methods"][file.name]["finished"] = finished(file)
    return report


def finished(file: Decoded) -> float:
    """Return the share of responses that ended by themselves, not at the length limit."""
    return sum(row["finish_reason"] == "eos" for row in file.rows) / len(file.rows)


def weights_check(weights: Path) -> dict[str, Any]:
    """Compare the base's weights before the first response was decoded with those that lie there now."""
    stamp = read_stamp(RUNS / "stamps", "decode")
    if stamp is None:
        raise UserError(f"{RUNS}/stamps has no decode.json; run recipes/quickstart/run.py")
    before, after = stamp["inputs"][str(weights)], hash_path(weights)
    return {"sha256_before": before, "sha256_after": after, "identical": before == after}


def timing() -> dict[str, Any]:
    """Collect the seconds of every finished stage, and what each decoding run said of itself."""
    stamps = {name: read_stamp(RUNS / "stamps", name) for name in STAGES}
    manifests = {m: manifest_path(RUNS / "decoded" / f"{m}.jsonl") for m in METHODS}
    return {
        "stage_seconds": {name: stamp["seconds"] for name, stamp in stamps.items() if stamp is not None},
        "decoding": {
            m: json.loads(path.read_text(encoding="utf-8"))["summary"] for m, path in manifests.items()
        },
    }


def samples(files: list[Decoded]) -> str:
    """Show every method's answer to the first prompt, as Markdown."""
    lines = [f"Prompt: *{files[0].rows[0]['prompt']}*", ""]
    for file in files:
        response = file.responses[0].strip()
        lines.append(f"- **{file.name}** ({sentiment(response):+.2f}): {response}")
    return "\n".join(lines)


def value_table(quality: list[dict[str, Any]]) -> Table:
    """Tabulate how well the value model ranks validation responses from the first part of them."""
    header = ["part of the response read", "rank correlation", "pairwise accuracy"]
    rows = [
        [f"{entry['percent']}%", f"{entry['rank_correlation']:.2f}", f"{entry['pairwise_accuracy']:.2f}"]
        for entry in quality
    ]
    return Table("Value model against the final gold reward", header, rows)


def frontier_points(config: FrontierConfig, score_nll: NllScorer) -> list[FrontierPoint]:
    """Measure every setting of the frontier on the same validation prompts."""
    files = [read_decoded(s.name, Path(config.output_dir) / f"{s.name}.jsonl") for s in config.settings]
    check_same_prompts(files)
    base = next(file for file in files if file.name == Setting(method="base").name)
    base_nll = estimate(score_nll(base.rows)).mean
    return [
        FrontierPoint(
            method=setting.method,
            setting=setting.label,
            x=estimate(score_nll(file.rows)).mean - base_nll,
            reward=estimate(vader_completion(file.rows, file.responses)).as_dict(),
        )
        for setting, file in zip(config.settings, files, strict=True)
    ]


def task_facts() -> dict[str, Any]:
    """Say what is judged, and how high a review of the grammar could score."""
    ceiling = corpus.attainable_maximum(sentiment)
    return {"gold_reward": REWARD_UNIT, "attainable_maximum": round(ceiling, 4)}


def markdown(report: Mapping[str, Any], tables: list[Table], files: list[Decoded]) -> str:
    """Write the report for people."""
    task, weights = report["task"], report["base_weights"]
    same = "identical" if weights["identical"] else "DIFFERENT"
    rounded = f"{task['attainable_maximum']:.2f}"
    parts = [
        "# Quickstart: did guidance help?",
        f"Gold reward: {task['gold_reward']}; the best review that the grammar can write scores {rounded}. "
        "W=4, K=4, L=5, best-of-16, temperature 0.7. Distance is the negative log-likelihood of a response "
        "under the base, less that of the base's own samples: read it beside distinct-2 and length, for "
        "repetition makes text likely.",
        *[f"## {table.title}\n\n{table.markdown()}" for table in tables],
        "![gold reward by method](figures/reward_by_method.png)",
        "![frontier](figures/frontier.png)",
        f"The base's weights before and after decoding are {same} (SHA-256 {weights['sha256_after']}).",
        f"## One prompt, {len(files)} answers\n\n{samples(files)}",
    ]
    return "\n\n".join(parts) + "\n"


@exit_on_user_error
def main() -> None:
    """Judge, compare, draw, write."""
    console = Console()
    score_nll = base_scorer(RUNS / "base")
    files = [read_decoded(method, RUNS / "decoded" / f"{method}.jsonl") for method in METHODS]
    with console.status("judging the responses"):
        compared = compare_methods(files, score_nll)
        points = frontier_points(read_frontier(FRONTIER), score_nll)
        quality = json.loads((RUNS / "value" / "value_evaluation.json").read_text(encoding="utf-8"))
        report = {
            "task": task_facts(),
            **compared,
            "frontier": [dataclasses.asdict(point) for point in points],
            "value_model": quality,
            "base_weights": weights_check(RUNS / "base" / "model.safetensors"),
            "timing": timing(),
        }
    tables = [methods_table(report), paired_table(report), value_table(quality)]
    rewards = {name: measures["gold_reward"] for name, measures in report["methods"].items()}
    save_png(reward_by_method(rewards, unit=REWARD_UNIT), RUNS / "figures" / "reward_by_method.png")
    xlabel = "distance from the base (nats per response)"
    save_png(frontier(points, unit=REWARD_UNIT, xlabel=xlabel), RUNS / "figures" / "frontier.png")
    (RUNS / "report.md").write_text(markdown(report, tables, files), encoding="utf-8")
    (RUNS / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for table in tables:
        console.print(table.console())


if __name__ == "__main__":
    main()
