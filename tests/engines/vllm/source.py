"""What a vLLM's source declares, read without importing it: CUDA's build cannot be imported on a CPU."""

from __future__ import annotations

import ast
from pathlib import Path


def find(folder: Path, file: str, name: str) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef:
    """Return the definition of `Class`, `function` or `Class.function`."""
    node: ast.AST = ast.parse((folder / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        named = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name == part
        ]
        assert named, f"{file} has no {name}"
        node = named[-1]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def names_in(folder: Path, file: str, name: str) -> list[str]:
    """Return a function's arguments but `self` and `cls`, or the fields that a class declares."""
    node = find(folder, file, name)
    if isinstance(node, ast.ClassDef):
        return [
            child.target.id
            for child in node.body
            if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name)
        ]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]


def calls_in(folder: Path, file: str, name: str) -> list[str]:
    """Return what a function calls, as it is written, in order of lines: `self.model.compute_logits`."""
    node = find(folder, file, name)
    calls = [child for child in ast.walk(node) if isinstance(child, ast.Call)]
    return [ast.unparse(call.func) for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset))]
