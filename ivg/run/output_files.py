"""Output rows, the manifest beside them, and resuming a run that was killed.

Rows are appended in the input's order, so an interrupted output is a prefix of the whole one. Several
processes each write whole blocks to files of their own, which are joined at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ivg.engines.lockstep.acceleration import has_compiled_loops
from ivg.errors import UserError

_MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".jinja")
_END_BYTES = 2**20
_PACKAGES = ("torch", "transformers", "peft", "accelerate")


class RowFile:
    """An append-only JSONL file that knows how many whole rows it holds.

    Opening it cuts off a last line that a kill left unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_other(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise UserError(f"output {path}: {error.strerror}; give a path that can be written") from error
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        self.num_rows = content[:whole].count(b"\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row so that a kill loses nothing before it."""
        data = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            while data:  # unbuffered: what a full disk refuses is not tried again when the file is closed
                data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.num_rows += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def refuse_other(path: Path) -> None:
    """Refuse a path that exists and is no regular file, where rows could not be read again.

    Raises:
        UserError: a folder, a pipe, or a device such as `/dev/null`.
    """
    try:
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise UserError(f"output {path}: {error.strerror}; give a path that can be written") from error
    except ValueError as error:  # a path that holds a null character
        raise UserError(f"output {path}: {error}; give a path that can be written") from error
    if is_other:
        raise UserError(f"output {path}: is no regular file; give a path where one can be written")


def write_atomically(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def manifest_path(output: Path) -> Path:
    """Return where an output's manifest stands."""
    return output.with_name(output.name + ".manifest.json")


def open_run(
    output: Path, settings: Mapping[str, Any], *, overwrite: bool, beside: Sequence[Path] = ()
) -> None:
    """Start a run's manifest, or check that an existing output was made with the same settings.

    Args:
        output: the JSONL file.
        settings: everything that decides the output's bytes.
        overwrite: drop an existing output.
        beside: files written row by row with it; those of an earlier run are dropped with its manifest.

    Raises:
        UserError: the settings differ, naming the first difference, or the folder cannot be written.
    """
    for path in (output, *beside):
        refuse_other(path)
    manifest = manifest_path(output)
    settings = json.loads(json.dumps(settings))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _drop(output, *beside)
            manifest.unlink(missing_ok=True)
        if manifest.exists():
            _check_settings(output, _read_manifest(output)["settings"], settings)
        elif output.exists() and output.stat().st_size > 0:
            raise UserError(f"output {output}: exists without a manifest; give another path or overwrite")
        else:
            _drop(output, *beside)  # also what processes left of an earlier run
            write_atomically(
                manifest, {"status": "running", "settings": settings, "environment": environment()}
            )
        output.touch()
    except OSError as error:
        raise UserError(f"output {output}: {error.strerror}; give a path that can be written") from error


def _drop(*files: Path) -> None:
    for file in files:
        for path in (file, *part_folder(file).glob("*")):
            path.unlink(missing_ok=True)


def _read_manifest(output: Path) -> dict[str, Any]:
    try:
        data = json.loads(manifest_path(output).read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("settings"), dict) or "status" not in data:
        raise UserError(f"output {output}: its manifest is not readable; overwrite, or remove it")
    return data


def close_run(output: Path, summary: Mapping[str, Any]) -> None:
    """Mark a run as complete in its manifest; one that was complete keeps its summary."""
    data = _read_manifest(output)
    if data["status"] == "complete":
        return
    write_atomically(manifest_path(output), {**data, "status": "complete", "summary": dict(summary)})


def manifest_is_complete(output: Path) -> bool:
    """Tell whether an output's run has ended."""
    return bool(_read_manifest(output)["status"] == "complete")


def part_folder(output: Path) -> Path:
    """Return where several processes leave their blocks."""
    return output.with_name(output.name + ".parts")


def join_parts(output: Path, parts: Iterable[Path]) -> None:
    """Put the blocks of several processes together, and remove them."""
    parts = list(parts)
    temporary = output.with_name(f".{output.name}.joined")
    with temporary.open("wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())
    temporary.replace(output)
    for part in parts:
        part.unlink()
    part_folder(output).rmdir()


def content_hash(data: object) -> str:
    """Return a short hash of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Return package versions, the git commit of the working folder, if it has one, and what was compiled."""
    commit = None
    if shutil.which("git"):
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    return {
        "packages": {name: version(name) for name in ("ivg", *_PACKAGES)},
        "git_commit": commit,
        "compiled_loops": has_compiled_loops(),  # without them, last bits differ on a CPU
    }


def fingerprint(folder: Path) -> str:
    """Return a short hash that changes when a model folder's content does.

    Of weight files, which can be many gigabytes, it reads the size and both ends.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in _MODEL_FILES):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _check_settings(output: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"output {output}: was made with other settings ({key}: {before.get(key)} there, "
            f"{after.get(key)} now{more}); give another output, or overwrite"
        )


def _flat(data: object, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        items: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    else:
        return {prefix: data}
    flat: dict[str, Any] = {prefix: "..."} if prefix else {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
