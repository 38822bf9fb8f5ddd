"""The `ivg-decode` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from ivg.decoding import NumericalError
from ivg.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error, is_main_process
from ivg.flags import CommandLine, parse
from ivg.runner import prepare, run

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
        return _end(f"interrupted; the same command goes on from {line.config.output}", EXIT_INTERRUPTED)
    except NumericalError as error:
        return _end(f"error: {error}", EXIT_FAILURE)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        return _end(f"error: {error.filename or line.config.output}: {error.strerror}", EXIT_FAILURE)


def _run(line: CommandLine) -> int:
    job = prepare(line.config)
    run(job, overwrite=line.overwrite)
    return 0


def _end(message: str, code: int) -> int:
    if is_main_process():
        sys.stderr.write(message + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
