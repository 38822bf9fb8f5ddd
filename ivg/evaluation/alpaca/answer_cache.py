"""Answers that were paid for, on disk before they are used."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ivg.errors import UserError


def request_key(endpoint: str, kind: str, request: dict[str, Any]) -> str:
    """Name a request by all that can change its answer."""
    content = json.dumps({"endpoint": endpoint, "kind": kind, **request}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """Answers by request key in an append-only JSONL file, each on disk before it is used.

    Raises:
        UserError: another process writes this file, or it is damaged before its last line.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._lock = threading.Lock()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._answers = self._read(path)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"{path}: another evaluation is writing these answers; wait for it") from error
        except UserError:
            self._file.close()
            raise

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)  # the line that a kill left unfinished
        answers = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                answers[str(entry["key"])] = dict(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a kept answer; remove the line") from error
        return answers

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, if it was ever given."""
        return self._answers.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer: it is on disk when this returns."""
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        with self._lock:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers[key] = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # and let other processes have it
