"""Judge the quickstart's responses, compare the methods on the same prompts, and write the report.

    python recipes/quickstart/report.py

Reads runs/quickstart; writes report.json, report.md and figures/ there, and the tables to the console.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import corpus
from rich.console import Console
from stages import hash_path, read_stamp
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivg.errors import UserError, exit_on_user_error
from ivg.evaluation.decoded import Decoded, check_same_prompts, read_decoded
from ivg.evaluation.distance import encode_response, response_nll
from ivg.evaluation.figures import FrontierPoint, frontier, reward_by_method, save_png
from ivg.evaluation.measures import compare, measure, missing_reasons
from ivg.evaluation.tables import Table, methods_table, paired_table
from ivg.records import manifest_path
from ivg.rewards import sentiment, vader_completion

RUNS = Path("runs/quickstart")
METHODS = ("base", "token_implicit", "best_of_n", "chunk_explicit", "token_implicit_best_of_n", "ivg")
STAGES = ("prepare", "base", "untuned", "rollouts", "dpo", "value", "decode", "frontier")
REWARD_UNIT = "mean VADER compound over sentences"


def compare_methods(files: list[Decoded], base: Path) -> dict[str, Any]:
    """Score every response with the gold reward and under the base, and compare with `ivg`.

    Args:
        files: the methods' responses to the same prompts, the base's first.
        base: the base's folder.
    """
    check_same_prompts(files)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    rewards = {file.name: vader_completion(file.rows, file.responses) for file in files}
    measured = {}
    for file in files:
        encoded = [encode_response(tokenizer, row) for row in file.rows]
        measured[file.name] = measure(file, rewards[file.name], response_nll(model, encoded))
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
        "decoding": {m: json.loads(path.read_text(encoding="utf-8"))["summary"] for m, path in manifests.items()},
    }


def samples(files: list[Decoded]) -> str:
    """Show every method's answer to the first prompt, as Markdown."""
    lines = [f"Prompt: *{files[0].rows[0]['prompt']}*", ""]
    for file in files:
        response = file.responses[0].strip()
        lines.append(f"- **{file.name}** ({sentiment(response):+.2f}): {response}")
    return "\n".join(lines)


def value_table(quality: Mapping[str, Any]) -> Table:
    """Tabulate how well the value model ranks validation responses from prefixes of them."""
    raise NotImplementedError
