"""Recorded comparisons: another judge's `annotations.json`, whose questions can be asked again."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.alpaca.files import Output
from ivg.evaluation.output_folder import check_name
from ivg.evaluation.reading import read_json

WANTED = "AlpacaEval's annotations.json, or a folder that holds some"
TEXTS = ("instruction", "output_1", "output_2", "generator_2")


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """What a judge said about one system's answers.

    Attributes:
        system: generator of the answers.
        judge: the annotator that compared them; empty where the file does not say.
        answers: the system's, one per comparison.
        reference: what each was compared with, in the same order.
        shares: how far the judge preferred the system's answer: 1 for it, 0 for the reference, 1/2 for a tie.
        num_left_out: comparisons that no judge was asked about (equal answers) or that hold no preference.
    """

    system: str
    judge: str
    answers: list[Output]
    reference: list[Output]
    shares: list[float]
    num_left_out: int


def read_recordings(paths: Sequence[str]) -> list[Recording]:
    """Read recorded comparisons, one recording for each file.

    Args:
        paths: `annotations.json` files, or folders under which such files lie.

    Raises:
        UserError: no such file, one of another shape, two of one system, or several judges.
    """
    files = [file for path in paths for file in _files(Path(path))]
    recordings = [_read(file) for file in files]
    systems = [recording.system for recording in recordings]
    twice = next((name for name in systems if systems.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"recordings: two files hold comparisons of {twice!r}; give one for each system")
    judges = sorted({recording.judge for recording in recordings})
    if len(judges) > 1:
        raise UserError(f"recordings are of {len(judges)} judges ({', '.join(judges)}); give those of one")
    return recordings


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("annotations.json"))
    if not found:
        raise UserError(f"{path}: no annotations.json in it; give {WANTED}")
    return found


def _read(path: Path) -> Recording:
    rows = read_json(path, WANTED)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a non-empty JSON array of annotations; give {WANTED}")
    shares = [_share(row, f"{path}, annotation {number}") for number, row in enumerate(rows, start=1)]
    systems = sorted({row["generator_2"] for row in rows})
    judges = sorted({str(row.get("annotator", "")) for row in rows})
    for what, names in (("systems (generator_2)", systems), ("judges (annotator)", judges)):
        if len(names) > 1:
            raise UserError(f"{path}: {len(names)} {what}: {', '.join(names)}; give a file of one")
    instructions = [row["instruction"] for row in rows]
    if len(set(instructions)) < len(rows):
        twice = next(text for text in instructions if instructions.count(text) > 1)
        raise UserError(f"{path}: instruction {twice!r:.60} occurs twice; give each once")
    check_name(systems[0], f"{path}: generator_2")
    kept = [
        (row, share)
        for row, share in zip(rows, shares, strict=True)
        if not math.isnan(share) and row["output_1"] != row["output_2"]
    ]
    if not kept:
        raise UserError(f"{path}: none of the {len(rows)} annotations holds a preference; give {WANTED}")
    return Recording(
        systems[0],
        judges[0],
        [_output(row, "output_2", "generator_2") for row, _ in kept],
        [_output(row, "output_1", "generator_1") for row, _ in kept],
        [share for _, share in kept],
        len(rows) - len(kept),
    )


def _output(row: Mapping[str, Any], output: str, generator: str) -> Output:
    name = str(row.get(generator, "reference"))
    return {"instruction": row["instruction"], "output": row[output], "generator": name}


def _share(row: Any, where: str) -> float:
    """Return an annotation's preference for `output_2` in [0, 1]; NaN where there is none."""
    lacking = [key for key in TEXTS if not (isinstance(row, dict) and isinstance(row.get(key), str))]
    if lacking:
        raise UserError(f"{where}: no string {lacking[0]!r}; expected {', '.join(TEXTS)} and preference")
    preference = row.get("preference")
    if preference is None:
        return math.nan
    is_number = isinstance(preference, int | float) and not isinstance(preference, bool)
    if is_number and preference == 0:  # earlier versions of alpaca_eval wrote 0 for a tie
        return 0.5
    if not is_number or not 1 <= preference <= 2:
        raise UserError(f"{where}: preference is {preference!r:.40}; expected a number from 1 to 2, or null")
    return float(preference) - 1


def sample_instructions(recordings: Sequence[Recording], num: int, *, seed: int) -> list[Recording]:
    """Keep the comparisons of some instructions, the same for every system.

    Args:
        recordings: to draw from.
        num: how many instructions to keep.
        seed: of the draw.

    Raises:
        UserError: there are fewer instructions, or a system answers none of those drawn.
    """
    instructions = list(dict.fromkeys(row["instruction"] for r in recordings for row in r.answers))
    if num > len(instructions):
        raise UserError(f"num_instructions is {num}, but only {len(instructions)} are recorded; give fewer")
    drawn = set(random.Random(seed).sample(instructions, num))
    sampled = [_only(recording, drawn) for recording in recordings]
    empty = next((r.system for r in sampled if not r.answers), None)
    if empty is not None:
        raise UserError(f"{empty} answers none of the {num} instructions drawn; raise num_instructions")
    return sampled


def _only(recording: Recording, instructions: set[str]) -> Recording:
    rows = [i for i, row in enumerate(recording.answers) if row["instruction"] in instructions]
    return dataclasses.replace(
        recording,
        answers=[recording.answers[i] for i in rows],
        reference=[recording.reference[i] for i in rows],
        shares=[recording.shares[i] for i in rows],
    )
