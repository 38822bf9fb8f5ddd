"""vLLM is imported in its engine's folder alone, and not by what a dry run asks."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3] / "ivg"
HERE = ROOT / "engines" / "vllm"


def imports_vllm(path: Path) -> bool:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return "vllm" in {name.split(".")[0] for name in names}


def test_vllm_is_imported_in_its_folder_alone() -> None:
    found = {path for path in ROOT.rglob("*.py") if imports_vllm(path)}
    assert found
    # The benchmark also runs vLLM without any guidance, beside the engine.
    found.discard(ROOT / "commands" / "eval" / "bench_engines.py")
    assert all(HERE in path.parents or ROOT / "serve" in path.parents for path in found)
    assert not found & {HERE / "refusals.py", HERE / "description.py"}
