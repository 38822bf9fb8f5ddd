"""Files that an evaluation is given: read whole, or refused in one line that names the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from ivg.errors import UserError

LONGEST_INTEGER = 300  # digits, of which every float can hold so many


def read_text(path: Path, wanted: str) -> str:
    """Read a regular file of UTF-8 text.

    Args:
        path: the file; a pipe or a device is refused, which could be waited for without end.
        wanted: what is expected, for messages: `AlpacaEval's model_outputs.json`.

    Raises:
        UserError: no such file, no regular file, one that cannot be read, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: no regular file; give {wanted}")
        with path.open(encoding="utf-8", newline="\n") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; give {wanted}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give {wanted}") from error
    except UserError:
        raise
    except ValueError as error:  # a path that holds a null character
        raise UserError(f"{path}: {error}; give {wanted}") from error


def read_json(path: Path, wanted: str) -> Any:
    """Read one JSON value from a file (see `read_text` and `parse_json`)."""
    return parse_json(read_text(path, wanted), str(path), wanted)


def read_json_lines(path: Path, wanted: str, *, half_surrogates: bool = False) -> list[tuple[str, Any]]:
    """Read a JSON value from each line of a file; each comes with its place, for messages."""
    lines = read_text(path, wanted).split("\n")  # str.splitlines would part records at a U+2028 in a text
    if lines[-1] == "":
        lines.pop()
    places = [f"{path}, line {number}" for number in range(1, len(lines) + 1)]
    return [
        (where, parse_json(line, where, "one object per line", half_surrogates=half_surrogates))
        for where, line in zip(places, lines, strict=True)
    ]


def parse_json(text: str | bytes, where: str, wanted: str, *, half_surrogates: bool = False) -> Any:
    """Parse JSON of which every number is finite and every text can be written again.

    Args:
        text: what to parse.
        where: opens messages.
        wanted: what is expected, for messages.
        half_surrogates: let texts hold half a surrogate pair, which cannot be written as UTF-8.

    Raises:
        UserError: anything else, and what is nested too deep or too large a number for Python.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer)
        if not half_surrogates:
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: a text holds half a surrogate pair; give {wanted}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deep; give {wanted}") from error
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); give {wanted}") from error
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is too large a number")
    return number


def _integer(text: str) -> int:
    number = int(text)
    if len(text) > LONGEST_INTEGER:  # it may be beyond what a float holds, and what is counted becomes one
        _finite(text)
    return number
