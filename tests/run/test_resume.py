"""Killed at any moment and started again, or shared by two processes: the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ivg.run import cli
from ivg.run.output_files import Outputs, part_folder
from tests import tiny

ROOT = Path(__file__).parents[2]
NUM_PROMPTS = 24
SEARCH = (
    "--token_guidance implicit --chunk_guidance explicit --num_beams 2 --num_successors 2 --chunk_length 4"
)
SIZES = "--max_new_tokens 48 --block_size 6 --max_batch_rows 16 --return_token_ids --device cpu"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(folder: Path, dtype: torch.dtype) -> list[str]:
    """Save models and prompts; return flags for everything but the output."""
    paths = {
        "base": tiny.save(folder / "base", tiny.causal(0, dtype=dtype)),
        "tuned": tiny.save(folder / "tuned", tiny.causal(1, dtype=dtype)),
        "untuned": tiny.save(folder / "untuned", tiny.causal(2, dtype=dtype)),
        "value": tiny.save(folder / "value", tiny.value(4, num_labels=1, dtype=dtype)),
    }
    rows = [
        {"prompt": "".join(random.Random(i).choices(tiny.LETTERS[:26], k=1 + i % 9))}
        for i in range(NUM_PROMPTS)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [part for name, path in paths.items() for part in (f"--{name}", path)]
    return [*models, *SEARCH.split(), *SIZES.split(), "--input", str(file)]


def prompts_of(output: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in output.read_text().splitlines()]


@pytest.mark.slow
def test_kill_and_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    flags = command(tmp_path, torch.float32)
    whole = tmp_path / "whole.jsonl"
    assert cli.main([*flags, "--output", str(whole)]) == 0
    output = tmp_path / "killed.jsonl"
    size = whole.stat().st_size
    generator = random.Random(7)
    moments = sorted(generator.uniform(0, 0.9) for _ in range(3))
    partial = []
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "ivg.run.cli", *flags, "--output", str(output)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and (not output.exists() or output.stat().st_size <= moment * size):
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        partial.append(output.read_bytes())
        whole_rows = partial[-1][: partial[-1].rfind(b"\n") + 1]
        assert whole.read_bytes().startswith(whole_rows)
    assert any(0 < len(content) < size for content in partial)  # else nothing was interrupted
    assert cli.main([*flags, "--output", str(output)]) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert prompts_of(output) == prompts_of(tmp_path / "prompts.jsonl")


# The command itself, which also writes down what each process decodes.
WORKER = """
import os, sys
from pathlib import Path
from ivg.run import cli, runner
real = runner.BlockDecoder._decode
def decode(decoder, block):
    with Path(sys.argv[1], "rank" + os.environ["RANK"]).open("a") as file:
        file.write(f"{os.getpid()} {list(block)}\\n")
    return real(decoder, block)
runner.BlockDecoder._decode = decode
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    flags = command(tmp_path, torch.float64)
    alone, shared, worker = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl", tmp_path / "worker.py"
    assert cli.main([*flags, "--output", str(alone)]) == 0
    worker.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*launch, str(worker), str(tmp_path), *flags, "--output", str(shared)],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    done = [
        [line.split(" ", 1) for line in (tmp_path / f"rank{rank}").read_text().splitlines()] for rank in "01"
    ]
    assert len({process for lines in done for process, _ in lines}) == 2  # really two
    shares = [[json.loads(block)[0] for _, block in lines] for lines in done]
    assert shares == [[0, 12], [6, 18]]  # every other block of six prompts
    assert shared.read_bytes() == alone.read_bytes()
    assert not shared.with_name(shared.name + ".parts").exists()


def test_what_processes_left_of_another_run_is_dropped(tmp_path: Path) -> None:
    """Also beside an output that is not there yet: parts of the trace too."""
    output, trace = tmp_path / "out.jsonl", tmp_path / "trace.jsonl"
    for overwrite in (False, True):
        for path in (output, trace):
            part_folder(path).mkdir(exist_ok=True)
            (part_folder(path) / "000000.jsonl").write_text("{}\n")
        Outputs(output, [trace], {"seed": int(overwrite)}).start({}, overwrite=overwrite)
        assert not [*part_folder(output).iterdir(), *part_folder(trace).iterdir()]
