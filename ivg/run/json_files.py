"""JSON and JSONL files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: object, *, sort_keys: bool = False) -> None:
    """Write a JSON file at once; NaN and infinity, which JSON does not have, become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    _write_at_once(path, [text.encode() + b"\n"])


def write_jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file at once; numbers that JSON does not have are a mistake here (`ValueError`)."""
    encoded = (json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n" for line in lines)
    _write_at_once(path, encoded)


def plain(content: Any) -> Any:
    """Return the same content in JSON's own types: keys are text, and what is no finite number is None."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _write_at_once(path: Path, pieces: Iterable[bytes]) -> None:
    """Write beside the file, or beside what it links to, and put the new one in its place."""
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with the content of none
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
