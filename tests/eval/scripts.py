"""The modules of `ivg eval`, and how bad input to one of them must end."""

import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(name):
    if name == "gpu_check":  # which runs tests of the checkout, and so is no command of the package
        spec = importlib.util.spec_from_file_location(name, ROOT / "eval" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
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
