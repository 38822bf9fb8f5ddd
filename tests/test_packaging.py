"""What is installed, and from where: every direct dependency is pinned, and CI runs what its hashes name."""

import os
import re
import subprocess
import sys
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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What a wheel would hold."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_a_wheel_holds_the_package_and_the_recipes_inside_it(built):
    assert [path.name for path in built.iterdir()] == ["ivg"]
    for inside, beside in ((built / "ivg" / "_recipes", ROOT / "recipes"), (built / "ivg", ROOT / "ivg")):
        for path in beside.rglob("*.py"):
            assert (inside / path.relative_to(beside)).read_bytes() == path.read_bytes()
    packed = {str(path.relative_to(built / "ivg" / "_recipes")) for path in built.rglob("_recipes/**/*.yaml")}
    assert packed == {str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert not [path for path in built.rglob("*") if path.suffix in (".so", ".cpp", ".pyc")]


def test_the_installed_package_has_its_recipes_and_commands_without_a_checkout(built, tmp_path):
    def ivg(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ivg", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(built)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert ivg("recipes", "copy", "tulu").returncode == 0
    copied, own = tmp_path / "recipes" / "tulu", ROOT / "recipes" / "tulu"
    assert {path.name for path in copied.iterdir()} == {path.name for path in own.glob("*.yaml")}
    done = ivg("eval", "report", "--folder", "nowhere")
    assert (done.returncode, done.stderr.startswith("error: ")) == (2, True)
    hint = "from ivg.errors import require_module; require_module('no_such', 'eval', 'this')"
    done = subprocess.run(
        [sys.executable, "-c", hint],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no_such is not installed; run: pip install 'ivg[eval]'" in done.stderr


def test_the_version_is_said_alike_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    (number,) = [i["value"] for i in citation["preferred-citation"]["identifiers"]]
    assert project["urls"]["Paper"].endswith(number.removeprefix("arXiv:"))


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:ivg|tests|recipes|docs|train|eval|\.ci)/[\w./-]*)`", text))
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(
        re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"`make ([\w-]+)", text)
    )
