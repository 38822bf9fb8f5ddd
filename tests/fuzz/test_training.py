"""Whatever a training command is given, it works or ends in one line and exit code 2, without a traceback."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from transformers import GPT2ForSequenceClassification

from ivg.training.arguments import DataArguments, ModelArguments
from ivg.training.merging import SFTArguments
from ivg.training.rollouts.arguments import RolloutArguments
from ivg.training.value import convert_command
from ivg.training.value.arguments import ValueTrainingArguments
from tests import tiny
from tests.fuzz.profile import fuzz
from tests.train.launching import COMPLETIONS, PAIRS, REWARDED, ROOT, TINY, TRL_TINY, write_rows
from tests.train.test_bad_inputs import change_weights

pytestmark = pytest.mark.slow
DEEP = b"deep"  # stands for JSON that is nested too deep
KINDS: dict[str, type] = {
    "sft": SFTArguments,
    "dpo": trl.DPOConfig,
    "reward": trl.RewardConfig,
    "value": ValueTrainingArguments,
}
# Not tried: what leaves the machine, starts processes or compilers, or asks for a longer run.
LEFT_OUT = {
    *("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "report_to", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "push_to_hub_token"),
    *("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config", "ddp_backend"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cpu", "local_rank", "max_steps"),
    *(
        "dataloader_num_workers",
        "dataset_num_proc",
        "debug",
        "model_revision",
        "use_kernels",
        "full_determinism",
    ),
    *(
        "use_liger_kernel",
        "kernel_config",
        "dataloader_persistent_workers",
        "num_samples",
        "auto_find_batch_size",
    ),
    *("dataset_config", "policy_revision", "reward_revision"),
}
PATHS = {"dataset_name", "eval_dataset_name", "model_name_or_path", "tokenizer_path", "output_dir"}
PATHS |= {"policy_model", "reward_model", "logging_dir", "resume_from_checkpoint", "chat_template_path"}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**64), 10**30, 1e308, -1.0, 0.5, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "auto", "steps", "no", "\0", "\ud800", "chat", "{prompt}", "a" * 300, "../..", "[1]", "{"]
    ),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-1, 2), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-1, 2), max_size=2),
)
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny.save(folder / "model", tiny.causal(0, dtype=torch.float32))
    config = tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=1)
    tiny.save(folder / "judge", GPT2ForSequenceClassification(config))
    change_weights(folder / "judge", lambda state: state)
    return folder


def _keys_of(script: str) -> list[str]:
    classes = (RolloutArguments,) if script == "rollouts" else (DataArguments, KINDS[script], ModelArguments)
    names = {field.name for cls in classes for field in dataclasses.fields(cls)}
    return sorted(names - LEFT_OUT)


def mutations(script: str) -> st.SearchStrategy[list[tuple[str, str, Any]]]:
    """Up to three things to spoil: keys of the YAML, fields of a row, fields or bytes of a model's file."""
    fields = ("prompt", "chosen", "rejected", "completion", "reward", "messages", "text", "id")
    return st.lists(
        st.one_of(
            st.tuples(st.just("key"), st.sampled_from(_keys_of(script)), JUNK),
            st.tuples(st.just("row"), st.sampled_from(fields), JUNK),
            st.tuples(st.just("line"), st.just(""), st.one_of(st.binary(max_size=9), st.just(DEEP))),
            st.tuples(st.just("field"), st.sampled_from(FILES[:3]), st.tuples(st.integers(0, 40), JUNK)),
            st.tuples(
                st.just("bytes"),
                st.sampled_from(FILES),
                st.tuples(st.integers(0, 9000), st.binary(max_size=9)),
            ),
        ),
        min_size=1,
        max_size=3,
    )


def _spoil_file(path: Path, kind: str, value: tuple[int, Any]) -> None:
    place, new = value
    if kind == "bytes":
        content = path.read_bytes()
        path.write_bytes(content[:place] + new + content[place + len(new) :] if new else content[:place])
        return
    said = json.loads(path.read_text())
    said[sorted(said)[place % len(said)]] = new
    path.write_text(json.dumps(said))


def _spoilt(folder: Path, script: str, changes: list[tuple[str, str, Any]]) -> str:
    """Write a command's inputs with the changes; returns the YAML's path."""
    source = {"value": REWARDED, "sft": COMPLETIONS}.get(script, PAIRS)
    rows: list[dict[str, Any]] = [dict(row) for row in source[:8]]
    keys: dict[str, Any] = {"model_name_or_path": str(folder / "model"), "output_dir": str(folder / "out")}
    if script == "rollouts":
        keys |= {"reward_function": "tests.train.launching.letters", "max_new_tokens": 3, "num_samples": 2}
    else:
        keys |= {**(TINY if script == "value" else TRL_TINY), "max_steps": 1}
    keys["dataset_name"] = str(folder / "rows.jsonl")
    tail = b""
    # Bytes last: what they spoil cannot be read as JSON any more.
    for kind, name, value in sorted(changes, key=lambda change: change[0] == "bytes"):
        if kind == "key":
            is_place = name in PATHS and isinstance(value, str) and value
            keys[name] = f"{folder}/{value.replace('..', 'up')}" if is_place else value
        elif kind == "row":
            rows[len(name) % len(rows)][name] = value
        elif kind == "line":
            tail += b"[" * 100_000 if value == DEEP else value
        else:
            _spoil_file(folder / "model" / name, kind, value)
    write_rows(folder / "rows.jsonl", rows)
    with open(folder / "rows.jsonl", "ab") as file:
        file.write(tail)
    path = folder / "config.yaml"
    path.write_bytes(yaml.safe_dump(keys, allow_unicode=False).encode("utf-8", "surrogatepass"))
    return str(path)


def _run(argv: list[str], script: str) -> int:
    """Run a command's main; returns its exit code, and lets every other exception out."""
    before = sys.argv
    sys.argv = argv
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(ROOT / "train" / f"{script}.py"))["main"]()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        sys.argv = before
    return 0


def _check(capsys: pytest.CaptureFixture[str], code: int) -> None:
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert (code == 0) == ("error: " not in printed)
    # What only a run can find out, of weights that are numbers, but not the trained ones.
    assert code in (0, 2) or (code == 1 and "returned NaN or infinite numbers" in printed), code


# Shrinking would train models for minutes.
quick = settings(fuzz, phases=(Phase.explicit, Phase.generate))


def _try(
    whole: Path, capsys: pytest.CaptureFixture[str], script: str, changes: list[tuple[str, str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(whole / "model", folder / "model")
        path = _spoilt(folder, script, changes)
        _check(capsys, _run([f"train/{script}.py", "--config", path], script))


@quick
@given(changes=mutations("sft"))
@example(changes=[("line", "", DEEP)])
@example(changes=[("field", "generation_config.json", (3, True))])
@example(changes=[("key", "activation_offloading", True)])
@example(changes=[("key", "dataset_kwargs", "no")])
def test_sft(whole: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[str, str, Any]]) -> None:
    _try(whole, capsys, "sft", changes)


@quick
@given(changes=mutations("dpo"))
@example(changes=[("line", "", DEEP)])
@example(changes=[("field", "generation_config.json", (3, True))])
@example(changes=[("key", "activation_offloading", True)])
@example(changes=[("field", "config.json", (32, ".gguf"))])
def test_dpo(whole: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[str, str, Any]]) -> None:
    _try(whole, capsys, "dpo", changes)


@quick
@given(changes=mutations("reward"))
@example(changes=[("line", "", DEEP)])
@example(changes=[("key", "activation_offloading", True)])
def test_reward(whole: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[str, str, Any]]) -> None:
    _try(whole, capsys, "reward", changes)


@quick
@given(changes=mutations("value"))
@example(changes=[("line", "", DEEP)])
def test_value(whole: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[str, str, Any]]) -> None:
    _try(whole, capsys, "value", changes)


@quick
@given(changes=mutations("rollouts"))
@example(changes=[("bytes", "model.safetensors", (3085, b"\x9c\xc3\xefW\xe0\x91U@"))])
@example(changes=[("line", "", DEEP)])
def test_rollouts(
    whole: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[str, str, Any]]
) -> None:
    _try(whole, capsys, "rollouts", changes)


def conversions() -> st.SearchStrategy[list[tuple[str, str, Any]]]:
    return st.lists(
        st.one_of(
            st.tuples(st.just("field"), st.sampled_from(FILES[:3]), st.tuples(st.integers(0, 40), JUNK)),
            st.tuples(
                st.just("bytes"),
                st.sampled_from(FILES),
                st.tuples(st.integers(0, 9000), st.binary(max_size=9)),
            ),
            st.tuples(st.just("head"), st.just(""), st.lists(st.integers(0, 20), max_size=3)),
            st.tuples(st.just("place"), st.sampled_from(["source", "value"]), st.text(max_size=5)),
        ),
        min_size=1,
        max_size=3,
    )


@quick
@given(changes=conversions())
@example(changes=[("place", "value", "\0")])
@example(changes=[("field", "config.json", (40, "\ud800"))])
def test_convert_value(
    whole: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[str, str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(whole / "model", folder / "source")
        places = {"source": "source", "value": "value"}
        shape = next((value for kind, _, value in changes if kind == "head"), [33, 16])
        change_weights(folder / "source", lambda state: {**state, "score_head.weight": torch.zeros(shape)})
        for kind, name, value in sorted(changes, key=lambda change: change[0] == "bytes"):
            if kind == "place":
                places[name] = value.replace("..", "up")
            elif kind != "head":
                _spoil_file(folder / "source" / name, kind, value)
        try:
            convert_command.main([f"{folder}/{places[name]}" for name in ("source", "value")])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        _check(capsys, code)
