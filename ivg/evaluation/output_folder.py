"""Where an evaluation writes: a folder (or one file) of its own, and nothing else in it is touched."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivg.errors import UserError
from ivg.evaluation.reading import read_json, read_text
from ivg.run.json_files import write_json, write_jsonl
from ivg.run.lock import hold_lock, lock_path

LIST_NAME = ".ivg-evaluation.json"  # names the files that evaluations wrote beside it
LONGEST_NAME = 180  # bytes of UTF-8: file systems take 255, suffixes included


def check_name(name: str, what: str, *, reserved: Sequence[str] = ()) -> str:
    """Return a name if a file or folder of that name stays where it is put.

    Every name from an input file or a flag that becomes part of a path passes here.

    Args:
        name: to be checked.
        what: opens the message, such as `generator`.
        reserved: names of files that stand in the same folder.

    Raises:
        UserError: an empty name, one that leads elsewhere, or one that no file can have.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = LONGEST_NAME + 1
    leads_elsewhere = name.startswith(".") or "/" in name or "\\" in name or not name.isprintable()
    if not name.strip() or leads_elsewhere or size > LONGEST_NAME or name in reserved:
        raise UserError(
            f"{what} {name!r:.80} cannot name a file of its own; give a short name without slashes, that "
            "does not open with a dot"
        )
    return name


class OutputFolder:
    """A folder of results, whose files are written whole or not at all.

    Which files are ours stands in a list in the folder. Whatever else lies there is never written over.

    Args:
        path: the folder.
        is_known: earlier versions wrote no list, but the caller has recognised their result in this folder:
            then files of the names that evaluations use are ours too.
    """

    def __init__(self, path: Path, *, is_known: bool = False) -> None:
        self.path = path
        self._list = path / LIST_NAME
        self._own: set[str] = set()
        self._is_known = is_known and not self._list.exists()
        if self._list.exists():
            names = read_json(self._list, "the list that an evaluation wrote, or remove it")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f"{self._list}: not a list of names; remove it")
            self._own = set(names)

    def claim(self, *parts: str) -> Path:
        """Return the path of a file to write, and note that it is ours.

        Args:
            parts: folders and file name, below this folder.

        Raises:
            UserError: a file lies there that no evaluation wrote.
        """
        path, name = self.path.joinpath(*parts), "/".join(parts)
        if name in self._own:
            return path
        if (path.exists() or path.is_symlink()) and not self._is_known:
            raise UserError(
                f"output {path}: lies there, and no evaluation wrote it; move it away, or give another output"
            )
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._own.add(name)
            write_json(self._list, sorted(self._own))
        return path

    def write_text(self, text: str, *parts: str) -> Path:
        """Write a file of ours."""
        return self.write_bytes(text.encode(), *parts)

    def write_bytes(self, content: bytes, *parts: str) -> Path:
        """Write a file of ours."""
        path = self.claim(*parts)
        with writable(path):
            write_whole(path, content)
        return path

    def write_json(self, data: Any, *parts: str) -> Path:
        """Write JSON to a file of ours."""
        path = self.claim(*parts)
        with writable(path):
            write_json(path, data)
        return path

    def write_json_lines(self, records: Sequence[Any], *parts: str) -> Path:
        """Write a JSON object per line to a file of ours."""
        path = self.claim(*parts)
        with writable(path):
            write_jsonl(path, records)
        return path


@contextlib.contextmanager
def open_output(path: str | Path, result: str, opening: str) -> Iterator[OutputFolder]:
    """Make a folder for results and hold it for this evaluation alone.

    It is tried whether files can be written there before any work starts.

    Args:
        path: the folder.
        result: name of the evaluation's result, by which a folder of an earlier version is recognised.
        opening: what that file begins with.

    Raises:
        UserError: a file of that name, a place that cannot be written, or another evaluation at work there.
    """
    folder = make_output_folder(path)
    with hold_lock(lock_path(folder), f"output {folder}"):
        yield OutputFolder(folder, is_known=_opens_with(folder / result, opening))


def _opens_with(path: Path, opening: str) -> bool:
    return path.is_file() and read_text(path, "a result of an evaluation").startswith(opening)


@contextlib.contextmanager
def open_result(path: str | None, keys: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Hold a single file for a result, and yield what writes it; without a path nothing is written.

    Args:
        path: the JSON file.
        keys: by which a result that lies there already is known to be ours.

    Raises:
        UserError: its folder is missing or cannot be written, a file lies there that no evaluation wrote, or
            another evaluation is at work on it.
    """
    if path is None:
        yield lambda result: None
        return
    target = Path(path)
    check_name(target.name, "output")
    if not target.parent.is_dir():
        raise UserError(f"output {path}: its folder does not exist; create it")
    if target.exists() and not target.is_file():
        raise UserError(f"output {path}: is no regular file; give a path where one can be written")
    make_output_folder(target.parent)  # it is there: can it be written?
    with hold_lock(lock_path(target), f"output {path}"):
        if target.exists() and not _has_keys(target, keys):
            raise UserError(
                f"output {path}: lies there, and no evaluation wrote it; move it away, or give another output"
            )

        def write(result: Mapping[str, Any]) -> None:
            with writable(target):
                write_json(target, result)

        yield write


def _has_keys(path: Path, keys: Sequence[str]) -> bool:
    try:
        data = read_json(path, "a result of an evaluation")
    except UserError:
        return False
    return isinstance(data, Mapping) and all(key in data for key in keys)


def make_output_folder(path: str | Path) -> Path:
    """Make a folder for results, and try whether files can be written there.

    Raises:
        UserError: a file of that name, or a place that cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output {folder}: {error.strerror}; give a folder that can be written") from error
    except ValueError as error:  # a path that holds a null character
        raise UserError(f"output {path!r}: {error}; give a folder that can be written") from error
    return folder


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output {path}: {error.strerror}; give a path that can be written") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; a link stays a link."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
