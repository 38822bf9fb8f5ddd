"""The one exception for mistakes a user can mend, and how scripts end on it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """The user's input or configuration is wrong.

    The message is one line: what was given, what was expected, what to do.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


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


def fail(message: str) -> NoReturn:
    """Print one line on stderr from the main process and leave with exit code 2."""
    if is_main_process():
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(EXIT_USER_ERROR)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap a script's `main`: a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            fail(str(error))

    return wrapper
