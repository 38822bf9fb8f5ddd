"""The house in figures: `python -m tests.layering_report [FOLDER]` prints rooms, floors, arrows and sizes.

FOLDER is the root of a checkout; another than this one may be given, to compare with an earlier layout.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up; a room imports from itself and from the floors below.
ROOMS = (
    ("errors",),
    ("config",),
    ("models", "decoding"),
    ("rewards",),
    ("engines",),
    ("run",),
    ("hf", "serve", "training", "evaluation"),
    ("commands",),
    ("ivg",),  # the package itself, which re-exports, and the command
)


def source_files(folder: Path) -> list[Path]:
    """Return the Python files of a package, leaving out build products."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Return, for each module of `ivg`, the modules of `ivg` that it imports, wherever in the file."""
    package = root / "ivg"
    files = {_dotted(path, root): path for path in source_files(package)}
    return {module: _imports(path, set(files)) - {module} for module, path in files.items()}


def room_of(module: str) -> str:
    """Return the folder below `ivg` that a module stands in, or its own name at the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else "ivg"


def room_arrows(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return which room imports from which other."""
    return {
        (room_of(module), room_of(target))
        for module, targets in graph.items()
        for target in targets
        if room_of(module) != room_of(target)
    }


def num_floors(graph: dict[str, set[str]]) -> int:
    """Return the length of the longest way down from room to room; circles count as one floor."""
    below: dict[str, set[str]] = {}
    for upper, lower in room_arrows(graph):
        below.setdefault(upper, set()).add(lower)
        below.setdefault(lower, set())

    def depth(room: str, seen: tuple[str, ...]) -> int:
        return 1 + max((depth(r, (*seen, r)) for r in below[room] if r not in seen), default=0)

    return max((depth(room, (room,)) for room in below), default=0)


def num_lines(paths: list[Path]) -> int:
    """Count lines."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def main(root: Path) -> None:
    """Print the figures."""
    graph = import_graph(root)
    arrows = room_arrows(graph)
    sizes = Counter(dict.fromkeys(map(room_of, graph), 0))
    files = Counter(map(room_of, graph))
    for path in source_files(root / "ivg"):
        sizes[room_of(_dotted(path, root))] += num_lines([path])
    print(f"modules at the root of ivg/: {len(list((root / 'ivg').glob('*.py')))}")
    print(f"boxes (rooms and modules at the root): {len(sizes)}, floors: {num_floors(graph)}")
    print(f"arrows between boxes: {len(arrows)}, between modules: {sum(map(len, graph.values()))}")
    print(f"modules: {len(graph)}, lines: {sum(sizes.values())}")
    for room, lines in sorted(sizes.items()):
        targets = ", ".join(sorted(lower for upper, lower in arrows if upper == room))
        print(f"  {room}: {files[room]} files, {lines} lines, imports {targets or 'nothing'}")


def _dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, known: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= submodules or {node.module}
    return {name for name in found if name.split(".")[0] == "ivg"}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
