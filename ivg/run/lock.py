"""One writer at a time: a lock beside every output file, and in every output folder.

    with hold_lock(lock_path(output), f"output {output}"):
        ...

The lock is a file that names its holder, and that the holder keeps locked (`flock`): the system lets go when
the process ends, however it ends, so what a killed run leaves behind stops nobody on this machine. On a file
system that several machines share, the name tells one machine's lock from another's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivg.errors import UserError

_NO_LOCKS_HERE = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)  # some network file systems


def lock_path(output: Path) -> Path:
    """Return where the lock of an output file or folder stands; two names of one file share it."""
    real = Path(os.path.realpath(output))
    return real / ".lock" if real.is_dir() else real.with_name(f".{real.name}.lock")


@contextlib.contextmanager
def hold_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: the lock, such as `lock_path` returns.
        what: what it guards, which opens the message, such as `output runs/a.jsonl`.

    Raises:
        UserError: another process of this or another machine holds it, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, what)
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}; give a path that can be written") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before letting go: whoever waits for it then sees that it is gone
        os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
    """Open, lock and sign the file; return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _refuse_a_living_holder(descriptor, path, what)
            if not _is_still_there(descriptor, path):  # its last holder has just removed it
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_own_signature()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _refuse_a_living_holder(descriptor: int, path: Path, what: str) -> None:
    """Take the system's lock on the file, unless someone else has it, or signed it on another machine."""
    is_locked = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_locked = True
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:  # there, what the holder wrote must do
            raise
    holder = _read_signature(descriptor)
    who = f"process {holder.get('pid')}" if holder else "another process"
    since = f", since {holder['since']}" if "since" in holder else ""
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        raise UserError(
            f"{what}: is being written by {who} on {holder['host']}{since}; give another output, or, if no "
            f"such process runs there any more, remove {path}"
        )
    if is_locked or _is_alive(holder):
        raise UserError(f"{what}: is being written by {who}{since}; wait for it, or give another output")


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _own_signature() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _read_signature(descriptor: int) -> dict[str, Any]:
    """Return who signed; nothing where the file is new, or its writer was killed before it signed."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Tell whether the process that signed still runs on this machine."""
    started = holder.get("started")
    return started is not None and _start_time(holder.get("pid")) == started


def _start_time(pid: object) -> str | None:
    """Return when a process of this machine started, in clock ticks since boot; None if there is none.

    It tells a process from a later one with the same number.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return line.rpartition(")")[2].split()[19]
