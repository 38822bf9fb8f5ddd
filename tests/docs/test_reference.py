"""The reference has every configuration key, and nothing is said there that the program does not say."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from trl import DPOConfig, RewardConfig

from docs.generate.commands import (
    evaluation_keys,
    help_text,
    load_evaluation,
    options_of,
    other_verbs,
    training_keys,
    verbs,
)
from docs.generate.keys import as_cell, effects, find_class, keys, keys_of, own_fields
from ivg.__main__ import EVALUATIONS, STAGES, VERBS
from ivg.config import DecodeConfig, PairConfig, SearchConfig
from ivg.config.yaml_file import build
from ivg.errors import UserError
from ivg.evaluation.sweep import grid
from ivg.serve.settings import Preset, ServeConfig
from ivg.training.arguments import DataArguments, ModelArguments
from ivg.training.merging import SFTArguments
from ivg.training.rollouts.arguments import RolloutArguments
from ivg.training.value.arguments import ValueTrainingArguments
from tests.docs.pages import DOCS, table

REFERENCE = DOCS / "reference"
# What each page must describe: these, and the dataclasses in their fields.
ROOTS: dict[str, tuple[type, ...]] = {
    "decoding.md": (DecodeConfig,),
    "serving.md": (ServeConfig, Preset),
    "training.md": (DataArguments, ModelArguments, SFTArguments, ValueTrainingArguments, RolloutArguments),
    "evaluation.md": (grid.Run, typing.get_type_hints(grid.GridConfig)["reward"]),
}


def described(page: Path) -> set[type]:
    """Return the classes whose keys a page asks for."""
    asked = re.findall(r"<!-- generate: (?:training-)?keys (.+) -->", page.read_text(encoding="utf-8"))
    return {find_class(name) for line in asked for name in line.split()}


def reached(cls: type) -> Iterator[type]:
    """Yield a dataclass and those in its fields."""
    yield cls
    hints = typing.get_type_hints(cls)
    for field in own_fields(cls):
        waiting = [hints[field.name]]
        while waiting:
            hint = waiting.pop()
            waiting += typing.get_args(hint)
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                yield from reached(hint)


@pytest.mark.parametrize("page", ROOTS)
def test_pages_describe_every_class(page: str) -> None:
    assert described(REFERENCE / page) == {found for root in ROOTS[page] for found in reached(root)}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_have_no_other_classes_of_ours(stage: str) -> None:
    row = next(row for row in table(REFERENCE / "training.md", "stage") if row["stage"] == f"`{stage}`")
    files = {path.rpartition("/")[2] for path in STAGES[stage].settings}
    links = {"arguments.py": {"data", "model"}, "merging.py": {"data", "model", "sft"}}
    wanted = set().union(*(links.get(file, set()) for file in files)) | {stage} & {"value", "rollouts"}
    wanted -= {"data", "model"} if stage == "rollouts" else set()
    assert set(re.findall(r"\(#(\w+)\)", row["reads"])) == wanted


@pytest.mark.parametrize(
    "cls", sorted({cls for roots in ROOTS.values() for root in roots for cls in reached(root)}, key=str)
)
def test_every_key_has_a_line(cls: type) -> None:
    is_training = cls.__module__.startswith("ivg.training")
    text = (training_keys if is_training else keys)(f"{cls.__module__}.{cls.__qualname__}")
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(lines) == {field.name for field in own_fields(cls)}
    for line in lines.values():
        _, _, kind, default, _, effect, _ = re.split(r"(?<!\\)\|", line)
        assert kind.strip()
        assert default.strip()
        assert effect.strip()


def test_keys_of_foreign_trainers_are_left_out_and_ours_are_not() -> None:
    own = {field.name for field in own_fields(ValueTrainingArguments)}
    assert {"objective", "head"} <= own
    assert "learning_rate" not in own
    assert not list(own_fields(DPOConfig)) + list(own_fields(RewardConfig))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_option_of_an_evaluation_says_what_it_does(name: str) -> None:
    options = options_of(load_evaluation(name))
    if options is not None:
        assert set(effects(options)) == {field.name for field in dataclasses.fields(options)}


def test_what_stands_beside_a_grid() -> None:
    # `read_grid` takes these out of the file by hand, so the table is written by hand too.
    rows = table(REFERENCE / "evaluation.md", "key")
    assert {row["key"].strip("`") for row in rows} == set(grid._OWN_KEYS)


@pytest.mark.parametrize(
    ("cls", "key", "inside", "outside"),
    [(SearchConfig, "num_beams", 1, 0), (PairConfig, "beta", 0.0, -0.5)],
)
def test_ranges_are_those_that_the_program_keeps(cls: type, key: str, inside: float, outside: float) -> None:
    shown = next(row.range for row in keys_of(cls) if row.name == key)
    assert shown in ("an integer >= 1", "a finite number >= 0")
    needed = {"tuned": {"path": "t"}, "untuned": {"path": "u"}} if cls is PairConfig else {}
    build(cls, {**needed, key: inside}, "")
    with pytest.raises(UserError, match=shown):
        build(cls, {**needed, key: outside}, "")


def test_ranges_of_evaluations_are_those_of_their_checks() -> None:
    section = evaluation_keys().partition("### ivg eval reward-accuracy")[2]
    line = next(line for line in section.splitlines() if line.startswith("| `batch_size`"))
    assert "| an integer >= 1 |" in line


def test_cells_show_all_of_a_text() -> None:
    # Markdown would take braces at a cell's end for attributes, and a bar for the end of the cell.
    assert as_cell("text with {prompt}") == "text with `{prompt}`"
    assert as_cell("`{prompt}` or a | b") == "`{prompt}` or a \\| b"


def test_every_verb_is_listed() -> None:
    page = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
    assert all(f"`ivg {verb}`" in verbs() for verb in VERBS)
    assert {verb for verb in VERBS if not help_text(verb)} <= {"env"}  # which takes no arguments
    sections = page + other_verbs()
    assert all(f"## ivg {verb} {{ #{verb} }}" in sections for verb in VERBS)
    assert "<!-- generate: verbs -->" in page
    assert "<!-- generate: other-verbs -->" in page
