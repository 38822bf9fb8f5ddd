"""`ivg view`: one HTML page that replays the searches of a trace.

What is wrong with the arguments and the files is said without torch, which is not needed at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ivg.errors import UserError
from ivg.evaluation.output_folder import check_name, make_output_folder, writable, write_whole
from ivg.evaluation.traces import read_trace_lines
from ivg.evaluation.view.page import PAGE_OPENING, html
from ivg.evaluation.view.search_tree import response_data

_LARGE_PAGE = 64e6  # characters; browsers take several seconds to open more


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message} (see ivg view --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page.

    Raises:
        UserError: a file that is no trace, or an output that cannot be written or is not ours.
    """
    parser = _Parser(
        prog="ivg view",
        description="Write one HTML page, which needs no network, that replays the searches of a trace: "
        "which candidates each chunk had, which survived and why, and what guidance added to each token.",
        allow_abbrev=False,
    )
    parser.add_argument("trace", metavar="TRACE", help="what ivg-decode --trace FILE wrote")
    parser.add_argument(
        "--output", metavar="FILE.html", help="page to write, '-' for standard output (TRACE with .html)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N responses")
    given = parser.parse_args(arguments)
    if given.limit is not None and given.limit < 1:
        raise UserError(f"limit is {given.limit}; give an integer >= 1")
    trace = Path(given.trace)
    lines = read_trace_lines(trace, half_surrogates=True)[: given.limit]
    if not lines:
        raise UserError(f"{trace}: empty; give a trace of ivg-decode with at least one response")
    page = html(trace.name, [response_data(row, where) for where, row in lines])
    if given.output == "-":
        sys.stdout.write(page)
        return 0
    output = Path(given.output or trace.with_suffix(".html"))
    _require_ours(output)
    with writable(output):
        write_whole(output, page.encode())
    number = f"{len(lines)} response{'' if len(lines) == 1 else 's'}"
    sys.stdout.write(f"{output}: {number}, {len(page.encode()) / 1e6:.2f} MB\n")
    if len(page) > _LARGE_PAGE:
        sys.stderr.write("warning: browsers open a page of this size slowly; --limit N takes fewer\n")
    return 0


def _require_ours(output: Path) -> None:
    """Refuse an output that cannot be written, or a file there that is no page of ours."""
    check_name(output.name, "output")
    if not output.parent.is_dir():
        raise UserError(f"output {output}: its folder does not exist; create it")
    if output.exists() and not output.is_file():
        raise UserError(f"output {output}: is no regular file; give a path where one can be written")
    make_output_folder(output.parent)  # it is there: can it be written?
    if output.exists() and not _opens_as_ours(output):
        raise UserError(
            f"output {output}: lies there, and ivg view did not write it; move it away, or give another "
            "--output"
        )


def _opens_as_ours(path: Path) -> bool:
    opening = PAGE_OPENING.encode()
    with writable(path), path.open("rb") as file:
        return file.read(len(opening)) == opening
