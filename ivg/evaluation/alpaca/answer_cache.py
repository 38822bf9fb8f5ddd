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
from ivg.evaluation.reading import parse_json


def request_key(endpoint: str, kind: str, request: dict[str, Any], repeat: int = 0) -> str:
    """Name a request by all that can change its answer, and by how often it was asked before."""
    again = {"repeat": repeat} if repeat else {}  # the first asking keeps the name it always had
    content = json.dumps({"endpoint": endpoint, "kind": kind, **request, **again}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """Answers by request key in an append-only JSONL file, each on disk before it is used.

    A line that is damaged stays where it is and counts for nothing: what it held is asked again.

    Attributes:
        path: the file.
        damaged: numbers of the lines that hold no answer.

    Raises:
        UserError: another process writes this file, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[int] = []
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise UserError(f"{path}: no regular file; remove it")
            # Unbuffered: what a full disk refuses is not tried again when the file is closed.
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; give an output that can be written") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(f"{path}: another evaluation is writing these answers; wait for it") from error
        self._answers = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)  # the line that a kill left unfinished
        answers = {}
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                entry = parse_json(line, "", "")
                answers[str(entry["key"])] = dict(entry["answer"])
            except (LookupError, TypeError, ValueError):
                self.damaged.append(number)
        return answers

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer to a request, if it was ever given."""
        return self._answers.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer: it is on disk when this returns.

        Raises:
            OSError: the disk is full, or gone; then nothing of it is in the file.
        """
        rest = (json.dumps({"key": key, "answer": answer}) + "\n").encode()
        with self._lock:
            end = self._file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise
            self._answers[key] = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # and let other processes have it
