"""Rooms import only from rooms below, scripts import no scripts, the wheel holds `ivg` alone."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.layering_report import ROOMS, import_graph, room_of, source_files

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in ("train", "eval") for path in (ROOT / folder).glob("*.py"))
ENGINES = sorted(
    path.name for path in (ROOT / "ivg" / "engines").iterdir() if path.is_dir() and path.name[0] != "_"
)


def test_every_file_stands_in_a_room():
    at_the_root = {path.stem for path in (ROOT / "ivg").glob("*.py")}
    assert at_the_root <= {"__init__", "errors"} | {"__main__"}
    folders = {path.name for path in (ROOT / "ivg").iterdir() if (path / "__init__.py").is_file()}
    assert folders | {"errors"} == {room for floor in ROOMS for room in floor} & (folders | {"errors"})


def test_rooms_import_from_rooms_below():
    floor = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
    upward = [
        f"{module} imports {target}"
        for module, targets in import_graph().items()
        for target in targets
        if room_of(module) != room_of(target) and floor[room_of(target)] >= floor[room_of(module)]
    ]
    assert not upward


def test_no_two_modules_import_each_other():
    graph = {module: targets - {module} for module, targets in import_graph().items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
    assert set(graph) <= set(order)


@pytest.mark.parametrize("room", ["config", "decoding"])
def test_the_paper_knows_no_transformers(room):
    """Formulas and settings can be read, and used, without any model library."""
    for path in sorted((ROOT / "ivg" / room).rglob("*.py")):
        names = {name.split(".")[0] for name in _imported(path)}
        assert not names & {"transformers", "vllm", "peft", "accelerate"}, path
        if room == "config":
            assert "torch" not in names, path


def test_engines_do_not_know_each_other():
    for module, targets in import_graph().items():
        if module.startswith("ivg.engines."):
            own = module.split(".")[2]
            known = {target.split(".")[2] for target in targets if target.startswith("ivg.engines.")}
            assert not known & (set(ENGINES) - {own}), module


def test_only_lockstep_asks_for_the_cpu_folder_and_in_one_place():
    """`engines/lockstep/cpu` is a guest: delete it, and nothing else changes."""
    guest = "ivg.engines.lockstep.cpu"
    hosts = {
        module
        for module, targets in import_graph().items()
        if not module.startswith(guest) and any(target.startswith(guest) for target in targets)
    }
    assert len(hosts) <= 1, hosts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_import_no_script(path):
    siblings = {script.stem for script in SCRIPTS} | {"train", "eval"}
    assert not {name.split(".")[0] for name in _imported(path)} & siblings


def test_the_wheel_holds_the_package_alone():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    assert {name.split(".")[0] for name in found} == {"ivg"}
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in source_files(ROOT / "ivg")
        if path.stem == "__init__"
    }
    assert set(found) == folders


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return plain | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
