"""Imports only point down, scripts import `ivg` and never each other, and the wheel holds `ivg` alone."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
# From the bottom up; a module imports from its own layer and those below it.
LAYERS = (
    ("errors", "kernels"),
    ("architectures", "config", "config_file", "prompts", "vocab", "shared_strings"),
    ("hypotheses", "sampling", "search"),
    ("guidance", "packing"),
    ("inspection", "fit", "plan", "lockstep"),
    ("prompt_search", "decoding", "loading"),
    ("response_text", "text_guides", "binding", "streaming"),
    ("engine", "api", "hf"),
    ("rewards", "records", "sources", "trace", "processes"),
    ("blocks", "runner", "memory", "diagnosis", "doctor", "doctor_view"),
    ("training", "evaluation", "benchmark"),
    ("convert", "flags", "command_line"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SCRIPTS = sorted(path for folder in ("train", "eval") for path in (ROOT / folder).glob("*.py"))


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "ivg").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= submodules or {node.module}
    return {name for name in found if name.split(".")[0] == "ivg"}


def level(module: str) -> int:
    """Return a module's layer; the package itself re-exports the Python interface."""
    part = module.split(".")[1] if "." in module else "api"
    assert part in LEVEL, f"ivg/{part} has no layer yet: give it one in {Path(__file__).name}"
    return LEVEL[part]


def test_imports_point_down_the_layers():
    known = modules()
    upward = [
        f"{module} imports {target}"
        for module, path in known.items()
        for target in imports(path, set(known))
        if level(target) > level(module)
    ]
    assert not upward


def test_no_two_modules_import_each_other():
    known = modules()
    graph = {module: imports(path, set(known)) - {module} for module, path in known.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
    assert set(known) <= set(order)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_import_no_script(path):
    siblings = {script.stem for script in SCRIPTS} | {"train", "eval"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert not imported & siblings


def test_the_wheel_holds_the_package_alone():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    assert {name.split(".")[0] for name in found} == {"ivg"}
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ivg").rglob("__init__.py")}
    assert set(found) == folders
