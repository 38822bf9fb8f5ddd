"""Run the training scripts on tiny models: in this process, or as a user would in processes of their own."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SLOW_CHECKPOINTS = str(Path(__file__).with_name("slow_checkpoints.py"))

# One token per letter (tests.tiny), so lengths are easy to see.
PAIRS = [
    {"prompt": "ab", "chosen": " cd", "rejected": " ef gh"},
    {"prompt": "abc", "chosen": " c", "rejected": " e"},
    {"prompt": "b", "chosen": " cdcd cdc", "rejected": " fe"},
    {"prompt": "ba", "chosen": " dc", "rejected": " fefe"},
] * 4
REWARDED = [
    {"prompt": row["prompt"], "completion": row[key], "reward": reward + 0.1 * (i % 4)}
    for i, row in enumerate(PAIRS)
    for key, reward in (("chosen", 2.0), ("rejected", -1.0))
]
COMPLETIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
TINY = {
    "max_steps": 4,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "use_cpu": True,
    "seed": 3,
    "report_to": "none",
    "save_strategy": "no",
}
TRL_TINY = {**TINY, "bf16": False, "gradient_checkpointing": False, "max_length": 32}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_config(path: Path, **keys: Any) -> str:
    path.write_text(yaml.safe_dump(keys))
    return str(path)


def run_here(script: str, config: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Run a script's main in this process."""
    monkeypatch.setattr(sys, "argv", [f"train/{script}.py", "--config", config, *flags])
    runpy.run_path(str(ROOT / "train" / f"{script}.py"))["main"]()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_alone(script: str, config: str, *flags: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script as its own process and check its exit code."""
    command = [sys.executable, str(ROOT / "train" / f"{script}.py"), "--config", config, *flags]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def path() -> str:
    """The interpreter's own programs first: DeepSpeed looks for ninja."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def launch_config(folder: Path, name: str) -> str:
    """Take the recipe's file as it is, but for two processes on the CPU."""
    config = yaml.safe_load((ROOT / "recipes" / "accelerate" / f"{name}.yaml").read_text())
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}
    return write_config(folder / f"{name}.yaml", **config)


def start_two(
    script: str, config: str, folder: Path, name: str, *launcher_flags: str, wrapper: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a script in two processes.

    Args:
        script: which of train/.
        config: its YAML.
        folder: for the launcher's file.
        name: which of recipes/accelerate/.
        launcher_flags: for `accelerate launch`.
        wrapper: a script that is given the training script and its flags.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", launch_config(folder, name), "--main_process_port", "0"]
    command += launcher_flags
    command += [*wrapper, str(ROOT / "train" / f"{script}.py"), "--config", config]
    return subprocess.Popen(
        command,
        env={**environment(), "DS_ACCELERATOR": "cpu", "PATH": path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_two(
    script: str, config: str, folder: Path, name: str, *, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes (see `start_two`) and check the launcher's exit code."""
    with start_two(script, config, folder, name) as job:
        try:
            output, errors = job.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            job.kill()
            raise
    assert job.returncode == expect, errors[-4000:]
    return subprocess.CompletedProcess(job.args, job.returncode, output, errors)


def losses(output: Path) -> dict[int, float]:
    """Read the loss at each logged step."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def letters(rows: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """Reward: how many of a response's characters come before `n`."""
    return [float(sum(char < "n" for char in text)) for text in responses]
