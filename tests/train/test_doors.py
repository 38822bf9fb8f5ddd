"""What training must not let out or in: tokens, telemetry, look-ups; and that LoRA results can be used."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging as transformers_logging

from ivg import rewards
from ivg.config import ModelConfig, ValueConfig
from ivg.models.loading import load_models
from ivg.training.cards import CardMixin
from tests import tiny
from tests.train.launching import (
    COMPLETIONS,
    PAIRS,
    REWARDED,
    TINY,
    TRL_TINY,
    run_here,
    write_config,
    write_rows,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]
ROWS = {"value": REWARDED, "sft": COMPLETIONS}


def _keys(folder: Path, script: str, **more: Any) -> dict[str, Any]:
    return {
        **(TINY if script == "value" else TRL_TINY),
        "max_steps": 2,
        "model_name_or_path": tiny.save(folder / "untuned", tiny.causal(0, dtype=torch.float32)),
        "dataset_name": write_rows(folder / "rows.jsonl", ROWS.get(script, PAIRS)),
        "output_dir": str(folder / "out"),
        **more,
    }


@pytest.mark.parametrize("script", ["sft", "dpo", "reward", "value"])
def test_local_models_and_data_look_up_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    asked: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *a, **k: asked.append("telemetry"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    keys = _keys(tmp_path, script, use_peft=True, lora_r=2)
    run_here(script, write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    assert asked == []


def test_telemetry_is_sent_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda topic, **k: sent.append(topic))
    run_here("dpo", write_config(tmp_path / "c.yaml", **_keys(tmp_path, "dpo")), monkeypatch)
    assert len(sent) == 1


@pytest.mark.parametrize("script", ["dpo", "value"])
def test_metrics_go_where_report_to_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    told: list[dict[str, float]] = []

    class Recorder(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            told.append(logs)

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    run_here(
        script, write_config(tmp_path / "c.yaml", **_keys(tmp_path, script, report_to="trackio")), monkeypatch
    )
    assert [logs["loss"] > 0 for logs in told if "loss" in logs] == [True, True]


@pytest.fixture
def _as_before() -> Iterator[None]:
    """`--quiet` is for a whole process."""
    verbosity, level = transformers_logging.get_verbosity(), logging.getLogger("ivg").level
    yield
    logging.getLogger("ivg").setLevel(level)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("script", ["dpo", "value"])
def test_quiet_training_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], script: str
) -> None:
    config = write_config(tmp_path / "c.yaml", **_keys(tmp_path, script))
    capfd.readouterr()
    run_here(script, config, monkeypatch, "--quiet")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "out" / "metrics.json").is_file()


@pytest.mark.parametrize("script", ["dpo", "value"])
def test_a_token_is_saved_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    seen: list[str] = []
    real = CardMixin.create_model_card

    def create(trainer: CardMixin, *args: Any, **kwargs: Any) -> None:
        seen.append(os.environ["HF_TOKEN"])
        real(trainer, *args, **kwargs)

    monkeypatch.setattr(CardMixin, "create_model_card", create)
    config = write_config(tmp_path / "c.yaml", **_keys(tmp_path, script, save_strategy="steps", save_steps=1))
    run_here(script, config, monkeypatch, "--hub_token", "hf_secret1234")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any(file.name == "training_args.bin" for file in files)
    assert [file for file in files if b"hf_secret1234" in file.read_bytes()] == []
    assert set(seen) == {"hf_secret1234"}  # where whoever pushes looks for it
    assert (
        f"ivg train {script} --config {config} --hub_token ..."
        in (tmp_path / "out" / "README.md").read_text()
    )


def _trained(script: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Note what the model in training gives for a text, at the moment when it is saved."""
    found: dict[str, torch.Tensor] = {}
    real = CardMixin.create_model_card

    def create(trainer: CardMixin, *args: Any, **kwargs: Any) -> None:
        assert isinstance(trainer.model, PeftModel)
        model = trainer.model.eval()
        with torch.no_grad():
            # The value trainer's forward gives values; the stock class's gives logits.
            inner = model.get_base_model()
            found["logits"] = type(inner).forward(inner, input_ids=_ids()).logits
        if script == "value":
            found["logits"] = found["logits"] * trainer.scale.std + trainer.scale.mean
        real(trainer, *args, **kwargs)

    monkeypatch.setattr(CardMixin, "create_model_card", create)
    return found


def _ids() -> torch.Tensor:
    tokenizer = tiny.tokenizer()
    return torch.tensor([[*tokenizer("ab cd")["input_ids"], tokenizer.eos_token_id]])


def test_a_reward_trained_with_lora_scores_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _trained("reward", monkeypatch)
    keys = _keys(tmp_path, "reward", use_peft=True, lora_r=2)
    run_here("reward", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    reward = rewards.load_reward(rewards.RewardConfig(model=str(tmp_path / "out")))
    assert reward([{"prompt": "ab"}], [" cd"]) == pytest.approx([float(found["logits"])], abs=1e-5)
    # And where it is used: rollouts.
    rollouts = {
        "model_name_or_path": keys["model_name_or_path"],
        "dataset_name": keys["dataset_name"],
        "output_dir": str(tmp_path / "rollouts"),
        "reward_model": str(tmp_path / "out"),
        "max_new_tokens": 4,
        "num_samples": 2,
    }
    run_here("rollouts", write_config(tmp_path / "r.yaml", **rollouts), monkeypatch)
    lines = (tmp_path / "rollouts" / "samples" / "block-000000.jsonl").read_text().splitlines()
    assert any(json.loads(line)["reward"] is not None for line in lines)


@pytest.mark.parametrize("head", ["scalar", "vocabulary"])
def test_a_value_trained_with_lora_values_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    found = _trained("value", monkeypatch)
    keys = _keys(tmp_path, "value", use_peft=True, lora_r=2, head=head)
    run_here("value", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    models = load_models(
        keys["model_name_or_path"], values=[ValueConfig(model=ModelConfig(path=str(tmp_path / "out")))]
    )
    assert models.values[0].model.info.kind == head
    with torch.no_grad():
        logits = models.values[0].model.module(_ids()).logits
    torch.testing.assert_close(logits, found["logits"], atol=1e-4, rtol=1e-4)


def test_overwriting_with_a_model_that_cannot_be_read_keeps_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = _keys(tmp_path, "dpo")
    run_here("dpo", write_config(tmp_path / "c.yaml", **keys), monkeypatch)
    (tmp_path / "out" / "notes.md").write_text("mine")
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    spoilt = Path(tiny.save(tmp_path / "spoilt", tiny.causal(0, dtype=torch.float32)))
    os.truncate(spoilt / "model.safetensors", 2000)
    config = write_config(tmp_path / "d.yaml", **{**keys, "model_name_or_path": str(spoilt)})
    with pytest.raises(SystemExit, match="2"):
        run_here("dpo", config, monkeypatch, "--overwrite_output")
    assert "cannot be loaded" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()} == before
    # Another seed, whole weights: now the old result goes, and the notes stay.
    config = write_config(tmp_path / "e.yaml", **{**keys, "learning_rate": 0.5})
    run_here("dpo", config, monkeypatch, "--overwrite_output")
    assert (tmp_path / "out" / "notes.md").read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before[
        tmp_path / "out" / "model.safetensors"
    ]
    assert not list((tmp_path / "out").glob("_*"))
    assert sys.argv[-1] == "--overwrite_output"
