"""Training under real DeepSpeed ZeRO-2 and ZeRO-3, and rollouts, with two processes on the CPU.

Each training run has to give the losses of one process on the same batches, and a checkpoint that loads
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests import tiny
from tests.train.launching import (
    COMPLETIONS,
    PAIRS,
    REWARDED,
    TINY,
    TRL_TINY,
    losses,
    run_here,
    run_two,
    write_config,
    write_rows,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]
CLASSES = {
    "dpo": AutoModelForCausalLM,
    "sft": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification,
    "value": AutoModelForTokenClassification,
}


def _keys(folder: Path, script: str, *, lora: bool) -> dict[str, Any]:
    rows = REWARDED if script == "value" else PAIRS
    model = tiny.causal(0, dtype=torch.float32)
    # Dropout 0, or the draws would differ between one process and two.
    model.config.update({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0})
    return {
        **(TINY if script == "value" else TRL_TINY),
        **({"use_peft": True, "lora_r": 2, "lora_dropout": 0.0} if lora else {}),
        "model_name_or_path": tiny.save(folder / "untuned", model),
        "dataset_name": write_rows(folder / "rows.jsonl", rows),
        "learning_rate": 1e-3,
        # Some gradients are zero but for rounding, which Adam would divide by itself.
        "adam_epsilon": 1e-5,
        # Known batches: of the first four rows each process gets two, and their lengths differ.
        "train_sampling_strategy": "sequential",
    }


def _longest(rows: Sequence[dict[str, Any]]) -> int:
    responses = ("completion", "chosen", "rejected")
    return max(len(row["prompt"] + row[key]) for row in rows for key in responses if key in row)


@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("script", "stage", "kind"),
    [
        ("dpo", 2, "lora"),
        ("dpo", 2, "precomputed"),
        ("reward", 2, "full"),
        ("value", 2, "full"),
        ("dpo", 3, "full"),
        ("dpo", 3, "precomputed"),
        ("reward", 3, "full"),
        ("value", 3, "lora"),
        ("value", 3, "policy"),
    ],
)
def test_two_processes_equal_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, stage: int, kind: str
) -> None:
    lora = kind == "lora"
    keys = _keys(tmp_path, script, lora=lora)
    if kind == "precomputed":
        keys["precompute_ref_log_probs"] = True
    if kind == "policy":
        base = tiny.save(tmp_path / "base", tiny.causal(7, dtype=torch.float32))
        keys |= {"objective": "cd-q", "policy_model": base, "policy_template": "x{prompt}"}
    two, one = tmp_path / "two", tmp_path / "one"
    keys["save_strategy"] = "steps"
    config = write_config(
        tmp_path / "two.yaml",
        **{**keys, "per_device_train_batch_size": 2, "save_steps": 2},
        output_dir=str(two),
    )
    run_two(script, config, tmp_path, f"zero{stage}")
    config = write_config(tmp_path / "one.yaml", **{**keys, "save_steps": 50}, output_dir=str(one))
    run_here(script, config, monkeypatch)

    card = (two / "README.md").read_text()
    assert "| processes | 2 |" in card
    rows = REWARDED if script == "value" else PAIRS
    assert _longest(rows[:2]) != _longest(rows[2:4])
    if script == "dpo":
        assert ("no second copy" in card) == (kind != "full")
    # Every rank has left its own random state in the checkpoint.
    assert {f.name for f in (two / "checkpoint-2").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    ours, theirs = (_weights(script, folder, keys["model_name_or_path"], lora=lora) for folder in (two, one))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-4, rtol=0, msg=name)


def _weights(script: str, folder: Path, base: str, *, lora: bool) -> dict[str, torch.Tensor]:
    """Load the saved model in one process; every weight must be there."""
    if lora:
        kwargs = {"num_labels": len(tiny.tokenizer())} if script == "value" else {}
        untuned = CLASSES[script].from_pretrained(base, **kwargs)
        model = PeftModel.from_pretrained(untuned, folder)
        return {name: tensor for name, tensor in model.state_dict().items() if ".default" in name}
    model, report = CLASSES[script].from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    return dict(model.state_dict())


@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("stage", [2, 3])
def test_an_adapter_of_two_processes_is_merged_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    keys = _keys(tmp_path, "sft", lora=True) | {
        "merge_adapter": True,
        "dataset_name": write_rows(tmp_path / "rows.jsonl", COMPLETIONS),
    }
    two, one = tmp_path / "two", tmp_path / "one"
    config = write_config(
        tmp_path / "two.yaml", **{**keys, "per_device_train_batch_size": 2}, output_dir=str(two)
    )
    run_two("sft", config, tmp_path, f"zero{stage}")
    run_here("sft", write_config(tmp_path / "one.yaml", **keys, output_dir=str(one)), monkeypatch)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    untuned = AutoModelForCausalLM.from_pretrained(keys["model_name_or_path"]).state_dict()
    ours, theirs = (_weights("sft", folder / "merged", "", lora=False) for folder in (two, one))
    assert ours.keys() == theirs.keys() == untuned.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-4, rtol=0, msg=name)
    # The adapter is really in it.
    assert max(float((tensor - untuned[name]).abs().max()) for name, tensor in ours.items()) > 1e-3


def test_rollouts_shared_by_two_processes_equal_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [{"prompt": f"{a}{b}"} for a in "abcd" for b in "abcd"]
    keys = {
        "model_name_or_path": tiny.save(tmp_path / "policy", tiny.causal(0, dtype=torch.float32)),
        "dataset_name": write_rows(tmp_path / "prompts.jsonl", prompts),
        "reward_function": "tests.train.launching.letters",
        "max_new_tokens": 8,
        "block_size": 4,
    }
    two, one = tmp_path / "two", tmp_path / "one"
    config = write_config(tmp_path / "two.yaml", **keys, output_dir=str(two))
    done = run_two("rollouts", config, tmp_path, "multi_gpu")
    run_here("rollouts", write_config(tmp_path / "one.yaml", **keys, output_dir=str(one)), monkeypatch)
    for name in ("completions.jsonl", "preferences.jsonl", "statistics.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    # Really two: the first process samples two of the four blocks.
    assert "sampling (process 1 of 2): 100%" in done.stderr
    assert "8/8" in done.stderr
