"""A job of two processes under DeepSpeed, killed with -9, goes on from its last complete checkpoint."""

import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ivg.training.resume import MARKER
from tests import tiny
from tests.train.launching import (
    PAIRS,
    REWARDED,
    SLOW_CHECKPOINTS,
    TINY,
    TRL_TINY,
    losses,
    run_alone,
    run_two,
    start_two,
    write_config,
    write_rows,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deepspeed")]


def _keys(folder: Path, script: str) -> dict[str, Any]:
    return {
        **(TINY if script == "value" else TRL_TINY),
        "model_name_or_path": tiny.save(folder / "untuned", tiny.causal(0, dtype=torch.float32)),
        "dataset_name": write_rows(folder / "rows.jsonl", REWARDED if script == "value" else PAIRS),
        "eval_dataset_name": str(folder / "rows.jsonl"),
        "per_device_train_batch_size": 2,
        "max_steps": 24,
        "save_strategy": "steps",
        "save_steps": 6,
        "save_total_limit": 2,
    }


def _kill_after(script: str, config: str, folder: Path, name: str, ready: Path) -> None:
    """Start two processes and kill -9 them and their launcher at once, as soon as a path exists.

    The path may be in a checkpoint that has no marker yet.
    """
    wrapper = [] if ready.name == MARKER else [SLOW_CHECKPOINTS]
    with start_two(script, config, folder, name, wrapper=wrapper) as job:
        deadline = time.monotonic() + 600
        while not ready.exists():
            assert job.poll() is None, f"ended before {ready.name} appeared"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        # The launcher gives every rank a session of its own.
        launcher = psutil.Process(job.pid)
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()
        job.communicate()


@pytest.mark.parametrize(
    ("script", "stage", "moment"),
    [
        # The marker of step 12 exists: the job goes on from there.
        ("dpo", 2, f"checkpoint-12/{MARKER}"),
        # Ranks are writing their shards of step 12: back to step 6.
        ("value", 2, "checkpoint-12/global_step12"),
        ("value", 3, f"checkpoint-12/{MARKER}"),
        ("dpo", 3, "checkpoint-12"),
    ],
)
def test_killed_and_restarted_equals_undisturbed(
    tmp_path: Path, script: str, stage: int, moment: str
) -> None:
    keys, name = _keys(tmp_path, script), f"zero{stage}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_two(script, write_config(tmp_path / "whole.yaml", **keys, output_dir=str(whole)), tmp_path, name)
    config = write_config(tmp_path / "killed.yaml", **keys, output_dir=str(killed))
    _kill_after(script, config, tmp_path, name, killed / moment)
    done = run_two(script, config, tmp_path, name)

    if moment.endswith(MARKER):
        # A busy machine may have got to the next.
        assert re.search(rf"resuming from {re.escape(str(killed))}/checkpoint-(12|18)\b", done.stderr)
    else:
        assert f"removing {killed / 'checkpoint-12'}: the job was killed while writing it" in done.stderr
        assert f"resuming from {killed / 'checkpoint-6'}" in done.stderr
    # What makes a checkpoint whole here: every rank's shard of the optimizer and its random state.
    files = json.loads((killed / "checkpoint-24" / MARKER).read_text()).keys()
    for rank in (0, 1):
        assert f"rng_state_{rank}.pth" in files
        assert any(f.startswith("global_step24/") and f"rank_{rank}_" in f and "optim" in f for f in files)
    assert losses(killed) == losses(whole)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (killed, whole))
    assert ours["eval_loss"] == theirs["eval_loss"]
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_checkpoint_of_two_processes_is_not_taken_up_by_one(tmp_path: Path) -> None:
    keys = _keys(tmp_path, "value") | {"max_steps": 2, "save_steps": 2}
    config = write_config(tmp_path / "value.yaml", **keys, output_dir=str(tmp_path / "out"))
    run_two("value", config, tmp_path, "zero2")
    done = run_alone("value", config, expect=2)
    assert "holds a run with other settings (processes)" in done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == "2, ZeRO-2"
