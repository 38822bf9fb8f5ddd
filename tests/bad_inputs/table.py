"""What every table of bad inputs shares: a case, and how it is tried.

A command's table (`test_decode.py`, ...) is a list of `Case`; each is tried in this process through the
command's `main(argv)` and must end with exit code 2 and one line on stderr. To add a command, write its table
beside these and call `refusal` with its `main`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Case(NamedTuple):
    """One bad input.

    Attributes:
        name: identifies the test.
        make: gets an empty folder and returns the command line; may write files there.
        expected: must stand in the one line that is printed.
    """

    name: str
    make: Callable[[Path], Sequence[object]]
    expected: str


def refusal(
    main: Callable[[Sequence[str]], object], argv: Sequence[object], capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a command, which must leave with code 2 and one line on stderr; return the line."""
    code: object = None
    try:
        code = main([str(argument) for argument in argv])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    assert code == 2, said.err
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in said.out + said.err
    return lines[0]


def copied(model: str, folder: Path) -> Path:
    """Copy a model's folder, to be damaged."""
    shutil.copytree(model, folder)
    return folder
