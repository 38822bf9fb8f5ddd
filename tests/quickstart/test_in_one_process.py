"""Several commands in one process: each sees its own arguments, and the first failure ends them."""

import sys
from pathlib import Path

import in_one_process
import pytest

WRITE = """
import sys
with open(sys.argv[1], "a", encoding="utf-8") as file:
    file.write(sys.argv[2])
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    path = tmp_path / "write.py"
    path.write_text(WRITE, encoding="utf-8")
    return path


def test_commands_run_in_order_up_to_the_first_failure(script: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    commands = [f"{script} {out} {letter} {code}" for letter, code in (("a", 0), ("b", 3), ("c", 0))]
    assert in_one_process.main(commands) == 3
    assert out.read_text(encoding="utf-8") == "ab"


def test_decoding_is_one_of_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_one_process.main(["ivg-decode --config nothing.yaml"]) == 2
    assert "nothing.yaml" in capfd.readouterr().err


def test_an_exit_with_a_message_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "stop.py"
    path.write_text("raise SystemExit('no')", encoding="utf-8")
    assert in_one_process.run_command(str(path)) == 1
