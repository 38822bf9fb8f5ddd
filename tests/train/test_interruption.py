"""A killed job goes on from its last complete checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ivg.training.resume import MARKER
from tests import tiny
from tests.train.launching import (
    COMPLETIONS,
    PAIRS,
    REWARDED,
    ROOT,
    SLOW_CHECKPOINTS,
    TINY,
    TRL_TINY,
    environment,
    losses,
    run_alone,
    start_two,
    write_config,
    write_rows,
)

pytestmark = pytest.mark.slow

ROWS = {"value": REWARDED, "sft": COMPLETIONS}


def _keys(folder: Path, script: str) -> dict[str, Any]:
    return {
        **(TINY if script == "value" else TRL_TINY),
        "model_name_or_path": tiny.save(folder / "untuned", tiny.causal(0, dtype=torch.float32)),
        "dataset_name": write_rows(folder / "rows.jsonl", ROWS.get(script, PAIRS)),
        "eval_dataset_name": str(folder / "rows.jsonl"),
        "max_steps": 60,
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": 2,
    }


def _kill_after(script: str, config: str, ready: Path) -> None:
    """Start a script and kill -9 it as soon as a path exists: a marker, or a checkpoint without it."""
    wrapper = [] if ready.name == MARKER else [SLOW_CHECKPOINTS]
    command = [sys.executable, *wrapper, str(ROOT / "train" / f"{script}.py"), "--config", config]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as job:
        deadline = time.monotonic() + 300
        while not ready.exists():
            assert job.poll() is None, f"ended before {ready.name} appeared"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        # The marker of step 20 exists: the job goes on from there.
        ("value", f"checkpoint-20/{MARKER}"),
        # The folder of step 20 has just been made, most of its files are missing: back to step 10.
        ("dpo", "checkpoint-20"),
        ("reward", f"checkpoint-20/{MARKER}"),
        ("sft", "checkpoint-20"),
    ],
)
def test_killed_and_restarted_equals_undisturbed(tmp_path: Path, script: str, moment: str) -> None:
    keys = _keys(tmp_path, script)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_alone(script, write_config(tmp_path / "whole.yaml", **keys, output_dir=str(whole)))
    config = write_config(tmp_path / "killed.yaml", **keys, output_dir=str(killed))
    _kill_after(script, config, killed / moment)
    done = run_alone(script, config)

    if moment.endswith(MARKER):
        assert f"resuming from {killed / 'checkpoint-'}" in done.stderr
    else:
        assert f"removing {killed / 'checkpoint-20'}: the job was killed while writing it" in done.stderr
        assert f"resuming from {killed / 'checkpoint-10'}" in done.stderr
    assert losses(killed) == losses(whole)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (killed, whole))
    assert ours["eval_loss"] == theirs["eval_loss"]
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-12)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_rollouts_go_on_after_the_last_finished_block(tmp_path: Path) -> None:
    prompts = [{"prompt": f"{a}{b}"} for a in "abcdefgh" for b in "abcdefgh"]
    keys = {
        "model_name_or_path": tiny.save(tmp_path / "policy", tiny.causal(0, dtype=torch.float32)),
        "dataset_name": write_rows(tmp_path / "prompts.jsonl", prompts),
        "reward_function": "tests.train.launching.letters",
        "max_new_tokens": 12,
        "num_samples": 3,
        "block_size": 4,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_alone("rollouts", write_config(tmp_path / "whole.yaml", **keys, output_dir=str(whole)))
    config = write_config(tmp_path / "killed.yaml", **keys, output_dir=str(killed))
    _kill_after("rollouts", config, killed / "samples" / "block-000003.jsonl")
    assert not (killed / "completions.jsonl").exists()
    first = (killed / "samples" / "block-000000.jsonl").stat().st_mtime_ns
    run_alone("rollouts", config)
    assert (killed / "samples" / "block-000000.jsonl").stat().st_mtime_ns == first
    for name in ("completions.jsonl", "preferences.jsonl", "statistics.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_process_that_dies_ends_the_others_in_one_line(tmp_path: Path) -> None:
    keys = _keys(tmp_path, "dpo") | {"max_steps": 2000, "per_device_train_batch_size": 2}
    config = write_config(tmp_path / "dpo.yaml", **keys, output_dir=str(tmp_path / "out"))
    # The launcher ends the others too, and looks ten times a second; here they have time to say so.
    with start_two("dpo", config, tmp_path, "multi_gpu", "--monitor_interval", "30") as job:
        deadline = time.monotonic() + 400
        while not (tmp_path / "out" / "checkpoint-10" / MARKER).exists():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ranks = [
            child
            for child in psutil.Process(job.pid).children(recursive=True)
            if child.environ().get("RANK") == "1" and any("dpo.py" in word for word in child.cmdline())
        ]
        ranks[0].kill()
        _, errors = job.communicate(timeout=300)
    assert job.returncode != 0
    lines = [line for line in errors.splitlines() if "error: another process of this run has ended" in line]
    assert len(lines) == 1
    assert 'train/dpo.py", line' not in errors  # no traceback of ours; the launcher prints its own
