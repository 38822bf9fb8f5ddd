"""User mistakes end with one line on stderr and exit code 2, before any weight is read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2ForSequenceClassification

from tests import tiny
from tests.train.launching import (
    PAIRS,
    REWARDED,
    TINY,
    TRL_TINY,
    run_alone,
    run_here,
    write_config,
    write_rows,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose weights cannot be loaded: whoever reads them fails another way."""
    tiny.save(tmp_path / "model", tiny.causal(0, dtype=torch.float32))
    tiny.save(tmp_path / "other", tiny.causal(0, dtype=torch.float32), tiny.tokenizer(tiny.LETTERS[::-1]))
    config = tiny.gpt2_config(len(tiny.LETTERS) + 2, num_labels=2)
    tiny.save(tmp_path / "two", GPT2ForSequenceClassification(config))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "rewarded.jsonl", REWARDED)
    write_rows(
        tmp_path / "long.jsonl", [{"prompt": "a", "completion": "b" * 80, "reward": r} for r in (1, 2)]
    )
    write_rows(tmp_path / "equal.jsonl", [{**row, "reward": 1.0} for row in REWARDED])
    write_rows(tmp_path / "same.jsonl", [PAIRS[0], {**PAIRS[0], "chosen": PAIRS[0]["rejected"]}])
    write_rows(tmp_path / "silent.jsonl", [PAIRS[0], {**PAIRS[0], "rejected": " "}, PAIRS[1]])
    write_rows(tmp_path / "mute.jsonl", [{"prompt": "a", "completion": c} for c in ("", "b", "\n")])
    rewards = (1.0, float("nan"), 2.0, float("inf"))
    write_rows(
        tmp_path / "nan.jsonl", [{**row, "reward": r} for row, r in zip(REWARDED, rewards, strict=False)]
    )
    write_rows(tmp_path / "longpair.jsonl", [PAIRS[0], {**PAIRS[0], "chosen": "b" * 80}])
    write_rows(tmp_path / "longtext.jsonl", [{"prompt": "a", "completion": "b" * n} for n in (80, 1)])
    write_rows(tmp_path / "noprompt.jsonl", [{"prompt": "a"}, {"text": "b"}])
    write_rows(tmp_path / "later.jsonl", [PAIRS[0], {"chosen": "a", "rejected": "b"}])
    answer = [{"role": "assistant", "content": "a"}]
    write_rows(tmp_path / "mixed.jsonl", [PAIRS[0], {**PAIRS[0], "chosen": answer}])
    write_rows(tmp_path / "number.jsonl", [{"prompt": "a", "completion": n, "reward": n} for n in (1, 2)])
    write_rows(tmp_path / "nulltext.jsonl", [{"text": "a"}, {"text": None}])
    write_rows(tmp_path / "messages.jsonl", [{"messages": answer}] * 2)
    tiny.gpt2_config(len(tiny.LETTERS) + 2).save_pretrained(tmp_path / "untold")
    (tmp_path / "untold" / "tokenizer.json").write_text("{")
    write_rows(tmp_path / "empty.jsonl", [])
    (tmp_path / "notamodel").mkdir()
    (tmp_path / "file").write_text("")
    return tmp_path


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("value", {"dataset_name": "nowhere.jsonl"}, "nowhere.jsonl: No such file"),
    ("value", {"dataset_name": "empty.jsonl"}, "holds no rows"),
    ("value", {"dataset_name": "pairs.jsonl"}, "expected prompt, completion, reward"),
    ("value", {"dataset_name": "long.jsonl"}, "2 of 2 rows have more than 64 tokens"),
    ("value", {"dataset_name": "long.jsonl", "drop_overlong": True}, "all 2 rows have more than 64 tokens"),
    ("value", {"dataset_name": "equal.jsonl"}, "all 32 training rewards equal 1.0"),
    ("value", {"binary_reward": True}, "a reward other than 0 and 1"),
    ("value", {"objective": "cd-q", "binary_reward": True}, "binary_reward goes with objective fudge"),
    ("value", {"objective": "fudgy"}, "objective is 'fudgy'; expected fudge or cd-q or prefix-bt"),
    ("value", {"policy_model": "model"}, "policy_model goes with objective cd-q and head vocabulary"),
    (
        "value",
        {"objective": "cd-q", "policy_model": "other"},
        "policy_model .*other: its ids are not the value model's",
    ),
    (
        "value",
        {"objective": "cd-q", "policy_model": "model", "policy_template": "long " * 20 + "{prompt}"},
        r"32 of 32 rows have more than the policy model's 64 tokens \(first: row 1, 2, 3\)",
    ),
    ("value", {"max_length": 0}, "max_length is 0"),
    ("value", {"learning_rat": 1.0}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
    ("value", {"push_to_hub": True}, "hub_strategy .* pushes checkpoints"),
    (
        "value",
        {"model_name_or_path": "notamodel", "tokenizer_path": "model"},
        "the folder has no config.json",
    ),
    ("value", {"tokenizer_path": "nowhere"}, "tokenizer .*nowhere"),
    ("value", {"output_dir": "file/out"}, "cannot be written: Not a directory"),
    ("dpo", {"dataset_name": "same.jsonl"}, r"1 of 2 rows have chosen equal to rejected \(first: row 2\)"),
    ("reward", {"dataset_name": "same.jsonl"}, r"1 of 2 rows have chosen equal to rejected \(first: row 2\)"),
    ("value", {"objective": "prefix-bt", "dataset_name": "same.jsonl"}, "1 of 2 rows have chosen equal to"),
    ("dpo", {"dataset_name": "silent.jsonl"}, r"1 of 3 rows have an empty rejected \(first: row 2\)"),
    ("reward", {"dataset_name": "silent.jsonl"}, r"1 of 3 rows have an empty rejected \(first: row 2\)"),
    ("sft", {"dataset_name": "mute.jsonl"}, r"2 of 3 rows have an empty completion \(first: row 1, 3\)"),
    (
        "value",
        {"dataset_name": "nan.jsonl"},
        r"2 of 4 rows have a reward that is not a finite number \(first: row 2, 4\)",
    ),
    (
        "dpo",
        {"dataset_name": "longpair.jsonl", "max_length": 1024},
        r"1 of 2 rows have more than the model's 64 tokens \(first: row 2\)",
    ),
    (
        "reward",
        {"dataset_name": "longpair.jsonl", "max_length": 1024},
        "1 of 2 rows have more than the model",
    ),
    ("sft", {"dataset_name": "longtext.jsonl", "max_length": 1024}, "1 of 2 rows have more than the model"),
    ("sft", {"dataset_name": "mute.jsonl", "merge_adapter": True}, "merge_adapter is set without use_peft"),
    ("dpo", {"dataset_name": "rewarded.jsonl"}, "expected prompt, chosen, rejected"),
    ("dpo", {"beta": "high"}, "beta is 'high'; expected float"),
    ("dpo", {"model_name_or_path": None}, "exactly one of model_name_or_path and model_config"),
    ("dpo", {"prompt_template": "chat"}, "has no chat template"),
    (
        "sft",
        {"model_name_or_path": None, "model_config": {"model_type": "gpt5"}},
        "unknown model_type 'gpt5'",
    ),
    (
        "sft",
        {"model_name_or_path": None, "model_config": {"model_type": "gpt2", "n_layers": 2}},
        "gpt2 has no key 'n_layers'; did you mean 'n_layer'",
    ),
    ("rollouts", {"dataset_name": "noprompt.jsonl"}, "row 2: expected one of prompt"),
    ("rollouts", {"reward_function": "ivg.rewards.vadr"}, "defines no vadr"),
    ("rollouts", {"reward_model": "model"}, "exactly one of a function's dotted name and a classifier"),
    ("rollouts", {"reward_function": None, "reward_model": "model"}, "is a GPT2LMHeadModel; expected"),
    ("rollouts", {"reward_function": None, "reward_model": "two"}, "has 2 labels, but no label was given"),
    ("rollouts", {"temperature": -1.0}, "temperature is -1.0"),
    ("rollouts", {"stop": [1]}, r"stop is \[1\]; expected list"),
    ("rollouts", {"max_new_tokens": 64}, "distinct prompts cannot be answered; the first, 'ab'"),
    ("dpo", {"dataset_name": "later.jsonl"}, r"1 of 2 rows have no prompt \(first: row 2\)"),
    ("dpo", {"dataset_name": "mixed.jsonl"}, "column chosen is of several types, text in 1"),
    ("value", {"dataset_name": "number.jsonl"}, "2 of 2 rows have a completion that is neither text nor"),
    ("sft", {"dataset_name": "nulltext.jsonl"}, r"1 of 2 rows have no text \(first: row 2\)"),
    ("sft", {"dataset_name": "messages.jsonl"}, "has messages, but the tokenizer .* has no chat template"),
    ("dpo", {"prompt_template": 5}, "prompt_template is 5; expected str"),
    ("dpo", {"env": ["A"]}, r"env is \['A'\]; expected a mapping"),
    ("reward", {"use_peft": True, "lora_task_type": "CAUSAL_LM"}, "lora_task_type is CAUSAL_LM, but SEQ_CLS"),
    ("value", {"use_peft": True, "lora_task_type": "SEQ_CLS"}, "lora_task_type is SEQ_CLS, but TOKEN_CLS"),
    ("reward", {"max_length": 2}, "none of 16 rows fits max_length 2; raise it"),
    ("dpo", {"max_length": 1}, "none of 16 rows fits max_length 1; raise it"),
    ("dpo", {"resume_from_checkpoint": "nowhere"}, "nowhere is not a complete checkpoint"),
    ("value", {"resume_from_checkpoint": "nowhere"}, "nowhere is not a complete checkpoint"),
    (
        "value",
        {"objective": "cd-q", "policy_model": "untold"},
        "policy_model .*untold: its tokenizer cannot be read",
    ),
]
PATHS = ("dataset_name", "model_name_or_path", "tokenizer_path", "output_dir", "reward_model", "policy_model")


def _config(folder: Path, script: str, keys: dict[str, Any]) -> str:
    rows = {"value": "rewarded.jsonl"}.get(script, "pairs.jsonl")
    common = {"model_name_or_path": "model", "dataset_name": rows, "output_dir": "out"}
    if script == "rollouts":
        common |= {"reward_function": "ivg.rewards.vader", "max_new_tokens": 8}
    else:
        common |= TINY if script == "value" else TRL_TINY
    if "model_config" in keys:
        common["tokenizer_path"] = "model"
    merged = {key: value for key, value in {**common, **keys}.items() if value is not None}
    absolute = {key: str(folder / value) for key, value in merged.items() if key in PATHS}
    return write_config(folder / "config.yaml", **{**merged, **absolute})


@pytest.mark.parametrize(("script", "keys", "message"), CASES)
def test_refused_in_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    keys: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_here(script, _config(folder, script, keys), monkeypatch)
    assert exit_.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_the_process_itself_exits_with_2_and_no_traceback(folder: Path) -> None:
    done = run_alone("value", _config(folder, "value", {"dataset_name": "nowhere.jsonl"}), expect=2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_another_runs_folder_is_not_taken_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text(json.dumps({"beta": 7}))
    with pytest.raises(SystemExit):
        run_here("dpo", _config(folder, "dpo", {}), monkeypatch)
    assert "holds a run with other settings" in capsys.readouterr().err
