"""AlpacaEval's files: model outputs, and the folder that a leaderboard pull request needs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ivg.errors import UserError
from ivg.evaluation.output_folder import OutputFolder, check_name
from ivg.evaluation.reading import read_json

Output = dict[str, Any]

NUM_INSTRUCTIONS = 805
OFFICIAL_REFERENCE = "gpt4_1106_preview"
# SHA-256 of the leaderboard's instructions as a JSON array: length control knows them by their places alone.
OFFICIAL_INSTRUCTIONS = "191661c5d4e0fa6350b3eec588862a9c9256d2c15fed13e2411f770cbedf47c4"
FIELDS = ("instruction", "output", "generator")
# What an evaluation writes beside its systems' folders.
OWN_NAMES = ("alpaca.json", "annotator", "instructions.jsonl", "judge_answers.jsonl", "submission")


def read_outputs(path: str | Path) -> list[Output]:
    """Read a `model_outputs.json`: an array of objects with `instruction`, `output` and `generator`.

    Raises:
        UserError: not such a file, an instruction that occurs twice, or several generators.
    """
    rows = read_json(Path(path), "AlpacaEval's model_outputs.json")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a non-empty JSON array of outputs, got a {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        lacking = [f for f in FIELDS if not (isinstance(row, dict) and isinstance(row.get(f), str))]
        if lacking:
            raise UserError(
                f"{path}, output {number}: no string {lacking[0]!r}; expected {', '.join(FIELDS)}"
            )
    twice, count = Counter(row["instruction"] for row in rows).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: instruction {twice!r:.60} occurs {count} times; give each once")
    check_name(generator_name(rows, str(path)), f"{path}: generator", reserved=OWN_NAMES)
    return rows


def generator_name(outputs: Sequence[Output], where: str) -> str:
    """Return the one generator of a set of outputs.

    Raises:
        UserError: there are several.
    """
    names = sorted({str(row["generator"]) for row in outputs})
    if len(names) > 1:
        raise UserError(f"{where}: outputs of {len(names)} generators ({', '.join(names)}); give one")
    return names[0]


def align(outputs: Sequence[Output], reference: Sequence[Output], where: str) -> list[Output]:
    """Put outputs in the reference's order.

    Raises:
        UserError: an instruction of the reference is missing, or one is not in the reference.
    """
    by_instruction = {row["instruction"]: row for row in outputs}
    missing = [row["instruction"] for row in reference if row["instruction"] not in by_instruction]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of the reference's {len(reference)} instructions are missing, such as "
            f"{missing[0]!r:.60}; decode them all"
        )
    if len(by_instruction) > len(reference):
        known = {row["instruction"] for row in reference}
        odd = next(instruction for instruction in by_instruction if instruction not in known)
        raise UserError(f"{where}: instruction {odd!r:.60} is not in the reference; remove it")
    return [by_instruction[row["instruction"]] for row in reference]


def read_systems(paths: Sequence[str], reference: Sequence[Output]) -> dict[str, list[Output]]:
    """Read files of outputs, in the reference's order, by their generators.

    Raises:
        UserError: a bad file, two of one generator, or other instructions than the reference's.
    """
    files = [read_outputs(path) for path in paths]
    systems = {str(f[0]["generator"]): align(f, reference, f[0]["generator"]) for f in files}
    if len(systems) < len(files):
        raise UserError(f"two of {', '.join(paths)} name the same generator; rename one")
    return systems


def to_outputs(rows: Sequence[Mapping[str, Any]], generator: str) -> list[Output]:
    """Turn decoded rows into AlpacaEval's schema; surrounding blanks are dropped, as `alpaca_eval` does."""
    kept = ("dataset", "instruction")
    return [
        {**{k: row[k] for k in kept if k in row}, "output": row["response"].strip(), "generator": generator}
        for row in rows
    ]


def are_official(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether rows answer the leaderboard's instructions, in its order."""
    instructions = json.dumps([row["instruction"].strip() for row in rows])
    return hashlib.sha256(instructions.encode()).hexdigest() == OFFICIAL_INSTRUCTIONS


def why_not_the_reference(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say that answers are not the leaderboard's reference; None where they are."""
    if are_official(rows) and rows[0]["generator"] == OFFICIAL_REFERENCE:
        return None
    return f"the reference is not the leaderboard's {NUM_INSTRUCTIONS} answers of {OFFICIAL_REFERENCE}"


def check_submission(outputs: Sequence[Output], reference: Sequence[Output]) -> list[Output]:
    """Return outputs in the reference's order, if the leaderboard would take them.

    Raises:
        UserError: another reference than the leaderboard's, other instructions, or an empty output.
    """
    other = why_not_the_reference(reference)
    if other:
        raise UserError(f"submission: {other}; give those")
    ordered = align(outputs, reference, "submission")
    empty = [row["instruction"] for row in ordered if not row["output"].strip()]
    if empty:
        raise UserError(
            f"submission: {len(empty)} outputs are empty, such as that for {empty[0]!r:.60}; decode again"
        )
    return ordered


def write_submission(
    output: OutputFolder,
    outputs: Sequence[Output],
    reference: Sequence[Output],
    annotations: Sequence[Mapping[str, Any]],
    *,
    annotator: str,
    prompt_template: str,
    pretty_name: str,
    link: str,
    settings: Mapping[str, Any],
) -> Path:
    """Write the files of a leaderboard pull request.

    Args:
        output: gets `submission/results/<generator>/` and `submission/models_configs/<generator>/`.
        outputs: the model's outputs.
        reference: the reference's outputs, whose order is followed.
        annotations: the judge's, in the same order.
        annotator: name of the annotator configuration, which names the annotations' folder.
        prompt_template: how an instruction became the model's text, with `{instruction}`.
        pretty_name: the name on the leaderboard.
        link: where the model is described.
        settings: how it was decoded, recorded in the configuration.

    Returns:
        The folder.

    Raises:
        UserError: outputs that `check_submission` refuses, or fewer annotations than outputs.
    """
    ordered = check_submission(outputs, reference)
    name = generator_name(ordered, "submission")
    if len(annotations) != len(ordered):
        raise UserError(
            f"submission: {len(annotations)} annotations for {len(ordered)} outputs; judge them all"
        )
    config = {
        "prompt_template": f"{name}/prompt.txt",
        "fn_completions": None,  # not one of alpaca_eval's decoders: made by ivg-decode
        "completions_kwargs": dict(settings),
        "pretty_name": pretty_name,
        "link": link,
    }
    folder = ("submission", "results", name)
    output.write_json(ordered, *folder, "model_outputs.json")
    output.write_json(list(annotations), *folder, annotator, "annotations.json")
    folder = ("submission", "models_configs", name)
    output.write_text(yaml.safe_dump({name: config}, sort_keys=False), *folder, "configs.yaml")
    output.write_text(prompt_template, *folder, "prompt.txt")
    return output.path / "submission"
