"""What a command says, and where: results on stdout, as tables or JSON; progress, notes and logs on stderr.

`--quiet`, `--verbose` and `--json` mean the same for every verb, and are declared and obeyed here. Colours
are those of `rich`, which leaves them out where NO_COLOR is set or nobody looks.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from ivg.errors import UserError, is_main_process
from ivg.run.json_files import plain

QUIET = "say nothing but results and errors: no progress, no notes, no warnings"
VERBOSE = "say what is being done, as it is done"
JSON = "print the result as JSON on stdout, and nothing else there"
_LOGGER = logging.getLogger("ivg")  # its level is how much is said; every module's logger is below it


def add_flags(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    """Declare `--quiet` and `--verbose`, and `--json` where a command has a result to print."""
    group = parser.add_argument_group("what is said")
    group.add_argument("--quiet", action="store_true", help=QUIET)
    group.add_argument("--verbose", action="store_true", help=VERBOSE)
    if json:
        group.add_argument("--json", action="store_true", help=JSON)


def set_up(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send logs to stderr, as many as are wanted.

    Raises:
        UserError: both less and more is asked for.
    """
    if quiet and verbose:
        raise UserError("quiet and verbose exclude each other; give one of them")
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    _LOGGER.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def take_flags(argv: Sequence[str]) -> list[str]:
    """Take `--quiet` and `--verbose` out of a command line whose parser is not ours, and obey them.

    Raises:
        UserError: both are given.
    """
    flags = ("--quiet", "--verbose")
    set_up(quiet="--quiet" in argv, verbose="--verbose" in argv)
    return [word for word in argv if word not in flags]


def is_quiet() -> bool:
    """Tell whether progress and notes are unwanted."""
    return not _LOGGER.isEnabledFor(logging.WARNING)


def is_verbose() -> bool:
    """Tell whether it is wanted to hear what is being done."""
    return _LOGGER.isEnabledFor(logging.INFO)


def note(text: str) -> None:
    """Print a line on stderr, from the main process, unless it is to be quiet."""
    if is_main_process() and not is_quiet():
        sys.stderr.write(f"{text}\n")


def print_json(content: Any) -> None:
    """Print a result on stdout; numbers that JSON does not have become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    # A lone half of a character cannot be written as UTF-8; as an escape it can.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
