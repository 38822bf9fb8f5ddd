"""The result of an evaluation on stdout: tables and notes for people, or the numbers as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from ivg.evaluation.report.tables import Table
from ivg.evaluation.safe_text import say
from ivg.run.console import print_json

# Columns where no terminal says its own: at the usual 80, tables of many columns break every number.
FILE_WIDTH = 160


def show(
    report: Mapping[str, Any], tables: Iterable[Table | None], notes: Iterable[str] = (), *, as_json: bool
) -> None:
    """Print a report.

    Args:
        report: its numbers.
        tables: them as tables; None for one that does not apply.
        notes: what a reader of the tables must know.
        as_json: print the numbers alone.
    """
    if as_json:
        print_json(report)
        return
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    for table in tables:
        if table is not None:
            console.print(table.console())
    for note in notes:
        say(console, note)
