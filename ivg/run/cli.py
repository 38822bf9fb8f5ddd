"""The `ivg-decode` command."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from transformers.utils import logging as transformers_logging

from ivg.config import DecodeConfig
from ivg.decoding.engine import NumericalError
from ivg.decoding.streaming import NewText
from ivg.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    UserError,
    exit_on_user_error,
    first_line,
    is_main_process,
)
from ivg.run.command_line import CommandLine, parse
from ivg.run.dry_run import examine_run
from ivg.run.dry_run_view import render
from ivg.run.input_files import read_input
from ivg.run.job import prepare
from ivg.run.runner import run

EXIT_FAILURE = 1


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run `ivg-decode`; the exit code is 0, 1, 2 or 130 as the README says."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    line = parse(sys.argv[1:] if argv is None else argv)
    try:
        return _run(line)
    except KeyboardInterrupt:
        saved = not line.dry_run and line.config.output != "-"
        goes_on = f"; the same command goes on from {line.config.output}" if saved else ""
        return _end(f"interrupted{goes_on}", EXIT_INTERRUPTED)
    except NumericalError as error:
        return _end(f"error: {error}", EXIT_FAILURE)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        if error.errno is None:  # not of a file: a Hub that cannot be reached, say
            return _end(f"error: {first_line(error)}", EXIT_FAILURE)
        return _end(f"error: {error.filename or _unnamed_output(line)}: {error.strerror}", EXIT_FAILURE)


def _unnamed_output(line: CommandLine) -> str:
    """Name the output of an error that does not: files name themselves, standard output does not."""
    if line.config.output != "-" and not line.stream:
        return str(line.config.output)
    # What is still buffered would fail once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return "standard output"


def _run(line: CommandLine) -> int:
    if line.dry_run:
        return _diagnose(line.config)
    job = prepare(line.config)
    run(job, overwrite=line.overwrite, on_text=_print_text if line.stream else None)
    return 0


def _diagnose(config: DecodeConfig) -> int:
    """Say whether the run could start; exit code 2 if not."""
    rows = read_input(config.input, config.dataset, config.limit)
    usable = [source.row for source in rows if source.error is None]
    report = examine_run(config, usable or [{"prompt": "?"}])
    if not report.problems:
        try:  # whatever else would stop the run; only where its output goes may be left open here
            prepare(config if config.output else dataclasses.replace(config, output="-", trace=None), rows)
        except UserError as error:
            report = dataclasses.replace(report, problems=(str(error),))
    Console().print(render(report))
    return EXIT_USER_ERROR if report.problems else 0


def _print_text(piece: NewText) -> None:
    sys.stdout.write(json.dumps(piece._asdict(), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _end(message: str, code: int) -> int:
    """Print a message and return the exit code; what one process alone met, only that one can say."""
    if is_main_process() or code == EXIT_FAILURE:
        by = "" if is_main_process() else f"process {os.environ['RANK']}: "
        sys.stderr.write(f"{by}{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
