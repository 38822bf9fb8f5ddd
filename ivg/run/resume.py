"""Resume: work in blocks whose lines are appended to files, so that a killed run goes on where it was.

Every line of a file has its place and says what it answers (its key). On opening, lines are compared with
what belongs there; what is no longer as it was written is named, cut off, and made again. Decoding, whose
blocks share one file or are divided among processes, and rollouts, with a file for each block, both work so.
Whether a run may go on at all is said by the manifest (`output_files.py`); training resumes from its
checkpoints (`training/resume.py`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ivg.errors import UserError

logger = logging.getLogger(__name__)

Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Lines:
    """What a file must hold.

    Attributes:
        keys: for each line, what it answers.
        key_of: reads the same out of a line; raises `KeyError` or `TypeError` where it is no such line.
    """

    keys: Sequence[str]
    key_of: Callable[[Line], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Digest:
    """What a file held when a block was finished; kept elsewhere, it tells whether that is still there."""

    num_lines: int
    num_bytes: int
    sha256: str


class BlockSource(Protocol):
    """Makes the lines of a block."""

    def lines(self, block: int) -> Iterator[Sequence[Line]]:
        """Yield, for each place of the block, the line of each file."""
        ...

    def skip(self, block: int) -> None:
        """Count a block whose lines are all there."""
        ...


def fill(files: Sequence[LineFile], source: BlockSource, block: int, places: range) -> bool:
    """Append what a block lacks; one that was interrupted is made again whole, so that it comes out the same.

    Args:
        files: each gets one line for every place.
        source: makes the lines.
        block: its number.
        places: the lines of each file that are the block's.

    Returns:
        Whether anything was missing.

    Raises:
        OSError: a file was changed by something else, or cannot be written any further.
    """
    if all(file.num_lines >= places.stop for file in files):
        source.skip(block)
        return False
    for place, lines in zip(places, source.lines(block), strict=True):
        for file, line in zip(files, lines, strict=True):
            if file.num_lines == place:
                file.append(line)
    for file in files:
        file.check_untouched()
    return True


class LineFile:
    """An append-only JSONL file, known line by line; a link to it stays one.

    Args:
        path: where it is, or will be.
        expected: its lines.
        digest: what it held when it was last known to be whole.

    Raises:
        UserError: it cannot be written, or holds more lines than belong there.
    """

    def __init__(self, path: Path, expected: Lines, digest: Digest | None = None) -> None:
        self.path = path
        refuse_other(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise UserError(f"output {path}: {error.strerror}; give a path that can be written") from error
        try:
            scan = scan_lines(path, expected, digest)
            scan.warn(path)
            if os.fstat(self._file.fileno()).st_size != scan.num_bytes:
                self._file.truncate(scan.num_bytes)
        except BaseException:
            self._file.close()
            raise
        self.num_lines, self._num_bytes, self._hash = scan.num_lines, scan.num_bytes, scan.hash

    def append(self, line: Line) -> None:
        """Write one line so that a kill loses nothing before it."""
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        self._hash.update(data)
        self._num_bytes += len(data)
        try:
            while data:  # unbuffered: what a full disk refuses is not tried again when the file is closed
                data = data[self._file.write(data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.num_lines += 1

    def check_untouched(self) -> None:
        """Refuse to go on with a file that something else has cut, written to, moved or removed.

        Raises:
            OSError: it did.
        """
        own = os.fstat(self._file.fileno())
        try:
            is_there = os.path.samestat(own, self.path.stat())
        except FileNotFoundError:
            is_there = False
        if not is_there or own.st_size != self._num_bytes:
            what = "was cut or written to" if is_there else "was moved or removed"
            raise OSError(
                errno.ESTALE, f"{what} by something else while it was written; run again", str(self.path)
            )

    @property
    def digest(self) -> Digest:
        """What it holds now."""
        return Digest(self.num_lines, self._num_bytes, self._hash.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """What of a file can be kept.

    Attributes:
        num_lines: lines from the start that are as they should be.
        num_bytes: their length.
        hash: of them.
        problem: what is wrong with what follows, or None; a last line that a kill cut short is no problem.
    """

    num_lines: int
    num_bytes: int
    hash: hashlib._Hash
    problem: str | None

    def warn(self, path: Path) -> None:
        """Say what will be made again."""
        if self.problem is not None:
            again = f"everything after line {self.num_lines} is made again"
            logger.warning("output %s: %s; %s", path, self.problem, again)


def scan_lines(path: Path, expected: Lines, digest: Digest | None = None) -> Scan:
    """Read a file as far as its lines are whole and answer what they should.

    Before a fault, lines of records that occur several times are not trusted either: where a line is missing,
    those of equal records may have moved up unseen.

    Raises:
        UserError: all expected lines are there, and more.
    """
    is_as_it_was = digest is None or _begins_with(path, digest)
    num_lines, problem = _count_good_lines(path, expected)
    if problem is None and not is_as_it_was and digest is not None:
        if num_lines >= digest.num_lines:  # every line is in its place, but not as it was written
            num_lines, problem = 0, "its lines are not those that were written"
        else:
            problem = f"ends after line {num_lines}, where there were {digest.num_lines}"
    if problem is not None:
        num_known = digest.num_lines if digest is not None and is_as_it_was else 0
        counts = Counter(expected.keys)
        while num_lines > num_known and counts[expected.keys[num_lines - 1]] > 1:
            num_lines -= 1
    hasher, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        for line in itertools.islice(file, num_lines):
            hasher.update(line)
            num_bytes += len(line)
    return Scan(num_lines, num_bytes, hasher, problem)


def _count_good_lines(path: Path, expected: Lines) -> tuple[int, str | None]:
    """Return how many lines from the start are in their place, and what is wrong with the next."""
    num_lines = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):  # a kill left it unfinished
                break
            if num_lines == len(expected.keys):
                count = num_lines + 1 + sum(1 for _ in file)
                raise UserError(
                    f"output {path}: holds {count} rows, but this run makes {num_lines}; "
                    "something else wrote there; give another output, or overwrite"
                )
            fault = _find_fault(line, expected.keys[num_lines], expected.key_of)
            if fault is not None:
                return num_lines, f"line {num_lines + 1} {fault}"
            num_lines += 1
    return num_lines, None


def _begins_with(path: Path, digest: Digest) -> bool:
    """Tell whether a file still begins with what it held."""
    hasher, left = hashlib.sha256(), digest.num_bytes
    with path.open("rb") as file:
        while left and (piece := file.read(min(left, 2**20))):
            hasher.update(piece)
            left -= len(piece)
    return left == 0 and hasher.hexdigest() == digest.sha256


def _find_fault(line: bytes, key: str, key_of: Callable[[Line], str]) -> str | None:
    """Say what is wrong with a line, if something is."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return "is no JSON"
    try:
        is_right = isinstance(found, dict) and key_of(found) == key
    except (KeyError, TypeError):
        is_right = False
    return None if is_right else "does not answer the record whose turn it is"


def refuse_other(path: Path) -> None:
    """Refuse a path that exists and is no regular file, where lines could not be read again.

    Raises:
        UserError: a folder, a pipe, or a device such as `/dev/null`.
    """
    try:
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise UserError(f"output {path}: {error.strerror}; give a path that can be written") from error
    except ValueError as error:  # a path that holds a null character
        raise UserError(f"output {str(path)!r}: {error}; give a path that can be written") from error
    if is_other:
        raise UserError(f"output {path}: is no regular file; give a path where one can be written")
