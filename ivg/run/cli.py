"""The `ivg-decode` command.

Flags, YAML, input and model folders are checked before torch and transformers are imported, which takes
seconds: whoever mistypes something is told at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ivg.decoding.engine import EngineError, NumericalError
from ivg.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    ProcessLostError,
    UserError,
    exit_on_user_error,
    first_line,
    is_main_process,
)
from ivg.models.folders import require_folders
from ivg.run import console
from ivg.run.command_line import CommandLine, parse
from ivg.run.input_files import InputRecord, read_input
from ivg.run.output_files import check_paths

if TYPE_CHECKING:
    from ivg.decoding.streaming import NewText


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run `ivg-decode`; the exit code is 0, 1, 2 or 130 as the README says."""
    line = parse(sys.argv[1:] if argv is None else argv)
    console.set_up(quiet=line.quiet, verbose=line.verbose)
    try:
        return _run(line)
    except KeyboardInterrupt:
        return _end(f"interrupted{_say_how_to_go_on(line)}", EXIT_INTERRUPTED)
    except EngineError as error:
        return _end(f"error: {error}{_say_how_to_go_on(line)}", EXIT_FAILURE)
    except (NumericalError, ProcessLostError) as error:
        return _end(f"error: {error}", EXIT_FAILURE)
    except OSError as error:
        if error.errno is None:  # not of a file: a Hub that cannot be reached, say
            return _end(f"error: {first_line(error)}", EXIT_FAILURE)
        return _end(f"error: {error.filename or _unnamed_output(line)}: {error.strerror}", EXIT_FAILURE)


def _run(line: CommandLine) -> int:
    config = line.config
    if not line.dry_run:
        check_paths(config)
    records = read_input(config.input, config.dataset, config.limit)
    require_folders(config.base, config.pairs, config.values)
    _quieten_transformers()
    if line.dry_run:
        return _examine(line, records)
    from ivg.run.job import prepare
    from ivg.run.runner import run

    job = prepare(config, records, references=line.references)
    summary = run(job, overwrite=line.overwrite, on_text=_print_text if line.stream else None)
    if line.json and is_main_process():
        console.print_json(summary)
    else:
        console.note(_tell(summary))
    return 0


def _tell(summary: Mapping[str, Any]) -> str:
    tokens, seconds = summary["num_tokens"], summary["seconds"]
    speed = f" ({tokens / seconds:,.0f} tokens/s)" if seconds > 0 else ""
    where = "standard output" if summary["output"] == "-" else summary["output"]
    return f"{where}: {summary['num_results']:,} results; {tokens:,} tokens decoded in {seconds:.1f} s{speed}"


def _quieten_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    if not console.is_verbose():
        transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _examine(line: CommandLine, records: list[InputRecord]) -> int:
    """Say whether the run could start; exit code 2 if not."""
    from rich.console import Console

    from ivg.run.dry_run import as_json, examine_run, render
    from ivg.run.job import prepare

    config = line.config
    usable = [record.fields for record in records if record.error is None]
    report = examine_run(config, usable or [{"prompt": "?"}])
    if not report.problems:
        try:  # whatever else would stop the run; only where its output goes may be left open here
            config = config if config.output else dataclasses.replace(config, output="-", trace=None)
            prepare(config, records)
        except UserError as error:
            report = dataclasses.replace(report, problems=(str(error),))
    if line.json:
        console.print_json(as_json(report))
    else:
        Console().print(render(report))
    return EXIT_USER_ERROR if report.problems else 0


def _print_text(piece: NewText) -> None:
    sys.stdout.write(json.dumps(piece._asdict(), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _say_how_to_go_on(line: CommandLine) -> str:
    saved = not line.dry_run and line.config.output != "-"
    return f"; the same command goes on from {line.config.output}" if saved else ""


def _unnamed_output(line: CommandLine) -> str:
    """Name the output of an error that does not: files name themselves, standard output does not."""
    if line.config.output != "-" and not line.stream:
        return str(line.config.output)
    # What is still buffered would fail once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return "standard output"


def _end(message: str, code: int) -> int:
    """Print a message and return the exit code; what one process alone met, only that one can say."""
    if is_main_process() or code == EXIT_FAILURE:
        by = "" if is_main_process() else f"process {os.environ['RANK']}: "
        sys.stderr.write(f"{by}{message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
