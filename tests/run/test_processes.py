"""Two processes that share a run: one dies and the other says so; what they left is used or mended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ivg.run import cli
from ivg.run.lock import hold_lock, lock_path
from ivg.run.output_files import manifest_path, part_path
from tests.ports import free_port
from tests.run.test_resume import ENVIRONMENT, ROOT, command


def start_two(flags: list[str], output: Path) -> list[subprocess.Popen[str]]:
    """Start both without a launcher, which would end the one as soon as the other dies."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared = {**ENVIRONMENT, **address, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "ivg.run.cli", *flags, "--output", str(output)],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    found = []
    for process in processes:
        _, said = process.communicate(timeout=300)
        found.append((process.returncode, said))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_dies_ends_the_other_in_one_line(tmp_path: Path, dying: int) -> None:
    flags = command(tmp_path, torch.float64)
    alone, output = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    assert cli.main([*flags, "--output", str(alone)]) == 0
    processes = start_two(flags, output)
    first = part_path(output, dying)
    deadline = time.monotonic() + 200
    while not (first.exists() and first.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.002)
    processes[dying].send_signal(signal.SIGKILL)
    found = finish(processes)
    code, said = found[1 - dying]
    assert code == 1, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "error: " in line]
    assert line.startswith(
        f"{'process 1: ' if dying == 0 else ''}error: another process of this run has ended ("
    )
    assert not output.read_bytes()
    again = finish(start_two(flags, output))
    assert [code for code, _ in again] == [0, 0], again
    assert output.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_a_joined_output_that_was_damaged_is_mended(tmp_path: Path) -> None:
    flags = command(tmp_path, torch.float64)
    output = tmp_path / "shared.jsonl"
    found = finish(start_two(flags, output))
    assert [code for code, _ in found] == [0, 0], found
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:9], *lines[10:]]))
    found = finish(start_two(flags, output))
    assert [code for code, _ in found] == [0, 0], found
    assert "line 10 does not answer the record whose turn it is" in found[0][1]
    assert output.read_bytes() == whole
    assert not os.path.exists(f"{output}.parts")
    found = finish(start_two([*flags, "--overwrite", "--seed", "1"], output))
    assert [code for code, _ in found] == [0, 0], found
    assert output.read_bytes() != whole
    assert output.read_bytes().count(b"\n") == len(lines)


@pytest.mark.slow
def test_an_output_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    flags = command(tmp_path, torch.float64)
    output = tmp_path / "shared.jsonl"
    with hold_lock(lock_path(output), "output"):
        (code, said), (other, _) = finish(start_two(flags, output))
    assert (code, other) == (2, 1)  # the second was left behind by the first, and says so
    assert f"output {output}: is being written by process {os.getpid()}" in said
    assert not output.exists()


@pytest.mark.slow
def test_overwriting_keeps_the_old_result_until_each_process_can_decode(tmp_path: Path) -> None:
    flags = command(tmp_path, torch.float64)
    output = tmp_path / "shared.jsonl"
    assert cli.main([*flags, "--output", str(output)]) == 0
    before = [file.read_bytes() for file in (output, manifest_path(output))]
    weights = Path(flags[flags.index("--base") + 1]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = finish(start_two([*flags, "--overwrite", "--seed", "3"], output))
    assert found[0][0] == 2, found
    assert "cannot be loaded" in found[0][1]
    assert [file.read_bytes() for file in (output, manifest_path(output))] == before
