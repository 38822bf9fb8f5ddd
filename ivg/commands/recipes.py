"""`ivg recipes`: the runs of this project, from the installed package into a folder of the user's.

A recipe is a folder of YAML files, each with the command that runs it in its header. Commands and paths hold
from the folder in which `recipes/` lies, wherever that is: a copy runs as the original does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ivg.config.yaml_file import nearest
from ivg.errors import UserError

_PACKAGE = Path(__file__).parents[1]
_ORDER = (
    "run",
    "real",
    "prepare",
    "train sft",
    "train reward",
    "train rollouts",
    "train dpo",
    "train value",
    "decode",
)
_HIDDEN = shutil.ignore_patterns("__pycache__", ".*")


class Step(NamedTuple):
    """A file of a recipe that a command runs.

    Attributes:
        path: seen from the folder in which `recipes/` lies.
        summary: what it does, in a line.
        command: how it is run from there.
    """

    path: str
    summary: str
    command: str

    @property
    def kind(self) -> str:
        """What runs it: `train dpo`, `decode`, `eval sweep`, or the name of a script."""
        words = [word for word in self.command.split() if "=" not in word]
        if words[0] == "ivg-decode":
            return "decode"
        if words[0] == "ivg":
            name = words[words.index("--config") - 1] if "--config" in words else words[2]
            return f"{words[1]} {name}"
        return Path(words[1]).stem


def find_recipes() -> Path:
    """Return the folder of all recipes: a wheel has it inside the package, a checkout beside it."""
    packaged = _PACKAGE / "_recipes"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "recipes"


def recipe_names(recipes: Path) -> list[str]:
    """Return the names of all recipes: the folders that hold a file with a command."""
    folders = sorted(path for path in recipes.iterdir() if path.is_dir())
    return [folder.name for folder in folders if any(read_steps(folder))]


def read_steps(folder: Path) -> list[Step]:
    """Return what a recipe's files do, in the order in which they are run."""
    found = (_read_step(path, folder.parent) for path in sorted(folder.rglob("*")) if path.is_file())
    steps = [step for step in found if step is not None]
    return sorted(steps, key=lambda step: _ORDER.index(step.kind) if step.kind in _ORDER else len(_ORDER))


def _read_step(path: Path, recipes: Path) -> Step | None:
    """Return what a file does, by the comment or docstring that it opens with; None where no command does."""
    if path.suffix not in (".yaml", ".py"):
        return None
    name = f"recipes/{path.relative_to(recipes).as_posix()}"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        lines = [line[1:].strip() for line in text.splitlines() if line[:1] == "#"]
        commands = [line.partition(":")[2].strip() for line in lines if line.startswith("Command:")]
        return Step(name, _first_sentence(lines), commands[0]) if commands else None
    docstring = text.split('"""')[1] if text.startswith('"""') else ""
    commands = re.findall(rf"^    (python {re.escape(name)}.*?)(?: {{2,}}.*)?$", docstring, re.MULTILINE)
    return Step(name, _first_sentence(docstring.splitlines()[:1]), commands[0]) if commands else None


def _first_sentence(lines: Sequence[str]) -> str:
    """Return what a header says before its fields, up to the end of a sentence."""
    said = itertools.takewhile(lambda line: not line.startswith(("First:", "Command:")), lines)
    return " ".join(said).partition(". ")[0].rstrip(".")


def describe_all(recipes: Path) -> str:
    """Return a line for each recipe: its name, and what it is made of."""
    names = recipe_names(recipes)
    width = max(map(len, names))
    lines = []
    for name in names:
        kinds = Counter(step.kind for step in read_steps(recipes / name) if step.path.endswith(".yaml"))
        parts = [kind if count == 1 else f"{count} x {kind}" for kind, count in kinds.items()]
        lines.append(f"{name:{width}}  {', '.join(parts)}")
    return "\n".join(lines)


def describe(recipes: Path, name: str) -> str:
    """Return what a recipe's files do and how each is run, or the text of one of its files.

    Args:
        recipes: the folder of all recipes.
        name: of a recipe, or `NAME/FILE`.

    Raises:
        UserError: no such recipe, or no such file of it.
    """
    recipe, slash, file = name.removeprefix("recipes/").rstrip("/").partition("/")
    folder = _find(recipes, recipe)
    if slash:
        path = folder / file
        if ".." in path.parts or not path.is_file():
            raise UserError(
                f"recipe {recipe} has no file {file!r:.60}; `ivg recipes show {recipe}` lists them"
            )
        return path.read_text(encoding="utf-8").rstrip("\n")
    return "\n\n".join(f"{step.path}\n  {step.summary}\n  $ {step.command}" for step in read_steps(folder))


def copy(recipes: Path, name: str, destination: str | Path) -> list[Path]:
    """Copy a recipe, and what its files refer to, below `destination/recipes`.

    What a recipe refers to (launch files of accelerate, another recipe) stays as it is where it is there
    already.

    Args:
        recipes: the folder of all recipes.
        name: of the recipe.
        destination: the folder from which its commands will be run; made if need be.

    Returns:
        What was written.

    Raises:
        UserError: no such recipe, one of that name is there, or the folder cannot be written.
    """
    _find(recipes, name)
    target = Path(destination) / "recipes"
    if "\0" in str(destination):
        raise UserError(
            f"{str(destination)!r:.60}: holds a null character; give a folder that can be written"
        )
    try:
        if _is_there(target / name):
            raise UserError(f"{target / name}: is there already; move it away, or name another folder")
        target.mkdir(parents=True, exist_ok=True)
        written = [target / part for part in _belonging(recipes, name) if not _is_there(target / part)]
        # Whole or not at all: everything is copied aside before the first name appears.
        with tempfile.TemporaryDirectory(dir=target, prefix=".copy-") as aside:
            for path in written:
                _copy_one(recipes / path.name, Path(aside) / path.name)
            for path in written:
                (Path(aside) / path.name).rename(path)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; give a folder that can be written") from error
    return written


def _find(recipes: Path, name: str) -> Path:
    names = recipe_names(recipes)
    if name not in names:
        raise UserError(f"{name!r:.60} is no recipe; {nearest(name, names)}")
    return recipes / name


def _belonging(recipes: Path, name: str) -> list[str]:
    """Return a recipe's name and those of the folders and files beside it that its files refer to."""
    belonging, open_names = [name], [name]
    while open_names:
        for text in _texts(recipes / open_names.pop()):
            for other in re.findall(r"\brecipes/([\w.-]+)", text):
                if other not in belonging and (recipes / other).exists():
                    belonging.append(other)
                    open_names.append(other)
    return belonging


def _texts(path: Path) -> Iterator[str]:
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in (".yaml", ".py", ".md"):
            yield file.read_text(encoding="utf-8")


def _is_there(path: Path) -> bool:
    """Tell whether something lies there; an empty folder is as good as nothing."""
    is_empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    return os.path.lexists(path) and not is_empty


def _copy_one(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=_HIDDEN, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message} (see ivg recipes --help)")


def main(arguments: Sequence[str]) -> int:
    """Run `ivg recipes list`, `show` or `copy`.

    Raises:
        UserError: see `describe` and `copy`.
    """
    parser = _Parser(
        prog="ivg recipes", description="The runs of this project as YAML files.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", metavar="list | show | copy", required=True)
    verbs.add_parser("list", help="name all recipes")
    show = verbs.add_parser("show", help="say what a recipe's files do and how each is run")
    show.add_argument("name", metavar="NAME[/FILE]", help="a recipe, or one of its files to print")
    copying = verbs.add_parser("copy", help="copy a recipe into a folder")
    copying.add_argument("name", metavar="NAME", help="a recipe")
    copying.add_argument(
        "folder", nargs="?", default=".", help="it becomes FOLDER/recipes/NAME (default: here)"
    )
    given, recipes = parser.parse_args(arguments), find_recipes()
    if given.verb == "list":
        _say(describe_all(recipes))
    elif given.verb == "show":
        _say(describe(recipes, given.name))
    else:
        written = copy(recipes, given.name, given.folder)
        _say(f"copied {', '.join(map(str, written))}; its commands, to be run from {given.folder}:\n")
        _say(describe(recipes, given.name))
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
