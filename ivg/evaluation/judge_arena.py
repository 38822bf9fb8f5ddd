"""JudgeArena's files: a table of answers that its `evaluate_completions` takes by its path.

JudgeArena (github.com/OpenEuroLLM/JudgeArena) keeps the instructions of AlpacaEval, Arena-Hard and others as
`tables/instructions/NAME.csv`, and knows each by its `instruction_index`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ivg.errors import UserError
from ivg.evaluation.boards import require_once
from ivg.evaluation.measures.decoded import Decoded
from ivg.evaluation.reading import read_text

INSTRUCTIONS = "JudgeArena's tables/instructions/NAME.csv"
COLUMNS = ("instruction_index", "instruction")


def read_instructions(path: str | Path) -> list[dict[str, Any]]:
    """Read JudgeArena's instructions: `instruction_index`, a number or a text, and `instruction`.

    Raises:
        UserError: not such a file, an empty cell, or an index that occurs twice.
    """
    text = read_text(Path(path), INSTRUCTIONS)
    try:  # an instruction may be the word "null"; the types of indices are as JudgeArena reads them
        table = pd.read_csv(io.StringIO(text), keep_default_na=False)
    except ValueError as error:  # every error of the parser is one
        raise UserError(f"{path}: not a CSV table; give {INSTRUCTIONS}") from error
    lacking = [name for name in COLUMNS if name not in table.columns]
    if lacking or table.empty:
        raise UserError(
            f"{path}: {f'no column {lacking[0]!r}' if lacking else 'no rows'}; give {INSTRUCTIONS}"
        )
    rows: list[dict[str, Any]] = table[list(COLUMNS)].to_dict("records")
    for number, row in enumerate(rows, start=1):
        is_index = isinstance(row["instruction_index"], int | str) and row["instruction_index"] != ""
        if not is_index or not isinstance(row["instruction"], str) or not row["instruction"]:
            raise UserError(f"{path}, row {number}: an empty cell, or no text; give {INSTRUCTIONS}")
    require_once([row["instruction_index"] for row in rows], f"{path}: instruction_index")
    return rows


def instruction_prompts(instructions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the instructions as prompts for `ivg decode`."""
    return [{"id": str(row["instruction_index"]), **row} for row in instructions]


def judge_arena_answers(
    instructions: Sequence[Mapping[str, Any]], decoded: Decoded, name: str
) -> list[dict[str, Any]]:
    """Return answers as JudgeArena reads them, in the instructions' order.

    Args:
        instructions: the board's.
        decoded: what `ivg decode` made of `instruction_prompts`; its rows keep `instruction_index`.
        name: of the model.

    Returns:
        Rows with `instruction_index` and `output`, which it needs, and `model`.

    Raises:
        UserError: an instruction without an answer, with several, or with another text than the board's.
    """
    lacking = next((i for i, row in enumerate(decoded.rows, start=1) if not _has_index(row)), None)
    if lacking is not None:
        raise UserError(
            f"{decoded.path}, row {lacking}: no instruction_index; decode the prompts that were written"
        )
    require_once([row["instruction_index"] for row in decoded.rows], f"{decoded.path}: instruction_index")
    answers = {row["instruction_index"]: row for row in decoded.rows}
    missing = [row["instruction_index"] for row in instructions if row["instruction_index"] not in answers]
    if missing:
        raise UserError(
            f"{decoded.path}: {len(missing)} of {len(instructions)} instructions are missing, such as "
            f"{missing[0]!r:.60}; decode them all"
        )
    for row in instructions:
        if answers[row["instruction_index"]].get("instruction") != row["instruction"]:
            raise UserError(
                f"{decoded.path}: instruction {row['instruction_index']!r:.60} has another text than the "
                "board's; decode the prompts that were written"
            )
    if len(answers) > len(instructions):
        odd = next(iter(answers.keys() - {row["instruction_index"] for row in instructions}))
        raise UserError(f"{decoded.path}: instruction {odd!r:.60} is not among the board's; remove it")
    indices = [row["instruction_index"] for row in instructions]
    return [
        {"instruction_index": index, "output": answers[index]["response"], "model": name} for index in indices
    ]


def _has_index(row: Mapping[str, Any]) -> bool:
    index = row.get("instruction_index")
    return isinstance(index, int | str) and not isinstance(index, bool)


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as the bytes of a Parquet file; of a CSV, answers such as "None" would be read as empty."""
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer, index=False)
    return buffer.getvalue()
