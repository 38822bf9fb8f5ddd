"""The one exception for mistakes a user can mend, and how scripts end on it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """The user's input or configuration is wrong.

    The message is one line: what was given, what was expected, what to do.
    """


class RunError(RuntimeError):
    """Work that was rightly asked for cannot go on; what was finished is saved.

    The message is one line: what failed, on what.
    """


class ProcessLostError(RunError):
    """One of several processes that share a job has ended, so the others cannot go on."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with its type where the message alone says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    if line and not isinstance(
        error, LookupError | ArithmeticError | AssertionError | SystemExit | MemoryError
    ):
        return line
    return f"{type(error).__name__}{': ' if line else ''}{line}"


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn whatever a foreign reader raises on a broken file into a `UserError` of one line.

    Args:
        what: opens the message, such as `base (runs/base): cannot be loaded`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of weights, tokenizers and tables raise what they please
        raise UserError(f"{what}: {first_line(error)}") from error


def is_main_process() -> bool:
    """Tell whether this process speaks for the whole job (rank 0, or the only one)."""
    return os.environ.get("RANK", "0") == "0"


def fail(message: str, code: int = EXIT_USER_ERROR) -> NoReturn:
    """Print one line on stderr and leave; of several processes, only the main one tells a user's mistake."""
    if is_main_process() or code != EXIT_USER_ERROR:
        sys.stderr.write(f"error: {_shown(message)}\n")
    sys.exit(code)


def _shown(message: str) -> str:
    """Return a message on one line; what came from a file may steer a terminal, or be half a character."""
    line = " ".join(message.split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def end_interrupted() -> NoReturn:
    """Print one line on stderr from the main process and leave with exit code 130."""
    if is_main_process():
        sys.stderr.write("interrupted\n")
    sys.exit(EXIT_INTERRUPTED)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap a script's `main`: a `UserError` becomes one line and exit code 2, Ctrl-C one and 130.

    A `RunError` becomes one line and 1, and so does a file that the system refuses. A process of several
    that ends alone is told of by those that were left behind: one line each, and 1.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            fail(str(error))
        except ProcessLostError as error:
            sys.stderr.write(f"error: {_shown(str(error))}\n")
            sys.stderr.flush()
            os._exit(EXIT_FAILURE)  # whoever waits for the lost process at exit waits for ever
        except RunError as error:
            fail(str(error), EXIT_FAILURE)
        except OSError as error:
            if error.filename is None or error.strerror is None:  # not of a file, so perhaps ours
                raise
            fail(f"{error.filename}: {error.strerror}", EXIT_FAILURE)
        except KeyboardInterrupt:
            end_interrupted()

    return wrapper


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Stand around a script's imports: a package that is not installed becomes one line and exit code 2.

    Args:
        extra: the extra of `pyproject.toml` that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "ivg"):
            raise
        fail(_not_installed(module, extra))
    except KeyboardInterrupt:  # imports take seconds
        end_interrupted()


def require_module(module: str, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, before anything is computed for it.

    Args:
        module: what is imported.
        extra: the extra of `pyproject.toml` that brings it.
        purpose: what needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{purpose}: {_not_installed(module, extra)}")


def _not_installed(module: str, extra: str) -> str:
    is_checkout = (Path(__file__).parents[1] / "constraints.txt").is_file()
    what = f"-c constraints.txt -e '.[{extra}]'" if is_checkout else f"'ivg[{extra}]'"
    return f"{module} is not installed; run: pip install {what}"
