"""One writer at a time: living holders are respected, dead ones are not, other machines are named."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ivg.errors import UserError
from ivg.run.lock import hold_lock, lock_path

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from ivg.run.lock import hold_lock
with hold_lock(Path(sys.argv[1]), "output"):
    print("held", flush=True)
    time.sleep(100)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_living_holder_is_respected_and_a_dead_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        with (
            pytest.raises(
                UserError, match=rf"^output o: is being written by process {process.pid}, since 20"
            ),
            hold_lock(path, "output o"),
        ):
            pass
        assert path.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads(path.read_text())["pid"] == process.pid  # what a killed run leaves behind
        with hold_lock(path, "output o"):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        hold_lock(path, "output o"),
        pytest.raises(UserError, match=f"written by process {os.getpid()}"),
        hold_lock(path, "output o"),
    ):
        pass


@pytest.mark.parametrize("is_same_start", [True, False])
def test_without_locks_of_the_file_system_the_process_decides(tmp_path: Path, is_same_start: bool) -> None:
    """What a process wrote whose lock the system does not know: it counts while that very process lives."""
    path = tmp_path / "lock"
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        started = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19]
        signature = {"host": socket.gethostname(), "pid": sleeper.pid}
        path.write_text(json.dumps({**signature, "started": started if is_same_start else "1"}))
        if is_same_start:
            with pytest.raises(UserError, match=f"process {sleeper.pid}"), hold_lock(path, "output o"):
                pass
        else:  # the number was given to another process since
            with hold_lock(path, "output o"):
                pass
    finally:
        sleeper.kill()
        sleeper.wait()


def test_another_machine_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "node7", "pid": 12, "started": "5", "since": "2026-11-01 10:00:00"}))
    expected = (
        r"^output o: is being written by process 12 on node7, since 2026-11-01 10:00:00; give another "
        rf"output, or, if no such process runs there any more, remove {path}$"
    )
    with pytest.raises(UserError, match=expected), hold_lock(path, "output o"):
        pass
    path.unlink()
    with hold_lock(path, "output o"):
        pass


def test_a_signature_that_was_cut_short_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text('{"host": "no')
    with hold_lock(path, "output o"):
        pass


def test_two_names_of_one_file_share_a_lock(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    assert lock_path(tmp_path / "link.jsonl") == lock_path(tmp_path / "real.jsonl")
    assert lock_path(tmp_path).parent == tmp_path


def test_of_many_who_come_at_once_one_has_it(tmp_path: Path) -> None:
    """Half a dozen take over a dead one's lock again and again; never do two have it together."""
    path, inside, most, refused = tmp_path / "lock", 0, 0, 0
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1"}))
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, refused
        for _ in range(100):
            try:
                with hold_lock(path, "output o"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except UserError:
                with guard:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert refused < 600


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^output o: "), hold_lock(tmp_path / "file" / "lock", "output o"):
        pass
