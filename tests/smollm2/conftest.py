"""The recipe's modules are scripts beside their YAML: put their folder and the quickstart's on the path."""

import importlib.util
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path[:0] = [str(RECIPES / "smollm2"), str(RECIPES / "quickstart")]


def load_script(name):
    """Import a script by its place: the quickstart has some of the same name."""
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", RECIPES / "smollm2" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
