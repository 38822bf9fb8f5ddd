"""What the fuzz tests of evaluation share: inputs changed in one place, and how a command is tried."""

import contextlib
import copy
import io
import json
import tempfile
import warnings
from pathlib import Path

import yaml
from hypothesis import event
from hypothesis import strategies as st

TEXTS = st.sampled_from(
    [
        "",
        "x",
        "../../x",
        "/dev/zero",
        "[/b]",
        "$x^{$",
        "<img src=x>",
        "\x00",
        "\x1b[2J",
        "\ud800",
        "é" * 300,
        "nan",
    ]
)
NUMBERS = st.sampled_from([0, -1, 1, 2, 2**31, 2**70, 0.5, 1e308, float("nan"), float("inf"), 10**400])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
RAW = st.sampled_from(
    [b"", b"\x00", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000, b"null", b"[]", b"{", b"<html>"]
)


def places(document, path=()):
    """Yield the way to every place of a document."""
    yield path
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(value, (*path, key))


@st.composite
def changed(draw, document):
    """Draw a document with another value, or none, in one place; or bytes that are no document."""
    if draw(st.integers(0, 9)) == 0:
        return draw(RAW)
    path = draw(st.sampled_from(list(places(document))))
    if not path:
        return draw(JUNK)
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if draw(st.integers(0, 3)) == 0:
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw(JUNK | _of_its_kind(holder[path[-1]]))
    return document


def _of_its_kind(value):
    """Return values that pass the first look at a type, and so get further."""
    if isinstance(value, str):
        return TEXTS
    return NUMBERS if isinstance(value, int | float) and not isinstance(value, bool) else JUNK


def as_bytes(document, dump=json.dumps):
    return document if isinstance(document, bytes) else dump(document).encode("utf-8", "surrogatepass")


def as_yaml(document):
    return as_bytes(document, lambda data: yaml.safe_dump(data, allow_unicode=True))


def lines(rows):
    return rows if isinstance(rows, bytes) else b"".join(as_bytes(row) + b"\n" for row in rows)


def run(main, argv):
    """Run a command's `main`, which may return or refuse, and nothing else."""
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of numbers that are too large to draw: people see them as they are
        code = None
        try:
            main([str(argument) for argument in argv])
        except SystemExit as left:
            code = left.code
    event("done" if code is None else "refused")
    assert code in (None, 2), said.getvalue()
    assert said.getvalue().count("error: ") == (code == 2)
    assert "Traceback" not in said.getvalue()


@contextlib.contextmanager
def empty_folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
