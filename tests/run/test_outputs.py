"""Where rows go: nothing is written over, nothing hangs, and what was finished survives what happens."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivg.run import cli
from tests.run.conftest import Folders


def run(folders: Folders, *arguments: object) -> int:
    return cli.main(["--base", folders.base, "--max_new_tokens", "5", *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], folders: Folders, *arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        run(folders, *arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the movie"}\n{"prompt": "a film"}\n{"prompt": "a"}\n')
    return path


def test_devices_and_pipes_are_refused_and_left_alone(
    capsys: pytest.CaptureFixture[str], folders: Folders, prompts: Path, tmp_path: Path
) -> None:
    """TokenSequence them back, to go on where a run stopped, would hang."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for flags in (["--output", pipe], ["--output", tmp_path / "o", "--trace", pipe]):
        line = refusal(capsys, folders, "--input", prompts, *flags, "--overwrite")
        assert f"output {pipe}: is no regular file" in line
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert "is no regular file" in refusal(capsys, folders, "--input", prompts, "--output", "/dev/null")
    assert "is no regular file" in refusal(capsys, folders, "--input", prompts, "--output", tmp_path)


def test_files_are_not_written_over_each_other(
    capsys: pytest.CaptureFixture[str],
    folders: Folders,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = prompts.read_bytes()
    line = refusal(capsys, folders, "--input", prompts, "--output", "prompts.jsonl", "--overwrite")
    assert "input and output are the same file, prompts.jsonl" in line
    assert prompts.read_bytes() == before
    line = refusal(capsys, folders, "--input", prompts, "--output", "o", "--trace", tmp_path / "o")
    assert "output and trace are the same file" in line
    line = refusal(capsys, folders, "--input", prompts, "--output", "o", "--trace", "-")
    assert "trace and output are two files" in line
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("manifest", ["{", "[]", '{"settings": 3, "status": "complete"}', '{"settings": {}}'])
def test_a_manifest_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], folders: Folders, prompts: Path, tmp_path: Path, manifest: str
) -> None:
    output = tmp_path / "o.jsonl"
    assert run(folders, "--input", prompts, "--output", output) == 0
    (tmp_path / "o.jsonl.manifest.json").write_text(manifest)
    capsys.readouterr()
    assert "its manifest is not readable" in refusal(capsys, folders, "--input", prompts, "--output", output)


def test_an_output_with_rows_of_another_hand(
    capsys: pytest.CaptureFixture[str], folders: Folders, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.jsonl"
    assert run(folders, "--input", prompts, "--output", output) == 0
    output.write_bytes(output.read_bytes() * 2)
    capsys.readouterr()
    line = refusal(capsys, folders, "--input", prompts, "--output", output)
    assert "holds 6 rows, but this run makes 3" in line


def command(folders: Folders, *arguments: object) -> list[str]:
    return [
        *(sys.executable, "-m", "ivg.run.cli", "--base", folders.base, "--max_new_tokens", "40"),
        *map(str, arguments),
    ]


def test_a_full_disk_is_an_error(folders: Folders, prompts: Path, tmp_path: Path) -> None:
    """A file that may hold 4,000 bytes stands for the disk: the manifest fits, not all rows do."""
    rows = [{"prompt": "a", "note": "x" * 300} for _ in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "o.jsonl"
    decode = command(folders, "--input", prompts, "--output", output, "--block_size", 5)
    full = subprocess.run(
        decode,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1] == f"error: {output}: File too large"
    assert "Traceback" not in full.stderr
    written = output.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    assert whole.count(b"\n") > 3
    subprocess.run(decode, capture_output=True, check=True, timeout=120)
    assert output.read_bytes().startswith(whole)
    assert len(output.read_text().splitlines()) == 20


def test_a_full_standard_output_is_an_error(folders: Folders, prompts: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(folders, "--input", prompts, "--output", "-"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_the_run(folders: Folders, prompts: Path) -> None:
    prompts.write_text('{"prompt": "a"}\n' * 2000)
    decode = subprocess.Popen(
        command(folders, "--input", prompts, "--output", "-", "--block_size", 4),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert decode.stdout is not None
    assert decode.stderr is not None
    decode.stdout.readline()
    decode.stdout.close()
    assert decode.wait(timeout=120) == 1
    assert b"Traceback" not in (said := decode.stderr.read())
    assert said.splitlines()[-1] == b"error: standard output: Broken pipe"
    decode.stderr.close()


def _hears_interrupts() -> None:
    """Shells let what runs in the background ignore Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_control_c_keeps_what_is_finished(folders: Folders, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text("".join(json.dumps({"prompt": "a", "n": n}) + "\n" for n in range(240)))
    output, whole = tmp_path / "o.jsonl", tmp_path / "whole.jsonl"
    decode = command(folders, "--input", prompts, "--output", output, "--block_size", 4)
    process = subprocess.Popen(decode, stderr=subprocess.PIPE, preexec_fn=_hears_interrupts)
    assert process.stderr is not None
    deadline = time.monotonic() + 100
    while not (output.exists() and output.stat().st_size > 2000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=100) == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"interrupted; the same command goes on from {output}"
    saved = output.read_bytes()
    assert saved.endswith(b"\n")
    assert 0 < saved.count(b"\n") < 240
    subprocess.run(decode, capture_output=True, check=True, timeout=120)
    other = command(folders, "--input", prompts, "--output", whole, "--block_size", 4)
    subprocess.run(other, capture_output=True, check=True, timeout=120)
    assert output.read_bytes() == whole.read_bytes()
    assert whole.read_bytes().startswith(saved)
