"""Recipes say who they are, parse strictly, and run with stand-ins that change nothing else."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from trl import DPOConfig, RewardConfig

from ivg.config.yaml_file import config_from_dict
from ivg.training.arguments import DataArguments, ModelArguments, parse_arguments
from ivg.training.merging import SFTArguments
from ivg.training.rollouts.arguments import RolloutArguments
from ivg.training.value.arguments import ValueTrainingArguments
from tests.train.launching import environment

ROOT = Path(__file__).parents[1]
CLASSES: dict[str, tuple[type, ...]] = {
    "sft": (DataArguments, SFTArguments, ModelArguments),
    "dpo": (DataArguments, DPOConfig, ModelArguments),
    "reward": (DataArguments, RewardConfig, ModelArguments),
    "rollouts": (RolloutArguments,),
    "value": (DataArguments, ValueTrainingArguments, ModelArguments),
}
# All that stand_ins.yaml may replace: models, datasets, output paths, step counts and lengths.
REPLACEABLE = {
    *("model_name_or_path", "tokenizer_path", "reward_model"),
    *("dataset_name", "eval_dataset_name"),
    "output_dir",
    *("max_steps", "max_train_rows", "max_prompts"),
    *("max_length", "max_new_tokens"),
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def _load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_all", ROOT / "recipes" / "run_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNNER = _load_runner()
PATHS = [path for recipe in RUNNER.RECIPES for path in RUNNER.stages(recipe)]
TRAINING = [path for path in PATHS if RUNNER.stage_of(path) != "decode"]
DECODING = [path for path in PATHS if RUNNER.stage_of(path) == "decode"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


@pytest.fixture
def stand_ins(tmp_path: Path) -> Any:
    return RUNNER.StandIns(yaml.safe_load((ROOT / "recipes" / "stand_ins.yaml").read_text()), tmp_path)


def test_no_recipe_file_is_left_out() -> None:
    files = {path for recipe in RUNNER.RECIPES for path in (ROOT / "recipes" / recipe).rglob("*.yaml")}
    assert len(PATHS) == 35
    # Evaluation recipes are run by `ivg eval`, not here.
    assert {path.name for path in files - set(PATHS)} == {"alpaca.yaml"}
    folders = {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()} - {"__pycache__"}
    # Launch files; judges of `ivg eval alpaca`; and the quickstart, which `make quickstart` runs as it is.
    assert folders - set(RUNNER.RECIPES) == {"accelerate", "judges", "quickstart", *RUNNER.WITH_SCRIPTS}
    assert all((ROOT / script).is_file() for script in RUNNER.WITH_SCRIPTS.values())


@pytest.mark.parametrize("path", PATHS, ids=_name)
def test_header_names_its_own_file(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    stage = RUNNER.stage_of(path)
    command = next(line for line in header if line.startswith("# Command: "))
    assert command.endswith(f"--config {path.relative_to(ROOT)}")
    assert re.match(
        "# Command: +ivg-decode " if stage == "decode" else f"# Command: +ivg train .*{stage} ", command
    )
    for field in ("# Hardware: ", "# Wall time: ", "# Result: "):
        assert any(line.startswith(field) for line in header)
    assert "/tmp" not in path.read_text()


def _parsed(stage: str, keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what reaches the trainer: every field of the script's dataclasses."""
    (folder / "keys.yaml").write_text(yaml.safe_dump(keys))
    flags = [] if stage == "rollouts" else ["--use_cpu", "true"]
    values: dict[str, Any] = {}
    for parsed in parse_arguments(CLASSES[stage], ["--config", str(folder / "keys.yaml"), *flags]):
        values |= {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    return values


@pytest.mark.parametrize("path", TRAINING, ids=_name)
def test_training_keys_reach_the_trainer_as_written(path: Path, stand_ins: Any, tmp_path: Path) -> None:
    stage, written = RUNNER.stage_of(path), yaml.safe_load(path.read_text())
    replaced = stand_ins.stand_in(path)
    original, used = _parsed(stage, written, tmp_path), _parsed(stage, replaced, tmp_path)
    different = {key for key in used if repr(used[key]) != repr(original[key])}
    # The accelerator's settings hold the moment of their making, not a value.
    assert different - REPLACEABLE - {"accelerator_config"} == set()
    # transformers reads report_to "none" as an empty list.
    assert used.get("report_to", []) == []
    for key in written.keys() - REPLACEABLE - {"report_to"}:
        assert used[key] == written[key] or str(used[key]) == str(written[key]), key


def _without_replaceable(keys: dict[str, Any]) -> dict[str, Any]:
    kept = RUNNER.with_models(json.loads(json.dumps(keys)), lambda _: "")
    kept["sampling"].pop("max_new_tokens")
    return {key: value for key, value in kept.items() if key not in ("dataset", "input", "output", "limit")}


@pytest.mark.parametrize("path", DECODING, ids=_name)
def test_decoding_keys_reach_the_decoder_as_written(path: Path, stand_ins: Any) -> None:
    written, replaced = yaml.safe_load(path.read_text()), stand_ins.stand_in(path)
    config_from_dict(written)
    used = config_from_dict(replaced)
    assert _without_replaceable(replaced) == _without_replaceable(written)
    for key, value in written["search"].items():
        assert getattr(used.search, key) == value
    for key in written["sampling"].keys() - {"max_new_tokens", "stop"}:
        assert getattr(used.sampling, key) == written["sampling"][key]
    assert list(used.sampling.stop) == written["sampling"].get("stop", [])
    for key, value in written["base"].items() if isinstance(written["base"], dict) else ():
        assert key == "path" or getattr(used.base, key) == value
    for pair, given in zip(used.pairs, written.get("pairs", []), strict=True):
        assert pair.beta == given.get("beta", 1.0)
        for side in ("tuned", "untuned"):
            template = given[side]["template"] if isinstance(given[side], dict) else None
            assert getattr(pair, side).template == template
    for value, given in zip(used.values, written.get("values", []), strict=True):
        assert value.model.template == (given["template"] if isinstance(given, dict) else None)


def test_fidelity_speaks_of_every_model_and_data_set_of_the_papers_tasks() -> None:
    text = (ROOT / "recipes" / "FIDELITY.md").read_text(encoding="utf-8")
    names = set()
    for path in PATHS:
        if path.parts[-2] in ("sentiment", "summarization", "tulu", "ultra"):
            keys = yaml.safe_load(path.read_text())
            names |= set(RUNNER.models_of(keys)) if RUNNER.stage_of(path) == "decode" else set()
            names |= {keys[key] for key in (*RUNNER.MODELS, *RUNNER.DATASETS) if key in keys}
    spoken = {name.rpartition("/")[2] for name in names if not name.startswith("runs/")}
    aliases = {"gpt2": "GPT-2", "gpt2-large": "GPT-2 large", "gpt2-xl": "GPT-2 XL"}
    aliases |= {"Llama-2-7b-chat-hf": "Llama-2-7B-chat", "Llama-2-70b-chat-hf": "Llama-2-70B-chat"}
    aliases |= {"gpt2-summarize-dpo": "`chadlzx/gpt2-summarize` and `-dpo`"}
    assert {name for name in spoken if aliases.get(name, name) not in text} == set()


def test_every_hub_name_has_a_stand_in(stand_ins: Any) -> None:
    models, data = set(), set()
    for path in PATHS:
        keys = yaml.safe_load(path.read_text())
        if RUNNER.stage_of(path) == "decode":
            models |= set(RUNNER.models_of(keys))
            data |= {keys["dataset"]["name"]} if "dataset" in keys else {keys["input"]}
        else:
            models |= {keys[key] for key in RUNNER.MODELS if key in keys}
            data |= {keys[key] for key in RUNNER.DATASETS if key in keys}
    assert {name for name in models if not name.startswith("runs/")} <= set(stand_ins.spec["models"])
    assert {name for name in data if not name.startswith("runs/")} == set(stand_ins.spec["datasets"])


def _made(stage: str, keys: dict[str, Any]) -> set[str]:
    """Return what later stages can read of a stage."""
    if stage == "decode":
        return {keys["output"]}
    folder = keys["output_dir"]
    if stage == "rollouts":
        return {f"{folder}/completions.jsonl", f"{folder}/preferences.jsonl"}
    return {folder} | ({f"{folder}/merged"} if keys.get("merge_adapter") else set())


def test_what_a_stage_reads_an_earlier_one_makes(stand_ins: Any) -> None:
    made = set(stand_ins.spec["released"])
    for path in PATHS:
        stage, keys = RUNNER.stage_of(path), yaml.safe_load(path.read_text())
        read = {keys.get(key, "") for key in (*RUNNER.MODELS, *RUNNER.DATASETS, "input")}
        read |= set(RUNNER.models_of(keys)) if stage == "decode" else set()
        assert {name for name in read if name.startswith("runs/")} <= made, path
        made |= _made(stage, keys)


@pytest.mark.slow
def test_a_recipe_runs_from_training_to_a_decoded_file() -> None:
    command = [sys.executable, str(ROOT / "recipes" / "run_all.py"), "sentiment"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 stages ran" in done.stdout
    rows = (ROOT / "runs/recipes/runs/sentiment/gpt2-xl.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["Film 0 was", "Film 1 was", "Film 2 was"]
    assert all(json.loads(row)["num_tokens"] >= 1 for row in rows)
