"""The modules of `ivg eval`, and how bad input to one of them must end."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(name):
    return importlib.import_module(f"ivg.commands.eval.{name}")


def refused(capsys, main, argv):
    """Run a script's `main` on bad input and return the one line that it prints."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error: ") == 1
    line = error.splitlines()[-1]  # progress bars may stand above it
    assert line.startswith("error: ")
    return line
