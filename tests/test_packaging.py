"""What is installed, and from where: every direct dependency is pinned, and CI runs what its hashes name."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = {
        _name(line) for line in [*project["dependencies"], *(line for extra in extras for line in extra)]
    }
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line) for line in lines if line.strip() and not line.startswith("#")}
    assert asked <= pinned


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflows_pin_actions_by_hash_and_may_only_read(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)


def test_the_index_of_torch_serves_nothing_else():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--extra-index-url" not in makefile
    for line in makefile.splitlines():
        if "--index-url" in line:
            assert "--no-deps" in line
            assert line.split("--index-url")[1].split()[1].startswith("$(TORCH)")
