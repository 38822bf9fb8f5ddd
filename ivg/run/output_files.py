"""The manifest beside an output: what decided its lines, and whether they are all there.

An existing output is resumed where the settings are the same, refused where they are not, and replaced
with `overwrite`: never before the new run could decode something, and never where no manifest says that it
is one of ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.config import DecodeConfig
from ivg.errors import UserError
from ivg.models.folders import MODEL_FILES
from ivg.run.json_files import write_json
from ivg.run.resume import Digest, refuse_other

_SAMPLE_BYTES, _NUM_SAMPLES = 2**16, 32  # read of each file of a model


def check_paths(config: DecodeConfig) -> None:
    """Refuse files that would be written over each other, and a run without an output."""
    if config.output is None:
        raise UserError("no output: give a file, or '-' for standard output")
    if config.trace is not None and "-" in (config.output, config.trace):
        raise UserError("trace and output are two files; give both a path instead of '-'")
    named = [("input", config.input), ("output", config.output), ("trace", config.trace)]
    for name, path in named:
        if path is not None and "\0" in path:
            raise UserError(f"{name} {path!r}: holds a null character; give another path")
    files = [(name, path, os.path.realpath(path)) for name, path in named if path not in (None, "-")]
    for i, (name, path, real) in enumerate(files):
        for other, _, other_real in files[:i]:
            if real == other_real:
                raise UserError(f"{other} and {name} are the same file, {path}; give each its own")


def manifest_path(output: Path) -> Path:
    """Return where an output's manifest stands."""
    return output.with_name(output.name + ".manifest.json")


class Outputs:
    """The files of a run, and its manifest.

    Args:
        output: the JSONL file.
        beside: files written line by line with it, such as the trace.
        settings: everything that decides their bytes.

    Raises:
        UserError: one of them is a folder, a pipe or a device.
    """

    def __init__(self, output: Path, beside: Sequence[Path], settings: Mapping[str, Any]) -> None:
        self.output, self.files = output, (output, *beside)
        # A run may be moved as a whole: names are kept as seen from the output.
        self._names = {path: os.path.relpath(path, output.parent) for path in beside} | {output: "output"}
        self._settings = json.loads(json.dumps(settings))
        for path in self.files:
            refuse_other(path)

    def check(self, *, overwrite: bool) -> None:
        """Refuse files that are not this run's, before anything is loaded or changed.

        Args:
            overwrite: an output of ours with other settings may be replaced.

        Raises:
            UserError: other settings (naming the first difference), or files of another origin.
        """
        try:
            old = self._read() if manifest_path(self.output).exists() else None
            for path in self.files:
                is_ours = old is not None and self._names[path] in old["files"]
                if path.exists() and path.stat().st_size > 0 and not is_ours:
                    raise UserError(
                        f"output {path}: exists without a manifest that names it, so it is not ours to write "
                        "over; give another path, or move it away"
                    )
        except OSError as error:
            raise UserError(
                f"output {self.output}: {error.strerror}; give a path that can be written"
            ) from error
        if old is not None and not overwrite:
            _check_settings(self.output, old["settings"], self._settings)

    def have_begun(self) -> bool:
        """Tell whether a run has begun here."""
        return manifest_path(self.output).exists()

    def start(self, environment: Mapping[str, Any], *, overwrite: bool) -> None:
        """Begin a new run, dropping what an earlier one left, or go on with the one that is there.

        Args:
            environment: what else the manifest says: versions, and where the code comes from.
            overwrite: drop an earlier run's lines.

        Raises:
            UserError: a file cannot be written.
        """
        manifest = manifest_path(self.output)
        try:
            if overwrite or not manifest.exists():
                for path in self.files:
                    for part in part_files(path):
                        part.unlink()
                    if path.exists():
                        os.truncate(path, 0)  # not removed: a link to it stays one
                empty = dict.fromkeys(self.files, Digest(0, 0, hashlib.sha256().hexdigest()))
                write_json(
                    manifest,
                    {
                        "status": "running",
                        "settings": self._settings,
                        "environment": environment,
                        "files": self._as_data(empty),
                    },
                )
            for path in self.files:
                path.touch()
        except OSError as error:
            raise UserError(
                f"output {self.output}: {error.strerror}; give a path that can be written"
            ) from error

    def is_complete(self) -> bool:
        """Tell whether all lines have been written."""
        return bool(self._read()["status"] == "complete")

    def digest(self, path: Path) -> Digest | None:
        """Return what a file held when a block was last finished."""
        written = self._read()["files"].get(self._names[path])
        return None if written is None else Digest(**written)

    def summary(self) -> dict[str, Any]:
        """Return what an earlier run that was cut short had come to; empty at first."""
        return dict(self._read().get("summary", {}))

    def record(self, digests: Mapping[Path, Digest], summary: Mapping[str, Any]) -> None:
        """Write down what the files hold, at the end of a block, and what it took so far."""
        data = self._read()
        if data["files"] != (files := self._as_data(digests)):
            write_json(manifest_path(self.output), {**data, "files": files, "summary": dict(summary)})

    def reopen(self) -> None:
        """Say that lines are missing again."""
        write_json(manifest_path(self.output), {**self._read(), "status": "running"})

    def close(self, digests: Mapping[Path, Digest], summary: Mapping[str, Any]) -> None:
        """Mark the run as complete; one that was complete keeps its summary."""
        data = self._read()
        if data["status"] != "complete":
            data = {**data, "status": "complete", "summary": dict(summary)}
        write_json(manifest_path(self.output), {**data, "files": self._as_data(digests)})

    def _as_data(self, digests: Mapping[Path, Digest]) -> dict[str, Any]:
        return {self._names[path]: dataclasses.asdict(digest) for path, digest in digests.items()}

    def _read(self) -> dict[str, Any]:
        path = manifest_path(self.output)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            is_ours = all(isinstance(data[key], dict) for key in ("settings", "files")) and "status" in data
            _ = [Digest(**written) for written in data["files"].values()] if is_ours else []
        except (ValueError, RecursionError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise UserError(
                f"output {self.output}: its manifest is not readable; move {path} "
                "away, and the output with it"
            )
        return dict(data)


def part_folder(output: Path) -> Path:
    """Return where several processes leave their blocks."""
    return output.with_name(output.name + ".parts")


def part_path(output: Path, block: int) -> Path:
    """Return where a block lies until all are joined."""
    return part_folder(output) / f"{block:06d}.jsonl"


def part_files(output: Path) -> list[Path]:
    """Return the blocks that processes have left, and nothing else that may lie there."""
    return sorted(file for file in part_folder(output).glob("*.jsonl") if file.stem.isdigit())


def join_parts(output: Path, parts: Iterable[Path]) -> Digest:
    """Put the blocks of several processes together, and remove them.

    Returns:
        What the output then holds.
    """
    parts = list(parts)
    target = Path(os.path.realpath(output))  # a link stays one
    temporary = target.with_name(f".{target.name}.joined")
    hasher, num_lines, num_bytes = hashlib.sha256(), 0, 0
    with temporary.open("wb") as joined:
        for part in parts:
            data = part.read_bytes()
            hasher.update(data)
            num_lines, num_bytes = num_lines + data.count(b"\n"), num_bytes + len(data)
            joined.write(data)
    temporary.replace(target)
    for part in parts:
        part.unlink()
    if part_folder(output).exists() and not any(part_folder(output).iterdir()):
        part_folder(output).rmdir()
    return Digest(num_lines, num_bytes, hasher.hexdigest())


def content_hash(data: object) -> str:
    """Return a short hash of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """Return a short hash that changes when a model folder's content does.

    Of each file, which can be many gigabytes, it takes the size, the time of its last change, and samples
    spread over its length, both ends among them.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES):
        state = path.stat()
        digest.update(f"{path.name}:{state.st_size}:{state.st_mtime_ns}".encode())
        last = max(0, state.st_size - _SAMPLE_BYTES)
        with path.open("rb") as file:
            for start in sorted({last * i // (_NUM_SAMPLES - 1) for i in range(_NUM_SAMPLES)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _check_settings(output: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flatten(old), _flatten(new)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"output {output}: was made with other settings ({key}: {before.get(key)} there, "
            f"{after.get(key)} now{more}); give another output, or overwrite"
        )


def _flatten(data: object, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        items: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    else:
        return {prefix: data}
    flat: dict[str, Any] = {prefix: "..."} if prefix else {}
    for key, value in items:
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
